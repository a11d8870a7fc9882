//! Checks a history.
//!
//! | what must hold | the violation otherwise |
//! |---|---|
//! | a committed event takes effect in each consumer, once | [`Lost`](Violation::Lost), [`Repeated`](Violation::Repeated) |
//! | a committed event that cannot take effect is one dead letter, in the right place, and no other event is | [`Lost`](Violation::Lost), [`WronglyDead`](Violation::WronglyDead) |
//! | a foreign message that the stream holds takes effect in each consumer once, or is one dead letter if it cannot be read | [`Lost`](Violation::Lost), [`Repeated`](Violation::Repeated), [`WronglyDead`](Violation::WronglyDead) |
//! | an event that was not committed has no effect | [`NotCommitted`](Violation::NotCommitted) |
//! | where order is kept, the effects of a key are in the order of their commits | [`OutOfOrder`](Violation::OutOfOrder) |
//! | where order is kept, each handler sees all effects before its own | [`SideBySide`](Violation::SideBySide) |
//! | a scheduled event comes into the outbox once, and not before it is due, unless a cancel said that it was cancelled; then never | [`WronglyReleased`](Violation::WronglyReleased) |
//! | a trip is booked whole or undone, once, as the history of its saga says | [`WrongTrip`](Violation::WrongTrip) |
//! | what a writer was told about a commit is true | [`ToldWrong`](Violation::ToldWrong) |
//! | only the holder of the newest epoch moves the cursor | [`Unfenced`](Violation::Unfenced) |
//! | the cursor moves back only when the broker has lost something, and the relay notices each loss | [`MovedBack`](Violation::MovedBack), [`Unnoticed`](Violation::Unnoticed) |
//! | at the end nothing waits, and no process has ended by itself | [`Stuck`](Violation::Stuck), [`Ended`](Violation::Ended) |
//!
//! The numbers of a key are drawn under its lock, which is held until the commit, so their order is that of the
//! commits. If a writer does not know the result of its commit, the outbox decides.
//!
//! A foreign message is in no outbox, so if the stream loses it, it is lost. If the broker acknowledged it before a
//! loss was noticed, and the stream does not hold it at the end, it may have taken effect or not.
//!
//! There is one exception, which the README states: events that the broker stored between a loss and its discovery come
//! before the lost events that are shipped again. So an effect may come before a lower number of its key if its own
//! message was first stored during such a time.

use std::collections::{HashMap, HashSet};

use crate::event::{Fate, Kind};
use crate::history::{Effect, History, Told};
use crate::journal::At;
use crate::trips;

/// Something that must not happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A committed event was neither handled nor became a dead letter where it should.
    Lost {
        /// The event.
        id: String,
        /// The consumer that misses it. `None` if it is missing among the relay's dead letters.
        consumer: Option<String>,
    },
    /// An event took effect more than once.
    Repeated {
        /// The event.
        id: String,
        /// The consumer.
        consumer: String,
        /// How often it took effect.
        times: usize,
    },
    /// An event took effect that was not committed.
    NotCommitted {
        /// The event.
        id: String,
        /// The consumer.
        consumer: String,
    },
    /// An event was given up, or took effect, although it should not.
    WronglyDead {
        /// The event.
        id: String,
        /// The consumer. `None` for the relay.
        consumer: Option<String>,
        /// What is wrong.
        what: String,
    },
    /// An event took effect after a later one of its key.
    OutOfOrder {
        /// The event.
        id: String,
        /// The later one.
        behind: String,
        /// The consumer.
        consumer: String,
    },
    /// A handler did not see an effect that was written before its own, so two handlers of a key ran at the same time.
    SideBySide {
        /// The event.
        id: String,
        /// The consumer.
        consumer: String,
    },
    /// A scheduled event did not come into the outbox, or came too early, too often, or after it was cancelled.
    WronglyReleased {
        /// The event.
        id: String,
        /// What is wrong.
        what: &'static str,
    },
    /// A trip did not end as it must.
    WrongTrip {
        /// The trip.
        trip: String,
        /// What is wrong.
        what: String,
    },
    /// A writer was told something that is not true.
    ToldWrong {
        /// The event.
        id: String,
        /// What it was told.
        told: &'static str,
    },
    /// A relay moved the cursor after another one had taken the lease.
    Unfenced {
        /// The epoch in force.
        epoch: i64,
        /// When.
        at: At,
    },
    /// The cursor went back although the broker had lost nothing.
    MovedBack {
        /// From this position.
        from: i64,
        /// To this one.
        to: i64,
        /// When.
        at: At,
    },
    /// The relay did not notice a loss.
    Unnoticed {
        /// When it was lost.
        at: At,
        /// How.
        how: String,
    },
    /// Something still waits.
    Stuck {
        /// What.
        what: String,
        /// How much of it.
        count: i64,
    },
    /// A process ended by itself.
    Ended {
        /// Which, and how.
        what: String,
        /// When.
        at: At,
    },
}

