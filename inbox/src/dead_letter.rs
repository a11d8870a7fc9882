//! What was given up, and how to get at it.

use std::collections::{BTreeMap, HashSet};
use std::future::poll_fn;
use std::sync::Arc;

use bytes::Bytes;
use pillarbox_event::{EventId, Identity, RawEvent, header};
use pillarbox_store::full_text;
use sqlx::postgres::PgRow;
use sqlx::{PgPool, Row};
use time::OffsetDateTime;
use tower_service::Service;

use crate::delivery::{Delivery, Outcome};
use crate::error::InboxError;
use crate::failure::{Fault, Sign, fault_of, sign_of};
use crate::migrations::DEFAULT_SCHEMA;
use crate::store::{Burial, Store, Stored};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// As many are in memory at a time, with their payloads.
const PAGE: i64 = 50;

/// An event that a consumer gave up. `Debug` shows neither payload nor header values.
#[derive(Clone)]
pub struct DeadLetter {
    /// The consumer that gave it up.
    pub consumer: String,
    /// Its position among the dead letters, which names it whatever ids there are.
    pub position: i64,
    /// The event's id, which is one within its source only; `STREAM:sequence` of a message that could not be read.
    pub event_id: String,
    /// The event's type, if the message was an event.
    pub event_type: Option<String>,
    /// The topic.
    pub topic: String,
    /// The ordering key.
    pub key: Option<String>,
    /// The headers, by name.
    pub headers: BTreeMap<String, String>,
    /// The payload.
    pub payload: Bytes,
    /// `dead`: given up. `parked`: waits for the consumer to handle it, because it was retried, or stands behind
    /// a dead event of its key, where the order is strict. `retried` and `discarded`: resolved.
    pub state: String,
    /// Why, in a word: `undecodable`, `permanent`, `attempts`, `kills`, `parked`.
    pub reason: String,
    /// The last error, with its sources.
    pub error: String,
    /// How many attempts failed.
    pub attempts: i32,
    /// When it failed first, counted or not.
    pub first_failed_at: OffsetDateTime,
    /// When it was given up.
    pub dead_at: OffsetDateTime,
    /// What the inbox knows the event by, if that is another text than its id.
    identity: Option<String>,
}

impl std::fmt::Debug for DeadLetter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeadLetter")
            .field("consumer", &self.consumer)
            .field("event_id", &self.event_id)
            .field("event_type", &self.event_type)
            .field("topic", &self.topic)
            .field("state", &self.state)
            .field("reason", &self.reason)
            .field("error", &self.error)
            .field("attempts", &self.attempts)
            .field("payload_bytes", &self.payload.len())
            .finish_non_exhaustive()
    }
}

impl DeadLetter {
    /// The source that the event names.
    pub fn source(&self) -> Option<&str> {
        self.headers.get(header::SOURCE).map(String::as_str)
    }

    /// The event, if the message was one.
    pub fn event(&self) -> Option<RawEvent> {
        let id = EventId::parse(self.event_id.clone()).ok()?;
        let (event_type, key) = (self.event_type.clone()?, self.key.clone());
        let event = RawEvent::from_parts(
            id,
            event_type,
            self.topic.clone(),
            key,
            self.headers.clone(),
            self.payload.clone(),
        )
        .ok()?;
        let identity = self.identity.as_ref().unwrap_or(&self.event_id);
        Some(event.identified_by(Identity::stored(identity.as_str())))
    }

    /// The event, to be handled after all: the request of a service under an [`InboxLayer`](crate::InboxLayer) of the
    /// same consumer. Its success, and that it is a dead letter no more, commit together; its failure leaves it what
    /// it is. `None` if the message was no event. [`DeadLetters::retry_with`] does this with all of them.
    pub fn delivery(&self) -> Option<Delivery> {
        self.event().map(|event| Delivery { event: Arc::new(event), dead_letter: true })
    }
}

/// The dead letters of one consumer: to be looked at, tried again, or discarded.
///
/// A `Consumer` of `pillarbox-consumer` has them, too, and handles what is [retried](Self::retry) within about a second.
/// Without one, hand the service in that is to handle them:
///
/// ```no_run
/// # use pillarbox_inbox::{InboxLayer, Router};
/// # use tower::Layer;
/// # async fn example(pool: sqlx::PgPool, router: Router) -> Result<(), Box<dyn std::error::Error>> {
/// let inbox = InboxLayer::new(pool, "payments")?;
/// let retried = inbox.dead_letters().retry_with(inbox.layer(router)).await?;
/// println!("{} handled, {} failed again", retried.handled, retried.failed.len());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct DeadLetters {
    store: Store,
}

