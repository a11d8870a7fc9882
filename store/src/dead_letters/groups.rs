//! Dead letters that belong together, because one cause may be behind all of them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::fingerprint::fingerprint;
use super::state::LetterState;

/// As many groups are told apart. More would mean that errors have nothing in common, and would fill the memory.
pub const MOST: usize = 1_000;

/// What tells the groups apart, of one letter.
#[derive(Clone, Debug)]
pub(super) struct Outline {
    pub(super) letter: i64,
    pub(super) owner: String,
    pub(super) event_type: Option<String>,
    pub(super) reason: String,
    pub(super) error: String,
    pub(super) state: LetterState,
    pub(super) age_seconds: f64,
}

impl Outline {
    /// The name of its group.
    pub(super) fn group(&self) -> String {
        name(&self.owner, self.event_type.as_deref(), &self.reason, &fingerprint(&self.error))
    }
}

/// Unresolved dead letters of one relay or consumer, with one event type, one reason and one fingerprint.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Group {
    /// Its name: ten characters that follow from what its letters have in common, so it stays the same from one look to
    /// the next. The two sides have different letters, and may use the same name.
    pub group: String,
    /// The relay, or the consumer, that gave them up.
    pub owner: String,
    /// The type of the events, or `None` for messages that were no events.
    pub event_type: Option<String>,
    /// Why, in a word.
    pub reason: String,
    /// The [fingerprint](super::fingerprint()) of the errors.
    pub fingerprint: String,
    /// The error of the newest letter, with its sources; the first 4,001 characters.
    pub error: String,
    /// How many letters there are.
    pub count: i64,
    /// How many of them are parked. The others are dead.
    pub parked: i64,
    /// How long ago the first of them was given up, in seconds.
    pub first_age_seconds: f64,
    /// How long ago the last of them was given up, in seconds.
    pub last_age_seconds: f64,
    /// The number of the newest letter.
    pub letter: i64,
}

/// The groups of the unresolved dead letters, the largest first.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Groups {
    /// At most [`MOST`] of them.
    pub groups: Vec<Group>,
    /// How many letters there are altogether.
    pub letters: i64,
    /// How many letters belong to further groups, which are left out.
    pub left_out: i64,
}

/// Counts letters as they are read.
#[derive(Default)]
pub(super) struct Counting {
    groups: HashMap<String, Group>,
    letters: i64,
    left_out: i64,
}

impl Counting {
    pub(super) fn add(&mut self, letter: Outline) {
        self.letters += 1;
        let fingerprint = fingerprint(&letter.error);
        let event_type = letter.event_type.as_deref();
        let name = name(&letter.owner, event_type, &letter.reason, &fingerprint);
        let room = self.groups.len() < MOST;
        let parked = i64::from(letter.state == LetterState::Parked);
        match self.groups.entry(name) {
            Entry::Occupied(mut group) => {
                let group = group.get_mut();
                group.count += 1;
                group.parked += parked;
                group.first_age_seconds = group.first_age_seconds.max(letter.age_seconds);
                if letter.age_seconds <= group.last_age_seconds {
                    group.last_age_seconds = letter.age_seconds;
                    group.error = letter.error;
                    group.letter = letter.letter;
                }
            }
            Entry::Vacant(place) if room => {
                let group = place.key().clone();
                place.insert(Group {
                    group,
                    owner: letter.owner,
                    event_type: letter.event_type,
                    reason: letter.reason,
                    fingerprint,
                    error: letter.error,
                    count: 1,
                    parked,
                    first_age_seconds: letter.age_seconds,
                    last_age_seconds: letter.age_seconds,
                    letter: letter.letter,
                });
            }
            Entry::Vacant(_) => self.left_out += 1,
        }
    }

    pub(super) fn done(self) -> Groups {
        let mut groups: Vec<Group> = self.groups.into_values().collect();
        groups.sort_by(|one, other| {
            other.count.cmp(&one.count).then_with(|| one.group.cmp(&other.group))
        });
        Groups { groups, letters: self.letters, left_out: self.left_out }
    }
}

/// The name of a group: the beginning of a digest of what its letters have in common.
fn name(owner: &str, event_type: Option<&str>, reason: &str, fingerprint: &str) -> String {
    let mut digest = Sha256::new();
    for part in [Some(owner), event_type, Some(reason), Some(fingerprint)] {
        // The length keeps apart what the parts alone would not.
        digest.update(part.map_or(u64::MAX, |part| part.len() as u64).to_le_bytes());
        digest.update(part.unwrap_or_default());
    }
    digest.finalize().iter().take(5).map(|byte| format!("{byte:02x}")).collect()
}
