//! The pauses of a reader that finds nothing: short while events flow, and longer the longer there are none.

use std::thread;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

/// A commit is found this soon while events flow. Shorter ones made no difference beside a query's own time.
const SHORTEST: Duration = Duration::from_micros(200);
/// The runtime's timer counts whole milliseconds and rounds up: it wakes 1 to 2 ms late. Below this the lateness would
/// be most of the pause.
const COARSE: Duration = Duration::from_millis(2);

/// Each pause is twice as long as the one before it, up to the longest.
#[derive(Debug)]
pub(crate) struct Pauses {
    next: Duration,
    longest: Duration,
}

impl Pauses {
    pub(crate) fn up_to(longest: Duration) -> Self {
        Self { next: SHORTEST, longest }
    }

    /// Begins with the shortest again.
    pub(crate) fn begin_again(&mut self) {
        self.next = SHORTEST;
    }

    /// Waits for the next pause. If it is dropped, a thread of the runtime may sleep to the end of a short one.
    pub(crate) async fn pass(&mut self) {
        let pause = self.next;
        self.next = (pause * 2).min(self.longest);
        if pause >= COARSE {
            return sleep(pause).await;
        }
        // A thread sleeps precisely. It may be long in coming if all threads are taken, so the wait has a limit.
        if let Ok(Err(_)) = timeout(COARSE, spawn_blocking(move || thread::sleep(pause))).await {
            // The runtime is shutting down and takes no more work.
            sleep(pause).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_again() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut pauses = Pauses::up_to(Duration::from_millis(50));
            let mut planned = Vec::new();
            for _ in 0..11 {
                planned.push(pauses.next.as_micros());
                pauses.pass().await;
            }
            assert_eq!(
                planned,
                [200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 50_000, 50_000, 50_000]
            );
            pauses.begin_again();
            assert_eq!(pauses.next, SHORTEST);
            // What an idle relay costs does not change: short pauses are few.
            let mut slow = Pauses::up_to(Duration::from_millis(2));
            for _ in 0..6 {
                slow.pass().await;
            }
            assert_eq!(slow.next, Duration::from_millis(2));
        });
    }

    #[tokio::test]
    async fn a_short_pause_ends_before_the_runtime_s_timer_would() {
        let mut pauses = Pauses::up_to(Duration::from_millis(50));
        let mut quickest = Duration::MAX;
        // One of them, as the machine may be busy.
        for _ in 0..200 {
            pauses.begin_again();
            let begun = Instant::now();
            pauses.pass().await;
            let took = begun.elapsed();
            assert!(took >= SHORTEST, "{took:?}");
            quickest = quickest.min(took);
        }
        assert!(quickest < Duration::from_millis(1), "{quickest:?}");
    }
}
