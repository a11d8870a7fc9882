//! When to look for parked events, and how many of those that were taken are still here.
//!
//! ```text
//!   due ── it is time, and fewer pages are here than handlers may run ──► looking
//!    ▲                                                                      │
//!    └──────── the look ends: due again after a second, or soon ────────────┘
//! ```
//!
//! The next look comes soon if the last one did not see the whole table, or if all events of a page have left, because
//! more events of its key may be due.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::held::Page;

/// How often the consumer looks for parked events.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long until the next look if there may be more.
const NEXT_LOOK: Duration = Duration::from_millis(5);

/// The pages of parked events that this process has taken: see the [module](self).
#[derive(Debug)]
pub(super) struct Pages {
    /// The most pages that this process takes.
    most: usize,
    /// How many events of each page are still here, by the position of its first.
    here: HashMap<i64, usize>,
    look: Look,
}

#[derive(Debug)]
enum Look {
    Due(Instant),
    Looking { then: Instant },
}

impl Pages {
    pub(super) fn new(most: usize, now: Instant) -> Self {
        Self { most, here: HashMap::new(), look: Look::Due(now) }
    }

    /// When to look for more. `None` while that is being done, or while no more may be taken.
    pub(super) fn look_at(&self) -> Option<Instant> {
        match self.look {
            Look::Due(at) if self.here.len() < self.most => Some(at),
            _ => None,
        }
    }

    /// Whether the database is being asked for more.
    pub(super) fn is_looking(&self) -> bool {
        matches!(self.look, Look::Looking { .. })
    }

    /// The database is being asked. Returns how many pages to take.
    pub(super) fn looking(&mut self, now: Instant) -> usize {
        self.look = Look::Looking { then: now + INTERVAL };
        self.most.saturating_sub(self.here.len())
    }

    /// The look has ended with these pages. Returns those that are new here. `has_seen_all`: whether it came to the
    /// end of the table.
    pub(super) fn found(
        &mut self,
        mut found: Vec<Page>,
        has_seen_all: bool,
        now: Instant,
    ) -> Vec<Page> {
        if let Look::Looking { then } = self.look {
            self.look = Look::Due(then);
        }
        if !has_seen_all {
            self.look_soon(now);
        }
        found.retain(|page| {
            let is_new = !self.here.contains_key(&page.first());
            if is_new {
                self.here.insert(page.first(), page.letters.len());
            }
            is_new
        });
        found
    }

    /// This many events of a page have left this process.
    pub(super) fn left(&mut self, page: i64, many: usize, now: Instant) {
        if let Some(here) = self.here.get_mut(&page) {
            *here = here.saturating_sub(many);
            if *here == 0 {
                self.here.remove(&page);
                self.look_soon(now);
            }
        }
    }

    fn look_soon(&mut self, now: Instant) {
        let (Look::Due(at) | Look::Looking { then: at }) = &mut self.look;
        *at = (*at).min(now + NEXT_LOOK);
    }
}
