//! The statements about dead letters.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pillarbox_event::{Identity, RawEvent};
use pillarbox_store::limit::{limited, within};
use sqlx::postgres::PgRow;
use sqlx::{Connection, PgExecutor, Row};
use time::OffsetDateTime;

use crate::error::{BEGIN, InboxError};
use crate::fault::is_of_data;
use crate::store::lent::LONGEST;
use crate::store::letter::{DeadLetter, WhichLetter, read};
use crate::store::statements::Store;
use crate::store::text::{in_ascii, storable, without_nul};

/// What is written about an event that is given up.
#[derive(Debug)]
pub struct Burial<'a> {
    /// The event.
    pub event: &'a RawEvent,
    /// Why, in a word.
    pub reason: &'a str,
    /// The last error, with its sources.
    pub error: &'a str,
    /// How many attempts failed.
    pub attempts: u32,
    /// The event's own handler has recorded it as handled, by a commit of its own.
    pub recorded: bool,
}

/// A message that is no event.
#[derive(Debug)]
pub struct Unreadable<'a> {
    /// The stream that holds it.
    pub stream: &'a str,
    /// Its sequence there.
    pub sequence: u64,
    /// When the stream stored it. Together they name it, also if the stream is made anew.
    pub stored: SystemTime,
    /// The topic.
    pub topic: &'a str,
    /// The headers, as far as they could be read.
    pub headers: &'a [(String, String)],
    /// The payload.
    pub payload: &'a [u8],
    /// Why it is no event.
    pub error: &'a str,
}

/// What became of events of a key that were to be parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParkedAll {
    /// Each is parked, or was handled or parked before.
    Yes,
    /// Nothing of the key waits among the dead letters: nothing was parked.
    NotBehind,
    /// As many wait as may: nothing was parked.
    Full,
}

/// Parked events that were taken.
#[derive(Debug)]
pub struct Taken {
    /// Each with whether it may have been begun before. Those of one key follow one another in their order.
    pub letters: Vec<(DeadLetter, bool)>,
    /// After which key, and which position without a key, to look next.
    pub after: (String, i64),
    /// Since when the longest of the keys that were looked at waits behind an event that fails.
    pub waiting_since: Option<SystemTime>,
}

/// What became of a letter that was to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// It is stored.
    Now,
    /// It need not be: the database says that the event is handled, or the letter there.
    Before,
    /// Neither. The message must not be acknowledged.
    Not,
}

impl Stored {
    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(match (row.try_get("stored")?, row.try_get("there")?) {
            (true, _) => Self::Now,
            (false, true) => Self::Before,
            (false, false) => Self::Not,
        })
    }

    /// The error of who cannot go on without.
    pub fn not_stored() -> sqlx::Error {
        sqlx::Error::Protocol(
            "the letter was not stored, and the database does not say that it is there: does a trigger or a rule \
             change what is written to pillarbox.inbox and pillarbox.inbox_dead_letter?"
                .into(),
        )
    }
}

impl Store {
    /// Unresolved ones behind this position, in order.
    pub(crate) async fn letters(
        &self,
        after: i64,
        limit: i64,
    ) -> Result<Vec<DeadLetter>, sqlx::Error> {
        let letters = sqlx::query(self.statements.letters.clone());
        let letters = letters.bind(&*self.consumer).bind(after).bind(limit).bind(self.stream());
        self.lend().await?.fetch_all(letters).await?.iter().map(read).collect()
    }

    fn stream(&self) -> Option<&str> {
        self.stream.as_deref()
    }

    /// The stream, or an empty text.
    pub(super) fn stream_or_none(&self) -> &str {
        self.stream().unwrap_or_default()
    }

    /// Those that may be meant, resolved or not.
    pub(crate) async fn find(&self, which: &WhichLetter) -> Result<Vec<DeadLetter>, sqlx::Error> {
        let (id, position) = match which {
            WhichLetter::Id(id) => (Some(without_nul(id)), None),
            WhichLetter::Position(position) => (None, Some(*position)),
        };
        let found = sqlx::query(self.statements.find.clone()).bind(&*self.consumer);
        let found = found.bind(id).bind(position).bind(self.stream());
        self.lend().await?.fetch_all(found).await?.iter().map(read).collect()
    }

