//! What is known from acknowledgements. It stays true whatever the JetStream API answers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::cursor::Cursor;
use crate::places::{Holds, Naming, Place, Places};

/// At most this many subjects are remembered for each stream, because topics may contain ids.
pub(crate) const SUBJECTS: usize = 16;

/// How far each stream has acknowledged, and which subjects. Cheap to clone; all clones share one state.
///
/// A stream is identified by its name. If its domain is not the API's, the domain and a dot come before the name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Acknowledged {
    /// The API's domain. `None`: domains are not distinguished.
    domain: Option<Arc<str>>,
    memory: Arc<Mutex<StreamAcks>>,
}

#[derive(Debug, Default)]
struct StreamAcks {
    streams: BTreeMap<String, Acks>,
    /// Whether a stream has acknowledged for the first time since the last look, or named its first place.
    has_new: bool,
    /// The last two checkpoints that this process found or tried to take.
    seen: [Option<Cursor>; 2],
}

/// What one stream has acknowledged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Acks {
    pub(crate) last: u64,
    /// Some of the subjects that it acknowledged.
    pub(crate) subjects: BTreeSet<String>,
    /// Whether it has acknowledged something since the last look.
    pub(crate) fresh: bool,
    /// Whether the API has never shown it.
    pub(crate) never_shown: bool,
    /// Where events lie that it acknowledged since the last checkpoint.
    pub(crate) places: Places,
    /// What is known of these places.
    pub(crate) naming: Naming,
    /// Whether any place was ever known.
    is_placed: bool,
}

/// See [`Acknowledged::doubt`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Doubt {
    Hidden(String),
    TookIt(String),
}

impl Acknowledged {
    /// Nothing is acknowledged yet. `domain` is the API's domain; streams of other domains carry theirs in their names.
    pub(crate) fn through(domain: Option<String>) -> Self {
        Self { domain: domain.map(Into::into), ..Self::default() }
    }

    /// Records an acknowledgement.
    ///
    /// # Errors
    /// The sequence that the stream had before, if it went back.
    pub(crate) fn note(
        &self,
        stream: &str,
        sequence: u64,
        is_repeat: bool,
        subject: Option<&str>,
    ) -> Result<(), u64> {
        let mut memory = self.memory();
        let StreamAcks { streams, has_new, .. } = &mut *memory;
        let Some(acks) = streams.get_mut(stream) else {
            let subjects = subject.map(str::to_owned).into_iter().collect();
            let acks = Acks { last: sequence, subjects, fresh: true, ..Acks::default() };
            streams.insert(stream.to_owned(), acks);
            *has_new = true;
            return Ok(());
        };
        acks.fresh = true;
        if let Some(subject) = subject
            && acks.subjects.len() < SUBJECTS
            && !acks.subjects.contains(subject)
        {
            acks.subjects.insert(subject.to_owned());
        }
        if is_repeat || sequence > acks.last {
            acks.last = sequence.max(acks.last);
            return Ok(());
        }
        Err(acks.last)
    }

    /// Records where an event lies that was acknowledged on the connection with this number. The first place of a
    /// stream asks for a look, which compares it.
    pub(crate) fn lies(&self, stream: &str, sequence: u64, holds: Holds, connection: u64) {
        let mut memory = self.memory();
        let StreamAcks { streams, has_new, .. } = &mut *memory;
        if let Some(acks) = streams.get_mut(stream).filter(|_| sequence > 0) {
            acks.places.add(Place { sequence, holds }, connection, Instant::now());
            *has_new |= !acks.is_placed;
            acks.is_placed = true;
        }
    }

    /// Records what a comparison told of the stream's places.
    pub(crate) fn compared(&self, stream: &str, naming: Naming) {
        if let Some(acks) = self.memory().streams.get_mut(stream) {
            acks.naming = naming;
        }
    }

    /// Forgets the places up to this sequence, because a checkpoint was saved whose mark covers them.
    pub(crate) fn covered(&self, stream: &str, up_to: u64) {
        if let Some(acks) = self.memory().streams.get_mut(stream) {
            acks.places.forget_up_to(up_to);
        }
    }

    /// The identifier of a stream, from the name and the domain in its acknowledgement.
    pub(crate) fn name(&self, stream: &str, domain: &str) -> String {
        match &self.domain {
            Some(own) if !domain.is_empty() && **own != *domain => format!("{domain}.{stream}"),
            _ => stream.to_owned(),
        }
    }

    /// Why the API's answer "no stream takes this subject" may be wrong: a stream that the API has never shown may take
    /// it, or a stream that acknowledged the subject before and still exists.
    pub(crate) fn doubt(&self, subject: &str) -> Option<Doubt> {
        let memory = self.memory();
        let hidden = memory.streams.iter().find(|(_, acks)| acks.never_shown);
        if let Some((name, _)) = hidden {
            return Some(Doubt::Hidden(name.clone()));
        }
        let took = memory.streams.iter().find(|(_, acks)| acks.subjects.contains(subject));
        took.map(|(name, _)| Doubt::TookIt(name.clone()))
    }

