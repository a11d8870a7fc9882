//! Whose fault a failure is, and what the consumer does about it.
//!
//! | fault | for example | what follows |
//! |---|---|---|
//! | [`Fault::Transient`] | the handler returned an error, panicked, or took too long | the attempt counts; again after a backoff; after the last attempt a dead letter |
//! | [`Fault::Permanent`] | the payload cannot be read; the handler says so | a dead letter at once |
//! | [`Fault::Outage`] | a provider cannot be reached; the handler says so | does not count for up to `max_outage`; the event and its key wait, with a backoff, and the others go on |
//! | [`Fault::Environment`] | the database is down, the pool exhausted | does not count; the consumer pauses until it is over |
//! | [`Fault::Conflict`] | serialization failure, deadlock | does not count up to a bound; again soon |
//!
//! So an outage never fills the dead letters.
//!
//! The fault of an error is a first guess, made from the error's class. A function of the application may raise any
//! SQLSTATE, an event may break its own connection, and a second database may fail. So a `Consumer` asks its database
//! before it treats the failure of one event as everybody's: see `inbox/src/blame.rs`.

use sqlx::postgres::{PgDatabaseError, PgSeverity};

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Perhaps the event's. The next attempt may succeed. This one counts.
    Transient,
    /// The event's. It can never be handled.
    Permanent,
    /// Another party's that this event needs; other events may not need it. Does not count, up to a limit.
    Outage,
    /// The environment's. Nothing can be handled now. Does not count.
    Environment,
    /// Two transactions were in conflict. Does not count, up to a limit.
    Conflict,
}

impl Fault {
    /// The name in metrics.
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

/// What an error looks like: a [`Fault`] that is certain, or something that only the database can decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sign {
    /// The fault is certain.
    Sure(Fault),
    /// A database was not reached: the inbox's, or another one that the handler uses.
    Unreached,
    /// A connection to a database broke, or a server reports that it cannot continue.
    Broken,
    /// A server reports that it has run out of something.
    Exhausted,
    /// The database ended a transaction that was idle for too long.
    Idle,
}

impl Sign {
    /// The fault, before the database has been asked.
    pub(crate) fn fault(self) -> Fault {
        match self {
            Self::Sure(fault) => fault,
            Self::Unreached | Self::Broken | Self::Exhausted => Fault::Environment,
            Self::Idle => Fault::Conflict,
        }
    }
}

/// Whether the error says that the other side was not reached. A connection that was lost later does not count, because
/// the event itself may have brought the other side down.
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
        // `Protocol` also means that a statement cannot be sent, for example because it has too many parameters.
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

/// By the status of an HTTP answer. The second group says "not now" too: a proxy did not reach the provider (521 to
/// 526, 530), or the provider is overloaded (529).
pub(crate) fn sign_of_status(status: u16) -> Sign {
    Sign::Sure(match status {
        408 | 429 | 502 | 503 | 504 => Fault::Outage,
        521..=526 | 529 | 530 => Fault::Outage,
        400..=499 => Fault::Permanent,
        _ => Fault::Transient,
    })
}

/// What an error of reqwest says of the provider, if that is why it failed.
#[cfg(feature = "reqwest")]
pub(crate) fn sign_of_reqwest(error: &reqwest::Error) -> Option<Sign> {
    match error.status() {
        Some(status) => Some(sign_of_status(status.as_u16())),
        None => (error.is_timeout() || error.is_connect()).then_some(Sign::Sure(Fault::Outage)),
    }
}

/// By SQLSTATE, see <https://www.postgresql.org/docs/current/errcodes-appendix.html>. `ends`: the server ended the
/// connection with this error. Otherwise a statement failed, perhaps by a `raise` of the application's.
fn sign_of_code(code: &str, ends: bool) -> Sign {
    match (code, code.get(..2).unwrap_or_default()) {
        // Serialization failure, deadlock.
        ("40001" | "40P01", _) => Sign::Sure(Fault::Conflict),
        // The process was paused, or the handler left the transaction idle.
        ("25P03", _) => Sign::Idle,
        // The server starts, stops, or has no connection left, and says so to a client that connects.
        ("57P03" | "53300", _) if ends => Sign::Unreached,
        // A limit of the configuration that one statement hit, such as temp_file_limit.
        ("53400", _) => Sign::Sure(Fault::Transient),
        // The primary has become a standby.
        ("25006", _) => Sign::Broken,
        // Disk full, out of memory.
        (_, "53") => Sign::Exhausted,
        // Connection, I/O.
        (_, "08" | "58") => Sign::Broken,
        // Shutdown or crash. The rest of class 57 is a cancelled statement and the like.
        _ if code.starts_with("57P") => Sign::Broken,
        _ => Sign::Sure(Fault::Transient),
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
