//! Why an event was not handled: what a handler says, and what the inbox says.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::io;
use std::time::{Duration, SystemTime};

use pillarbox_store::HiddenRows;
use pillarbox_store::bad_data::is_refused_value;

use crate::fault::{Fault, Sign, is_unreachable, sign_of_sqlx, sign_of_status};
use crate::pooler::{Pooled, is_pooled};
use crate::retry_after::wait_of;

/// Any error that may go to another thread.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// The name in the error of a statement that fails where the handler has ended its transaction.
pub(crate) const ENDED: &str = "pillarbox.the_handler_ended_the_transaction";

/// What the inbox does first.
pub(crate) const BEGIN: &str = "begin a transaction";

/// The longest wait that a handler can ask for: a day.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Why a handler failed.
///
/// `?` makes one from any error: your own enum, a `Box<dyn Error + Send + Sync>`, a text, or an `anyhow::Error`. The
/// first recognised error in the source chain decides the [`Fault`]:
///
/// | in the source chain | fault |
/// |---|---|
/// | an error of sqlx | by its class, see the guide on failures |
/// | an [`io::Error`] that says that the other side was not reached (refused, unreachable, timed out) | [outage](Fault::Outage) |
/// | an error of reqwest (feature `reqwest`): no connection, a timeout, a status | as in [`of_status`](Self::of_status); no connection and a timeout are an outage |
/// | a [`HandlerCause`] | what its `HandlerError` says, with its [`retry_after`](Self::retry_after) |
///
/// Without any of these, the error is transient. Where this is wrong, use one of the constructors below.
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
///     Answer::Unavailable => Err(HandlerError::of_status(503, None)), // an outage, too
///     Answer::Declined | Answer::Receipt(_) => Ok(()),
/// }
/// # }
/// ```
///
/// An `anyhow::Error` takes a `HandlerError` by `?`, too, and is classified by it wherever it stands in the chain. In
/// an enum of your own, it is a source as a [`HandlerCause`]:
///
/// ```
/// use pillarbox_inbox::{HandlerCause, HandlerError};
///
/// #[derive(Debug, thiserror::Error)]
/// enum ChargeError {
///     #[error("the database failed")]
///     Database(#[from] sqlx::Error), // classified by what it is
///     #[error("the provider will not have it")]
///     Provider(#[from] HandlerCause), // classified by what it says
/// }
///
/// fn amount(cents: i64) -> Result<i64, ChargeError> {
///     match cents {
///         0.. => Ok(cents),
///         _ => Err(HandlerError::permanent("an amount cannot be negative").into_cause())?,
///     }
/// }
/// # let failed = HandlerError::from(amount(-1).unwrap_err());
/// # assert_eq!(failed.fault(), pillarbox_inbox::Fault::Permanent);
/// ```
pub struct HandlerError {
    sign: Sign,
    retry_after: Option<Duration>,
    cause: BoxError,
}

impl HandlerError {
    fn sure(fault: Fault, cause: impl Into<BoxError>) -> Self {
        Self { sign: Sign::Sure(fault), retry_after: None, cause: cause.into() }
    }

    /// The next attempt may succeed. This failure counts as an attempt.
    pub fn transient(cause: impl Into<BoxError>) -> Self {
        Self::sure(Fault::Transient, cause)
    }

    /// No attempt can succeed: the event becomes a dead letter at once.
    pub fn permanent(cause: impl Into<BoxError>) -> Self {
        Self::sure(Fault::Permanent, cause)
    }

    /// A provider or another party that this event needs is away. No attempt is counted. The event waits, and its key
    /// waits behind it, with the same growing waits as between attempts. Once an outage lasts longer than
    /// `max_outage` for one event, its failures count. Events that do not need that provider continue, as long as
    /// fewer keys wait for it than the consumer may hold events (`prefetch`).
    pub fn outage(cause: impl Into<BoxError>) -> Self {
        Self::sure(Fault::Outage, cause)
    }

    /// Something that all events need is missing. The consumer pauses, and counts no attempt for up to `max_outage`.
    pub fn environment(cause: impl Into<BoxError>) -> Self {
        Self::sure(Fault::Environment, cause)
    }

