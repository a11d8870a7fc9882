//! Whose fault a failure is, and what follows.
//!
//! | fault | for example | what follows |
//! |---|---|---|
//! | [`Fault::Transient`] | the handler returned an error, panicked, or took too long | the attempt counts; again after a backoff; after the last attempt a dead letter |
//! | [`Fault::Permanent`] | the payload cannot be read; the handler says so | a dead letter at once |
//! | [`Fault::Outage`] | a provider cannot be reached; the handler says so | does not count for up to `max_outage_s`; the event and its key wait, with a backoff, and the others go on |
//! | [`Fault::Environment`] | the database is down, the pool exhausted | does not count; the consumer pauses until it is over |
//! | [`Fault::Conflict`] | serialization failure, deadlock | does not count up to a bound; again soon |
//!
//! An outage therefore never fills the dead letters.
//!
//! The fault of an error is a first guess, made from its class. An event may raise any SQLSTATE by a function of the
//! application, break its own connection, or fail in a second database. So a `Consumer` asks its
//! database before it takes one event's failure for everybody's: see `inbox/src/blame.rs`.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use sqlx::postgres::{PgDatabaseError, PgSeverity};

use crate::error::InboxError;

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Perhaps the event's: it may work the next time. Counts as an attempt.
    Transient,
    /// The event's, for good: it can never be handled.
    Permanent,
    /// That of somebody whom this event needs, and others perhaps not. Does not count, up to a bound.
    Outage,
    /// The surroundings': nothing can be handled now. Does not count.
    Environment,
    /// Two transactions got in each other's way. Does not count, up to a bound.
    Conflict,
}

impl Fault {
    /// Its name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Permanent => "permanent",
            Self::Outage => "outage",
            Self::Environment => "environment",
            Self::Conflict => "conflict",
        }
    }
}

/// What an error looks like: a [`Fault`], and how sure that is.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// Nobody needs to be asked.
    Sure(Fault),
    /// Some database was not reached: this one, or another that the handler asks.
    Unreached,
    /// A connection to a database broke, or a server says that it cannot go on.
    Broken,
    /// A server says that it has run out of something.
    Exhausted,
    /// The database ended a transaction that nobody had used for too long.
    Idle,
}

impl Sign {
    /// The fault, as long as nobody has asked the database.
    pub fn fault(self) -> Fault {
        match self {
            Self::Sure(fault) => fault,
            Self::Unreached | Self::Broken | Self::Exhausted => Fault::Environment,
            Self::Idle => Fault::Conflict,
        }
    }
}

/// The longest wait that a handler can ask for: a day.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Why a handler failed.
///
/// Made from any error by `?`. The first in the chain of its sources that tells decides: sqlx errors are told apart by
/// [`Fault`], and an [`std::io::Error`] that says that somebody could not be reached (refused, unreachable, timed out)
/// is an [outage](Fault::Outage), which HTTP clients have at the bottom of theirs. All others are transient. Say so
/// where that is wrong.
///
/// ```
/// use pillarbox_inbox::HandlerError;
/// # enum Answer { Receipt(String), Declined, Unavailable }
/// # async fn charge(cents: i64) -> Result<Answer, std::io::Error> { Ok(Answer::Declined) }
/// # async fn handle(cents: i64) -> Result<(), HandlerError> {
/// if cents < 0 {
///     return Err(HandlerError::permanent("an amount cannot be negative"));
/// }
/// match charge(cents).await? { // refused: an outage
///     Answer::Unavailable => Err(HandlerError::outage("the provider answers with 503")),
///     Answer::Declined | Answer::Receipt(_) => Ok(()),
/// }
/// # }
/// ```
pub struct HandlerError {
    sign: Sign,
    retry_after: Option<Duration>,
    cause: Box<dyn Error + Send + Sync>,
}

impl HandlerError {
    fn sure(fault: Fault, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { sign: Sign::Sure(fault), retry_after: None, cause: cause.into() }
    }

    /// It may work the next time. Counts as an attempt.
    pub fn transient(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::sure(Fault::Transient, cause)
    }

    /// It can never work: a dead letter at once.
    pub fn permanent(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::sure(Fault::Permanent, cause)
    }

