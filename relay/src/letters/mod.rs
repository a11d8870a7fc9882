//! Dead and parked events, as the shipper meets them.
//!
//! ```text
//!            the broker can never store it               retried by an operator
//!   outbox ───────────────────────────────► dead ──────────────────────────────► parked
//!      │                                     ▲                                     │ ▲
//!      │                                     └──── it can still not be stored ─────┤ │
//!      │                                                                 shipped ──┴─┼─► retried
//!      └── order = "strict", and an unresolved event of its key is here ─────────────┘
//! ```
//!
//! The shipper asks, and whoever holds the lease answers, on the lease's connection: so these rows, like the
//! cursor, have one writer, whose epoch fences it. Parked events are shipped by the shipper itself, between
//! two pages; in a strict order that is the moment at which their key goes on.

mod aside;
mod due;

use std::collections::HashSet;

use sqlx::PgConnection;
use tokio::sync::{mpsc, oneshot};

use crate::checkpoint::{self, Checkpoint, Marks};
use crate::config::{Order, RelayConfig};
use crate::cursor::Cursor;
use crate::lease::{Lease, LeaseError};
use crate::message::Row;
use crate::reader::Refused;
use crate::rows::BadRow;

pub(crate) use aside::Aside;

/// What the shipper asks of the leader. Each is answered when it is written.
#[derive(Debug)]
pub(crate) enum Request {
    /// Write this cursor, and a dead letter for the event before it. Answered with whether it is a new one.
    SetAside(Box<(Cursor, Refused)>, oneshot::Sender<bool>),
    /// Set these events aside, and leave the cursor where it is. Answered with the positions of those that were not
    /// aside already.
    Keep(Vec<Aside>, oneshot::Sender<Vec<i64>>),
    /// Which keys wait?
    Blocked(oneshot::Sender<HashSet<String>>),
    /// Which parked events are to be shipped now? The largest payload that the broker takes.
    Due(usize, oneshot::Sender<Due>),
    /// These letters have been shipped.
    Shipped(Vec<i64>, oneshot::Sender<()>),
    /// The event of this letter could not be stored.
    DeadAgain(i64, Refused, oneshot::Sender<()>),
    /// The newest checkpoint?
    LastCheckpoint(oneshot::Sender<Option<Checkpoint>>),
    /// All checkpoints, newest first?
    Checkpoints(oneshot::Sender<Vec<Checkpoint>>),
    /// Remember a checkpoint.
    Checkpoint(Box<(Cursor, Marks)>, oneshot::Sender<()>),
    /// Move the cursor back to this one, of the checkpoint taken then, or of the very start.
    GoBack(Box<(Cursor, Option<String>)>, oneshot::Sender<()>),
}

/// Parked events, in the order in which they are to be shipped.
#[derive(Debug, Default)]
pub(crate) struct Due {
    pub(crate) events: Vec<Parked>,
    /// Those among them that cannot be sent.
    pub(crate) bad: Vec<BadRow>,
}

/// A parked event.
#[derive(Debug)]
pub(crate) struct Parked {
    pub(crate) letter: i64,
    pub(crate) row: Row,
    /// How often it has been tried before.
    pub(crate) attempts: i32,
}

/// The shipper's way to the leader.
#[derive(Clone, Debug)]
pub(crate) struct Letters(mpsc::Sender<Request>);

impl Letters {
    pub(crate) fn channel() -> (Self, mpsc::Receiver<Request>) {
        let (sender, requests) = mpsc::channel(1);
        (Self(sender), requests)
    }

    /// Asks, and waits for the answer. There is none when the leader has ended.
    pub(crate) async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, LeaseError> {
        let (answer, answered) = oneshot::channel();
        self.0.send(request(answer)).await.map_err(|_| LeaseError::Lost)?;
        answered.await.map_err(|_| LeaseError::Lost)
    }
}

impl Lease {
    /// Does what is asked. Whoever asked may have gone; what is written is written.
    pub(crate) async fn answer(
        &mut self,
        request: Request,
        config: &RelayConfig,
    ) -> Result<(), LeaseError> {
        match request {
            Request::SetAside(what, done) => {
                let (cursor, refused) = *what;
                let cursor = self.json(&cursor)?;
                let new = self.set_aside(Some(cursor), vec![Aside::dead(refused)]).await?;
                let _ = done.send(!new.is_empty());
            }
            Request::Keep(events, done) => {
                let _ = done.send(self.set_aside(None, events).await?);
            }
            Request::Blocked(keys) => {
                let _ = keys.send(self.blocked().await?);
            }
            Request::Due(largest, parked) => {
                let _ = parked.send(self.due(config.order == Order::Strict, largest).await?);
            }
            Request::Shipped(letters, done) => {
                let query = self.query(include_str!("shipped.sql")).bind(letters);
                self.within(async |c: &mut PgConnection| query.execute(c).await).await?;
                let _ = done.send(());
            }
            Request::DeadAgain(letter, refused, done) => {
                self.dead_again(letter, refused).await?;
                let _ = done.send(());
            }
            Request::LastCheckpoint(last) => {
                let _ = last.send(self.checkpoints(1).await?.pop());
            }
            Request::Checkpoints(all) => {
                let _ = all.send(self.checkpoints(i64::MAX).await?);
            }
            Request::Checkpoint(what, done) => {
                let (cursor, marks) = *what;
                let retention = i64::try_from(config.retention_s).unwrap_or(i64::MAX);
                let query = self
                    .query(include_str!("../checkpoint/take.sql"))
                    .bind(self.json(&cursor)?)
                    .bind(self.json(&marks)?)
                    .bind(retention);
                self.fenced(query).await?;
                let _ = done.send(());
            }
            Request::GoBack(what, done) => {
                let (cursor, taken_at) = *what;
                let query = self
                    .query(include_str!("../checkpoint/go_back.sql"))
                    .bind(self.json(&cursor)?)
                    .bind(taken_at);
                self.fenced(query).await?;
                let _ = done.send(());
            }
        }
        Ok(())
    }

    /// The newest checkpoints, newest first.
    async fn checkpoints(&mut self, most: i64) -> Result<Vec<Checkpoint>, LeaseError> {
        let text = "select taken_at::text, cursor::text, streams::text from pillarbox.relay_checkpoint \
                    where relay = $1 order by relay_checkpoint.taken_at desc limit $2";
        let query = self.read(text).bind(most);
        let rows = self.within(async |c: &mut PgConnection| query.fetch_all(c).await).await?;
        rows.iter().map(checkpoint::read).collect()
    }
}
