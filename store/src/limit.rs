//! The one place that bounds a wait for somebody else.
//!
//! A connection may swallow what is sent, and a lock may never come, without an error that would say so. So every call
//! to the database or the broker has a limit on this side. A connection that did not answer is of no more use.

use std::fmt;
use std::io;
use std::time::Duration;

use tokio::time::timeout;

/// Somebody did not answer in time.
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
    /// `who`, such as `the database`, did not answer within this time.
    pub fn new(who: &'static str, limit: Duration) -> Self {
        Self { who, limit }
    }
}

/// Waits for somebody's answer for this long at the most.
///
/// Dropping the future ends the wait at once.
///
/// # Errors
/// [`Late`].
pub async fn within<T>(
    limit: Duration,
    who: &'static str,
    work: impl Future<Output = T>,
) -> Result<T, Late> {
    timeout(limit, work).await.map_err(|_| Late { who, limit })
}

/// Waits for the database for this long at the most. A connection that did not answer is of no more use.
///
/// # Errors
/// What sqlx says, or that there was no answer, as an I/O error of the kind `TimedOut`.
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
