//! The story of what went wrong, in as few lines as it takes.

use std::collections::{HashMap, HashSet};

use crate::checker::Violation;
use crate::foreign::is_name;
use crate::history::{History, Told};
use crate::journal::At;

/// How long before or after a story a fault still belongs to it, in microseconds.
const AROUND: At = 1_000_000;
/// The shortest story is chosen among this many violations of a kind.
const MOST_STORIES: usize = 20;
/// The largest number of lines about faults.
const MOST_FAULTS: usize = 8;

/// The shortest story of these violations, chosen among the first ones of each kind, with the oldest line first. Empty
/// if there are no violations.
pub fn shortest(history: &History, violations: &[Violation]) -> Vec<String> {
    let begin = history.written.iter().map(|written| written.at).min().unwrap_or(0);
    // If there are thousands, their stories are much the same.
    let mut told: HashMap<&str, usize> = HashMap::new();
    let some = violations.iter().filter(|violation| {
        let told = told.entry(name(violation)).or_default();
        *told += 1;
        *told <= MOST_STORIES
    });
    let stories = some.map(|violation| tell(history, violation, begin));
    stories.min_by_key(Vec::len).unwrap_or_default()
}

/// One line for each kind of violation: its count, and an example.
pub fn summary(violations: &[Violation]) -> Vec<String> {
    let mut kinds: Vec<(&str, usize, &Violation)> = Vec::new();
    for violation in violations {
        let name = name(violation);
        match kinds.iter_mut().find(|(kind, ..)| *kind == name) {
            Some((_, count, _)) => *count += 1,
            None => kinds.push((name, 1, violation)),
        }
    }
    kinds.iter().map(|(name, count, first)| format!("{count} {name}, such as: {first}")).collect()
}

fn name(violation: &Violation) -> &'static str {
    match violation {
        Violation::Lost { .. } => "lost",
        Violation::Repeated { .. } => "repeated",
        Violation::NotCommitted { .. } => "not committed",
        Violation::WronglyDead { .. } => "in the wrong place",
        Violation::OutOfOrder { .. } => "out of order",
        Violation::SideBySide { .. } => "side by side",
        Violation::WronglyReleased { .. } => "wrongly released",
        Violation::WrongTrip { .. } => "wrong trips",
        Violation::ToldWrong { .. } => "told wrong",
        Violation::Unfenced { .. } => "moved by a relay that does not lead",
        Violation::MovedBack { .. } => "moved back",
        Violation::Unnoticed { .. } => "unnoticed",
        Violation::Stuck { .. } => "stuck",
        Violation::Ended { .. } => "ended",
    }
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let by = |consumer: &Option<String>| consumer.clone().unwrap_or_else(|| "the relay".into());
        match self {
            Self::Lost { id, consumer } => {
                let is = if is_name(id) { "is in the stream" } else { "was committed" };
                write!(f, "event {id} {is}, but is lost for {}", by(consumer))
            }
            Self::Repeated { id, consumer, times } => {
                write!(f, "event {id} took effect {times} times in {consumer}")
            }
            Self::NotCommitted { id, consumer } => {
                write!(f, "event {id} took effect in {consumer}, but was not committed")
            }
            Self::WronglyDead { id, consumer, what } => {
                write!(f, "event {id}, for {}: {what}", by(consumer))
            }
            Self::OutOfOrder { id, behind, consumer } => {
                write!(
                    f,
                    "event {id} took effect in {consumer} after {behind}, a later one of its key"
                )
            }
            Self::SideBySide { id, consumer } => {
                write!(
                    f,
                    "event {id} was handled in {consumer} at the same time as another of its key"
                )
            }
            Self::WronglyReleased { id, what } => write!(f, "scheduled event {id}: {what}"),
            Self::WrongTrip { trip, what } => write!(f, "trip {}: {what}", short(trip)),
            Self::ToldWrong { id, told } => {
                write!(f, "the writer of event {id} was told {told}, but it is not")
            }
            Self::Unfenced { epoch, .. } => {
                write!(f, "the cursor was moved in epoch {epoch} by a relay that did not hold it")
            }
            Self::MovedBack { from, to, .. } => {
                write!(
                    f,
                    "the cursor went back from {from} to {to}, although the broker had lost nothing"
                )
            }
            Self::Unnoticed { how, .. } => {
                write!(f, "the broker's data was {how}, and the relay did not notice")
            }
            Self::Stuck { what, count } => write!(f, "{count} {what} at the end"),
            Self::Ended { what, .. } => write!(f, "{what} without being told to"),
        }
    }
}

