//! Removing old rows in the background: when, and how much at a time.

use std::time::Duration;

use tokio::time::sleep;

/// The greatest age that a statement may be asked for: a century. Postgres has no interval for far greater ones.
pub const LONGEST_AGE: Duration = Duration::from_secs(100 * 365 * 86_400);

/// The pause between two batches. It leaves the disk to others.
const PAUSE: Duration = Duration::from_millis(10);
const SHORTEST_INTERVAL: Duration = Duration::from_millis(250);

/// How often to look for rows that are older than `retention`: four times within it, but not less often than `longest`.
pub fn interval(retention: Duration, longest: Duration) -> Duration {
    (retention / 4).clamp(SHORTEST_INTERVAL, longest)
}

/// An age in seconds for a statement, [`LONGEST_AGE`] at most.
pub fn seconds(age: Duration) -> i64 {
    age.min(LONGEST_AGE).as_secs().cast_signed()
}

/// Waits for a moment between two batches.
pub async fn pause() {
    sleep(PAUSE).await;
}
