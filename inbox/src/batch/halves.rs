//! Hands a part of a batch to its handler: as a whole, or in halves if that fails.

use std::marker::PhantomData;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use pillarbox_event::{FromEvent, RawEvent};
use tokio::time::timeout;

use super::{BatchEnd, BatchHandler};
use crate::delivery::Outcome;
use crate::error::{HandlerError, InboxError};
use crate::fault::{Fault, Sign};
use crate::handler::Received;
use crate::layer::panic_text;
use crate::store::Begun;
use crate::timeout::TookTooLong;

/// Hands the events of one type to their batch handler.
pub(crate) trait BatchRoute: Send + Sync {
    /// Handles those of `all` that are at these places, and records in `ends` what became of them. With each place
    /// comes the number of the attempt.
    fn run<'a>(
        &'a self,
        rules: Rules,
        begun: &'a mut Begun,
        part: &'a [(usize, u32)],
        all: &'a [Arc<RawEvent>],
        ends: &'a mut [Option<BatchEnd>],
    ) -> BoxFuture<'a, Result<(), InboxError>>;
}

/// How batches are handled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// How long one call of a handler may take; a longer one fails.
    pub(crate) longest: Duration,
    /// Whether an event that fails holds back the later ones of its key.
    pub(crate) keeps_keys: bool,
}

/// Events of a batch that are handled together, and their places in it.
type Part<E> = Vec<(usize, Received<E>)>;

/// The route to one batch handler.
pub(crate) struct ToHandler<H, E> {
    pub(crate) handler: Arc<H>,
    pub(crate) event: PhantomData<fn(E)>,
}

impl<H, E> BatchRoute for ToHandler<H, E>
where
    H: BatchHandler<E>,
    E: FromEvent + Send + Sync + 'static,
{
    fn run<'a>(
        &'a self,
        rules: Rules,
        begun: &'a mut Begun,
        part: &'a [(usize, u32)],
        all: &'a [Arc<RawEvent>],
        ends: &'a mut [Option<BatchEnd>],
    ) -> BoxFuture<'a, Result<(), InboxError>> {
        let mut read = Vec::with_capacity(part.len());
        for &(place, attempt) in part {
            match Received::read(&all[place], attempt) {
                Ok(event) => read.push((place, event)),
                Err(error) => {
                    let error = InboxError::handler(HandlerError::permanent(error));
                    ends[place] = Some(BatchEnd::Failed(error));
                }
            }
        }
        Box::pin(self.halve(rules, begun, read, all, ends))
    }
}

impl<H, E> ToHandler<H, E>
where
    H: BatchHandler<E>,
    E: FromEvent + Send + Sync + 'static,
{
    /// Handles a part, or, if that fails, its halves, and so on: each as a whole or not at all.
    async fn halve(
        &self,
        rules: Rules,
        begun: &mut Begun,
        part: Part<E>,
        all: &[Arc<RawEvent>],
        ends: &mut [Option<BatchEnd>],
    ) -> Result<(), InboxError> {
        let mut parts = vec![part];
        while let Some(mut part) = parts.pop() {
            part.retain(|(place, event)| {
                let key = event.raw().key().filter(|_| rules.keeps_keys);
                let before = all.iter().zip(ends.iter()).take(*place);
                // Left out, because an earlier event of its key failed.
                key.is_none()
                    || !before.into_iter().any(|(other, end)| {
                        matches!(end, Some(BatchEnd::Failed(_))) && other.key() == key
                    })
            });
            if part.is_empty() {
                continue;
            }
            let (places, events): (Vec<usize>, Vec<Received<E>>) = part.into_iter().unzip();
            let handled = match self.handle(rules, begun, &events).await {
                Ok(handled) => handled,
                Err(error) => {
                    // This matters only if the handler has ended the transaction.
                    for place in places {
                        ends[place] = Some(BatchEnd::Failed(InboxError::Ended { committed: true }));
                    }
                    return Err(error);
                }
            };
            match handled {
                Ok(()) => {
                    for place in places {
                        ends[place] = Some(BatchEnd::Well(Outcome::Handled));
                    }
                }
                Err(error) if places.len() == 1 => ends[places[0]] = Some(BatchEnd::Failed(error)),
                Err(_) => {
                    let mut first: Part<E> = places.into_iter().zip(events).collect();
                    let second = first.split_off(first.len() / 2);
                    parts.push(second);
                    parts.push(first);
                }
            }
        }
        Ok(())
    }

    /// Calls the handler in a savepoint. After the inner error, what the handler did is undone; after the outer error,
    /// everything is.
    async fn handle(
        &self,
        rules: Rules,
        begun: &mut Begun,
        events: &[Received<E>],
    ) -> Result<Result<(), InboxError>, InboxError> {
        let set = begun.prove_and("savepoint pillarbox_batch").await;
        set.map_err(InboxError::database("set a savepoint"))?;
        let handling = self.handler.handle(&mut begun.tx, events);
        let handling = async {
            match events {
                [event] => event.context().scope(handling).await,
                _ => handling.await,
            }
        };
        let handled = timeout(rules.longest, handling);
        let error = match AssertUnwindSafe(handled).catch_unwind().await {
            Ok(Ok(Ok(()))) => match release(begun).await {
                Ok(()) => return Ok(Ok(())),
                Err(error) => match InboxError::commit(error) {
                    error @ InboxError::Ended { .. } => return Err(error),
                    error => error,
                },
            },
            Ok(Ok(Err(error))) => InboxError::handler(error),
            // The handler may have stopped in the middle of a statement, and a rollback would wait for that.
            Ok(Err(_)) => {
                return Err(InboxError::handler(HandlerError::transient(TookTooLong(
                    rules.longest,
                ))));
            }
            Err(panic) => InboxError::handler(HandlerError::transient(panic_text(&*panic))),
        };
        // Some protocol errors of sqlx leave the connection as it was and can be undone. For example, a part that binds
        // too many values for one statement succeeds in halves. The others fail at the rollback.
        let can_be_undone = error.sign() == Sign::Broken;
        if !can_be_undone
            && matches!(error.fault(), Fault::Environment | Fault::Conflict | Fault::Outage)
        {
            return Err(error);
        }
        begun.undo_part("pillarbox_batch").await?;
        Ok(Err(error))
    }
}

/// Releases the savepoint of a part. What the handler has collected is sent with it, so that it is undone with the part
/// if it fails.
async fn release(begun: &mut Begun) -> Result<(), sqlx::Error> {
    let collected = begun.tx.take_collected();
    begun.prove_and(&format!("{collected}release savepoint pillarbox_batch")).await
}