    /// Parks a dead one, or all of them, for the consumer to handle. How many that is.
    pub(crate) async fn retry(&self, position: Option<i64>) -> Result<u64, sqlx::Error> {
        let retry = sqlx::query(self.statements.retry.clone());
        let retry = retry.bind(&*self.consumer).bind(position).bind(self.stream());
        Ok(self.lend().await?.execute(retry).await?.rows_affected())
    }

    /// Marks one as not to be handled. `false` if it is not unresolved.
    pub(crate) async fn discard(&self, position: i64) -> Result<bool, sqlx::Error> {
        let discard = sqlx::query(self.statements.discard.clone());
        let discard = discard.bind(&*self.consumer).bind(position);
        Ok(self.lend().await?.execute(discard).await?.rows_affected() == 1)
    }

    /// Lets a dead letter be handled again. `false` if it is none, or none any more.
    pub(crate) async fn release(
        &self,
        executor: impl PgExecutor<'_>,
        identity: &str,
    ) -> Result<bool, sqlx::Error> {
        let release = sqlx::query(self.statements.release.clone());
        let release = release.bind(&*self.consumer).bind(identity).bind(self.strict);
        release.fetch_one(executor).await?.try_get(0)
    }

    /// Of which of these keys something earlier is to be handled first, from among the dead letters.
    pub(crate) async fn blocked(
        &self,
        executor: impl PgExecutor<'_>,
        keys: &[&str],
    ) -> Result<HashSet<String>, sqlx::Error> {
        if !self.keeps_keys || keys.is_empty() {
            return Ok(HashSet::new());
        }
        let blocked = sqlx::query(self.statements.blocked.clone());
        let blocked =
            blocked.bind(&*self.consumer).bind(keys).bind(self.stream()).bind(self.strict);
        blocked.fetch_all(executor).await?.iter().map(|row| row.try_get(0)).collect()
    }

    /// Parks an event behind the dead one of its key, or what waits of it, unless it is handled or parked already.
    pub(crate) async fn park(
        &self,
        executor: impl PgExecutor<'_>,
        event: &RawEvent,
    ) -> Result<(), sqlx::Error> {
        let headers = serde_json::to_string(event.headers())
            .map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
        let row = sqlx::query(self.statements.park.clone())
            .bind(&*self.consumer)
            .bind(event.identity().as_str())
            .bind(event.id().as_str())
            .bind(self.stream())
            .bind(event.event_type())
            .bind(event.topic())
            .bind(event.key())
            .bind(headers)
            .bind(&event.payload()[..])
            .bind(self.strict)
            .fetch_one(executor)
            .await?;
        match Stored::read(&row)? {
            Stored::Not => Err(Stored::not_stored()),
            _ => Ok(()),
        }
    }