    /// What the status of an HTTP provider's answer means, for any HTTP client. `retry_after` is the answer's header of
    /// that name.
    ///
    /// | status | fault |
    /// |---|---|
    /// | 408, 429, 502, 503, 504, and 521 to 526, 529 and 530, which proxies use in the same cases | [outage](Fault::Outage): no attempt is counted |
    /// | any other 4xx | [permanent](Fault::Permanent) |
    /// | anything else, such as 500 | [transient](Fault::Transient) |
    ///
    /// The header's value is a number of seconds or an HTTP date. It is treated as in
    /// [`retry_after`](Self::retry_after). A value of another form, or a date in the past, leaves the usual backoff.
    ///
    /// If a refused login (401, 403) is a matter of your configuration and not of the event, return
    /// [`outage`](Self::outage) or [`environment`](Self::environment) for it.
    pub fn of_status(status: u16, retry_after: Option<&str>) -> Self {
        let cause = format!("the provider answered with status {status}");
        Self { sign: sign_of_status(status), retry_after: None, cause: cause.into() }
            .retry_after_header(retry_after)
    }

    /// Asks for what a `Retry-After` header says, if it can be read.
    pub(crate) fn retry_after_header(self, header: Option<&str>) -> Self {
        match header.and_then(|header| wait_of(header, SystemTime::now())) {
            Some(wait) => self.retry_after(wait),
            None => self,
        }
    }

    /// Asks for the next attempt after this long, instead of after the usual backoff. The value may come from somebody
    /// else's `Retry-After`, so it has limits: a wait longer than a day ([`MAX_RETRY_AFTER`]) becomes a day, and one
    /// shorter than the consumer's `backoff` becomes the usual backoff.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait.min(MAX_RETRY_AFTER));
        self
    }

    /// Turns it into an error that other errors can have as their source.
    pub fn into_cause(self) -> HandlerCause {
        HandlerCause(self)
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

// `HandlerError` is no `Error`, or this would overlap with the conversion of every type into itself.
impl<E: Into<BoxError> + 'static> From<E> for HandlerError {
    fn from(error: E) -> Self {
        // The box that anyhow makes of its error hides the type of what is in it.
        let any: &dyn Any = &error;
        let found = any.downcast_ref::<anyhow::Error>().map(|error| found_in(&**error));
        let cause = error.into();
        let Found { sign, retry_after } = found.unwrap_or_else(|| found_in(&*cause));
        Self { sign, retry_after, cause }
    }
}

impl From<HandlerError> for anyhow::Error {
    fn from(error: HandlerError) -> Self {
        Self::new(error.into_cause())
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

/// Why an event was not handled. Everything was rolled back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InboxError {
    /// The handler, or a layer between it and the inbox, failed.
    #[error("the handler failed")]
    Handler(#[source] HandlerCause),
    /// The inbox itself could not begin a transaction or record the event. It is tried again.
    #[error("the inbox could not {doing}")]
    Database {
        /// What it was about to do.
        doing: &'static str,
        /// The error of sqlx.
        #[source]
        source: sqlx::Error,
    },
    /// The commit failed, or its answer was lost. The next delivery shows whether it took effect.
    #[error("the inbox could not commit; the next delivery shows whether the commit took effect")]
    Commit(#[source] sqlx::Error),
    /// A statement of the handler failed, and the handler returned success all the same.
    #[error(
        "the handler returned success although one of its statements had failed, which undoes the others; \
         it should return the error, or run in a savepoint what may fail"
    )]
    Aborted,
    /// The handler, or something that it called, ended the transaction that it was given, for example by `commit`,
    /// `rollback` or `prepare transaction`.
    #[error(
        "the handler ended the transaction, which only the inbox may do, {}; it must leave out commit, rollback and \
         begin, or use a savepoint",
        if *.committed {
            "and what it had written until then is committed, with the event as handled"
        } else {
            "and what it had written until then is undone, while what it wrote afterwards may be there"
        }
    )]
    Ended {
        /// Whether the handler's writes until then are committed, together with the event's row in the inbox.
        committed: bool,
    },
    /// A pooler in transaction mode shares the pool's sessions with other clients.
    #[error(transparent)]
    Pooled(#[from] Pooled),
    /// Policies may hide rows of the inbox's tables from the pool's role.
    #[error(transparent)]
    Hidden(#[from] HiddenRows),
    /// The database did not answer in time. For the inbox's own statements the limit is 10 s. If this happened while
    /// the event was being recorded, another transaction may be handling it. If it happened during the commit, the next
    /// delivery shows whether the event was committed.
    #[error("the database took too long to {doing}")]
    Slow {
        /// What it was about to do.
        doing: &'static str,
    },
    /// The handler returned while another task still held its transaction.
    #[error(
        "the handler returned success while another task still used its transaction; wait for such tasks before \
         returning"
    )]
    InUse,
    /// The schema's name is refused.
    #[error(transparent)]
    Schema(#[from] pillarbox_store::SchemaError),
}