    /// A provider or another party that this event needs is away. No attempt is counted: the event waits, and its key
    /// behind it, with the same growing waits as between attempts. An outage that lasts longer than
    /// `max_outage_s` for one event counts. Events that do not need that
    /// provider continue, as long as fewer events wait for it than the consumer may hold (`prefetch`).
    pub fn outage(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::sure(Fault::Outage, cause)
    }

    /// Something that all events need is not there: the consumer pauses, and no attempt is counted for up to
    /// `max_outage_s`.
    pub fn environment(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::sure(Fault::Environment, cause)
    }

    /// Asks for the next attempt after this long, instead of after the usual backoff. A wait longer than a day
    /// ([`MAX_RETRY_AFTER`]) becomes a day: the value may come from somebody else's `Retry-After`.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait.min(MAX_RETRY_AFTER));
        self
    }

    /// The error of a layer between the inbox and the handler.
    pub(crate) fn of_layer(error: Box<dyn Error + Send + Sync>) -> Self {
        Self { sign: sign_of(&*error), retry_after: None, cause: error }
    }

    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        self.sign.fault()
    }

    pub(crate) fn sign(&self) -> Sign {
        self.sign
    }

    pub(crate) fn wanted_retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// What happened.
    pub fn cause(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.cause
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self { sign: sign_of(&error), retry_after: None, cause: Box::new(error) }
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(f)
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerError")
            .field("fault", &self.fault())
            .field("cause", &self.cause)
            .finish_non_exhaustive()
    }
}

