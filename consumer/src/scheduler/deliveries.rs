//! The messages of the stream that are held, and what the server must still be told about them.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::place::Place;

/// What the server is told about a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acknowledgement {
    /// It is done with.
    Done,
    /// It must never be delivered again.
    GivenUp,
    /// Deliver it again after this long.
    Later(Duration),
    /// It is in progress: do not deliver it again yet.
    InProgress,
}

/// The messages that are held, each with the `A` by which its last delivery is acknowledged.
#[derive(Debug)]
pub(super) struct Deliveries<A> {
    held: HashMap<Place, Unacknowledged<A>>,
    due: VecDeque<Due<A>>,
}

#[derive(Debug)]
struct Unacknowledged<A> {
    partition: u32,
    /// `None` while the last delivery is from before the last interruption. An acknowledgement names only a sequence.
    /// If the stream was created anew or restored meanwhile, it would acknowledge another message. If the stream is
    /// the same, the server delivers the message again.
    acker: Option<A>,
}

/// An acknowledgement that is due.
#[derive(Debug)]
enum Due<A> {
    /// The last one of a message, which is not held any more.
    Last { partition: u32, acker: A, acknowledgement: Acknowledgement },
    /// The message at this place is in progress.
    InProgress(Place),
}

impl<A> Deliveries<A> {
    pub(super) fn new() -> Self {
        Self { held: HashMap::new(), due: VecDeque::new() }
    }

    /// How many messages are held.
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether any message of this partition is held.
    pub(super) fn holds_any_of(&self, partition: u32) -> bool {
        self.held.values().any(|held| held.partition == partition)
    }

    /// The message at this place was delivered. Returns whether it is new here: if it was held already, only the way
    /// to acknowledge it is new.
    pub(super) fn delivered(&mut self, place: Place, partition: u32, acker: A) -> bool {
        self.held.insert(place, Unacknowledged { partition, acker: Some(acker) }).is_none()
    }

    /// This message is not held any more, and the server is to be told so, unless it delivers the message again
    /// anyway.
    pub(super) fn acknowledge(&mut self, place: &Place, acknowledgement: Acknowledgement) {
        if let Some(Unacknowledged { partition, acker: Some(acker) }) = self.held.remove(place) {
            self.due.push_back(Due::Last { partition, acker, acknowledgement });
        }
    }

    /// This message is not held any more, and the server is told nothing.
    pub(super) fn forget(&mut self, place: &Place) {
        self.held.remove(place);
    }

    /// The delivery of this partition's messages was interrupted, and starts again. Earlier deliveries are not
    /// acknowledged any more.
    pub(super) fn interrupted(&mut self, interrupted: u32) {
        for held in self.held.values_mut().filter(|held| held.partition == interrupted) {
            held.acker = None;
        }
        self.due
            .retain(|due| !matches!(due, Due::Last { partition, .. } if *partition == interrupted));
    }

    /// The server is to be told that every message that is held is in progress.
    pub(super) fn report_progress(&mut self) {
        self.due.extend(self.held.keys().cloned().map(Due::InProgress));
    }

    /// Whether an acknowledgement is due.
    pub(super) fn any_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// The next acknowledgement that is due. It stays due until [`told`](Self::told) is called.
    pub(super) fn next_due(&mut self) -> Option<(&A, Acknowledgement)> {
        while let Some(Due::InProgress(place)) = self.due.front()
            && self.held.get(place).is_none_or(|held| held.acker.is_none())
        {
            self.due.pop_front();
        }
        match self.due.front()? {
            Due::Last { acker, acknowledgement, .. } => Some((acker, *acknowledgement)),
            Due::InProgress(place) => {
                let acker = self.held.get(place)?.acker.as_ref()?;
                Some((acker, Acknowledgement::InProgress))
            }
        }
    }

    /// The server was told what was due next.
    pub(super) fn told(&mut self) {
        self.due.pop_front();
    }

    /// Ends: the last acknowledgements that are due, and how to acknowledge what is still held.
    pub(super) fn end(self) -> (Vec<(A, Acknowledgement)>, Vec<A>) {
        let last = self.due.into_iter().filter_map(|due| match due {
            Due::Last { acker, acknowledgement, .. } => Some((acker, acknowledgement)),
            Due::InProgress(_) => None,
        });
        (last.collect(), self.held.into_values().filter_map(|held| held.acker).collect())
    }
}
