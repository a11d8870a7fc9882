//! The statements about dead letters.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pillarbox_event::{Identity, RawEvent};
use pillarbox_store::limit::{limited, milliseconds, within};
use sqlx::postgres::PgRow;
use sqlx::{Connection, PgExecutor, Row};
use time::OffsetDateTime;

use crate::error::{BEGIN, InboxError};
use crate::store::begun::Begun;
use crate::store::lent::LONGEST;
use crate::store::letter::{DeadLetter, WhichLetter, read};
use crate::store::statements::Store;
use crate::store::text::{in_ascii, storable, without_nul};
use pillarbox_store::bad_data::is_refused_value;

/// An event to give up, and what its dead letter says.
#[derive(Debug)]
pub struct Burial<'a> {
    /// The event.
    pub event: &'a RawEvent,
    /// Why the event is given up, in a word.
    pub reason: &'a str,
    /// The last error, with its sources.
    pub error: &'a str,
    /// How many attempts failed.
    pub attempts: u32,
    /// Whether the event is already recorded as handled, because its handler committed the transaction.
    pub recorded: bool,
}

/// A message that is no event.
#[derive(Debug)]
pub struct Unreadable<'a> {
    /// The stream that holds it.
    pub stream: &'a str,
    /// Its sequence there.
    pub sequence: u64,
    /// When the stream stored it. With stream and sequence, this identifies the message even if the stream is created
    /// anew.
    pub stored: SystemTime,
    /// The topic.
    pub topic: &'a str,
    /// The headers, as far as they can be read.
    pub headers: &'a [(String, String)],
    /// The payload.
    pub payload: &'a [u8],
    /// Why the message is no event.
    pub error: &'a str,
}

/// What became of the events of a key that should be parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParkedAll {
    /// Each event is parked, or was handled or parked before.
    Yes,
    /// Nothing was parked, because no event of the key waits among the dead letters.
    NotBehind,
    /// Nothing was parked, because too many events wait already.
    Full,
}

/// Parked events that were taken.
#[derive(Debug)]
pub struct Taken {
    /// Each event, and whether it may have been begun before. Events of one key follow one another in their order.
    pub letters: Vec<(DeadLetter, bool)>,
    /// Where to look next: after this key, and after this position among events without a key.
    pub after: (String, i64),
    /// How long the keys that were examined wait behind a failing event: the time since which the first one waits.
    pub waiting_since: Option<SystemTime>,
}

/// What became of a letter that should be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LetterStored {
    /// It is stored.
    Now,
    /// It need not be stored: the database shows that the event is handled, or that the letter exists.
    Before,
    /// Neither is shown. The message must not be acknowledged.
    Not,
}

impl LetterStored {
    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(match (row.try_get("stored")?, row.try_get("there")?) {
            (true, _) => Self::Now,
            (false, true) => Self::Before,
            (false, false) => Self::Not,
        })
    }

    /// The error for a caller that cannot continue without the letter.
    pub fn not_stored() -> sqlx::Error {
        sqlx::Error::Protocol(
            "the letter was not stored, and the database does not say that it is there: does a trigger or a rule \
             change what is written to pillarbox.inbox and pillarbox.inbox_dead_letter?"
                .into(),
        )
    }
}

impl Store {
    /// Unresolved letters after this position, in order.
    pub(crate) async fn letters(
        &self,
        after: i64,
        limit: i64,
    ) -> Result<Vec<DeadLetter>, sqlx::Error> {
        let letters =
            self.query(&self.statements.letters).bind(after).bind(limit).bind(self.stream());
        self.lend().await?.fetch_all(letters).await?.iter().map(read).collect()
    }

    fn stream(&self) -> Option<&str> {
        self.stream.as_deref()
    }

    /// The stream, or an empty text.
    pub(super) fn stream_or_none(&self) -> &str {
        self.stream().unwrap_or_default()
    }

    /// The letters that have this id or position, resolved or not.
    pub(crate) async fn find(&self, which: &WhichLetter) -> Result<Vec<DeadLetter>, sqlx::Error> {
        let (id, position) = match which {
            WhichLetter::Id(id) => (Some(without_nul(id)), None),
            WhichLetter::Position(position) => (None, Some(*position)),
        };
        let found = self.query(&self.statements.find);
        let found = found.bind(id).bind(position).bind(self.stream());
        self.lend().await?.fetch_all(found).await?.iter().map(read).collect()
    }

    /// Parks a dead letter, or all of them, so that the consumer handles them. Returns how many it parked.
    pub(crate) async fn retry(&self, position: Option<i64>) -> Result<u64, sqlx::Error> {
        let retry = self.query(&self.statements.retry).bind(position).bind(self.stream());
        Ok(self.lend().await?.execute(retry).await?.rows_affected())
    }

