//! The report of a run: its counts, and what went wrong.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use crate::checker::{Violation, check};
use crate::foreign::is_name;
use crate::history::{History, Told};
use crate::journal::At;
use crate::story;

/// What a run found.
#[derive(Debug)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// The command that runs it again.
    pub command: String,
    /// What happened.
    pub history: History,
    /// What must not have happened.
    pub violations: Vec<Violation>,
}

impl Report {
    /// Checks a history.
    pub(crate) fn of(seed: u64, command: String, history: History) -> Self {
        Self { seed, command, violations: check(&history), history }
    }

    /// Whether nothing went wrong.
    pub fn is_well(&self) -> bool {
        self.violations.is_empty()
    }

    /// How many faults were made, by kind: those that hit, and those that missed because another fault was in their
    /// way.
    pub fn faults(&self) -> BTreeMap<&str, (usize, usize)> {
        let mut kinds: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for made in &self.history.faults {
            let counts = kinds.entry(&made.kind).or_default();
            *(if made.hit { &mut counts.0 } else { &mut counts.1 }) += 1;
        }
        kinds
    }

    /// How many calls of a handler had no lasting effect, or were repeats.
    fn handled_again(&self) -> usize {
        let dead = self.history.dead.iter().filter(|dead| dead.consumer.is_some()).count();
        self.history.given.len().saturating_sub(self.history.effects.len() + dead)
    }

    /// How many messages in the stream at the end repeat an event that it already held.
    fn repeats_in_the_stream(&self) -> usize {
        let last = self.history.stored.iter().map(|stored| stored.look).max();
        let held = self.history.stored.iter().filter(|stored| Some(stored.look) == last);
        let ids: HashSet<&str> = held.clone().map(|stored| &*stored.id).collect();
        held.count() - ids.len()
    }

    /// The longest time without an effect in a consumer, in seconds, while writers were at work.
    fn longest_stall(&self, consumer: &str) -> f64 {
        let last = self.history.written.iter().map(|written| written.at).max().unwrap_or(0);
        let of = self.history.effects.iter();
        let of = of.filter(|effect| effect.consumer == consumer && !is_name(&effect.id));
        let mut times: Vec<At> = of.map(|effect| effect.at).collect();
        times.sort_unstable();
        let gaps = times.windows(2).filter(|pair| pair[0] < last).map(|pair| pair[1] - pair[0]);
        gaps.max().unwrap_or(0) as f64 / 1_000_000.0
    }

    fn counts(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let history = &self.history;
        let committed: HashSet<&str> = history.committed.iter().map(|row| &*row.id).collect();
        let told = |wanted: Told| history.written.iter().filter(move |w| w.told == wanted);
        let unknown = told(Told::Unknown).count();
        let done =
            told(Told::Unknown).filter(|written| committed.contains(&*written.event.id)).count();
        let row = |f: &mut fmt::Formatter<'_>, what: &str, count: String| {
            writeln!(f, "  {what:<44} {count:>9}")
        };
        let number = |number: usize| number.to_string();
        row(f, "events drawn", number(history.written.len()))?;
        row(f, "  committed", number(history.committed.len()))?;
        row(f, "  rolled back", number(told(Told::RolledBack).count()))?;
        row(f, "  result unknown to the writer", number(unknown))?;
        row(f, "    of these, committed", number(done))?;
        row(f, "events scheduled for later", number(history.scheduled.len()))?;
        let cancelled = history.cancels.iter().filter(|cancel| cancel.cancelled).count();
        row(f, "  cancelled", number(cancelled))?;
        row(f, "  cancelled too late", number(history.cancels.len() - cancelled))?;
        let late = history
            .scheduled
            .iter()
            .filter_map(|event| event.released.first().map(|at| at - event.due));
        let mut late: Vec<At> = late.collect();
        late.sort_unstable();
        let middle = late.get(late.len() / 2).copied().unwrap_or(0) as f64 / 1_000.0;
        row(f, "  released after they were due, median", format!("{middle:.1} ms"))?;
        for (consumer, keeps_order) in &history.consumers {
            let effects = history.effects.iter().filter(|effect| effect.consumer == *consumer);
            let effects = effects.filter(|effect| !is_name(&effect.id));
            let order = if *keeps_order { "in order" } else { "in any order" };
            row(f, &format!("effects in {consumer}, {order}"), number(effects.count()))?;
        }
        let foreign = |readable: bool| {
            number(history.foreign.iter().filter(|sent| sent.readable == readable).count())
        };
        row(f, "foreign events sent", foreign(true))?;
        for (consumer, _) in &history.consumers {
            let effects = history.effects.iter().filter(|effect| effect.consumer == *consumer);
            let effects = effects.filter(|effect| is_name(&effect.id));
            row(f, &format!("  their effects in {consumer}"), number(effects.count()))?;
        }
        row(f, "unreadable foreign messages sent", foreign(false))?;
        let letters = history.dead.iter().filter(|dead| is_name(&dead.id));
        row(f, "  their dead letters, in all consumers", number(letters.count()))?;
        let trips = &history.trips.instances;
        if !trips.is_empty() {
            let of = |status: &str| trips.iter().filter(|trip| trip.status == status).count();
            row(f, "trips", number(trips.len()))?;
            row(f, "  booked at all services", number(of("completed")))?;
            row(f, "  undone", number(of("failed")))?;
            let entries = trips.iter().map(|trip| trip.entries.len()).sum();
            row(f, "  entries in their histories", number(entries))?;
        }
        row(f, "handlings undone or repeated", number(self.handled_again()))?;
        row(f, "duplicates skipped by the inbox, at least", history.skipped.to_string())?;
        row(f, "repeats in the stream, at the end", number(self.repeats_in_the_stream()))?;
        let dead = |relay: bool| {
            let dead = history.dead.iter().filter(|dead| dead.consumer.is_none() == relay);
            number(dead.filter(|dead| !is_name(&dead.id)).count())
        };
        row(f, "dead letters of the outbox", dead(true))?;
        row(f, "dead letters of the consumers", dead(false))?;
        let epochs = history.cursor.iter().filter(|write| write.took).count();
        row(f, "epochs of the lease", number(epochs))?;
        row(f, "losses of the broker", number(history.losses.len()))?;
        for (consumer, _) in &history.consumers {
            let stall = format!("{:.1} s", self.longest_stall(consumer));
            row(f, &format!("longest time without an effect in {consumer}"), stall)?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}", self.seed)?;
        let faults = self.faults();
        for (kind, (hit, missed)) in &faults {
            let missed =
                if *missed > 0 { format!("  ({missed} more missed)") } else { String::new() };
            writeln!(f, "  {kind:<44} {hit:>9}{missed}")?;
        }
        let hit: usize = faults.values().map(|(hit, _)| hit).sum();
        writeln!(f, "  {:<44} {hit:>9}", "faults")?;
        self.counts(f)?;
        if self.is_well() {
            write!(
                f,
                "well: every committed event took effect once in each consumer or is a dead letter, keys are in order, no \
                 other event took effect, and nothing waits"
            )?;
            if !self.history.trips.instances.is_empty() {
                write!(f, "; every trip is booked whole or undone, once, as its history says")?;
            }
            return Ok(());
        }
        writeln!(f, "WRONG:")?;
        for line in story::summary(&self.violations) {
            writeln!(f, "  {line}")?;
        }
        writeln!(f, "the shortest story:")?;
        for line in story::shortest(&self.history, &self.violations) {
            writeln!(f, "{line}")?;
        }
        write!(f, "to run it again: {}", self.command)
    }
}