/// A story that is being written.
struct Lines {
    begin: At,
    lines: Vec<(At, String)>,
}

impl Lines {
    fn add(&mut self, at: At, line: String) {
        self.lines.push((at, line));
    }

    fn finish(mut self, verdict: &Violation) -> Vec<String> {
        self.lines.sort();
        let begin = self.begin;
        let line = |(at, line): (At, String)| {
            format!("{:9.3} s  {line}", (at - begin) as f64 / 1_000_000.0)
        };
        let mut story: Vec<String> = self.lines.into_iter().map(line).collect();
        story.push(format!("           = {verdict}"));
        story
    }
}

fn tell(history: &History, violation: &Violation, begin: At) -> Vec<String> {
    let mut lines = Lines { begin, lines: Vec::new() };
    let (ids, at): (Vec<&str>, Option<At>) = match violation {
        Violation::Lost { id, .. }
        | Violation::Repeated { id, .. }
        | Violation::NotCommitted { id, .. }
        | Violation::WronglyDead { id, .. }
        | Violation::SideBySide { id, .. }
        | Violation::WronglyReleased { id, .. }
        | Violation::ToldWrong { id, .. } => (vec![id], None),
        Violation::OutOfOrder { id, behind, .. } => (vec![behind, id], None),
        Violation::Unfenced { at, .. }
        | Violation::MovedBack { at, .. }
        | Violation::Unnoticed { at, .. }
        | Violation::Ended { at, .. } => (Vec::new(), Some(*at)),
        Violation::Stuck { .. } | Violation::WrongTrip { .. } => (Vec::new(), None),
    };
    if let Violation::WrongTrip { trip, .. } = violation {
        of_trip(history, trip, &mut lines);
    }
    let consumer = match violation {
        Violation::Lost { consumer, .. } | Violation::WronglyDead { consumer, .. } => {
            consumer.as_deref()
        }
        Violation::Repeated { consumer, .. }
        | Violation::NotCommitted { consumer, .. }
        | Violation::OutOfOrder { consumer, .. }
        | Violation::SideBySide { consumer, .. } => Some(&**consumer),
        _ => None,
    };
    for id in ids {
        event(history, id, consumer, &mut lines);
    }
    if let Some(at) = at {
        cursor(history, at, &mut lines);
    }
    faults(history, &mut lines);
    lines.finish(violation)
}

/// What happened to an event, in one consumer or in all.
fn event(history: &History, id: &str, consumer: Option<&str>, lines: &mut Lines) {
    let short = short(id);
    for written in history.written.iter().filter(|written| written.event.id == id) {
        let event = &written.event;
        let key = event.key.as_deref().unwrap_or("no key");
        let (kind, number, by) = (event.kind, event.number, &written.by);
        lines.add(written.at, format!("{short} drawn by {by}: number {number} of {key}, {kind:?}"));
        let row = history.committed.iter().find(|row| row.id == id);
        let place = row.map_or_else(
            || "not in the outbox".to_owned(),
            |row| format!("in the outbox at position {}, transaction {}", row.position, row.txid),
        );
        let told = match written.told {
            Told::Committed => "committed",
            Told::RolledBack => "rolled back",
            Told::Unknown => "what became of its commit is not known to its writer",
        };
        lines.add(written.told_at.max(written.at), format!("{short} {told}; {place}"));
    }
    for message in history.foreign.iter().filter(|message| message.name == id) {
        lines.add(message.at, format!("{short} sent by a foreign producer: {}", message.habit));
        if let Some(at) = message.told_at {
            lines.add(at, format!("{short} acknowledged to the foreign producer"));
        }
    }
    if !history.stored.iter().any(|stored| stored.id == id) {
        let at = history.written.iter().filter(|written| written.event.id == id).map(|w| w.told_at);
        lines.add(at.max().unwrap_or(0), format!("{short} was never seen in the stream"));
    }
    let mut seen = HashSet::new();
    for stored in history.stored.iter().filter(|stored| stored.id == id) {
        if seen.insert((stored.sequence, stored.at)) {
            let (epoch, sequence) = (epoch_at(history, stored.at), stored.sequence);
            lines.add(stored.at, format!("{short} stored at {sequence} of the stream, {epoch}"));
        }
    }
    let concerns = |process: &str| consumer.is_none_or(|consumer| process.starts_with(consumer));
    for given in history.given.iter().filter(|given| given.id == id && concerns(&given.process)) {
        lines.add(given.at, format!("{short} given to the handler of {}", given.process));
    }
    for effect in
        history.effects.iter().filter(|effect| effect.id == id && concerns(&effect.process))
    {
        let saw = effect.previous.map_or_else(|| "none".into(), |number| number.to_string());
        let (process, seq) = (&effect.process, effect.seq);
        lines.add(
            effect.at,
            format!("{short} took effect {seq} in {process}, which saw number {saw} before it"),
        );
    }
    for dead in history.dead.iter().filter(|dead| dead.id == id) {
        let by = dead.consumer.as_deref().unwrap_or("the relay");
        let error: String = dead.error.chars().take(120).collect();
        lines.add(dead.at, format!("{short} given up by {by} ({}): {error}", dead.reason));
    }
}