    /// Discards a letter. Returns `false` if it is not unresolved.
    pub(crate) async fn discard(&self, position: i64) -> Result<bool, sqlx::Error> {
        let discard = self.query(&self.statements.discard).bind(position);
        Ok(self.lend().await?.execute(discard).await?.rows_affected() == 1)
    }

    /// Releases a dead letter, so that it is handled again. Returns `false` if there is no such dead letter.
    pub(crate) async fn release(
        &self,
        executor: impl PgExecutor<'_>,
        identity: &str,
    ) -> Result<bool, sqlx::Error> {
        let release = self.query(&self.statements.release).bind(identity).bind(self.strict);
        release.fetch_one(executor).await?.try_get(0)
    }

    /// Releases parked events, so that they are handled again in one transaction. Returns those that are released.
    pub(crate) async fn release_all(
        &self,
        executor: impl PgExecutor<'_>,
        identities: &[&str],
    ) -> Result<Vec<String>, sqlx::Error> {
        let release = self.query(&self.statements.release_all).bind(identities).bind(self.strict);
        release.fetch_all(executor).await?.iter().map(|row| row.try_get(0)).collect()
    }

    /// Parks events that were released, because they are not handled after all.
    pub(crate) async fn park_again(
        &self,
        executor: impl PgExecutor<'_>,
        identities: &[&str],
    ) -> Result<(), sqlx::Error> {
        let park = self.query(&self.statements.park_again).bind(identities);
        let parked = park.execute(executor).await?;
        match usize::try_from(parked.rows_affected()) {
            Ok(parked) if parked == identities.len() => Ok(()),
            _ => Err(LetterStored::not_stored()),
        }
    }

    /// Which of these keys have earlier events among the dead letters that must be handled first.
    pub(crate) async fn blocked(
        &self,
        executor: impl PgExecutor<'_>,
        keys: &[&str],
    ) -> Result<HashSet<String>, sqlx::Error> {
        if !self.keeps_keys || keys.is_empty() {
            return Ok(HashSet::new());
        }
        let blocked =
            self.query(&self.statements.blocked).bind(keys).bind(self.stream()).bind(self.strict);
        blocked.fetch_all(executor).await?.iter().map(|row| row.try_get(0)).collect()
    }

    /// Parks an event that this transaction has claimed, and takes the claim back.
    pub(crate) async fn park_claimed(
        &self,
        begun: &mut Begun,
        event: &RawEvent,
    ) -> Result<(), InboxError> {
        let parked = async {
            self.unclaim(&mut *begun.tx, &[event.identity().as_str()]).await?;
            self.park(&mut *begun.tx, event).await
        };
        parked.await.map_err(InboxError::database("park the event"))
    }

    /// Parks an event behind the dead or waiting events of its key, unless it is already handled or parked.
    pub(crate) async fn park(
        &self,
        executor: impl PgExecutor<'_>,
        event: &RawEvent,
    ) -> Result<(), sqlx::Error> {
        let headers = serde_json::to_string(event.headers())
            .map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
        let row = self
            .query(&self.statements.park)
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
        match LetterStored::read(&row)? {
            LetterStored::Not => Err(LetterStored::not_stored()),
            _ => Ok(()),
        }
    }