/// All violations in a history.
pub fn check(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    let books = Books::of(history);
    commits(history, &books, &mut found);
    released(history, &mut found);
    for (consumer, keeps_order) in &history.consumers {
        let effects = books.effects_of(history, consumer);
        once(history, &books, consumer, &effects, &mut found);
        foreign(history, &books, consumer, &effects, &mut found);
        if *keeps_order {
            in_order(history, consumer, &effects, &mut found);
        }
    }
    dead_in_outbox(history, &books, &mut found);
    let stored = first_stored(history);
    let may_swap = |id: &str| stored.get(id).is_some_and(|at| in_a_loss(history, *at));
    let wrong = trips::check::check(&history.trips, may_swap).into_iter();
    found.extend(wrong.map(|(trip, what)| Violation::WrongTrip { trip, what }));
    cursor(history, &mut found);
    for loss in history.losses.iter().filter(|loss| loss.discovered.is_none()) {
        found.push(Violation::Unnoticed { at: loss.began, how: loss.how.clone() });
    }
    for (what, count) in &history.left {
        found.push(Violation::Stuck { what: what.clone(), count: *count });
    }
    for (at, what) in &history.ended {
        found.push(Violation::Ended { what: what.clone(), at: *at });
    }
    found
}

/// What was committed, and what should come of it.
struct Books<'h> {
    committed: HashSet<&'h str>,
    /// What foreign producers sent.
    foreign: HashSet<&'h str>,
    /// What the stream holds at the end.
    held: HashSet<&'h str>,
    kinds: HashMap<&'h str, Kind>,
}

impl<'h> Books<'h> {
    fn of(history: &'h History) -> Self {
        let kind = |written: &'h crate::history::Written| (&*written.event.id, written.event.kind);
        let last = history.stored.iter().map(|stored| stored.look).max();
        let held = history.stored.iter().filter(|stored| Some(stored.look) == last);
        Self {
            committed: history.committed.iter().map(|row| &*row.id).collect(),
            foreign: history.foreign.iter().map(|message| &*message.name).collect(),
            held: held.map(|stored| &*stored.id).collect(),
            kinds: history.written.iter().map(kind).collect(),
        }
    }

    /// What should come of a committed event.
    fn fate(&self, id: &str) -> Fate {
        self.kinds.get(id).map_or(Fate::Effect, |kind| kind.fate())
    }

    /// An event that no known producer sent.
    fn is_stranger(&self, id: &str) -> bool {
        !self.committed.contains(id) && !self.foreign.contains(id)
    }