    /// Parks events of this key, in their order, all or none; `again`: which of them may have been begun before; `wait`:
    /// how long the first of them waits. Without that, only behind what waits already.
    pub async fn park_all(
        &self,
        key: &str,
        events: &[Arc<RawEvent>],
        again: &[bool],
        wait: Option<Duration>,
    ) -> Result<ParkedAll, InboxError> {
        let database = InboxError::database("park events");
        let identities: Vec<_> = events.iter().map(|event| event.identity()).collect();
        let headers = events.iter().map(|event| {
            serde_json::to_string(event.headers())
                .map_err(|error| sqlx::Error::Encode(Box::new(error)))
        });
        let headers = match headers.collect::<Result<Vec<_>, _>>() {
            Ok(headers) => headers,
            Err(error) => return Err(database(error)),
        };
        let ids: Vec<&str> = identities.iter().map(Identity::as_str).collect();
        let each = |text: fn(&RawEvent) -> &str| events.iter().map(|e| text(e)).collect::<Vec<_>>();
        let payloads: Vec<&[u8]> = events.iter().map(|event| &event.payload()[..]).collect();
        let mut begun = self.begin().await.map_err(InboxError::database(BEGIN))?;
        let parked = async {
            let row = sqlx::query(self.statements.park_all.clone())
                .bind(&*self.consumer)
                .bind(&ids)
                .bind(each(|event| event.id().as_str()))
                .bind(self.stream_or_none())
                .bind(each(RawEvent::event_type))
                .bind(each(RawEvent::topic))
                .bind(key)
                .bind(headers)
                .bind(payloads)
                .bind(wait.is_none())
                .bind(self.strict)
                .bind(wait.map(|wait| i64::try_from(wait.as_millis()).unwrap_or(i64::MAX)))
                .bind(again)
                .fetch_one(&mut *begun.tx)
                .await?;
            if wait.is_none() && !row.try_get::<bool, _>("behind")? {
                return Ok(ParkedAll::NotBehind);
            }
            if !row.try_get::<bool, _>("room")? {
                return Ok(ParkedAll::Full);
            }
            let claimed: Vec<String> = row.try_get("claimed")?;
            let claimed: HashSet<String> = claimed.into_iter().collect();
            let stored: i64 = row.try_get("stored")?;
            if usize::try_from(stored).ok() != Some(claimed.len()) {
                return Err(Stored::not_stored());
            }
            let others: Vec<&str> =
                ids.iter().copied().filter(|id| !claimed.contains(*id)).collect();
            if !others.is_empty() {
                let recorded = self.recorded(&mut begun, &others).await?;
                if others.iter().any(|id| !recorded.iter().any(|recorded| recorded == id)) {
                    return Err(Stored::not_stored());
                }
            }
            Ok(ParkedAll::Yes)
        };
        let Ok(parked) = within(LONGEST, "the database", parked).await else {
            begun.abandon();
            return Err(InboxError::Slow { doing: "park events" });
        };
        let parked = parked.map_err(database)?;
        self.commit(begun, None).await?;
        Ok(parked)
    }

    /// Takes parked events that may be handled now, for so long: of this stream, or of none (`""`); of so many keys at
    /// the most, and as many without a key.
    pub async fn take_due(
        &self,
        stream: &str,
        lease: Duration,
        most: usize,
        after: &(String, i64),
    ) -> Result<Taken, sqlx::Error> {
        let due = sqlx::query(self.statements.due.clone())
            .bind(&*self.consumer)
            .bind(self.strict)
            .bind(i64::try_from(lease.as_millis()).unwrap_or(i64::MAX))
            .bind(i64::try_from(most).unwrap_or(i64::MAX))
            .bind(stream)
            .bind(&after.0)
            .bind(after.1);
        let rows = self.lend().await?.fetch_all(due).await?;
        // There is one, whatever is parked.
        let look = rows.first().ok_or(sqlx::Error::RowNotFound)?;
        let after = (look.try_get("after_key")?, look.try_get("after_position")?);
        let waiting_since: Option<OffsetDateTime> = look.try_get("waiting_since")?;
        let waiting_since = waiting_since.map(SystemTime::from);
        let taken = rows.iter().filter(|row| !matches!(row.try_get("position"), Ok(None::<i64>)));
        let letters = taken.map(|row| Ok((read(row)?, row.try_get("again")?)));
        Ok(Taken { letters: letters.collect::<Result<_, sqlx::Error>>()?, after, waiting_since })
    }

    /// Parked events that were taken, and not begun, may be taken by anybody.
    /// Each with whether it may have been begun before that.
    pub async fn give_back_letters(&self, letters: &[(i64, bool)]) -> Result<(), sqlx::Error> {
        let positions: Vec<i64> = letters.iter().map(|(position, _)| *position).collect();
        let again: Vec<i64> =
            letters.iter().filter(|(_, again)| *again).map(|(position, _)| *position).collect();
        let give_back = sqlx::query(self.statements.give_back.clone());
        let give_back = give_back.bind(&*self.consumer).bind(positions).bind(again);
        self.lend().await?.execute(give_back).await.map(drop)
    }

