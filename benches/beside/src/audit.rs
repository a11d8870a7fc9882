//! Compares a stream with what was committed.

use std::collections::HashSet;

use anyhow::{Context as _, Result};
use futures::StreamExt;
use std::pin::pin;

use crate::event::Placed;
use crate::site::Site;

/// What a stream holds, as far as it has been read.
#[derive(Default)]
pub struct Audit {
    seen: HashSet<(i32, i64)>,
    /// The highest n of each key so far.
    reached: Vec<i64>,
    /// How many messages come after a later one of their key.
    pub out_of_order: u64,
    /// How many messages are repeats.
    pub repeated: u64,
}

impl Audit {
    /// Takes the next message of the stream.
    pub fn observe(&mut self, placed: &Placed) -> Result<()> {
        if !self.seen.insert((placed.key, placed.n)) {
            self.repeated += 1;
            return Ok(());
        }
        let key = usize::try_from(placed.key)?;
        if self.reached.len() <= key {
            self.reached.resize(key + 1, 0);
        }
        if placed.n < self.reached[key] {
            self.out_of_order += 1;
        } else {
            self.reached[key] = placed.n;
        }
        Ok(())
    }

    /// Reads the first `count` messages of a stream.
    pub async fn of(site: &Site, count: i64) -> Result<Self> {
        let mut audit = Self::default();
        let mut messages = pin!(site.messages().await?);
        for _ in 0..count {
            audit.observe(&messages.next().await.context("the stream has ended")??.placed)?;
        }
        Ok(audit)
    }

    /// How many of the events that were committed after `before`, up to `after`, are missing.
    pub fn lost(&self, before: &[i64], after: &[i64]) -> u64 {
        let committed = (0..).zip(before.iter().zip(after));
        let events = committed
            .flat_map(|(key, (&before, &after))| (before + 1..=after).map(move |n| (key, n)));
        events.filter(|event| !self.seen.contains(event)).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn audit(events: &[(i32, i64)]) -> Audit {
        let mut audit = Audit::default();
        for &(key, n) in events {
            audit.observe(&Placed::new(key, n, 0)).unwrap();
        }
        audit
    }

    #[test]
    fn order_counts_within_a_key_only() {
        let ordered = audit(&[(0, 1), (1, 5), (0, 2), (1, 6)]);
        assert_eq!((ordered.out_of_order, ordered.repeated), (0, 0));
        assert_eq!(audit(&[(0, 3), (0, 1), (0, 2), (0, 4)]).out_of_order, 2);
    }

    #[test]
    fn a_repeat_is_not_an_inversion_and_a_gap_is_a_loss() {
        let audit = audit(&[(0, 1), (0, 3), (0, 1)]);
        assert_eq!((audit.out_of_order, audit.repeated), (0, 1));
        assert_eq!(audit.lost(&[0, 7], &[3, 8]), 2);
    }

    #[test]
    fn a_payload_has_256_bytes() {
        let payload = Placed::new(999, 12_345, 1_700_000_000_000_000).payload().unwrap();
        assert_eq!(payload.len(), crate::event::PAYLOAD_BYTES);
    }
}