/// A [`HandlerError`] in the source chain of another error. An error that has one there is classified by it.
#[derive(Debug)]
pub struct HandlerCause(pub HandlerError);

impl fmt::Display for HandlerCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for HandlerCause {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.cause().source()
    }
}

impl InboxError {
    /// The failure of a handler.
    pub fn handler(error: impl Into<HandlerError>) -> Self {
        Self::Handler(HandlerCause(error.into()))
    }

    /// The error of a service around a handler: the inbox's own, or that of a layer, which counts as the handler's.
    pub fn of_service(error: BoxError) -> Self {
        match error.downcast::<Self>() {
            Ok(error) => *error,
            Err(error) => Self::handler(error),
        }
    }

    pub(crate) fn database(doing: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| {
            let source = match source {
                sqlx::Error::Configuration(cause) => match cause.downcast::<HiddenRows>() {
                    Ok(hidden) => return Self::Hidden(*hidden),
                    Err(cause) => sqlx::Error::Configuration(cause),
                },
                source => source,
            };
            if is_pooled(&source) {
                return Self::Pooled(Pooled);
            }
            let code = source.as_database_error().and_then(|error| error.code());
            match code.as_deref() {
                // The statement_timeout or lock_timeout, while it waited for another transaction or a busy database.
                Some("57014" | "55P03") => Self::Slow { doing },
                _ => Self::Database { doing, source },
            }
        }
    }

    pub(crate) fn commit(error: sqlx::Error) -> Self {
        let said = error.as_database_error();
        match said.and_then(|error| error.code()).as_deref() {
            Some("25P02") => Self::Aborted,
            // The proof that it is the transaction that was begun has failed.
            Some("42704") if said.is_some_and(|error| error.message().contains(ENDED)) => {
                Self::Ended { committed: false }
            }
            _ => Self::Commit(error),
        }
    }

    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        self.sign().fault()
    }

    /// What the error looks like.
    pub(crate) fn sign(&self) -> Sign {
        match self {
            Self::Handler(cause) => cause.0.sign(),
            Self::Database { source, .. } if is_refused_value(source) => {
                Sign::Sure(Fault::Permanent)
            }
            Self::Database { doing, source } => match sign_of(source) {
                // Nothing of the event is in that statement, and a missing table is everybody's, too.
                _ if *doing == BEGIN => Sign::Sure(Fault::Environment),
                Sign::Unreached | Sign::Sure(Fault::Transient) => Sign::Sure(Fault::Environment),
                sign => sign,
            },
            // A deferred constraint, for instance, fails here.
            Self::Commit(source) => sign_of(source),
            Self::Slow { .. } | Self::Hidden(_) => Sign::Sure(Fault::Environment),
            Self::Aborted | Self::InUse => Sign::Sure(Fault::Transient),
            Self::Schema(_) | Self::Ended { .. } | Self::Pooled(_) => Sign::Sure(Fault::Permanent),
        }
    }

    /// Whether the handler itself says that nothing can be handled now.
    pub fn is_said_to_be_everybodys(&self) -> bool {
        matches!(self, Self::Handler(cause) if cause.0.sign() == Sign::Sure(Fault::Environment))
    }

    pub(crate) fn is_caused_by<E: std::error::Error + 'static>(&self) -> bool {
        match self {
            Self::Handler(cause) => {
                let cause: &(dyn std::error::Error + 'static) = cause.0.cause();
                cause.is::<E>()
            }
            _ => false,
        }
    }

    /// The wait before the next attempt, if the handler asked for one.
    pub fn retry_after(&self) -> Option<std::time::Duration> {
        match self {
            Self::Handler(cause) => cause.0.wanted_retry_after(),
            _ => None,
        }
    }
}

