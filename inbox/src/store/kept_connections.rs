//! Connections that stay with a busy consumer from one event to the next.
//!
//! A connection that returns to the pool and is taken out again costs three round trips: the pool rolls back, asks
//! whether the connection works, and asks again. An event with a short handler takes about as long. So a consumer keeps
//! a connection for a moment, and its next event begins and is recorded in one round trip. About once a second, the
//! connection goes through the pool nevertheless, and at once if the pool has no other one to give. So nobody who
//! shares the pool waits for a consumer.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pillarbox_store::limit::within;
use sqlx::PgPool;

use crate::store::begun::Begun;
use crate::store::lent;

/// How long a connection may stay away from the pool.
const LONGEST: Duration = Duration::from_secs(1);

/// The kept connections: never more than there were events at the same time. No transaction is open on them, but sqlx,
/// and so the pool, does not know that.
#[derive(Debug, Default)]
pub(crate) struct KeptConnections(Mutex<Vec<Begun>>);

impl KeptConnections {
    /// Takes one that was kept.
    pub(crate) fn take(&self) -> Option<Begun> {
        self.all().pop()
    }

    /// Whether to keep a connection that left the pool at this time.
    pub(crate) fn wants(&self, pool: &PgPool, taken_at: Instant) -> bool {
        let spare = pool.num_idle() > 0 || pool.size() < pool.options().get_max_connections();
        spare && !pool.is_closed() && taken_at.elapsed() < LONGEST
    }

    pub(crate) fn keep(&self, ended: Begun) {
        self.all().push(ended);
    }

    /// Gives back connections that have been kept for long; all of them if `all`.
    pub(crate) async fn give_back(&self, all: bool) {
        let old: Vec<_> =
            self.all().extract_if(.., |kept| all || kept.taken_at.elapsed() >= LONGEST).collect();
        let back = old.into_iter().map(|mut begun| async move {
            // sqlx sends a rollback, so there must be a transaction to roll back.
            let begin = sqlx::raw_sql("begin").execute(&mut *begun.tx);
            if within(lent::LONGEST, "the database", begin).await.is_err() {
                begun.abandon();
            }
        });
        futures::future::join_all(back).await;
    }

    fn all(&self) -> MutexGuard<'_, Vec<Begun>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
