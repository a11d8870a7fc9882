//! Waits for a condition, with a deadline, instead of sleeping for a fixed time.

use std::fmt::Display;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::error::TestkitError;

/// Calls a closure until it returns `Ok(Some(_))`, every 5 ms at first and every 50 ms later.
///
/// # Errors
/// [`TestkitError::Deadline`], which says `what` this waited for, and the last error.
pub async fn eventually<T, E: Display>(
    what: &str,
    deadline: Duration,
    mut ask: impl AsyncFnMut() -> Result<Option<T>, E>,
) -> Result<T, TestkitError> {
    let until = Instant::now() + deadline;
    let mut pause = Duration::from_millis(5);
    loop {
        let last = match ask().await {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => "not yet".to_owned(),
            Err(error) => error.to_string(),
        };
        if Instant::now() + pause > until {
            return Err(TestkitError::Deadline { what: what.to_owned(), waited: deadline, last });
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
