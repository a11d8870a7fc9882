//! What a service's own tests need besides servers, which the crate `pillarbox-testkit` starts.
//!
//! | a test of | uses |
//! |---|---|
//! | what a handler decides, without servers | [`Received::for_test`](crate::Received::for_test) |
//! | what a handler writes and publishes | [`handle`], which rolls back; [`handle_then`] also reads rows |
//! | what other code publishes | [`published`], in a transaction that the test does not commit |
//! | the whole way, with relay and consumer | [`Settle`]: waits until nothing is left to do |
//!
//! The guide `docs/guides/testing.md` shows each of them. This module needs the feature `testing`, because [`Settle`]
//! reads the relay's cursor and so brings the relay's crate.

mod settle;

use sqlx::PgPool;

use crate::{Received, Router};

pub use pillarbox_inbox::testing::{ReceivedForTest, handle_then};
pub use pillarbox_outbox::testing::{NotPublished, Published, PublishedEvent, published};

pub use self::settle::{NotSettled, Settle};

/// Why [`handle`] failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandleError {
    /// The handler failed, or misused its transaction, or the database failed before or after it.
    #[error(transparent)]
    Inbox(#[from] crate::inbox::InboxError),
    /// The handler succeeded, and what it published could not be read.
    #[error(
        "what the handler published could not be read; the outbox's tables must be there (outbox::migrate)"
    )]
    Published(#[source] sqlx::Error),
}

/// Runs the handler that `router` has for an event, as a consumer does, rolls everything back, and returns what it
/// published.
///
/// The database needs the tables of inbox and outbox, in schema `pillarbox`. [`handle_then`] says how the handler is
/// run.
///
/// ```no_run
/// use pillarbox::{Event, Received, Router, Tx, outbox, testing};
///
/// #[derive(Event, serde::Serialize, serde::Deserialize)]
/// #[event(type = "order.placed", topic = "orders.placed", key = order)]
/// struct OrderPlaced { order: i64 }
///
/// #[derive(Event, serde::Serialize, serde::Deserialize)]
/// #[event(type = "payment.taken", topic = "payments.taken", key = order)]
/// struct PaymentTaken { order: i64 }
///
/// async fn charge(tx: &mut Tx, placed: OrderPlaced) -> anyhow::Result<()> {
///     outbox::publish(tx, PaymentTaken { order: placed.order }).await?;
///     Ok(())
/// }
///
/// # async fn test(pool: sqlx::PgPool) -> anyhow::Result<()> {
/// let placed = Received::for_test(OrderPlaced { order: 7 }).build()?;
/// let published = testing::handle(&pool, &Router::new().on(charge), &placed).await?;
/// let taken = published.only::<PaymentTaken>()?;
/// assert_eq!((taken.order, taken.key()), (7, Some("7")));
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`HandleError`].
pub async fn handle<E>(
    pool: &PgPool,
    router: &Router,
    received: &Received<E>,
) -> Result<Published, HandleError> {
    let seen = handle_then(pool, router, received, async |tx| published(tx).await).await?;
    seen.map_err(HandleError::Published)
}
