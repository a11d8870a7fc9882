//! What tests need from the outbox: the events that a transaction has written, without committing it.
//!
//! A test runs its code in a transaction, asks [`published`], and lets the transaction be rolled back. Nothing is left
//! for the next test, and no relay and no broker are needed.
//!
//! ```no_run
//! use pillarbox_event::Event;
//! use pillarbox_outbox::testing::published;
//!
//! #[derive(Event, serde::Serialize, serde::Deserialize)]
//! #[event(type = "order.placed", topic = "orders.placed", key = order)]
//! struct OrderPlaced { order: i64, cents: i64 }
//! # async fn place(tx: &mut sqlx::Transaction<'_, sqlx::Postgres>, order: i64) -> Result<(), sqlx::Error> { Ok(()) }
//!
//! # async fn test(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
//! let mut tx = pool.begin().await?;
//! place(&mut tx, 7).await?;
//! let placed = published(&mut tx).await?.only::<OrderPlaced>()?;
//! assert_eq!((placed.cents, placed.key()), (1999, Some("7")));
//! # Ok(()) }
//! ```
//!
//! There is no feature for it, because it adds no dependency and only reads.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Deref;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use pillarbox_event::{Event, EventId, FromEvent, RawEvent};
use pillarbox_store::InTransaction;
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use crate::publish::Outbox;

/// An error of a test shows at most this many events, and this much of each payload.
const SHOWN: usize = 20;
const SHOWN_PAYLOAD: usize = 200;

/// The events that this transaction has written to the outbox in schema `pillarbox` so far, by whatever client or
/// statement, in the order in which they leave. The transaction stays open.
///
/// # Errors
/// The error of sqlx, also if the transaction has failed or the tables are missing. A row that is no valid event, as
/// plain SQL may write it, is a decoding error.
pub async fn published(tx: &mut impl InTransaction) -> Result<Published, sqlx::Error> {
    Outbox::new().published(tx).await
}

impl Outbox {
    /// The events that this transaction has written to this outbox: see [`published`].
    ///
    /// # Errors
    /// As for [`published`].
    pub async fn published(&self, tx: &mut impl InTransaction) -> Result<Published, sqlx::Error> {
        if let Some(tx) = tx.collects() {
            tx.send_collected().await?;
        }
        let statement = self.statement(include_str!("written.sql"));
        let rows = sqlx::query(statement).fetch_all(tx.connection()).await?;
        let events = rows.iter().map(read).collect::<Result<_, _>>()?;
        Ok(Published { events })
    }
}

fn read(row: &PgRow) -> Result<PublishedEvent<RawEvent>, sqlx::Error> {
    let undecodable = |error: Box<dyn std::error::Error + Send + Sync>| sqlx::Error::Decode(error);
    let id = EventId::parse(row.try_get::<String, _>("id")?).map_err(|e| undecodable(e.into()))?;
    let headers: BTreeMap<String, String> =
        serde_json::from_str(row.try_get("headers")?).map_err(|e| undecodable(e.into()))?;
    let event = RawEvent::from_parts(
        id,
        row.try_get("event_type")?,
        row.try_get("topic")?,
        row.try_get("key")?,
        headers,
        Bytes::from(row.try_get::<Vec<u8>, _>("payload")?),
    );
    let raw = event.map_err(|e| undecodable(e.into()))?;
    let due = row.try_get::<Option<f64>, _>("due")?;
    let due_at = due.and_then(|seconds| {
        SystemTime::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?)
    });
    Ok(PublishedEvent { event: raw.clone(), raw, due_at })
}

/// The events that a transaction has written: see [`published`].
#[derive(Clone, Debug, Default)]
pub struct Published {
    events: Vec<PublishedEvent<RawEvent>>,
}

/// An event that a transaction has written. Dereferences to the event.
#[derive(Clone, Debug)]
pub struct PublishedEvent<E> {
    event: E,
    raw: RawEvent,
    due_at: Option<SystemTime>,
}

impl<E> PublishedEvent<E> {
    /// Its key.
    pub fn key(&self) -> Option<&str> {
        self.raw.key()
    }

    /// Its topic.
    pub fn topic(&self) -> &str {
        self.raw.topic()
    }

