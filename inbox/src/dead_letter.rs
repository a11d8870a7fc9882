//! Dead letters: listing, retrying and discarding them.

use std::collections::HashSet;
use std::future::poll_fn;
use std::sync::Arc;

use pillarbox_event::RawEvent;
use pillarbox_store::full_text;
use sqlx::PgPool;
use tower_service::Service;

use crate::delivery::{Delivery, Outcome};
use crate::error::{InboxError, fault_of, sign_of};
use crate::fault::{Fault, Sign};
use crate::migrations::DEFAULT_SCHEMA;
use crate::store::{Burial, Store, Stored};
pub use crate::store::{DeadLetter, WhichLetter};
pub use pillarbox_store::dead_letters::State;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// As many are in memory at a time, with their payloads.
const PAGE: i64 = 50;

impl DeadLetter {
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

/// Why nothing was done about a dead letter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LetterError {
    /// Several dead letters have this id. Choose one by its position.
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
    /// The ids of those that failed again, each with the error. They are still dead letters.
    pub failed: Vec<(String, Box<dyn std::error::Error + Send + Sync>)>,
    /// How many were not tried, because they are not events, or wait behind a letter of their key that failed.
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

    /// For a source of events, which has a [`Store`].
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

    /// Lets `service` handle the unresolved letters now, one after the other, in the order in which they were given up,
    /// each once and in a transaction as for any other event. A letter that fails stays unresolved, and the later
    /// letters of its key are not tried. If a `Consumer` runs, [`retry_all`](Self::retry_all) leaves the letters to the
    /// consumer instead. Even if both run, no letter is handled twice.
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

    /// Marks the letter as not to be handled. Events that are parked behind it are handled then. `false` if there is no
    /// such unresolved letter.
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