/// The fault of an error, as long as nobody has asked the database.
pub(crate) fn fault_of(error: &(dyn Error + 'static)) -> Fault {
    sign_of(error).fault()
}

/// Whether the database refused a statement, and would refuse it again. Otherwise it may work once the database is
/// well.
pub fn is_refused(error: &sqlx::Error) -> bool {
    matches!(sign_of(error), Sign::Sure(_))
}

/// How many sources of an error are looked at. An error of the application may be its own source.
const DEEPEST: usize = 64;

/// What an error says about itself.
struct Found {
    sign: Sign,
    retry_after: Option<Duration>,
}

impl From<Sign> for Found {
    fn from(sign: Sign) -> Self {
        Self { sign, retry_after: None }
    }
}

pub(crate) fn sign_of(error: &(dyn Error + 'static)) -> Sign {
    found_in(error).sign
}

/// The first recognised error in the source chain decides; without one it is transient.
fn found_in(error: &(dyn Error + 'static)) -> Found {
    let chain = std::iter::successors(Some(error), |error| source_of(*error)).take(DEEPEST);
    chain.filter_map(recognised).next().unwrap_or(Sign::Sure(Fault::Transient).into())
}

/// The source of an error. An [`io::Error`] that carries another one gives the source of that one, and so skips it.
fn source_of<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(carried) => Some(carried),
        None => error.source(),
    }
}

fn recognised(error: &(dyn Error + 'static)) -> Option<Found> {
    if let Some(HandlerCause(error)) = error.downcast_ref() {
        return Some(Found { sign: error.sign, retry_after: error.retry_after });
    }
    if let Some(error) = error.downcast_ref::<InboxError>() {
        return Some(Found { sign: error.sign(), retry_after: error.retry_after() });
    }
    if let Some(error) = error.downcast_ref::<sqlx::Error>() {
        return Some(sign_of_sqlx(error).into());
    }
    #[cfg(feature = "reqwest")]
    if let Some(error) = error.downcast_ref() {
        return crate::fault::sign_of_reqwest(error).map(Found::from);
    }
    let unreachable = error.downcast_ref::<io::Error>().is_some_and(is_unreachable);
    unreachable.then_some(Sign::Sure(Fault::Outage).into())
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
        assert_eq!(HandlerError::from(fmt::Error).fault(), Fault::Transient);
        assert_eq!(HandlerError::permanent("no").fault(), Fault::Permanent);
    }

    #[derive(Debug, thiserror::Error)]
    enum Own {
        #[error("the database failed")]
        Database(#[from] sqlx::Error),
        #[error("the provider refused")]
        Provider(#[from] HandlerCause),
    }

    #[test]
    fn an_error_of_anyhow_is_what_it_was_made_of() {
        use anyhow::{Context, anyhow};
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        for (error, fault) in [
            (anyhow::Error::from(sqlx::Error::PoolTimedOut), Fault::Environment),
            (anyhow::Error::from(sqlx::Error::RowNotFound), Fault::Transient),
            (anyhow::Error::from(refused()), Fault::Outage),
            (anyhow!("declined"), Fault::Transient),
        ] {
            let text = format!("{error:#}");
            let bare = HandlerError::from(error);
            assert_eq!(bare.fault(), fault, "{text}");
            let error: Result<(), _> = Err(bare);
            let around = error.map_err(anyhow::Error::from).context("while it charged");
            assert_eq!(HandlerError::from(around.unwrap_err()).fault(), fault, "{text}");
        }
        let context = Err::<(), _>(refused()).context("asking").context("while it charged");
        let error = HandlerError::from(context.unwrap_err());
        assert_eq!(error.fault(), Fault::Outage);
        let text = pillarbox_store::full_text(&InboxError::handler(error));
        assert_eq!(text, "the handler failed: while it charged: asking: connection refused");
    }

    #[test]
    fn an_own_error_is_what_is_in_it() {
        let lost = || Own::from(sqlx::Error::PoolTimedOut);
        assert_eq!(HandlerError::from(lost()).fault(), Fault::Environment);
        let carried = io::Error::other(sqlx::Error::PoolTimedOut);
        assert_eq!(HandlerError::from(carried).fault(), Fault::Environment);
        assert_eq!(HandlerError::from(io::Error::other(lost())).fault(), Fault::Environment);
        let boxed: Box<dyn Error + Send + Sync> = Box::new(lost());
        assert_eq!(HandlerError::from(boxed).fault(), Fault::Environment);
        assert_eq!(HandlerError::from("a text").fault(), Fault::Transient);
    }

    #[test]
    fn what_a_handler_says_holds_wherever_it_stands_in_the_chain() {
        let said = || HandlerError::outage("busy").retry_after(Duration::from_secs(7));
        let asked = |error: HandlerError| (error.fault(), error.wanted_retry_after());
        let expected = (Fault::Outage, Some(Duration::from_secs(7)));
        let anyhow = anyhow::Error::from(said());
        assert_eq!(asked(anyhow.into()), expected);
        let anyhow = anyhow::Error::from(said()).context("while it charged");
        assert_eq!(asked(anyhow.into()), expected);
        assert_eq!(asked(Own::from(said().into_cause()).into()), expected);
        assert_eq!(asked(io::Error::other(said().into_cause()).into()), expected);
        assert_eq!(asked(InboxError::handler(said()).into()), expected);
        let never = Own::from(HandlerError::permanent("no").into_cause());
        assert_eq!(asked(never.into()), (Fault::Permanent, None));
    }

    #[test]
    fn a_status_tells_not_now_from_never_and_from_perhaps() {
        for status in 100..=999 {
            let expected = match status {
                408 | 429 | 502..=504 | 521..=526 | 529 | 530 => Fault::Outage,
                400..=499 => Fault::Permanent,
                _ => Fault::Transient,
            };
            assert_eq!(HandlerError::of_status(status, None).fault(), expected, "{status}");
        }
    }

    #[test]
    fn a_provider_says_when_to_come_again_in_seconds_or_by_a_date() {
        let asked = |header: &str| HandlerError::of_status(429, Some(header)).wanted_retry_after();
        assert_eq!(asked("7"), Some(Duration::from_secs(7)));
        assert_eq!(asked("99999999999999999999999"), Some(MAX_RETRY_AFTER));
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(60));
        let wait = asked(&date).unwrap();
        assert!((55..=60).contains(&wait.as_secs()), "{wait:?}");
        for none in ["", "soon", "-1", "Thu, 01 Jan 1970 00:00:00 GMT"] {
            assert_eq!(asked(none), None, "{none:?}");
        }
        assert_eq!(asked("Fri, 31 Dec 9999 23:59:59 GMT"), Some(MAX_RETRY_AFTER));
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
        fn every_error_has_the_fault_of_what_is_at_its_bottom(
            leaf in any_leaf(), layers in proptest::collection::vec(any::<bool>(), 0..20)
        ) {
            let fault = fault_of(&*leaf);
            let wrapped = layers.into_iter().fold(leaf, |error, plain| match plain {
                true => Box::new(Nested(Some(error))),
                false => Box::new(InboxError::handler(error)),
            });
            prop_assert_eq!(HandlerError::from(wrapped).fault(), fault);
        }

        #[test]
        fn a_wait_is_never_longer_than_a_day(seconds in any::<u64>(), nanos in 0_u32..1_000_000_000) {
            let wait = Duration::new(seconds, nanos);
            let asked = HandlerError::transient("later").retry_after(wait).wanted_retry_after();
            prop_assert_eq!(asked, Some(wait.min(MAX_RETRY_AFTER)));
        }
    }
}
