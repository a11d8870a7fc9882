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

use sqlx::postgres::{PgDatabaseError, PgSeverity};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sign {
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
    pub(crate) fn fault(self) -> Fault {
        match self {
            Self::Sure(fault) => fault,
            Self::Unreached | Self::Broken | Self::Exhausted => Fault::Environment,
            Self::Idle => Fault::Conflict,
        }
    }
}

/// Whether it says that nobody was reached. A connection that was lost later is not among them: the event itself may
/// have brought the other side down.
pub(crate) fn is_unreachable(error: &std::io::Error) -> bool {
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

pub(crate) fn sign_of_sqlx(error: &sqlx::Error) -> Sign {
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
    }
}
