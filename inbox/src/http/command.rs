//! What the handler gets: the transaction.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use tokio::sync::{MappedMutexGuard, MutexGuard};

use crate::delivery::Slot;
use crate::tx::Tx;

/// A request and its open transaction, in the request's extensions: `Extension<Command>` under axum.
///
/// It is there for every request that the layer takes, also for one without a key where none is required: that
/// one runs in a transaction too, but its answer is not stored.
#[derive(Clone, Debug)]
pub struct Command {
    pub(crate) key: Option<Arc<str>>,
    pub(crate) slot: Arc<Slot>,
}

impl Command {
    /// The request's key. Good to pass on, with the tenant in front, as the idempotency key of effects outside
    /// the database, which cannot join the transaction.
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// The transaction. The layer commits it after the handler's response, depending on its
    /// [`Verdict`](crate::http::Verdict); the handler does not. To be let go before the handler responds, as any
    /// local variable of it is.
    ///
    /// # Errors
    /// [`CommandOver`] if the response has been given, or the request was cancelled: this is a clone in another
    /// task.
    pub async fn transaction(&self) -> Result<CommandTransaction<'_>, CommandOver> {
        // Made first, so that it is dropped after the guard.
        let let_go = LetGo(&self.slot);
        let tx = self.slot.hold().await;
        if self.slot.is_over() {
            return Err(CommandOver);
        }
        let tx = MutexGuard::try_map(tx, |begun| Some(&mut begun.as_mut()?.tx))
            .map_err(|_| CommandOver)?;
        Ok(CommandTransaction { tx, _let_go: let_go })
    }
}

/// The request is over; its transaction was committed or rolled back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request is over, and so is its transaction: use it before the handler responds")]
pub struct CommandOver;

/// The transaction of a [`Command`], held. `&mut **tx` is its connection, `&mut tx` goes to
/// `pillarbox_outbox::publish`.
#[derive(Debug)]
pub struct CommandTransaction<'a> {
    tx: MappedMutexGuard<'a, Tx>,
    // After `tx`: fields are dropped in order.
    _let_go: LetGo<'a>,
}

impl Deref for CommandTransaction<'_> {
    type Target = Tx;

    fn deref(&self) -> &Tx {
        &self.tx
    }
}

impl DerefMut for CommandTransaction<'_> {
    fn deref_mut(&mut self) -> &mut Tx {
        &mut self.tx
    }
}

/// Rolls back if the request ended while the transaction was held.
#[derive(Debug)]
struct LetGo<'a>(&'a Slot);

impl Drop for LetGo<'_> {
    fn drop(&mut self) {
        if self.0.is_over() {
            self.0.undo();
        }
    }
}
