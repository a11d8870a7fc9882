//! The events of a run. Each has a number of its key, drawn under the key's lock.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use pillarbox_event::{Event, EventId, RawEvent};
use serde::{Deserialize, Serialize};
use sqlx::{Postgres, Row, Transaction};
use uuid::Uuid;

/// The subject of all events.
pub const TOPIC: &str = "faults.drawn";

/// What should come of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// It takes effect.
    Plain,
    /// Its payload cannot be read.
    Undecodable,
    /// The handler refuses it for good.
    Refused,
    /// The handler fails each time.
    Stubborn,
    /// It kills the process that handles it.
    Killer,
    /// It is larger than the broker accepts.
    TooLarge,
    /// Its row is not a valid event.
    NoEvent,
    /// A column of its row holds a value that the relay cannot read.
    Unreadable,
    /// Its headers together are larger than the broker accepts, although each of them is small enough.
    Swollen,
    /// Its handler ends the transaction and returns success.
    Ender,
    /// It takes effect, and its handler leaves a role, settings and a lock behind on the connection.
    Litterer,
    /// Its handler ends the database's process behind its connection.
    BackendKiller,
}

/// Where a committed event ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It takes effect once for each consumer.
    Effect,
    /// Among the dead letters of each consumer.
    DeadInInbox,
    /// Among the dead letters of the outbox.
    DeadInOutbox,
}

impl Kind {
    /// Where it ends.
    pub fn fate(self) -> Fate {
        match self {
            Self::Plain | Self::Litterer => Fate::Effect,
            Self::Undecodable
            | Self::Refused
            | Self::Stubborn
            | Self::Killer
            | Self::Ender
            | Self::BackendKiller => Fate::DeadInInbox,
            Self::TooLarge | Self::NoEvent | Self::Unreadable | Self::Swollen => Fate::DeadInOutbox,
        }
    }
}

/// An event as consumers read it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Draw {
    /// The key to which the number belongs.
    pub key: Option<String>,
    /// The number, counted from 1 within the key; 0 without a key.
    pub number: i64,
    /// What will come of it.
    pub kind: Kind,
    /// The run's name for it, if a foreign producer sent it. Such a producer chooses its ids as it likes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Event for Draw {
    const TYPE: &'static str = "key.drawn";
    const TOPIC: &'static str = TOPIC;

    fn key(&self) -> Option<Cow<'_, str>> {
        self.key.as_deref().map(Cow::from)
    }
}

/// An event as its writer records it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drawn {
    /// Its id.
    pub id: String,
    /// Its key.
    pub key: Option<String>,
    /// Its number.
    pub number: i64,
    /// What will come of it.
    pub kind: Kind,
}

/// Takes the next numbers of a key, which locks it until the transaction ends, and publishes an event for each.
/// Without a key there is nothing to lock.
///
/// # Errors
/// The error of sqlx, or that of the outbox about an event.
pub async fn draw(
    tx: &mut Transaction<'_, Postgres>,
    key: Option<&str>,
    kinds: &[Kind],
) -> anyhow::Result<Vec<Drawn>> {
    let many = i64::try_from(kinds.len())?;
    let last = match key {
        Some(key) => {
            let next = "update counter set next = next + $2 where key = $1 returning next";
            sqlx::query(next).bind(key).bind(many).fetch_one(&mut **tx).await?.try_get(0)?
        }
        None => 0,
    };
    let mut drawn = Vec::with_capacity(kinds.len());
    for (kind, place) in kinds.iter().zip(1..) {
        let number = if key.is_some() { last - many + place } else { 0 };
        let id = Uuid::now_v7();
        let draw = Draw { key: key.map(str::to_owned), number, kind: *kind, name: None };
        publish(tx, id, &draw).await?;
        let Draw { key, number, kind, name: _ } = draw;
        drawn.push(Drawn { id: id.to_string(), key, number, kind });
    }
    Ok(drawn)
}

/// Schedules an event without a key, and keeps what the database says of it in the same transaction.
///
/// # Errors
/// The error of sqlx, or that of the outbox about the event.
pub async fn draw_later(
    tx: &mut Transaction<'_, Postgres>,
    ahead: Duration,
) -> anyhow::Result<Drawn> {
    let draw = Draw { key: None, number: 0, kind: Kind::Plain, name: None };
    let id = pillarbox_outbox::publish_in(tx, &draw, ahead).await?;
    sqlx::query(
        "insert into scheduled_ever select event_id, due_at from pillarbox.outbox_scheduled where event_id = $1",
    )
    .bind(id.as_uuid())
    .execute(&mut **tx)
    .await?;
    let Draw { key, number, kind, name: _ } = draw;
    Ok(Drawn { id: id.to_string(), key, number, kind })
}

/// Cancels a scheduled event, and keeps the answer in the same transaction.
///
/// # Errors
/// The error of sqlx, or that of the outbox.
pub async fn cancel(tx: &mut Transaction<'_, Postgres>, id: &EventId) -> anyhow::Result<()> {
    let cancelled = pillarbox_outbox::cancel(tx, id).await?;
    sqlx::query("insert into cancel values ($1, $2)")
        .bind(id.as_uuid())
        .bind(cancelled)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

async fn publish(tx: &mut Transaction<'_, Postgres>, id: Uuid, draw: &Draw) -> anyhow::Result<()> {
    if !matches!(
        draw.kind,
        Kind::Undecodable | Kind::NoEvent | Kind::TooLarge | Kind::Unreadable | Kind::Swollen
    ) {
        let event = RawEvent::from_parts(
            id.into(),
            Draw::TYPE.to_owned(),
            TOPIC.to_owned(),
            draw.key.clone(),
            BTreeMap::new(),
            serde_json::to_vec(draw)?.into(),
        )?;
        pillarbox_outbox::publish(tx, event).await?;
        return Ok(());
    }
    // A careful writer would not write this.
    let none = || "{}".to_owned();
    let (headers, payload) = match draw.kind {
        Kind::NoEvent => (r#"{"a": 1}"#.to_owned(), b"{}".to_vec()),
        Kind::TooLarge => (none(), vec![b' '; 2 * crate::world::MAX_PAYLOAD]),
        Kind::Swollen => {
            let headers: BTreeMap<String, String> =
                (0..7).map(|n| (format!("x-large-{n}"), "x".repeat(9_000))).collect();
            (serde_json::to_string(&headers)?, b"{}".to_vec())
        }
        Kind::Unreadable => (none(), b"{}".to_vec()),
        _ => (none(), b"not JSON".to_vec()),
    };
    let created_at = if draw.kind == Kind::Unreadable { "infinity" } else { "now" };
    sqlx::query(
        "insert into pillarbox.outbox (event_id, event_type, topic, key, headers, payload, created_at) \
         values ($1, $2, $3, $4, $5::text::jsonb, $6, $7::text::timestamptz)",
    )
    .bind(id)
    .bind(Draw::TYPE)
    .bind(TOPIC)
    .bind(&draw.key)
    .bind(headers)
    .bind(payload)
    .bind(created_at)
    .execute(&mut **tx)
    .await?;
    Ok(())
}
