//! A relay's row in `pillarbox.relay`, and the statements that change it.

use std::fmt;

use super::broker::Event;

pub type Epoch = u8;

/// The row, and the statements on their way to it of which the asker is gone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Database {
    /// Everything up to this event has been shipped.
    pub cursor: Event,
    pub epoch: Epoch,
    holder: Holder,
    /// Until `expires_at`, by the database's clock.
    left: u8,
    pub late: Vec<Write>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Holder {
    Nobody,
    Relay(usize),
    /// A process that is no more.
    Gone,
}

/// A statement that names an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Write {
    pub epoch: Epoch,
    pub request: Request,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Request {
    /// Asked for `ago` ticks ago by the asker's clock.
    Renew {
        ago: u8,
    },
    Save {
        cursor: Event,
    },
    Release,
}

impl Database {
    pub fn new() -> Self {
        Self { cursor: 0, epoch: 0, holder: Holder::Nobody, left: 0, late: Vec::new() }
    }

    /// `acquire.sql`: the epoch and the cursor, if the lease is free, has expired, or is the asker's own.
    pub fn acquire(&mut self, who: usize, lease: u8) -> Option<(Epoch, Event)> {
        let free = self.left == 0 || [Holder::Nobody, Holder::Relay(who)].contains(&self.holder);
        if !free {
            return None;
        }
        self.holder = Holder::Relay(who);
        self.epoch += 1;
        self.left = lease;
        Some((self.epoch, self.cursor))
    }

    /// A statement that is let through.
    pub fn write(&mut self, request: Request, lease: u8) {
        match request {
            Request::Renew { .. } => self.left = lease,
            Request::Save { cursor } => self.cursor = cursor,
            Request::Release => {
                self.holder = Holder::Nobody;
                self.left = 0;
            }
        }
    }

    /// The process of this relay is another one from now on.
    pub fn is_another_process(&mut self, who: usize) {
        if self.holder == Holder::Relay(who) {
            self.holder = Holder::Gone;
        }
    }

    /// Forgets the late writes of former leaders, which change nothing, and the order of the others: each may come
    /// first.
    pub fn forget_what_does_nothing(&mut self) {
        self.late.retain(|write| write.epoch == self.epoch);
        self.late.sort_unstable();
    }

    /// Numbers the relays by the states that they are in.
    pub fn rename<R: Clone + Ord>(&mut self, relays: &mut [R]) {
        let mut order: Vec<usize> = (0..relays.len()).collect();
        order.sort_by_key(|who| (&relays[*who], self.holder == Holder::Relay(*who)));
        if let Holder::Relay(holder) = self.holder
            && let Some(who) = order.iter().position(|who| *who == holder)
        {
            self.holder = Holder::Relay(who);
        }
        let sorted: Vec<R> = order.into_iter().map(|who| relays[who].clone()).collect();
        relays.clone_from_slice(&sorted);
    }

    pub fn tick(&mut self) {
        self.left = self.left.saturating_sub(1);
    }
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cursor, epoch, left, .. } = self;
        write!(
            f,
            "the database has epoch {epoch} for {left} ticks, and the cursor behind event {cursor}"
        )
    }
}