/// Which dead letter: made of an id or a position where one is asked for.
///
/// An id is found as operators see it: the event's own, or, of a message that could not be read, `STREAM:sequence` or
/// the id that it claims. Two sources may give one id, and several unreadable messages claim it; a
/// [position](DeadLetter::position) names one letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WhichLetter {
    /// The one of this id.
    Id(String),
    /// The one at this position.
    Position(i64),
}

impl From<&str> for WhichLetter {
    fn from(id: &str) -> Self {
        Self::Id(id.to_owned())
    }
}

impl From<&String> for WhichLetter {
    fn from(id: &String) -> Self {
        Self::Id(id.clone())
    }
}

impl From<String> for WhichLetter {
    fn from(id: String) -> Self {
        Self::Id(id)
    }
}

impl From<&EventId> for WhichLetter {
    fn from(id: &EventId) -> Self {
        Self::Id(id.to_string())
    }
}

impl From<i64> for WhichLetter {
    fn from(position: i64) -> Self {
        Self::Position(position)
    }
}

/// Why nothing was done about a dead letter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LetterError {
    /// Several have this id. Name one by its position.
    #[error("{} dead letters have the id {id:?}: {}; name one by its position", found.len(), listed(found))]
    Ambiguous {
        /// The id.
        id: String,
        /// Their positions, and the sources that they name.
        found: Vec<(i64, Option<String>)>,
    },
    /// The database failed.
    #[error("the dead letters could not be read or written")]
    Database(#[from] sqlx::Error),
}

/// As many are named in an error.
const NAMED: usize = 5;

fn listed(found: &[(i64, Option<String>)]) -> String {
    let named = found.iter().take(NAMED).map(|(position, source)| match source {
        Some(source) => format!("{position} (source {source:?})"),
        None => format!("{position} (no source)"),
    });
    let more = if found.len() > NAMED { ", ..." } else { "" };
    format!("at the positions {}{more}", named.collect::<Vec<_>>().join(", "))
}

/// What [`DeadLetters::retry_with`] did.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Retried {
    /// How many were handled.
    pub handled: u64,
    /// The ids of those that failed again, and why. They are dead letters still.
    pub failed: Vec<(String, Box<dyn std::error::Error + Send + Sync>)>,
    /// How many were left as they are: they are no events, or stand behind one of their key that failed.
    pub left: u64,
}

impl DeadLetters {
    /// Those of the consumer of this name, in schema `pillarbox`.
    ///
    /// # Errors
    /// None with this schema.
    pub fn new(pool: PgPool, consumer: &str) -> Result<Self, InboxError> {
        Self::in_schema(pool, consumer, DEFAULT_SCHEMA)
    }

    /// The same in another schema.
    ///
    /// # Errors
    /// [`InboxError::Schema`].
    pub fn in_schema(pool: PgPool, consumer: &str, schema: &str) -> Result<Self, InboxError> {
        Ok(Self::of(Store::new(pool, consumer, schema, None)?))
    }

    /// For a source of events that has a [`Store`] already.
    #[doc(hidden)]
    pub fn of(store: Store) -> Self {
        Self { store }
    }

    /// The unresolved ones, dead and parked, in the order in which they came, `limit` at the most.
    ///
    /// # Errors
    /// What sqlx says.
    pub async fn list(&self, limit: i64) -> Result<Vec<DeadLetter>, sqlx::Error> {
        self.store.letters(0, limit).await
    }

    /// One, resolved or not, by id or position.
    ///
    /// # Errors
    /// [`LetterError`].
    pub async fn show(
        &self,
        which: impl Into<WhichLetter>,
    ) -> Result<Option<DeadLetter>, LetterError> {
        self.find(which.into()).await
    }

    /// The one that is meant: of several the only one that is unresolved.
    async fn find(&self, which: WhichLetter) -> Result<Option<DeadLetter>, LetterError> {
        let mut found = self.store.find(&which).await?;
        let unresolved = |letter: &DeadLetter| matches!(letter.state.as_str(), "dead" | "parked");
        if found.len() > 1 && found.iter().any(unresolved) {
            found.retain(unresolved);
        }
        match (found.pop(), which) {
            (last, WhichLetter::Id(id)) if !found.is_empty() => {
                let all = found.iter().chain(&last);
                let found = all.map(|one| (one.position, one.source().map(str::to_owned)));
                Err(LetterError::Ambiguous { id, found: found.collect() })
            }
            (last, _) => Ok(last),
        }
    }

    /// Leaves it to the `Consumer`, which handles it within about a second, through the same
    /// handler and in a transaction as for any other event; nothing is published again. Its attempts start anew,
    /// and if they fail it is dead again. With a strict order what is parked behind it
    /// follows in order. `false` if it is not dead, or was no event.
    ///
    /// Without a consumer nobody would: use [`retry_with`](Self::retry_with) there.
    ///
    /// # Errors
    /// [`LetterError`].
    pub async fn retry(&self, which: impl Into<WhichLetter>) -> Result<bool, LetterError> {
        match self.find(which.into()).await? {
            Some(letter) => Ok(self.store.retry(Some(letter.position)).await? == 1),
            None => Ok(false),
        }
    }

