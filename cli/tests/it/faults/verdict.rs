//! The stream against the outbox and against what the writers were told.

use std::collections::{HashMap, HashSet};
use std::fmt;

use sqlx::{PgPool, Row};

use super::load::Told;
use crate::support::{Shop, Stored};

/// What a run found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Committed events.
    pub events: usize,
    /// Messages in the stream, repeats included.
    pub messages: usize,
    /// Committed, and not in the stream.
    pub lost: usize,
    /// Further messages of an event that is there already.
    pub repeated: usize,
    /// First appearances that come behind a later event of their key.
    pub out_of_order: usize,
    /// In the stream, and not committed.
    pub uncommitted: usize,
    /// Told to be committed, and not in the database; or told to be rolled back, and there.
    pub told_wrong: usize,
    /// Committed, though the writer got an error.
    pub committed_unknown: usize,
    /// Messages whose `Nats-Msg-Id` is not the event's.
    pub other_message_id: usize,
}

impl Verdict {
    /// Compares everything in the outbox with everything in the stream. All must have been shipped.
    pub async fn of(shop: &Shop, told: &Told) -> Self {
        Self::of_messages(shop, told, &shop.stored().await).await
    }

    /// As [`of`](Self::of), with the messages that the stream has held.
    pub async fn of_messages(shop: &Shop, told: &Told, stored: &[Stored]) -> Self {
        Self::between(shop.pool(), told, stored).await
    }

    /// As [`of_messages`](Self::of_messages), with the outbox of this database.
    pub async fn between(outbox: &PgPool, told: &Told, stored: &[Stored]) -> Self {
        let rows = sqlx::query(
            "select event_id::text, convert_from(payload, 'utf8') from pillarbox.outbox order by position",
        )
        .fetch_all(outbox)
        .await
        .unwrap();
        let committed: HashMap<String, i64> =
            rows.iter().map(|row| (row.get(0), number(row.get(1)))).collect();
        let mut verdict =
            Self { events: committed.len(), messages: stored.len(), ..Self::default() };
        let mut seen = HashSet::new();
        let mut last: HashMap<&str, i64> = HashMap::new();
        for message in stored {
            verdict.other_message_id += usize::from(message.id != message.message_id);
            let Some(number) = committed.get(&message.id) else {
                verdict.uncommitted += 1;
                continue;
            };
            if !seen.insert(&message.id) {
                verdict.repeated += 1;
                continue;
            }
            // The numbers of a key are drawn under its lock, so they are in the order of commits.
            let last = last.entry(message.key.as_deref().unwrap_or_default()).or_insert(0);
            verdict.out_of_order += usize::from(number < last);
            *last = (*last).max(*number);
        }
        verdict.lost = committed.keys().filter(|id| !seen.contains(id)).count();
        let there = |ids: &[String]| ids.iter().filter(|id| committed.contains_key(*id)).count();
        verdict.told_wrong =
            told.committed.len() - there(&told.committed) + there(&told.rolled_back);
        verdict.committed_unknown = there(&told.unknown);
        verdict
    }

    /// Prints the counts, and fails unless everything is there, once, and in order.
    pub fn assert_faultless(&self, run: &str, seed: u64, faults: usize) {
        println!("{run}: {faults} faults, {self} (seed {seed})");
        let wanted = Self {
            events: self.events,
            messages: self.events,
            committed_unknown: self.committed_unknown,
            ..Self::default()
        };
        assert_eq!(*self, wanted, "{run}, seed {seed}");
        assert!(self.events > 0, "{run} wrote nothing");
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} events, {} lost, {} repeated, {} out of order, {} not committed",
            self.events, self.lost, self.repeated, self.out_of_order, self.uncommitted
        )?;
        if self.committed_unknown > 0 {
            write!(f, ", {} committed behind an error", self.committed_unknown)?;
        }
        Ok(())
    }
}

fn number(payload: &str) -> i64 {
    payload.trim_end().parse().unwrap()
}
