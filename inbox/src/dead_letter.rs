//! Lists, retries and discards dead letters.

use std::collections::HashSet;
use std::future::poll_fn;
use std::sync::Arc;

use pillarbox_event::RawEvent;
use pillarbox_store::full_text;
use sqlx::PgPool;
use tower_service::Service;

use crate::delivery::{Delivery, Outcome};
use crate::error::{BoxError, InboxError, fault_of, sign_of};
use crate::fault::{Fault, Sign};
use crate::store::{Burial, LetterStored, Store};
pub use crate::store::{DeadLetter, WhichLetter};
pub use pillarbox_store::dead_letters::LetterState;
use pillarbox_store::schema;

/// At most this many letters, with their payloads, are in memory at a time.
const PAGE: i64 = 50;

impl DeadLetter {
    /// A delivery of the event, for a service under an [`InboxLayer`](crate::InboxLayer) of the same consumer. If the
    /// service succeeds, its writes and the letter's resolution commit together. If it fails, the letter is unchanged.
    /// `None`: the message is no event. [`DeadLetters::retry_with`] does this with all letters.
    pub fn delivery(&self) -> Option<Delivery> {
        self.event().map(|event| Delivery { event: Arc::new(event), dead_letter: true })
    }
}

/// The dead letters of one consumer.
///
/// A `Consumer` of `pillarbox-consumer` also offers these, and handles [retried](Self::retry) letters within about a
/// second. Without a consumer, pass the service that handles them:
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

/// Why a dead letter was not found or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LetterError {
    /// Several dead letters have this id. Choose one by its position.
    #[error("{} dead letters have the id {id:?}: {}; name one by its position", found.len(), listed(found))]
    Ambiguous {
        /// The id.
        id: String,
        /// The positions of these letters, and the sources that they name.
        found: Vec<(i64, Option<String>)>,
    },
    /// The database failed.
    #[error("the dead letters could not be read or written")]
    Database(#[from] sqlx::Error),
}

/// An error names at most this many letters.
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
    /// How many events were handled.
    pub handled: u64,
    /// The ids of the events that failed again, each with the error. They are still dead letters.
    pub failed: Vec<(String, BoxError)>,
    /// How many letters were not tried, because they are no events, or because an earlier letter of their key failed.
    pub left: u64,
}

impl DeadLetters {
    /// The dead letters of the consumer with this name, in schema `pillarbox`.
    ///
    /// # Errors
    /// None with this schema.
    pub fn new(pool: PgPool, consumer: &str) -> Result<Self, InboxError> {
        Self::in_schema(pool, consumer, schema::DEFAULT)
    }

    /// The dead letters of a consumer in another schema.
    ///
    /// # Errors
    /// [`InboxError::Schema`].
    pub fn in_schema(pool: PgPool, consumer: &str, schema: &str) -> Result<Self, InboxError> {
        Ok(Self::of(Store::new(pool, consumer, schema, None)?))
    }

    /// For an event source, which has a [`Store`].
    pub fn of(store: Store) -> Self {
        Self { store }
    }

    /// The unresolved letters, dead and parked, oldest first, at most `limit`.
    ///
    /// # Errors
    /// The error of sqlx.
    pub async fn list(&self, limit: i64) -> Result<Vec<DeadLetter>, sqlx::Error> {
        self.store.letters(0, limit).await
    }

    /// One letter by id or position, resolved or not.
    ///
    /// # Errors
    /// [`LetterError`].
    pub async fn show(
        &self,
        which: impl Into<WhichLetter>,
    ) -> Result<Option<DeadLetter>, LetterError> {
        self.find(which.into()).await
    }

    /// The letter with this id or position. If there are several, the only unresolved one.
    async fn find(&self, which: WhichLetter) -> Result<Option<DeadLetter>, LetterError> {
        let mut found = self.store.find(&which).await?;
        let unresolved = |letter: &DeadLetter| letter.state.is_unresolved();
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

    /// Parks a letter for the `Consumer`, which handles it within about a second, with the same handler and in a
    /// transaction as for any other event. Nothing is published again. Its attempts start again, and if they fail it
    /// becomes dead again. With a strict order, events that are parked behind it follow in order. Returns `false` if
    /// the letter is not dead, or is no event.
    ///
    /// Without a running consumer, nobody handles it; use [`retry_with`](Self::retry_with) then.
    ///
    /// # Errors
    /// [`LetterError`].
    pub async fn retry(&self, which: impl Into<WhichLetter>) -> Result<bool, LetterError> {
        match self.find(which.into()).await? {
            Some(letter) => Ok(self.store.retry(Some(letter.position)).await? == 1),
            None => Ok(false),
        }
    }

    /// As [`retry`](Self::retry), for all dead letters. Returns how many there were.
    ///
    /// # Errors
    /// The error of sqlx.
    pub async fn retry_all(&self) -> Result<u64, sqlx::Error> {
        self.store.retry(None).await
    }

    /// Lets `service` handle the unresolved letters now, one after the other, in the order in which they were given up,
    /// each once and in a transaction as for any other event. A letter that fails stays unresolved, and the later
    /// letters of its key are not tried. If a `Consumer` runs, [`retry_all`](Self::retry_all) leaves the letters to the
    /// consumer instead. Even if both run, no letter is handled twice.
    ///
    /// The service must contain the [`InboxLayer`](crate::InboxLayer) of the same consumer, and may have other layers
    /// around it. Dropping the future rolls back the letter that is being handled.
    ///
    /// # Errors
    /// The error of sqlx if the letters cannot be read. A failure of the database also ends it; that letter is among
    /// those that failed.
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
                    // Another process was faster, or an earlier letter of its key is parked.
                    Ok(_) => retried.left += 1,
                    Err(error) => {
                        let surroundings = match sign_of(&*error) {
                            Sign::Sure(fault) => fault == Fault::Environment,
                            // The failure of a single letter may look the same.
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

    /// Gives an event up, for services without a `Consumer`. Writes a dead letter with the whole event and the error
    /// with its sources, and records the event as handled. `attempts` is how many attempts failed. Returns `false` if
    /// the event was handled before.
    ///
    /// # Errors
    /// The error of sqlx.
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
            LetterStored::Now => Ok(true),
            LetterStored::Before => Ok(false),
            LetterStored::Not => Err(LetterStored::not_stored()),
        }
    }

    /// Discards a letter, so that it is not handled. Events that are parked behind it are then handled. Returns `false`
    /// if there is no such unresolved letter.
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