/// The fault of an error, as long as nobody has asked the database.
pub(crate) fn fault_of(error: &(dyn Error + 'static)) -> Fault {
    sign_of(error).fault()
}

/// How many sources of an error are looked at. An error of the application may be its own source.
const DEEPEST: usize = 64;

/// The first recognised error in the source chain decides; without one it is transient.
#[doc(hidden)]
pub fn sign_of(error: &(dyn Error + 'static)) -> Sign {
    let chain = std::iter::successors(Some(error), |error| Error::source(*error)).take(DEEPEST);
    chain.filter_map(recognised).next().unwrap_or(Sign::Sure(Fault::Transient))
}

fn recognised(error: &(dyn Error + 'static)) -> Option<Sign> {
    if let Some(error) = error.downcast_ref::<InboxError>() {
        return Some(error.sign());
    }
    if let Some(error) = error.downcast_ref::<sqlx::Error>() {
        return Some(sign_of_sqlx(error));
    }
    let unreachable = error.downcast_ref::<std::io::Error>().is_some_and(is_unreachable);
    unreachable.then_some(Sign::Sure(Fault::Outage))
}

/// Whether it says that nobody was reached. A connection that was lost later is not among them: the event itself may
/// have brought the other side down.
fn is_unreachable(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as E;
    matches!(
        error.kind(),
        E::ConnectionRefused
            | E::HostUnreachable
            | E::NetworkUnreachable
            | E::NetworkDown
            | E::AddrNotAvailable
            | E::TimedOut
    )
}

fn sign_of_sqlx(error: &sqlx::Error) -> Sign {
    use sqlx::Error as E;
    match error {
        E::PoolTimedOut | E::PoolClosed | E::Tls(_) => Sign::Unreached,
        E::Io(error) if is_unreachable(error) => Sign::Unreached,
        // `Protocol` also says that a statement cannot be sent: it has too many parameters, for instance.
        E::Io(_) | E::Protocol(_) | E::WorkerCrashed => Sign::Broken,
        E::Database(error) => {
            let ends = error
                .try_downcast_ref::<PgDatabaseError>()
                .is_some_and(|error| error.severity() != PgSeverity::Error);
            sign_of_code(error.code().as_deref().unwrap_or_default(), ends)
        }
        _ => Sign::Sure(Fault::Transient),
    }
}

/// By SQLSTATE, see <https://www.postgresql.org/docs/current/errcodes-appendix.html>. `ends`: the server ended the
/// connection with this error. Otherwise a statement failed, perhaps by a `raise` of the application's.
fn sign_of_code(code: &str, ends: bool) -> Sign {
    match (code, code.get(..2).unwrap_or_default()) {
        // Serialization failure, deadlock.
        ("40001" | "40P01", _) => Sign::Sure(Fault::Conflict),
        // A transaction that this process slept through, or whose handler left it idle.
        ("25P03", _) => Sign::Idle,
        // The server starts, stops, or has no connection to spare: it says so to whoever connects.
        ("57P03" | "53300", _) if ends => Sign::Unreached,
        // A limit of the configuration that one statement hit, such as temp_file_limit.
        ("53400", _) => Sign::Sure(Fault::Transient),
        // A primary that became a standby under us.
        ("25006", _) => Sign::Broken,
        // Disk full, out of memory.
        (_, "53") => Sign::Exhausted,
        // Connection, I/O.
        (_, "08" | "58") => Sign::Broken,
        // Shutdown, crash; the rest of class 57 is a cancelled statement and the like.
        _ if code.starts_with("57P") => Sign::Broken,
        _ => Sign::Sure(Fault::Transient),
    }
}

/// Whether the database refuses values of the statement, for good: they are not of its encoding, too long for an
/// index, or against a constraint.
#[doc(hidden)]
pub fn is_of_data(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Encode(_) => true,
        sqlx::Error::Database(error) => {
            let code = error.code();
            let class = code.as_deref().and_then(|code| code.get(..2));
            matches!(class, Some("22" | "23" | "54"))
        }
        _ => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] sqlx::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("sending a request")]
    struct Client(#[source] std::io::Error);

    #[test]
    fn a_provider_that_is_not_reached_is_away_and_one_that_hangs_up_may_have_been_brought_down() {
        use std::io::ErrorKind as E;
        let of = |kind: E| HandlerError::from(Client(kind.into())).fault();
        for away in [E::ConnectionRefused, E::HostUnreachable, E::NetworkUnreachable, E::TimedOut] {
            assert_eq!(of(away), Fault::Outage, "{away:?}");
        }
        for counts in [E::ConnectionReset, E::BrokenPipe, E::UnexpectedEof, E::NotFound] {
            assert_eq!(of(counts), Fault::Transient, "{counts:?}");
        }
        let said = HandlerError::transient(Client(E::ConnectionRefused.into()));
        assert_eq!(said.fault(), Fault::Transient, "the handler knows better");
        // The database is what all events need.
        let lost = sqlx::Error::Io(E::ConnectionRefused.into());
        assert_eq!(HandlerError::from(lost).fault(), Fault::Environment);
    }

    #[test]
    fn a_lost_database_is_nobodys_fault_however_deep_it_is_told() {
        assert_eq!(HandlerError::from(sqlx::Error::PoolTimedOut).fault(), Fault::Environment);
        assert_eq!(
            HandlerError::from(Outer(sqlx::Error::PoolTimedOut)).fault(),
            Fault::Environment
        );
        assert_eq!(HandlerError::from(Outer(sqlx::Error::RowNotFound)).fault(), Fault::Transient);
        assert_eq!(HandlerError::from(std::fmt::Error).fault(), Fault::Transient);
        assert_eq!(HandlerError::permanent("no").fault(), Fault::Permanent);
    }

    /// An error with any sources.
    #[derive(Debug)]
    struct Nested(Option<Box<dyn Error + Send + Sync>>);

    impl fmt::Display for Nested {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("nested")
        }
    }

    impl Error for Nested {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            match &self.0 {
                Some(source) => Some(&**source),
                None => Some(self),
            }
        }
    }

    #[test]
    fn an_error_that_is_its_own_source_is_transient() {
        assert_eq!(HandlerError::from(Nested(None)).fault(), Fault::Transient);
    }

    #[test]
    fn a_code_that_a_statement_raises_is_not_that_of_a_server_that_ends_the_connection() {
        for (code, raised, ended) in [
            ("57P03", Sign::Broken, Sign::Unreached),
            ("53300", Sign::Exhausted, Sign::Unreached),
            ("57P01", Sign::Broken, Sign::Broken),
            ("08006", Sign::Broken, Sign::Broken),
            ("53100", Sign::Exhausted, Sign::Exhausted),
            ("53400", Sign::Sure(Fault::Transient), Sign::Sure(Fault::Transient)),
            ("25P03", Sign::Idle, Sign::Idle),
            ("40001", Sign::Sure(Fault::Conflict), Sign::Sure(Fault::Conflict)),
            ("23505", Sign::Sure(Fault::Transient), Sign::Sure(Fault::Transient)),
            ("57014", Sign::Sure(Fault::Transient), Sign::Sure(Fault::Transient)),
        ] {
            assert_eq!(sign_of_code(code, false), raised, "{code}");
            assert_eq!(sign_of_code(code, true), ended, "{code}");
        }
    }

    /// The codes in backticks in the first column of the row that begins with this.
    fn documented(row: &str) -> Vec<String> {
        let guide = include_str!("../../docs/guides/failures.md");
        let line = guide.lines().find(|line| line.starts_with(&format!("| {row}"))).unwrap();
        let first = line.split('|').nth(1).unwrap();
        first.split('`').skip(1).step_by(2).map(|code| format!("{code:0<5}")).collect()
    }

    #[test]
    fn the_guide_names_the_codes_of_each_class() {
        for (row, sign, codes) in [
            ("a database was not reached", Sign::Unreached, 2),
            ("a connection broke", Sign::Broken, 4),
            ("a server has run out", Sign::Exhausted, 2),
            ("a transaction was left idle", Sign::Idle, 1),
        ] {
            let documented = documented(row);
            assert_eq!(documented.len(), codes, "{documented:?}");
            for code in documented.iter().filter(|code| *code != "53400") {
                assert_eq!(sign_of_code(code, true), sign, "{code}");
            }
        }
    }

    fn any_leaf() -> impl Strategy<Value = Box<dyn Error + Send + Sync>> {
        use std::io::ErrorKind as E;
        let kinds =
            [E::ConnectionRefused, E::TimedOut, E::ConnectionReset, E::UnexpectedEof, E::Other];
        let io = proptest::sample::select(kinds.to_vec());
        let sqlx = prop_oneof![
            io.clone().prop_map(|kind| sqlx::Error::Io(kind.into())),
            any::<String>().prop_map(sqlx::Error::Protocol),
            Just(()).prop_map(|()| sqlx::Error::PoolTimedOut),
            Just(()).prop_map(|()| sqlx::Error::PoolClosed),
            Just(()).prop_map(|()| sqlx::Error::WorkerCrashed),
            Just(()).prop_map(|()| sqlx::Error::RowNotFound),
            any::<String>().prop_map(|text| sqlx::Error::Decode(text.into())),
            any::<String>().prop_map(|text| sqlx::Error::Encode(text.into())),
        ];
        prop_oneof![
            any::<String>().prop_map(Into::into),
            io.prop_map(|kind| Box::new(std::io::Error::from(kind)) as _),
            sqlx.prop_map(|error| Box::new(error) as _),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_code_has_a_class(code in ".{0,7}", ends in any::<bool>()) {
            sign_of_code(&code, ends);
        }

        #[test]
        fn every_five_letters_have_the_class_of_the_documented_table(
            code in "(08|22|23|25|28|40|53|54|57|58|XX)[0-9A-Z]{3}", ends in any::<bool>()
        ) {
            let sign = sign_of_code(&code, ends);
            let looks_like_an_outage = sign.fault() == Fault::Environment;
            let documented = ["08", "53", "57P", "58"].iter().any(|class| code.starts_with(class))
                || code == "25006";
            prop_assert_eq!(looks_like_an_outage, documented && code != "53400", "{:?}", sign);
        }

        #[test]
        fn every_error_has_the_fault_of_what_is_at_its_bottom(
            leaf in any_leaf(), layers in proptest::collection::vec(any::<bool>(), 0..20)
        ) {
            let fault = fault_of(&*leaf);
            let wrapped = layers.into_iter().fold(leaf, |error, plain| match plain {
                true => Box::new(Nested(Some(error))),
                false => Box::new(InboxError::handler(HandlerError::of_layer(error))),
            });
            prop_assert_eq!(HandlerError::of_layer(wrapped).fault(), fault);
        }

        #[test]
        fn a_wait_is_never_longer_than_a_day(seconds in any::<u64>(), nanos in 0_u32..1_000_000_000) {
            let wait = Duration::new(seconds, nanos);
            let asked = HandlerError::transient("later").retry_after(wait).wanted_retry_after();
            prop_assert_eq!(asked, Some(wait.min(MAX_RETRY_AFTER)));
        }
    }
}