    /// As [`retry`](Self::retry), with all that are dead. How many that is.
    ///
    /// # Errors
    /// What sqlx says.
    pub async fn retry_all(&self) -> Result<u64, sqlx::Error> {
        self.store.retry(None).await
    }

    /// Has `service` handle the unresolved ones here and now: one after the other, in the order in which they
    /// came, each once, in a transaction as for any other event. One that fails stays what it is, and the later
    /// ones of its key are left behind it. While a `Consumer` runs,
    /// [`retry_all`](Self::retry_all) leaves them to that; both together handle none twice.
    ///
    /// The service has the [`InboxLayer`](crate::InboxLayer) of the same consumer inside, and other layers around it as
    /// it pleases. Dropping the future rolls back the one that is being handled.
    ///
    /// # Errors
    /// What sqlx says when they are read. A failure of the surroundings ends it too, as one of those that failed.
    pub async fn retry_with<S>(&self, mut service: S) -> Result<Retried, sqlx::Error>
    where
        S: Service<Delivery, Response = Outcome, Error: Into<BoxError>>,
    {
        let mut retried = Retried::default();
        let (mut after, mut failed_keys) = (0, HashSet::new());
        loop {
            let page = self.store.letters(after, PAGE).await?;
            let Some(last) = page.last() else {
                return Ok(retried);
            };
            after = last.position;
            for letter in page {
                let behind = letter.key.as_ref().is_some_and(|key| failed_keys.contains(key));
                let Some(delivery) = letter.delivery().filter(|_| !behind) else {
                    retried.left += 1;
                    continue;
                };
                let ready = poll_fn(|cx| service.poll_ready(cx)).await;
                let handled = match ready {
                    Ok(()) => service.call(delivery).await,
                    Err(error) => Err(error),
                };
                match handled.map_err(Into::into) {
                    Ok(Outcome::Handled) => retried.handled += 1,
                    // Somebody else was faster, or an earlier one of its key is parked.
                    Ok(_) => retried.left += 1,
                    Err(error) => {
                        let surroundings = match sign_of(&*error) {
                            Sign::Sure(fault) => fault == Fault::Environment,
                            // One letter's own failure may look so too.
                            sign => {
                                sign.fault() == Fault::Environment
                                    && self.store.well().await.is_none()
                            }
                        };
                        failed_keys.extend(letter.key);
                        retried.failed.push((letter.event_id, error));
                        if surroundings {
                            return Ok(retried);
                        }
                    }
                }
            }
        }
    }

    /// Gives an event up, where no `Consumer` does: a dead letter, with the whole event and the
    /// error with its sources, and the event counts as handled. `attempts` is how many failed. `false` if it was
    /// handled before.
    ///
    /// # Errors
    /// What sqlx says.
    pub async fn give_up(
        &self,
        event: &RawEvent,
        error: &(dyn std::error::Error + 'static),
        attempts: u32,
    ) -> Result<bool, sqlx::Error> {
        let reason = if fault_of(error) == Fault::Permanent { "permanent" } else { "attempts" };
        let error = full_text(error);
        let burial = Burial { event, reason, error: &error, attempts, recorded: false };
        match self.store.bury(burial).await? {
            Stored::Now => Ok(true),
            Stored::Before => Ok(false),
            Stored::Not => Err(Stored::not_stored()),
        }
    }

    /// Marks it as not to be handled. What is parked behind it follows then. `false` if it is not an unresolved
    /// dead letter.
    ///
    /// # Errors
    /// [`LetterError`].
    pub async fn discard(&self, which: impl Into<WhichLetter>) -> Result<bool, LetterError> {
        match self.find(which.into()).await? {
            Some(letter) => Ok(self.store.discard(letter.position).await?),
            None => Ok(false),
        }
    }
}

pub(crate) fn read(row: &PgRow) -> Result<DeadLetter, sqlx::Error> {
    let sqlx::types::Json(headers) = row.try_get("headers")?;
    Ok(DeadLetter {
        consumer: row.try_get("consumer")?,
        event_id: row.try_get("event_id")?,
        identity: row.try_get("identity")?,
        event_type: row.try_get("event_type")?,
        topic: row.try_get("topic")?,
        key: row.try_get("key")?,
        headers,
        payload: row.try_get::<Vec<u8>, _>("payload")?.into(),
        state: row.try_get("state")?,
        reason: row.try_get("reason")?,
        error: row.try_get("error")?,
        attempts: row.try_get("attempts")?,
        first_failed_at: row.try_get("first_failed_at")?,
        dead_at: row.try_get("dead_at")?,
        position: row.try_get("position")?,
    })
}
