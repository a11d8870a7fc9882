//! How a consumer's processes tell operators how they are, and are told what is paused and limited.

use std::time::{Duration, SystemTime};

use pillarbox_store::limit::milliseconds;
use sqlx::Row;
use time::OffsetDateTime;

use crate::store::statements::Store;
use crate::store::text::storable;

/// What a process says of itself.
#[derive(Clone, Debug)]
pub struct Beat<'a> {
    /// The process's name, which is made anew at each start.
    pub process: &'a str,
    /// The stream that it reads.
    pub stream: &'a str,
    /// The host, and the process's number there.
    pub host: &'a str,
    /// What it is doing, in a word.
    pub state: &'a str,
    /// Why, if it handles nothing.
    pub reason: Option<&'a str>,
    /// How far the consumer is behind.
    pub lag: Option<BeatLag>,
}

/// How far a consumer is behind.
#[derive(Clone, Copy, Debug)]
pub struct BeatLag {
    /// Events that are not delivered yet.
    pub pending: u64,
    /// Events that are delivered and not acknowledged.
    pub ack_pending: u64,
    /// The age of the oldest unhandled event, in seconds.
    pub oldest_age_seconds: Option<f64>,
    /// When it was measured.
    pub measured_at: SystemTime,
}

/// What an operator has paused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PausedBy {
    /// The type of events. Empty: all of the consumer.
    pub event_type: String,
    /// Who paused it.
    pub by: String,
    /// Why.
    pub note: Option<String>,
    /// Since when.
    pub since: OffsetDateTime,
}

/// What operators have paused and limited.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    /// The pauses.
    pub pauses: Vec<PausedBy>,
    /// How many events per second may begin, over all processes.
    pub per_second: Option<f64>,
}

impl Store {
    /// Says how this process is, and returns what operators have paused and limited.
    ///
    /// # Errors
    /// The error of sqlx. Nothing is known then.
    pub async fn beat(&self, beat: &Beat<'_>) -> Result<Told, sqlx::Error> {
        let ago = |at: SystemTime| milliseconds(at.elapsed().unwrap_or_default());
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let say = self
            .query(&self.statements.beat)
            .bind(beat.process)
            .bind(beat.stream)
            .bind(beat.host)
            .bind(beat.state)
            .bind(beat.reason.map(storable))
            .bind(beat.lag.map(|lag| number(lag.pending)))
            .bind(beat.lag.map(|lag| number(lag.ack_pending)))
            .bind(beat.lag.and_then(|lag| lag.oldest_age_seconds))
            .bind(beat.lag.map(|lag| ago(lag.measured_at)));
        let rows = self.lend().await?.fetch_all(say).await?;
        let (mut told, mut answered) = (Told::default(), false);
        for row in rows {
            match row.try_get("kind")? {
                "told" => answered = row.try_get::<&str, _>("event_type")? == beat.process,
                "rate" => told.per_second = row.try_get("per_second")?,
                _ => told.pauses.push(PausedBy {
                    event_type: row.try_get("event_type")?,
                    by: row.try_get("who")?,
                    note: row.try_get("note")?,
                    since: row.try_get("since")?,
                }),
            }
        }
        // Without this row, the others may be missing as well.
        if answered { Ok(told) } else { Err(sqlx::Error::RowNotFound) }
    }

    /// Takes a piece of the consumer's rate, for this many events. Returns how long it is until the piece begins, and
    /// the rate. `None`: there is no limit.
    ///
    /// # Errors
    /// The error of sqlx.
    pub async fn take_rate(&self, events: u32) -> Result<Option<(Duration, f64)>, sqlx::Error> {
        let take = self.query(&self.statements.take_rate).bind(f64::from(events));
        let Some(row) = self.lend().await?.fetch_all(take).await?.pop() else {
            return Ok(None);
        };
        let (wait, per_second): (f64, f64) = (row.try_get(0)?, row.try_get(1)?);
        Ok(Some((Duration::try_from_secs_f64(wait.max(0.0)).unwrap_or_default(), per_second)))
    }

    /// Removes a process that stops.
    ///
    /// # Errors
    /// The error of sqlx. The process is then removed later, by another one.
    pub async fn leave(&self, process: &str) -> Result<(), sqlx::Error> {
        let leave = self.query(&self.statements.leave).bind(process);
        self.lend().await?.execute(leave).await.map(drop)
    }

    /// Lets parked events be taken that wait because their type was paused, except for those of these types. `lease`:
    /// for how long a process takes an event at the most. What is due sooner than that may be in progress.
    ///
    /// # Errors
    /// The error of sqlx.
    pub async fn end_pauses(&self, paused: &[String], lease: Duration) -> Result<(), sqlx::Error> {
        let end = self.query(&self.statements.end_pauses).bind(paused).bind(milliseconds(lease));
        self.lend().await?.execute(end).await.map(drop)
    }

    /// Lets a parked event that was taken, and whose type is paused, be taken again after this long, or after
    /// [`end_pauses`](Self::end_pauses).
    ///
    /// # Errors
    /// The error of sqlx. The event is then taken again when its lease has ended.
    pub async fn rest_paused(&self, identity: &str, wait: Duration) -> Result<(), sqlx::Error> {
        let rest = self.query(&self.statements.rest_paused).bind(identity).bind(milliseconds(wait));
        self.lend().await?.execute(rest).await.map(drop)
    }
}