    fn effects_of(&self, history: &'h History, consumer: &str) -> Vec<&'h Effect> {
        let mut effects: Vec<_> =
            history.effects.iter().filter(|effect| effect.consumer == consumer).collect();
        effects.sort_by_key(|effect| effect.seq);
        effects
    }
}

fn commits(history: &History, books: &Books<'_>, found: &mut Vec<Violation>) {
    for written in &history.written {
        let (id, there) = (&written.event.id, books.committed.contains(&*written.event.id));
        let told = match written.told {
            Told::Committed if !there => "committed",
            Told::RolledBack if there => "rolled back",
            _ => continue,
        };
        found.push(Violation::ToldWrong { id: id.clone(), told });
    }
}

fn released(history: &History, found: &mut Vec<Violation>) {
    let mut cancelled: HashMap<&str, usize> = HashMap::new();
    for cancel in history.cancels.iter().filter(|cancel| cancel.cancelled) {
        *cancelled.entry(&cancel.id).or_default() += 1;
    }
    let known: HashSet<&str> = history.scheduled.iter().map(|event| &*event.id).collect();
    let mut wrong = |id: &str, what| {
        found.push(Violation::WronglyReleased { id: id.to_owned(), what });
    };
    for event in &history.scheduled {
        match (cancelled.get(&*event.id), event.released.as_slice()) {
            (None, []) => wrong(&event.id, "it was not cancelled, and never came"),
            (None, [at]) if *at < event.due => wrong(&event.id, "it came before it was due"),
            (None, [_]) | (Some(1), []) => {}
            (None, _) => wrong(&event.id, "it came more than once"),
            (Some(1), _) => wrong(&event.id, "it was cancelled, and came"),
            (Some(_), _) => wrong(&event.id, "it was cancelled more than once"),
        }
    }
    for id in cancelled.keys().filter(|id| !known.contains(*id)) {
        wrong(id, "it was cancelled, and never scheduled");
    }
}

fn once(
    history: &History,
    books: &Books<'_>,
    consumer: &str,
    effects: &[&Effect],
    found: &mut Vec<Violation>,
) {
    let of = |id: &str| (id.to_owned(), consumer.to_owned());
    let mut times: HashMap<&str, usize> = HashMap::new();
    for effect in effects {
        *times.entry(&effect.id).or_default() += 1;
    }
    let letters = history.dead.iter().filter(|dead| dead.consumer.as_deref() == Some(consumer));
    let dead: HashMap<&str, &str> = letters.map(|dead| (&*dead.id, dead.reason.as_str())).collect();
    for row in &history.committed {
        let (id, consumer) = of(&row.id);
        let (effects, dead) = (times.get(&*id).copied().unwrap_or(0), dead.get(&*id));
        if effects > 1 {
            found.push(Violation::Repeated { id, consumer, times: effects });
            continue;
        }
        let wrong = match (books.fate(&id), effects, dead) {
            (Fate::Effect, 1, None)
            | (Fate::DeadInInbox, 0, Some(_))
            | (Fate::DeadInOutbox, 0, None) => continue,
            (Fate::Effect | Fate::DeadInInbox, 0, None) => {
                found.push(Violation::Lost { id, consumer: Some(consumer) });
                continue;
            }
            (Fate::Effect, _, Some(reason)) => format!("a dead letter ({reason})"),
            (Fate::DeadInInbox, ..) => "took effect".to_owned(),
            (Fate::DeadInOutbox, ..) => "reached a consumer".to_owned(),
            (Fate::Effect, _, None) => continue,
        };
        found.push(Violation::WronglyDead { id, consumer: Some(consumer), what: wrong });
    }
    let mut strangers: Vec<_> = times.keys().filter(|id| books.is_stranger(id)).collect();
    strangers.sort();
    for id in strangers {
        let (id, consumer) = of(id);
        found.push(Violation::NotCommitted { id, consumer });
    }
    let mut strangers: Vec<_> = dead.keys().filter(|id| books.is_stranger(id)).collect();
    strangers.sort();
    for id in strangers {
        let ((id, consumer), what) = (of(id), "a dead letter of no event".to_owned());
        found.push(Violation::WronglyDead { id, consumer: Some(consumer), what });
    }
}

/// Checks that each message of a foreign producer took effect once, or is one dead letter.
fn foreign(
    history: &History,
    books: &Books<'_>,
    consumer: &str,
    effects: &[&Effect],
    found: &mut Vec<Violation>,
) {
    let (mut times, mut letters): (HashMap<&str, usize>, HashMap<&str, usize>) = Default::default();
    for effect in effects {
        *times.entry(&effect.id).or_default() += 1;
    }
    for dead in history.dead.iter().filter(|dead| dead.consumer.as_deref() == Some(consumer)) {
        *letters.entry(&dead.id).or_default() += 1;
    }
    let lost_since = |at: At| {
        let mut losses = history.losses.iter();
        losses.any(|loss| loss.discovered.is_none_or(|discovered| at <= discovered))
    };
    for message in &history.foreign {
        let name = &*message.name;
        let of = |counts: &HashMap<&str, usize>| counts.get(name).copied().unwrap_or(0);
        let (effects, letters) = (of(&times), of(&letters));
        let (id, consumer) = (name.to_owned(), consumer.to_owned());
        let what = match (message.readable, effects, letters) {
            (true, 1, 0) | (false, 0, 1) => continue,
            (_, 0, 0) => {
                let told = message.told_at.is_some_and(|at| !lost_since(at));
                if told || books.held.contains(name) {
                    found.push(Violation::Lost { id, consumer: Some(consumer) });
                }
                continue;
            }
            (true, _, 0) => {
                found.push(Violation::Repeated { id, consumer, times: effects });
                continue;
            }
            (true, _, _) => format!("{effects} effects and {letters} dead letters"),
            (false, 0, _) => format!("{letters} dead letters"),
            (false, _, _) => "took effect, and cannot be read".to_owned(),
        };
        found.push(Violation::WronglyDead { id, consumer: Some(consumer), what });
    }
}

fn in_order(history: &History, consumer: &str, effects: &[&Effect], found: &mut Vec<Violation>) {
    let first_stored = first_stored(history);
    let forgiven = |id: &str| {
        let stored = first_stored.get(id);
        stored.is_some_and(|stored| in_a_loss(history, *stored))
    };
    // For each key, the highest number that was not stored during a loss, and the highest of all.
    let mut strict: HashMap<&str, (i64, &str)> = HashMap::new();
    let mut all: HashMap<&str, i64> = HashMap::new();
    let mut seen = HashSet::new();
    for effect in effects {
        let (Some(key), true) = (effect.key.as_deref(), seen.insert(&*effect.id)) else {
            continue;
        };
        let (id, consumer) = (effect.id.clone(), consumer.to_owned());
        if effect.previous != all.get(key).copied() {
            found.push(Violation::SideBySide { id: id.clone(), consumer: consumer.clone() });
        }
        let highest = all.entry(key).or_insert(effect.number);
        *highest = effect.number.max(*highest);
        if let Some((_, behind)) = strict.get(key).filter(|(number, _)| *number > effect.number) {
            found.push(Violation::OutOfOrder { id, behind: (*behind).to_owned(), consumer });
        } else if !forgiven(&effect.id) {
            strict.insert(key, (effect.number, &effect.id));
        }
    }
}

/// Whether the broker had lost something then, and the relay had not gone back yet.
fn in_a_loss(history: &History, at: At) -> bool {
    history.losses.iter().any(|loss| {
        loss.discovered.is_none_or(|discovered| (loss.began..=discovered).contains(&at))
    })
}

/// When each event was stored for the first time.
fn first_stored(history: &History) -> HashMap<&str, At> {
    let mut first: HashMap<&str, At> = HashMap::new();
    for stored in &history.stored {
        let at = first.entry(&stored.id).or_insert(stored.at);
        *at = stored.at.min(*at);
    }
    first
}

fn dead_in_outbox(history: &History, books: &Books<'_>, found: &mut Vec<Violation>) {
    let letters = history.dead.iter().filter(|dead| dead.consumer.is_none());
    let dead: HashMap<&str, &str> = letters.map(|dead| (&*dead.id, &*dead.reason)).collect();
    for row in &history.committed {
        let id = row.id.clone();
        match (books.fate(&id), dead.get(&*id)) {
            (Fate::DeadInOutbox, Some(_)) | (Fate::Effect | Fate::DeadInInbox, None) => {}
            (Fate::DeadInOutbox, None) => found.push(Violation::Lost { id, consumer: None }),
            (_, Some(reason)) => {
                let what = format!("a dead letter of the outbox ({reason})");
                found.push(Violation::WronglyDead { id, consumer: None, what });
            }
        }
    }
}

fn cursor(history: &History, found: &mut Vec<Violation>) {
    let (mut owner, mut high) = (None, 0);
    for write in &history.cursor {
        if write.took {
            owner = Some(write.backend);
        } else if owner != Some(write.backend) {
            found.push(Violation::Unfenced { epoch: write.epoch, at: write.at });
        } else if write.back {
            let lost = history.losses.iter().any(|loss| {
                loss.began <= write.at && loss.discovered.is_none_or(|at| write.at <= at)
            });
            if !lost {
                let (from, to) = (high, write.high);
                found.push(Violation::MovedBack { from, to, at: write.at });
            }
        }
        high = write.high;
    }
}

#[cfg(test)]
pub(crate) mod tests;