/// What the saga and the services wrote about a trip.
fn of_trip(history: &History, trip: &str, lines: &mut Lines) {
    let instances = history.trips.instances.iter().filter(|instance| instance.trip == trip);
    for entry in instances.flat_map(|instance| &instance.entries) {
        let (event, id, status, step) =
            (&entry.event_type, short(&entry.event_id), &entry.status, &entry.after);
        let published: Vec<_> = entry.published.iter().map(|id| short(id)).collect();
        let mut line = format!("the saga handled {event} {id}: {status} at {step}");
        if !published.is_empty() {
            line.push_str(&format!(", published {}", published.join(", ")));
        }
        if let Some(note) = &entry.note {
            line.push_str(&format!(" ({note})"));
        }
        lines.add(entry.at, line);
    }
    for effect in history.trips.effects.iter().filter(|effect| effect.trip == trip) {
        let (service, what, id) = (&effect.service, &effect.what, short(&effect.event_id));
        lines.add(effect.at, format!("{service}: {what}, on {id}"));
    }
}

/// What was written to the relay's row around this time.
fn cursor(history: &History, at: At, lines: &mut Lines) {
    let near = history.cursor.iter().position(|write| write.at >= at);
    let near = near.unwrap_or(history.cursor.len());
    let took = history.cursor[..near].iter().rposition(|write| write.took);
    let from = near.saturating_sub(2);
    let shown = (from..(near + 2).min(history.cursor.len())).collect::<Vec<_>>();
    for place in took.into_iter().filter(|took| !shown.contains(took)).chain(shown.iter().copied())
    {
        let write = &history.cursor[place];
        let what = if write.took { "the lease taken" } else { "the cursor moved" };
        lines.add(
            write.at,
            format!(
                "{what} over connection {}: epoch {}, holder {}, position {}",
                write.backend, write.epoch, write.holder, write.high
            ),
        );
    }
}

/// Adds the faults around the lines so far.
fn faults(history: &History, lines: &mut Lines) {
    let times: Vec<At> = lines.lines.iter().map(|(at, _)| *at).collect();
    let near = |from: At, to: At| times.iter().any(|at| (from - AROUND..=to + AROUND).contains(at));
    let mut shown: Vec<_> = history.faults.iter().filter(|made| near(made.from, made.to)).collect();
    if times.is_empty() {
        shown = history.faults.iter().collect();
    }
    let skip = shown.len().saturating_sub(MOST_FAULTS);
    for made in shown.into_iter().skip(skip) {
        let ms = (made.to - made.from) / 1000;
        lines.add(made.from, format!("({}, repaired after {ms} ms)", made.what));
    }
}

/// Who led at this time.
fn epoch_at(history: &History, at: At) -> String {
    let before = history.cursor.iter().filter(|write| write.at <= at);
    let epochs: HashMap<i64, &str> = before.map(|write| (write.epoch, &*write.holder)).collect();
    epochs.iter().max().map_or_else(
        || "before any epoch".to_owned(),
        |(epoch, holder)| format!("in epoch {epoch} of {holder}"),
    )
}

