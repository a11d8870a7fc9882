//! Whose fault a failure is, and what follows.
//!
//! | fault | for example | what follows |
//! |---|---|---|
//! | [`Fault::Transient`] | the handler returned an error, panicked, or took too long | the attempt counts; again after a backoff; after the last attempt a dead letter |
//! | [`Fault::Permanent`] | the payload cannot be read; the handler says so | a dead letter at once |
//! | [`Fault::Outage`] | a provider cannot be reached; the handler says so | does not count; the event and its key wait, with a backoff and without end, and the others go on |
//! | [`Fault::Environment`] | the database is down, the pool exhausted | does not count; the consumer pauses until it is over |
//! | [`Fault::Conflict`] | serialization failure, deadlock | does not count; again at once |
//!
//! An outage therefore never fills the dead letters.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::error::InboxError;

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Perhaps the event's: it may work the next time. Counts as an attempt.
    Transient,
    /// The event's, for good: it can never be handled.
    Permanent,
    /// That of somebody whom this event needs, and others perhaps not. Does not count.
    Outage,
    /// The surroundings': nothing can be handled now. Does not count.
    Environment,
    /// Two transactions got in each other's way. Does not count.
    Conflict,
}

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
    fault: Fault,
    retry_after: Option<Duration>,
    cause: Box<dyn Error + Send + Sync>,
}

impl HandlerError {
    /// It may work the next time. Counts as an attempt.
    pub fn transient(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { fault: Fault::Transient, retry_after: None, cause: cause.into() }
    }

    /// It can never work: a dead letter at once.
    pub fn permanent(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { fault: Fault::Permanent, retry_after: None, cause: cause.into() }
    }

    /// Somebody whom this event needs is not there, a provider for instance. No attempt is counted: the event waits,
    /// and its key behind it, for as long as it takes, with the same growing waits as between attempts. Events that
    /// do not need him go on, as long as not all that a consumer may hold (`prefetch`) wait for him.
    pub fn outage(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { fault: Fault::Outage, retry_after: None, cause: cause.into() }
    }

    /// Something that all events need is not there: the consumer pauses, and no attempt is counted.
    pub fn environment(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { fault: Fault::Environment, retry_after: None, cause: cause.into() }
    }

    /// Asks for the next attempt after this long, instead of after the usual backoff.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// The error of a layer between the inbox and the handler.
    pub(crate) fn of_layer(error: Box<dyn Error + Send + Sync>) -> Self {
        Self { fault: fault_of(&*error), retry_after: None, cause: error }
    }

    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        self.fault
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
        Self { fault: fault_of(&error), retry_after: None, cause: Box::new(error) }
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
            .field("fault", &self.fault)
            .field("cause", &self.cause)
            .finish_non_exhaustive()
    }
}

/// The fault of the first error in the chain that tells; transient without one.
pub(crate) fn fault_of(error: &(dyn Error + 'static)) -> Fault {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<InboxError>() {
            return error.fault();
        }
        if let Some(error) = error.downcast_ref::<sqlx::Error>() {
            return fault_of_sqlx(error);
        }
        if error.downcast_ref::<std::io::Error>().is_some_and(is_unreachable) {
            return Fault::Outage;
        }
        next = error.source();
    }
    Fault::Transient
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

fn fault_of_sqlx(error: &sqlx::Error) -> Fault {
    use sqlx::Error as E;
    match error {
        E::Io(_)
        | E::Tls(_)
        | E::Protocol(_)
        | E::PoolTimedOut
        | E::PoolClosed
        | E::WorkerCrashed => Fault::Environment,
        E::Database(error) => match error.code().as_deref() {
            // Serialization failure, deadlock, and a transaction that this process slept through.
            Some("40001" | "40P01" | "25P03") => Fault::Conflict,
            // Connection, resources, shutdown, I/O: https://www.postgresql.org/docs/current/errcodes-appendix.html
            Some(code) if ["08", "53", "57P", "58"].iter().any(|class| code.starts_with(class)) => {
                Fault::Environment
            }
            // A primary that became a standby under us.
            Some("25006") => Fault::Environment,
            _ => Fault::Transient,
        },
        _ => Fault::Transient,
    }
}

#[cfg(test)]
mod tests {
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
}
