//! The newest stands of all places, shared by all who look, so that ten open pages cost the databases no more than one.
//!
//! Reading a stand counts the backlog, which takes longer the larger it is. So the next look waits until fifty times as
//! long has passed as the last one took: looking costs a database at most a fiftieth of one connection's time. Who asks
//! in the meantime gets the stand that is there, with its age.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::sync::Mutex as Turn;

use crate::place::{Place, Unanswered};
use crate::stand::Stand;

/// The shortest time between two looks.
const PAUSE: Duration = Duration::from_secs(2);
/// The time until the next look after one that failed.
const AFTER_FAILURE: Duration = Duration::from_secs(5);
/// How many times as long as a look takes passes until the next one.
const REST: u32 = 50;
/// The longest time between two looks, however long one takes.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);

/// How all places stood at one time.
pub(crate) struct Seen {
    pub(crate) at: Instant,
    /// In the order of the places.
    pub(crate) stands: Vec<Result<Stand, Unanswered>>,
    next: Instant,
}

/// See the [module](self).
pub(crate) struct Watch {
    looker: Arc<Looker>,
}

struct Looker {
    places: Arc<Vec<Place>>,
    seen: Mutex<Option<Arc<Seen>>>,
    /// Held by the one who looks.
    turn: Turn<()>,
}

impl Watch {
    pub(crate) fn new(places: Arc<Vec<Place>>) -> Self {
        let looker = Looker { places, seen: Mutex::default(), turn: Turn::default() };
        Self { looker: Arc::new(looker) }
    }

    /// The newest stands. If it is time for the next look, it begins in the background, and who asks next sees it. Only
    /// the very first look is waited for, and one after a long time in which nobody asked.
    pub(crate) async fn seen(&self) -> Arc<Seen> {
        let now = Instant::now();
        match self.looker.newest() {
            Some(seen) if now < seen.next => seen,
            Some(seen) if now < seen.next + PAUSE * 2 => {
                let looker = self.looker.clone();
                tokio::spawn(async move { looker.look().await });
                seen
            }
            _ => self.looker.look().await,
        }
    }
}

impl Looker {
    fn newest(&self) -> Option<Arc<Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks, unless somebody else has done so meanwhile.
    async fn look(&self) -> Arc<Seen> {
        let _turn = self.turn.lock().await;
        let at = Instant::now();
        if let Some(seen) = self.newest().filter(|seen| at < seen.next) {
            return seen;
        }
        let looks = self.places.iter().map(async |place| {
            let began = Instant::now();
            let stand = Stand::read(place).await;
            let pause = match &stand {
                Ok(_) => pause_after(began.elapsed()),
                // That it took long says nothing about how much the database had to do.
                Err(_) => AFTER_FAILURE,
            };
            (stand, pause)
        });
        let (stands, pauses): (Vec<_>, Vec<_>) = join_all(looks).await.into_iter().unzip();
        let pause = pauses.into_iter().max().unwrap_or(PAUSE);
        let seen = Arc::new(Seen { at, stands, next: Instant::now() + pause });
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen.clone());
        seen
    }
}

/// How long to wait after a look that took this long.
fn pause_after(look: Duration) -> Duration {
    look.saturating_mul(REST).clamp(PAUSE, LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_takes_long_is_followed_by_a_long_pause() {
        let seconds = Duration::from_secs;
        assert_eq!(pause_after(Duration::from_millis(5)), seconds(2));
        assert_eq!(pause_after(Duration::from_millis(100)), seconds(5));
        assert_eq!(pause_after(seconds(2)), seconds(100));
        assert_eq!(pause_after(seconds(600)), seconds(120));
    }
}