/// The end of an id, which is enough to tell it apart.
fn short(id: &str) -> &str {
    id.get(id.len().saturating_sub(12)..).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::check;
    use crate::checker::tests::{cursor_of_two, reorder, well};
    use crate::history::{Dead, Given, Loss, Made};

    /// The story of what the checker finds in a history.
    fn story(history: &History) -> Vec<String> {
        let story = shortest(history, &check(history));
        let time = |line: &String| line.split_whitespace().next().and_then(|at| at.parse().ok());
        let times: Vec<f64> = story.iter().filter_map(time).collect();
        assert_eq!(times.len(), story.len() - 1, "a line without a time: {story:#?}");
        assert!(times.is_sorted(), "not in the order of time: {story:#?}");
        story
    }

    /// Asserts that some line contains all of these.
    fn tells(story: &[String], words: &[&str]) {
        let found = story.iter().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(found, "nothing of {words:?} in {story:#?}");
    }

    #[test]
    fn a_lost_event_is_followed_from_its_draw_to_where_it_was_last_seen() {
        let mut history = well();
        history.effects.remove(2);
        history.effects[2].previous = Some(2);
        history.given = vec![Given { id: "a3".into(), process: "ledger0-1".into(), at: 33 }];
        let made = |what: &str, from, to| Made {
            kind: "kill-consumer".into(),
            what: what.into(),
            from,
            to,
            hit: true,
        };
        history.faults = vec![
            made("kill-consumer: ledger0", 34, 36),
            made("another day", 90_000_000, 90_000_001),
        ];
        let story = story(&history);
        tells(&story, &["a3 drawn by writer-0", "number 3 of a"]);
        tells(&story, &["a3 committed", "position 3"]);
        tells(&story, &["a3 stored at 3"]);
        tells(&story, &["a3 given to the handler of ledger0-1"]);
        tells(&story, &["kill-consumer: ledger0"]);
        tells(&story, &["= event a3 was committed, but is lost for ledger"]);
        assert!(!story.iter().any(|line| line.contains("another day") || line.contains("a4")));
    }

    #[test]
    fn two_events_out_of_order_are_told_together() {
        let mut history = well();
        reorder(&mut history, &[0, 2, 1, 3]);
        let story = story(&history);
        tells(&story, &["a3 took effect 2"]);
        tells(&story, &["a2 took effect 3", "saw number 3"]);
        tells(&story, &["= event a2 took effect in ledger after a3, a later one of its key"]);
    }

    #[test]
    fn a_cursor_moved_by_another_is_told_with_the_connections() {
        let mut history = cursor_of_two();
        history.cursor[3].backend = 1;
        let story = story(&history);
        tells(&story, &["the lease taken over connection 2", "epoch 2"]);
        tells(&story, &["the cursor moved over connection 1", "epoch 2"]);
        tells(&story, &["= the cursor was moved in epoch 2"]);
    }

    #[test]
    fn every_other_violation_has_an_end_to_its_story() {
        let end = |history: &History| story(history).pop().unwrap_or_default();
        let mut history = well();
        history.effects.push(crate::history::Effect {
            seq: 9,
            previous: Some(4),
            ..history.effects[0].clone()
        });
        assert!(end(&history).contains("a1 took effect 2 times in ledger"));
        let mut history = well();
        history.committed.remove(3);
        assert!(end(&history).contains("a4"));
        let mut history = well();
        history.stored.remove(0);
        history.effects.remove(0);
        history.effects[0].previous = None;
        tells(&story(&history), &["a1 was never seen in the stream"]);
        let mut history = well();
        history.effects[2].previous = None;
        assert!(end(&history).contains("a3 was handled in ledger at the same time as another"));
        let mut history = well();
        history.dead.push(Dead {
            consumer: None,
            id: "a1".into(),
            reason: "too_large".into(),
            error: "so it said".into(),
            at: 40,
        });
        tells(&story(&history), &["a1 given up by the relay (too_large): so it said"]);
        let mut history = cursor_of_two();
        history.cursor[3].high = 1;
        history.cursor[3].back = true;
        assert!(end(&history).contains("went back from 2 to 1"));
        history.losses.push(Loss { began: 4, discovered: None, how: "wiped".into() });
        assert!(end(&history).contains("wiped, and the relay did not notice"));
        let mut history = well();
        history.left.push(("events in the outbox".into(), 3));
        assert!(end(&history).contains("3 events in the outbox at the end"));
        let mut history = well();
        history.ended.push((7, "relay0 ended with exit status: 1".into()));
        assert!(end(&history).contains("relay0 ended with exit status: 1 without being told to"));
    }

    #[test]
    fn violations_are_counted_by_kind() {
        let mut history = well();
        history.effects.truncate(2);
        let summary = summary(&check(&history));
        assert_eq!(summary.len(), 1);
        assert!(summary[0].starts_with("2 lost, such as: event a3"), "{summary:?}");
    }
}