    #[cfg(test)]
    fn all(&self) -> BTreeMap<String, Acks> {
        self.memory().streams.clone()
    }

    /// Whether a stream has acknowledged for the first time since the last look, or named its first place.
    pub(crate) fn has_new(&self) -> bool {
        self.memory().has_new
    }

    /// Everything that was acknowledged so far. Begins a look: from here on, acknowledgements are new again.
    pub(crate) fn look(&self) -> BTreeMap<String, Acks> {
        let mut memory = self.memory();
        memory.has_new = false;
        let all = memory.streams.clone();
        memory.streams.values_mut().for_each(|acks| acks.fresh = false);
        all
    }

    /// Records what a look at the stream found. `told`: how far it had acknowledged, if only acknowledgements tell.
    pub(crate) fn looked(&self, stream: &str, told: Option<u64>, subjects: &[String], shown: bool) {
        let mut memory = self.memory();
        let acks = memory.streams.entry(stream.to_owned()).or_default();
        acks.last = acks.last.max(told.unwrap_or(0));
        acks.never_shown = !shown;
        if !shown {
            let room = SUBJECTS.saturating_sub(acks.subjects.len());
            acks.subjects.extend(subjects.iter().take(room).cloned());
        }
    }

    /// Forgets a stream that no longer exists.
    pub(crate) fn drop(&self, stream: &str) {
        self.memory().streams.remove(stream);
    }

    pub(crate) fn forget(&self) {
        self.memory().streams.clear();
    }

    /// Records a checkpoint that this process is about to take.
    pub(crate) fn takes(&self, cursor: &Cursor) {
        let mut memory = self.memory();
        memory.seen.swap(0, 1);
        memory.seen[0] = Some(cursor.clone());
    }

    /// Records the newest checkpoint. If another process took it, that process has checked the streams since, and has
    /// gone back if necessary. Then what was acknowledged to this process before no longer counts.
    pub(crate) fn finds(&self, newest: &Cursor) {
        let mine = self.memory().seen.iter().flatten().any(|seen| seen == newest);
        if !mine {
            self.forget();
            self.takes(newest);
        }
    }

    fn memory(&self) -> MutexGuard<'_, StreamAcks> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledgement_that_goes_back_is_noticed_and_a_repeat_is_not_one() {
        let acknowledged = Acknowledged::default();
        let note = |stream, sequence, repeat| acknowledged.note(stream, sequence, repeat, None);
        assert_eq!(note("A", 5, false), Ok(()));
        assert_eq!(note("A", 3, true), Ok(()), "a repeat tells the first copy's sequence");
        assert_eq!(note("B", 1, false), Ok(()));
        assert_eq!(note("A", 5, false), Err(5));
        assert_eq!(note("A", 6, false), Ok(()));
        acknowledged.forget();
        assert_eq!(note("A", 1, false), Ok(()));
    }

    #[test]
    fn streams_of_one_name_in_two_domains_are_two() {
        let acknowledged = Acknowledged::through(Some("leaf".into()));
        assert_eq!(acknowledged.name("A", "leaf"), "A");
        assert_eq!(acknowledged.name("A", ""), "A");
        assert_eq!(acknowledged.name("A", "hub"), "hub.A");
        assert_eq!(Acknowledged::default().name("A", "hub"), "A", "through an API prefix");
    }

    #[test]
    fn what_was_acknowledged_before_another_process_led_is_forgotten() {
        let acknowledged = Acknowledged::default();
        let cursor = |high| Cursor { high, ..Cursor::start("1") };
        acknowledged.finds(&cursor(1));
        let _ = acknowledged.note("A", 5, false, None);
        acknowledged.takes(&cursor(2));
        // Whether or not the answer came.
        acknowledged.finds(&cursor(1));
        acknowledged.finds(&cursor(2));
        assert_eq!(acknowledged.all()["A"].last, 5);
        acknowledged.finds(&cursor(7));
        assert!(acknowledged.all().is_empty());
    }

    #[test]
    fn a_subject_that_was_acknowledged_has_a_stream_whatever_the_api_says() {
        let acknowledged = Acknowledged::default();
        let _ = acknowledged.note("A", 5, false, Some("orders.placed"));
        assert_eq!(acknowledged.doubt("orders.placed"), Some(Doubt::TookIt("A".into())));
        assert_eq!(acknowledged.doubt("orders.paid"), None);
        acknowledged.looked("A", None, &[], false);
        assert_eq!(acknowledged.doubt("orders.paid"), Some(Doubt::Hidden("A".into())));
    }
}
