//! Limits for every wait for the database or the broker.
//!
//! A connection may lose what is sent over it, and a lock may never be granted, without any error. So every call to the
//! database or the broker has a limit on the client's side. A connection that did not answer in time must not be used
//! again.

use std::fmt;
use std::io;
use std::time::Duration;

use tokio::time::timeout;

/// The database or the broker did not answer in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Late {
    who: &'static str,
    limit: Duration,
}

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} did not answer within {:?}", self.who, self.limit)
    }
}

impl std::error::Error for Late {}

impl From<Late> for sqlx::Error {
    fn from(late: Late) -> Self {
        Self::Io(io::Error::new(io::ErrorKind::TimedOut, late))
    }
}

impl Late {
    /// `who`, for example `the database`, did not answer within `limit`.
    pub fn new(who: &'static str, limit: Duration) -> Self {
        Self { who, limit }
    }
}

/// A duration in milliseconds, as a statement takes it.
pub fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Waits for an answer from `who`, at most for `limit`.
///
/// Dropping the future ends the wait at once.
///
/// # Errors
/// [`Late`] if there was no answer within the limit.
pub async fn within<T>(
    limit: Duration,
    who: &'static str,
    work: impl Future<Output = T>,
) -> Result<T, Late> {
    timeout(limit, work).await.map_err(|_| Late { who, limit })
}

/// Waits for the database, at most for `limit`. A connection that did not answer in time must not be used again.
///
/// # Errors
/// The error of sqlx. If there was no answer within the limit, an I/O error of the kind `TimedOut`.
pub async fn limited<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    within(limit, "the database", work).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wait_ends_at_its_limit_and_says_who_did_not_answer() {
        let forever = std::future::pending::<Result<(), sqlx::Error>>();
        let late = limited(Duration::from_millis(30), forever).await;
        assert!(
            matches!(&late, Err(sqlx::Error::Io(error)) if error.kind() == io::ErrorKind::TimedOut
                && error.to_string() == "the database did not answer within 30ms"),
            "{late:?}"
        );
        let answered = within(Duration::from_secs(3), "the broker", async { 7 }).await;
        assert_eq!(answered, Ok(7));
    }
}
