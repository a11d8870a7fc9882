//! A stream that drops repeats of a message for as long as it remembers it.

use std::fmt;

/// The number of an event, from 1, in the order of the outbox.
pub type Event = u8;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Broker {
    stored: Events,
    remembered: Events,
    /// Under way, and the sender is gone.
    late: Events,
    /// An event was stored again, after the broker had forgotten it.
    pub repeated: bool,
}

/// A set of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Events(u8);

impl Events {
    fn has(self, event: Event) -> bool {
        self.0 & (1 << event) != 0
    }

    fn add(&mut self, event: Event) {
        self.0 |= 1 << event;
    }

    fn take(&mut self, event: Event) {
        self.0 &= !(1 << event);
    }

    fn each(self) -> impl Iterator<Item = Event> {
        (1..8).filter(move |event| self.has(*event))
    }
}

impl Broker {
    /// A message arrives. Answers whether that was as it should be: not for the first time before an earlier event.
    pub fn store(&mut self, event: Event) -> bool {
        let in_order = (1..event).all(|earlier| self.has(earlier));
        if self.has(event) && !self.remembered.has(event) {
            self.repeated = true;
        }
        self.stored.add(event);
        self.remembered.add(event);
        in_order
    }

    pub fn has(&self, event: Event) -> bool {
        self.stored.has(event)
    }

    pub fn remembered(&self) -> impl Iterator<Item = Event> {
        self.remembered.each()
    }

    pub fn forget(&mut self, event: Event) {
        self.remembered.take(event);
    }

    /// The messages under way whose sender is gone.
    pub fn late(&self) -> impl Iterator<Item = Event> {
        self.late.each()
    }

    /// Forgets the messages under way that it has already, if it will not forget that it has.
    pub fn forget_what_it_would_drop(&mut self) {
        self.late.0 &= !self.stored.0;
    }

    pub fn will_arrive(&mut self, event: Event) {
        self.late.add(event);
    }

    pub fn arrives(&mut self, event: Event) {
        self.late.take(event);
    }
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the stream has events {:?}", self.stored.each().collect::<Vec<_>>())
    }
}
