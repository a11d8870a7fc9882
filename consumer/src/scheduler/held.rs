//! An event that the consumer holds, and how it may run.
//!
//! ```text
//!   delivered,                                                                           delivered or taken again,
//!   parked    ──► in a batch ── its batch, or what all need, failed ─────► by itself ◄── or not an event
//!                      │                                                       │
//!                      └──────────────────────────┬────────────────────────────┘
//!                           an attempt failed     │     it may kill the process
//!                      ┌──────────────────────────┴────────────────────────────┐
//!                      ▼              an attempt failed                        ▼
//!                   failed ◄──────────────────────────────── alone ◄──────► held back
//!                      │                                       ▲               ▲
//!                      └─────── it may kill the process ───────┴───────────────┘
//! ```
//!
//! Every state ends when the event leaves the consumer. Only an event that is failed, by itself or in a batch may be
//! parked: another process would conclude that a suspect had killed this one, or run it beside others.

use std::collections::HashSet;
use std::sync::Arc;

use pillarbox_event::Partition;
use tokio::time::Instant;

use super::content::Content;
use super::disposition::Disposition;
use crate::place::Place;

/// An event that the consumer holds.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) origin: Origin,
    /// Whether it may have been begun before: it was delivered before, or taken from the dead letters before.
    pub(crate) again: bool,
    /// The partition that its sender put it in, if that is not the one that it was read from.
    pub(crate) misfit: Option<Partition>,
    pub(crate) content: Arc<Content>,
    pub(super) manner: Manner,
    /// Whether the inbox was asked, before it ran, whether it is handled already.
    pub(super) looked_up: bool,
}

/// Where an event was taken from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The message at this place, read from this partition.
    Stream { place: Place, partition: u32 },
    /// The dead letter at this position. It was taken on the page that begins at position `page`, and must begin before
    /// `until`.
    Letter { position: i64, page: i64, until: Instant },
}

/// How an event may run: see the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// In a batch, if the consumer handles batches and a batch handler takes this type of event.
    InBatch,
    /// By itself, beside the events of other lanes.
    ByItself,
    /// By itself. Its last attempt failed, and it waits for the next one.
    Failed,
    /// By itself, after it was held back because it or another suspect may kill the process.
    HeldBack,
    /// With nothing beside it.
    Alone,
}

impl Held {
    pub(super) fn from_stream(
        place: Place,
        partition: u32,
        again: bool,
        misfit: Option<Partition>,
        in_batches: bool,
        content: Arc<Content>,
    ) -> Self {
        // An event that was delivered before may have killed a process. It is marked as begun, which is done one by
        // one.
        let by_itself = again || misfit.is_some() || !in_batches || content.event().is_none();
        let manner = if by_itself { Manner::ByItself } else { Manner::InBatch };
        let origin = Origin::Stream { place, partition };
        Self { origin, again, misfit, content, manner, looked_up: false }
    }

    pub(super) fn from_letter(letter: Letter, page: i64, until: Instant) -> Self {
        let Letter { position, again, in_batches, content } = letter;
        let origin = Origin::Letter { position, page, until };
        let manner = if again || !in_batches { Manner::ByItself } else { Manner::InBatch };
        Self { origin, again, misfit: None, content, manner, looked_up: false }
    }

    /// Whether nothing may run beside it.
    pub(crate) fn is_alone(&self) -> bool {
        self.manner == Manner::Alone
    }

    pub(super) fn fits_batch(&self) -> bool {
        self.manner == Manner::InBatch
    }

    /// Whether it was taken from the dead letters.
    pub(crate) fn is_letter(&self) -> bool {
        self.letter().is_some()
    }

    /// Whether it has failed and could wait in the table instead.
    pub(super) fn has_failed_and_may_be_parked(&self) -> bool {
        self.manner == Manner::Failed && self.may_be_parked()
    }

    /// Whether it may wait in the table.
    pub(super) fn may_be_parked(&self) -> bool {
        matches!(self.origin, Origin::Stream { .. })
            && !matches!(self.manner, Manner::Alone | Manner::HeldBack)
            && self.misfit.is_none()
            && matches!(*self.content, Content::Event(_))
    }

    /// Its position among the dead letters if it was taken from there, and whether it may have been begun before.
    pub(crate) fn letter(&self) -> Option<(i64, bool)> {
        match self.origin {
            Origin::Letter { position, .. } => Some((position, self.again)),
            Origin::Stream { .. } => None,
        }
    }

    /// Whether it was read from one of these partitions.
    pub(super) fn is_of(&self, partitions: &HashSet<u32>) -> bool {
        matches!(&self.origin, Origin::Stream { partition, .. } if partitions.contains(partition))
    }
}

impl Manner {
    /// How the event may run from now on.
    pub(super) fn after(self, disposition: &Disposition) -> Self {
        match disposition {
            Disposition::Retry(_) => Self::Failed,
            Disposition::Alone => Self::Alone,
            Disposition::HeldBack(_) => Self::HeldBack,
            // Never in a batch again: this event may be the one that broke the batch or the connection.
            Disposition::ByItself | Disposition::Environment(_) if self == Self::InBatch => {
                Self::ByItself
            }
            _ => self,
        }
    }
}

/// Parked events that were taken from the table together, in their order: those of one key, or one without a key.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) letters: Vec<Letter>,
    /// Until when they may begin.
    pub(crate) until: Instant,
}

/// A parked event that was taken from the table.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) position: i64,
    /// Whether it may have been begun before.
    pub(crate) again: bool,
    /// Whether its handler takes events in batches.
    pub(crate) in_batches: bool,
    pub(crate) content: Arc<Content>,
}

impl Page {
    /// The position of its first event, which names the page.
    pub(crate) fn first(&self) -> i64 {
        self.letters.first().map_or(0, |letter| letter.position)
    }
}
