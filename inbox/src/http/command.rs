//! The request's transaction, for the handler.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use pillarbox_store::InTransaction;
use sqlx::PgConnection;
use tokio::sync::{MappedMutexGuard, MutexGuard};

use crate::delivery::Slot;
use crate::tx::Tx;

/// A request and its open transaction, in the request's extensions: `Extension<Command>` under axum.
///
/// The layer sets it for every request that it handles. If no key is required, a request without a key also runs in a
/// transaction, but its answer is not stored.
#[derive(Clone, Debug)]
pub struct Command {
    pub(crate) key: Option<Arc<str>>,
    pub(crate) slot: Arc<Slot>,
}

impl Command {
    /// The request's key. With the tenant in front of it, it can serve as the idempotency key for effects outside the
    /// database, which cannot join the transaction.
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// The transaction. The handler must not commit it: the layer does that after the handler's response, if the
    /// [`Verdict`](crate::http::Verdict) says so. Drop it before the handler responds, as happens with any local
    /// variable.
    ///
    /// # Errors
    /// [`CommandOver`] if the handler has responded or the request was cancelled. That can happen only to a clone in
    /// another task.
    pub async fn transaction(&self) -> Result<CommandTransaction<'_>, CommandOver> {
        // This is created first, so that it is dropped after the guard.
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

/// The request is over, and its transaction was committed or rolled back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the request is over, and so is its transaction: use the transaction before the handler responds"
)]
pub struct CommandOver;

/// Access to the transaction of a [`Command`], for as long as it lives. `&mut **tx` is its connection; pass `&mut tx`
/// to `pillarbox_outbox::publish`.
#[derive(Debug)]
pub struct CommandTransaction<'a> {
    tx: MappedMutexGuard<'a, Tx>,
    // This comes after `tx`, because fields are dropped in order.
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

impl InTransaction for CommandTransaction<'_> {
    fn connection(&mut self) -> &mut PgConnection {
        &mut self.tx
    }

    fn collects(&mut self) -> Option<&mut Tx> {
        Some(&mut self.tx)
    }
}

/// Rolls back if the request ended while the handler held the transaction.
#[derive(Debug)]
struct LetGo<'a>(&'a Slot);

impl Drop for LetGo<'_> {
    fn drop(&mut self) {
        if self.0.is_over() {
            self.0.undo();
        }
    }
}