    /// The event as it was written, with id, correlation and headers.
    pub fn raw(&self) -> &RawEvent {
        &self.raw
    }

    /// When it leaves. `None`: as soon as the transaction commits.
    pub fn due_at(&self) -> Option<SystemTime> {
        self.due_at
    }

    /// The event itself.
    pub fn into_inner(self) -> E {
        self.event
    }
}

impl<E> Deref for PublishedEvent<E> {
    type Target = E;

    fn deref(&self) -> &E {
        &self.event
    }
}

/// What was published is not what a test wants. The text lists what was published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("wanted {wanted}, but {found}")]
pub struct NotPublished {
    wanted: String,
    found: String,
}

impl Published {
    /// All of them: first the events that leave when the transaction commits, then the scheduled ones.
    pub fn events(&self) -> &[PublishedEvent<RawEvent>] {
        &self.events
    }

    /// The events of this type, scheduled or not.
    ///
    /// # Errors
    /// [`NotPublished`] if the payload of one is not that of the type.
    pub fn all<E: Event + FromEvent>(&self) -> Result<Vec<PublishedEvent<E>>, NotPublished> {
        let of_type = self.events.iter().filter(|event| event.event_type() == E::TYPE);
        let read = of_type.map(|PublishedEvent { raw, due_at, .. }| {
            let event = E::from_event(raw).map_err(|error| NotPublished {
                wanted: format!("events of type {:?}", E::TYPE),
                found: format!("{error}; {}", self.told()),
            })?;
            Ok(PublishedEvent { event, raw: raw.clone(), due_at: *due_at })
        });
        read.collect()
    }

    /// The one event of this type, scheduled or not. There may be events of other types.
    ///
    /// # Errors
    /// [`NotPublished`] if there is none, or more than one, or its payload is not that of the type.
    pub fn one<E: Event + FromEvent>(&self) -> Result<PublishedEvent<E>, NotPublished> {
        let wanted = || format!("one event of type {:?}", E::TYPE);
        self.single(self.all::<E>()?, wanted)
    }

    /// The only event, which must be of this type, scheduled or not.
    ///
    /// # Errors
    /// [`NotPublished`] if it is not the only event, or its payload is not that of the type.
    pub fn only<E: Event + FromEvent>(&self) -> Result<PublishedEvent<E>, NotPublished> {
        let wanted = || format!("one event of type {:?} and no others", E::TYPE);
        let all = if self.events.len() == 1 { self.all::<E>()? } else { Vec::new() };
        self.single(all, wanted)
    }

    /// Checks that nothing was published.
    ///
    /// # Errors
    /// [`NotPublished`] if anything was.
    pub fn nothing(&self) -> Result<(), NotPublished> {
        match self.events.is_empty() {
            true => Ok(()),
            false => Err(NotPublished { wanted: "no event".to_owned(), found: self.told() }),
        }
    }

    fn single<E>(
        &self,
        mut all: Vec<PublishedEvent<E>>,
        wanted: impl FnOnce() -> String,
    ) -> Result<PublishedEvent<E>, NotPublished> {
        match (all.pop(), all.is_empty()) {
            (Some(event), true) => Ok(event),
            _ => Err(NotPublished { wanted: wanted(), found: self.told() }),
        }
    }

    /// What was published, for an error's text.
    fn told(&self) -> String {
        let mut text = match self.events.len() {
            0 => return "nothing was published".to_owned(),
            1 => "this was published:".to_owned(),
            count => format!("these {count} events were published:"),
        };
        for event in self.events.iter().take(SHOWN) {
            let payload = String::from_utf8_lossy(event.payload());
            let shown: String = payload.chars().take(SHOWN_PAYLOAD).collect();
            let more = if shown.len() < payload.len() { " …" } else { "" };
            let later = if event.due_at.is_some() { ", scheduled" } else { "" };
            let (name, topic, key) = (event.event_type(), event.topic(), event.key());
            // Writing to a text does not fail.
            let _ = write!(text, "\n  {name} to {topic}, key {key:?}{later}: {shown}{more}");
        }
        if self.events.len() > SHOWN {
            let _ = write!(text, "\n  and {} more", self.events.len() - SHOWN);
        }
        text
    }
}