    /// Parks events of this key in their order, all or none. `again`: which of them may have been begun before. `wait`:
    /// how long the first of them waits; `None`: they are parked only behind events that already wait. `paused`: the
    /// first of them has not failed, but an operator has paused its type.
    pub async fn park_all(
        &self,
        key: Option<&str>,
        events: &[Arc<RawEvent>],
        again: &[bool],
        wait: Option<Duration>,
        paused: bool,
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
            let row = self
                .query(&self.statements.park_all)
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
                .bind(wait.map(milliseconds))
                .bind(again)
                .bind(paused)
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
                return Err(LetterStored::not_stored());
            }
            let others: Vec<&str> =
                ids.iter().copied().filter(|id| !claimed.contains(*id)).collect();
            match self.are_recorded(&mut begun, &others).await? {
                true => Ok(ParkedAll::Yes),
                false => Err(LetterStored::not_stored()),
            }
        };
        let Ok(parked) = within(LONGEST, "the database", parked).await else {
            begun.abandon();
            return Err(InboxError::Slow { doing: "park events" });
        };
        let parked = parked.map_err(database)?;
        self.commit(begun, None).await?;
        Ok(parked)
    }

    /// Takes parked events that may be handled now, for this long: of this stream, or of none (`""`), and of at most
    /// this many keys, and as many events without a key.
    pub async fn take_due(
        &self,
        stream: &str,
        lease: Duration,
        most: usize,
        after: &(String, i64),
    ) -> Result<Taken, sqlx::Error> {
        let due = self
            .query(&self.statements.due)
            .bind(self.strict)
            .bind(milliseconds(lease))
            .bind(i64::try_from(most).unwrap_or(i64::MAX))
            .bind(stream)
            .bind(&after.0)
            .bind(after.1);
        let rows = self.lend().await?.fetch_all(due).await?;
        // There is always at least one row.
        let look = rows.first().ok_or(sqlx::Error::RowNotFound)?;
        let after = (look.try_get("after_key")?, look.try_get("after_position")?);
        let waiting_since: Option<OffsetDateTime> = look.try_get("waiting_since")?;
        let waiting_since = waiting_since.map(SystemTime::from);
        let taken = rows.iter().filter(|row| !matches!(row.try_get("position"), Ok(None::<i64>)));
        let letters = taken.map(|row| Ok((read(row)?, row.try_get("again")?)));
        Ok(Taken { letters: letters.collect::<Result<_, sqlx::Error>>()?, after, waiting_since })
    }

    /// Gives back parked events that were taken and not begun, so that any process may take them. Each comes with
    /// whether it may have been begun before that.
    pub async fn give_back_letters(&self, letters: &[(i64, bool)]) -> Result<(), sqlx::Error> {
        let positions: Vec<i64> = letters.iter().map(|(position, _)| *position).collect();
        let again: Vec<i64> =
            letters.iter().filter(|(_, again)| *again).map(|(position, _)| *position).collect();
        let give_back = self.query(&self.statements.give_back).bind(positions).bind(again);
        self.lend().await?.execute(give_back).await.map(drop)
    }

    /// Lets a parked event that was taken be taken again after this long.
    pub async fn rest(&self, identity: &str, wait: Duration) -> Result<(), sqlx::Error> {
        let rest = self.query(&self.statements.rest).bind(identity).bind(milliseconds(wait));
        self.lend().await?.execute(rest).await.map(drop)
    }

    /// Gives the event up: writes a dead letter, and records the event as handled.
    pub async fn bury(&self, burial: Burial<'_>) -> Result<LetterStored, sqlx::Error> {
        match self.bury_as(&burial, |text| text.into()).await {
            // Characters that the database's encoding does not have are kept in another form.
            Err(refused) if is_refused_value(&refused) => self.bury_as(&burial, in_ascii).await,
            buried => buried,
        }
    }

    async fn bury_as(
        &self,
        burial: &Burial<'_>,
        text: fn(&str) -> Cow<'_, str>,
    ) -> Result<LetterStored, sqlx::Error> {
        let event = burial.event;
        let identity = event.identity();
        let headers = event.headers().iter().map(|(name, value)| (&**name, &**value));
        let bury = self
            .query(&self.statements.bury)
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
            // Without its letter, the event must not count as handled.
            let mut tx = lent.begin().await?;
            let stored = LetterStored::read(&bury.fetch_one(&mut *tx).await?)?;
            match stored {
                LetterStored::Not => tx.rollback().await?,
                LetterStored::Now | LetterStored::Before => tx.commit().await?,
            }
            Ok(stored)
        });
        let stored = stored.await;
        lent.give_back(stored)
    }

    /// Sets aside a message that is no event, as a dead letter.
    pub async fn set_aside(&self, message: &Unreadable<'_>) -> Result<LetterStored, sqlx::Error> {
        match self.set_aside_as(message, |text| text.into()).await {
            Err(refused) if is_refused_value(&refused) => {
                self.set_aside_as(message, in_ascii).await
            }
            set_aside => set_aside,
        }
    }

    async fn set_aside_as(
        &self,
        message: &Unreadable<'_>,
        text: fn(&str) -> Cow<'_, str>,
    ) -> Result<LetterStored, sqlx::Error> {
        let Unreadable { stream, sequence, stored, topic, headers, payload, error } = message;
        let headers = headers.iter().map(|(name, value)| (&**name, &**value));
        let set_aside = self
            .query(&self.statements.set_aside)
            .bind(format!("{stream}:{sequence}"))
            .bind(stream)
            .bind(i64::try_from(*sequence).unwrap_or(i64::MAX))
            .bind(OffsetDateTime::from(*stored))
            .bind(text(&without_nul(topic)))
            .bind(written(headers, text)?)
            .bind(payload)
            .bind(text(&storable(error)));
        LetterStored::read(&self.lend().await?.fetch_one(set_aside).await?)
    }

    /// Makes a parked letter dead again, because it turned out to be no event.
    pub async fn spoil(&self, position: i64, error: &str) -> Result<(), sqlx::Error> {
        let spoil = self.query(&self.statements.spoil);
        let spoil = spoil.bind(position).bind(storable(error));
        self.lend().await?.execute(spoil).await.map(drop)
    }
}

/// The headers as the table holds them. A repeated name keeps all its values.
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
