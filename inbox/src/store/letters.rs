//! The statements about dead letters.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
#[cfg(feature = "jetstream")]
use std::time::Duration;

use pillarbox_event::RawEvent;
use sqlx::{PgExecutor, Row};

use super::{Store, in_ascii, storable, without_nul};
use crate::dead_letter::{DeadLetter, read};
use crate::failure::is_of_data;

/// What is written about an event that is given up.
#[derive(Debug)]
pub(crate) struct Burial<'a> {
    pub(crate) event_id: &'a str,
    pub(crate) event: Result<&'a RawEvent, Undecodable<'a>>,
    pub(crate) reason: &'a str,
    pub(crate) error: &'a str,
    pub(crate) attempts: u32,
    /// The event's own handler has recorded it as handled, by a commit of its own.
    pub(crate) recorded: bool,
}

/// A message that is no event.
#[derive(Clone, Debug)]
pub(crate) struct Undecodable<'a> {
    pub(crate) topic: &'a str,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) payload: &'a [u8],
}

impl Store {
    /// Unresolved ones behind this position, in order.
    pub(crate) async fn letters(
        &self,
        after: i64,
        limit: i64,
    ) -> Result<Vec<DeadLetter>, sqlx::Error> {
        let letters = sqlx::query(self.statements.letters.clone());
        let letters = letters.bind(&*self.consumer).bind(after).bind(limit);
        letters.fetch_all(&self.pool).await?.iter().map(read).collect()
    }

    /// One, resolved or not.
    pub(crate) async fn letter(&self, event_id: &str) -> Result<Option<DeadLetter>, sqlx::Error> {
        let letter = sqlx::query(self.statements.letter.clone());
        let letter = letter.bind(&*self.consumer).bind(event_id);
        letter.fetch_optional(&self.pool).await?.as_ref().map(read).transpose()
    }

    /// Parks a dead one, or all of them, for the consumer to handle. How many that is.
    pub(crate) async fn retry(&self, event_id: Option<&str>) -> Result<u64, sqlx::Error> {
        let retry = sqlx::query(self.statements.retry.clone());
        let retried = retry.bind(&*self.consumer).bind(event_id).execute(&self.pool).await?;
        Ok(retried.rows_affected())
    }

    /// Marks one as not to be handled. `false` if it is not unresolved.
    pub(crate) async fn discard(&self, event_id: &str) -> Result<bool, sqlx::Error> {
        let discard = sqlx::query(self.statements.discard.clone());
        let discarded = discard.bind(&*self.consumer).bind(event_id).execute(&self.pool).await?;
        Ok(discarded.rows_affected() == 1)
    }

    /// Lets a dead letter be handled again. `false` if it is none, or none any more.
    pub(crate) async fn release(
        &self,
        executor: impl PgExecutor<'_>,
        event_id: &str,
    ) -> Result<bool, sqlx::Error> {
        let release = sqlx::query(self.statements.release.clone());
        let release = release.bind(&*self.consumer).bind(event_id).bind(self.strict);
        release.fetch_one(executor).await?.try_get(0)
    }

    /// Which of these keys wait behind a dead letter. None, unless the order is strict.
    pub(crate) async fn blocked(
        &self,
        executor: impl PgExecutor<'_>,
        keys: &[&str],
    ) -> Result<HashSet<String>, sqlx::Error> {
        if !self.strict || keys.is_empty() {
            return Ok(HashSet::new());
        }
        let blocked = sqlx::query(self.statements.blocked.clone()).bind(&*self.consumer).bind(keys);
        blocked.fetch_all(executor).await?.iter().map(|row| row.try_get(0)).collect()
    }

    /// Parks an event behind the dead one of its key.
    pub(crate) async fn park(
        &self,
        executor: impl PgExecutor<'_>,
        event: &RawEvent,
    ) -> Result<(), sqlx::Error> {
        let headers = serde_json::to_string(event.headers())
            .map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
        sqlx::query(self.statements.park.clone())
            .bind(&*self.consumer)
            .bind(event.id().as_str())
            .bind(event.event_type())
            .bind(event.topic())
            .bind(event.key())
            .bind(headers)
            .bind(&event.payload()[..])
            .execute(executor)
            .await
            .map(drop)
    }

    /// Takes parked events that may be handled now, for so long.
    #[cfg(feature = "jetstream")]
    pub(crate) async fn take_due(
        &self,
        lease: Duration,
        most: usize,
    ) -> Result<Vec<DeadLetter>, sqlx::Error> {
        let rows = sqlx::query(self.statements.due.clone())
            .bind(&*self.consumer)
            .bind(self.strict)
            .bind(i64::try_from(lease.as_millis()).unwrap_or(i64::MAX))
            .bind(i64::try_from(most).unwrap_or(i64::MAX))
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(read).collect()
    }

    /// A parked event that was taken may be taken again after this long.
    #[cfg(feature = "jetstream")]
    pub(crate) async fn rest(&self, event_id: &str, wait: Duration) -> Result<(), sqlx::Error> {
        let wait = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
        let rest = sqlx::query(self.statements.rest.clone());
        rest.bind(&*self.consumer).bind(event_id).bind(wait).execute(&self.pool).await.map(drop)
    }

    /// Gives the event up: a dead letter, and the event counts as handled. `false` if it had been handled.
    pub(crate) async fn bury(&self, burial: Burial<'_>) -> Result<bool, sqlx::Error> {
        match self.bury_as(&burial, |text| text.into()).await {
            // What the database has no characters for is kept in another form rather than not at all.
            Err(refused) if is_of_data(&refused) => self.bury_as(&burial, in_ascii).await,
            buried => buried,
        }
    }

    async fn bury_as(
        &self,
        burial: &Burial<'_>,
        text: fn(&str) -> Cow<'_, str>,
    ) -> Result<bool, sqlx::Error> {
        let written = |pairs: &mut dyn Iterator<Item = (&str, &str)>| {
            let pairs = pairs.map(|(name, value)| {
                (text(&without_nul(name)).into_owned(), text(&without_nul(value)).into_owned())
            });
            serde_json::to_string(&pairs.collect::<BTreeMap<_, _>>())
                .map_err(|error| sqlx::Error::Encode(Box::new(error)))
        };
        let (event_type, topic, key, headers, payload) = match &burial.event {
            Ok(event) => (
                Some(text(event.event_type())),
                event.topic(),
                event.key().map(text),
                written(&mut event.headers().iter().map(|(n, v)| (n.as_str(), v.as_str())))?,
                &event.payload()[..],
            ),
            Err(message) => (
                None,
                message.topic,
                None,
                written(&mut message.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())))?,
                message.payload,
            ),
        };
        let row = sqlx::query(self.statements.bury.clone())
            .bind(&*self.consumer)
            .bind(text(burial.event_id))
            .bind(event_type)
            .bind(text(&without_nul(topic)))
            .bind(key)
            .bind(headers)
            .bind(payload)
            .bind(burial.reason)
            .bind(text(&storable(burial.error)))
            .bind(i32::try_from(burial.attempts).unwrap_or(i32::MAX))
            .bind(burial.recorded)
            .fetch_one(&self.pool)
            .await?;
        row.try_get(0)
    }
}