    /// A parked event that was taken may be taken again after this long.
    pub async fn rest(&self, identity: &str, wait: Duration) -> Result<(), sqlx::Error> {
        let wait = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
        let rest = sqlx::query(self.statements.rest.clone());
        let rest = rest.bind(&*self.consumer).bind(identity).bind(wait);
        self.lend().await?.execute(rest).await.map(drop)
    }

    /// Gives the event up: a dead letter, and the event counts as handled.
    pub async fn bury(&self, burial: Burial<'_>) -> Result<Stored, sqlx::Error> {
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
    ) -> Result<Stored, sqlx::Error> {
        let event = burial.event;
        let identity = event.identity();
        let headers = event.headers().iter().map(|(name, value)| (&**name, &**value));
        let bury = sqlx::query(self.statements.bury.clone())
            .bind(&*self.consumer)
            .bind(text(identity.as_str()))
            .bind(text(event.id().as_str()))
            .bind(self.stream())
            .bind(text(event.event_type()))
            .bind(text(event.topic()))
            .bind(event.key().map(text))
            .bind(written(headers, text)?)
            .bind(&event.payload()[..])
            .bind(burial.reason)
            .bind(text(&storable(burial.error)))
            .bind(i32::try_from(burial.attempts).unwrap_or(i32::MAX))
            .bind(burial.recorded);
        let mut lent = self.lend().await?;
        let stored = limited(LONGEST, async {
            // Without its letter the event does not count as handled.
            let mut tx = lent.begin().await?;
            let stored = Stored::read(&bury.fetch_one(&mut *tx).await?)?;
            match stored {
                Stored::Not => tx.rollback().await?,
                Stored::Now | Stored::Before => tx.commit().await?,
            }
            Ok(stored)
        });
        let stored = stored.await;
        lent.give_back(stored)
    }

    /// Sets a message aside that is no event: a dead letter.
    pub async fn set_aside(&self, message: &Unreadable<'_>) -> Result<Stored, sqlx::Error> {
        match self.set_aside_as(message, |text| text.into()).await {
            Err(refused) if is_of_data(&refused) => self.set_aside_as(message, in_ascii).await,
            set_aside => set_aside,
        }
    }

    async fn set_aside_as(
        &self,
        message: &Unreadable<'_>,
        text: fn(&str) -> Cow<'_, str>,
    ) -> Result<Stored, sqlx::Error> {
        let Unreadable { stream, sequence, stored, topic, headers, payload, error } = message;
        let headers = headers.iter().map(|(name, value)| (&**name, &**value));
        let set_aside = sqlx::query(self.statements.set_aside.clone())
            .bind(&*self.consumer)
            .bind(format!("{stream}:{sequence}"))
            .bind(stream)
            .bind(i64::try_from(*sequence).unwrap_or(i64::MAX))
            .bind(OffsetDateTime::from(*stored))
            .bind(text(&without_nul(topic)))
            .bind(written(headers, text)?)
            .bind(payload)
            .bind(text(&storable(error)));
        Stored::read(&self.lend().await?.fetch_one(set_aside).await?)
    }

    /// A parked letter turned out to be no event: it is dead again.
    pub async fn spoil(&self, position: i64, error: &str) -> Result<(), sqlx::Error> {
        let spoil = sqlx::query(self.statements.spoil.clone()).bind(&*self.consumer);
        let spoil = spoil.bind(position).bind(storable(error));
        self.lend().await?.execute(spoil).await.map(drop)
    }
}

/// Headers as they are kept. A name that comes again keeps all its values.
fn written<'a>(
    headers: impl Iterator<Item = (&'a str, &'a str)>,
    text: fn(&str) -> Cow<'_, str>,
) -> Result<String, sqlx::Error> {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in headers {
        let (name, value) = (without_nul(name), without_nul(value));
        let (name, value) = (text(&name).into_owned(), text(&value).into_owned());
        match all.get_mut(&name) {
            Some(values) => values.extend([", ", &value]),
            None => drop(all.insert(name, value)),
        }
    }
    serde_json::to_string(&all).map_err(|error| sqlx::Error::Encode(Box::new(error)))
}
