//! What tests of handlers need from the inbox: a [`Received`] that no server delivered, and a run of a handler whose
//! writes are rolled back.
//!
//! There is no feature for it, because it adds no dependency and has no power: a `Received` commits nothing and
//! acknowledges nothing, and [`handle_then`] always rolls back.

use std::sync::Arc;

use pillarbox_event::{Context, EventError, EventId, IntoEvent, RawEvent, header};
use sqlx::PgPool;
use tower_service::Service;

use crate::delivery::{EndOnDrop, Handling, Slot};
use crate::error::{BEGIN, HandlerError, InboxError};
use crate::handler::Received;
use crate::router::Router;
use crate::store::{Claim, Fate, Store};
use crate::tx::Tx;
use pillarbox_store::schema;

/// The consumer that a test's run belongs to. Nothing of it is ever committed.
const CONSUMER: &str = "pillarbox testing";

/// Runs the handler that `router` has for an event, as a consumer does, then `look` in the same transaction, and rolls
/// everything back. Returns what `look` returned.
///
/// `look` reads what the handler has written, and, with `published` of `pillarbox-outbox`, what it has published.
/// (`pillarbox::testing::handle` does just that.) It must not end the transaction.
///
/// The database needs the tables of the inbox, in schema `pillarbox`. A batch handler gets the event alone. A panic of
/// the handler is not caught. There is no time limit other than those of the database.
///
/// ```no_run
/// use pillarbox_event::Event;
/// use pillarbox_inbox::testing::handle_then;
/// use pillarbox_inbox::{HandlerError, Received, Router, Tx};
///
/// #[derive(Event, serde::Serialize, serde::Deserialize)]
/// #[event(type = "order.placed", topic = "orders.placed", key = order)]
/// struct OrderPlaced { order: i64 }
///
/// async fn charge(tx: &mut Tx, placed: OrderPlaced) -> Result<(), HandlerError> {
///     sqlx::query("insert into charges (order_id) values ($1)").bind(placed.order).execute(&mut **tx).await?;
///     Ok(())
/// }
///
/// # async fn test(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
/// let placed = Received::for_test(OrderPlaced { order: 7 }).build()?;
/// let charges: i64 = handle_then(&pool, &Router::new().on(charge), &placed, async |tx| {
///     sqlx::query_scalar("select count(*) from charges").fetch_one(&mut **tx).await
/// })
/// .await??;
/// assert_eq!(charges, 1);
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`InboxError`], as for a delivery: [`Handler`](InboxError::Handler) if the handler failed or the router has none for
/// this event, [`Ended`](InboxError::Ended) and [`Aborted`](InboxError::Aborted) if it misused its transaction,
/// [`Database`](InboxError::Database) if the database failed or has no tables.
pub async fn handle_then<E, T>(
    pool: &PgPool,
    router: &Router,
    received: &Received<E>,
    look: impl AsyncFnOnce(&mut Tx) -> T,
) -> Result<T, InboxError> {
    router.check().map_err(|error| InboxError::handler(HandlerError::environment(error)))?;
    let (event, attempt) = (received.raw().clone(), received.attempt());
    let store = Store::new(pool.clone(), CONSUMER, schema::DEFAULT, None)?;
    let mut begun = store.begin().await.map_err(InboxError::database(BEGIN))?;
    let identity = event.identity();
    let claim = store.claim(&mut begun, identity.as_str(), None).await;
    if claim.map_err(InboxError::database("record the event"))? == Claim::Duplicate {
        // Only a commit could have left that row.
        return Err(InboxError::Ended { committed: true });
    }
    let slot = Slot::new(begun);
    let _end = EndOnDrop(slot.clone());
    let handling = Handling { event: event.clone(), attempt, slot: slot.clone() };
    let handled = Context::of(&event).scope(router.clone().call(handling)).await;
    let mut begun = slot.end().ok_or(InboxError::InUse)?;
    let ended = match handled {
        Ok(()) => begun.settle().await.map_err(InboxError::commit),
        Err(error) => Err(error),
    };
    let seen = match ended {
        Ok(()) => Ok(look(&mut begun.tx).await),
        Err(error) => Err(error),
    };
    // Whoever ended the transaction is found out before anything else is believed.
    match begun.undo().await.and_then(Fate::ended) {
        Some(ended) => Err(ended),
        None => seen,
    }
}

impl<E> Received<E>
where
    for<'e> &'e E: IntoEvent,
{
    /// Builds an event as a handler receives it, for a test without servers.
    ///
    /// It is what a relay would have shipped: its key and topic are those of the event, it has a new id, no source, no
    /// cause and no trace, and this is the first attempt. The methods of [`ReceivedForTest`] change that.
    ///
    /// ```
    /// use pillarbox_event::Event;
    /// use pillarbox_inbox::Received;
    ///
    /// #[derive(Event, serde::Serialize, serde::Deserialize)]
    /// #[event(type = "order.placed", topic = "orders.placed", key = order)]
    /// struct OrderPlaced { order: i64 }
    ///
    /// /// The part of a handler that decides.
    /// fn gives_up(placed: &Received<OrderPlaced>) -> bool {
    ///     placed.attempt() > 2 && placed.raw().source() == Some("/shop")
    /// }
    ///
    /// let placed = Received::for_test(OrderPlaced { order: 7 }).source("/shop").attempt(3).build()?;
    /// assert!(gives_up(&placed));
    /// assert_eq!((placed.order, placed.raw().key()), (7, Some("7")));
    /// # Ok::<(), pillarbox_event::EventError>(())
    /// ```
    pub fn for_test(event: E) -> ReceivedForTest<E> {
        let raw = (&event).into_event();
        ReceivedForTest { event, raw, attempt: 1 }
    }
}

/// Builds a [`Received`] for a test: see [`Received::for_test`]. [`build`](Self::build) reports the first value that is
/// refused.
#[derive(Debug)]
#[must_use = "`build` makes the event"]
pub struct ReceivedForTest<E> {
    event: E,
    raw: Result<RawEvent, EventError>,
    attempt: u32,
}

impl<E> ReceivedForTest<E> {
    /// Sets the id.
    pub fn id(self, id: impl Into<String>) -> Self {
        self.change(|raw| {
            let id = EventId::parse(id)?;
            let (_, event_type, topic, key, headers, payload) = raw.into_parts();
            RawEvent::from_parts(id, event_type, topic, key, headers, payload)
        })
    }

    /// Sets another key than the event's own.
    pub fn key(self, key: impl Into<String>) -> Self {
        self.change(|raw| {
            let (id, event_type, topic, _, headers, payload) = raw.into_parts();
            RawEvent::from_parts(id, event_type, topic, Some(key.into()), headers, payload)
        })
    }

    /// Sets another topic than the event's own.
    pub fn topic(self, topic: impl Into<String>) -> Self {
        self.change(|raw| {
            let (id, event_type, _, key, headers, payload) = raw.into_parts();
            RawEvent::from_parts(id, event_type, topic.into(), key, headers, payload)
        })
    }

    /// Sets the service that produced the event, a URI reference such as `/shop/orders`.
    pub fn source(self, source: impl Into<String>) -> Self {
        self.header(header::SOURCE, source)
    }

    /// Sets the id that all events share that go back to the same first event.
    pub fn correlation_id(self, id: impl Into<String>) -> Self {
        self.header(header::CORRELATION_ID, id)
    }

    /// Sets a header.
    pub fn header(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.change(|raw| raw.with_header(name, value))
    }

    /// Sets which attempt this is. 0 counts as 1.
    pub fn attempt(self, attempt: u32) -> Self {
        Self { attempt: attempt.max(1), ..self }
    }

    /// Checks everything and returns the event.
    ///
    /// # Errors
    /// [`EventError`], for the first thing that is refused.
    pub fn build(self) -> Result<Received<E>, EventError> {
        // A relay marks what it ships, so that the id alone is the identity.
        Ok(Received::new(self.event, Arc::new(self.raw?.shipped()), self.attempt))
    }

    fn change(self, change: impl FnOnce(RawEvent) -> Result<RawEvent, EventError>) -> Self {
        Self { raw: self.raw.and_then(change), ..self }
    }
}

impl Handling {
    /// The same handling as this attempt, for a test of what a handler does after failures. 0 counts as 1.
    #[must_use]
    pub fn as_attempt(self, attempt: u32) -> Self {
        Self { attempt: attempt.max(1), ..self }
    }
}

#[cfg(test)]
mod tests {
    use pillarbox_event::Event;

    use super::*;

    #[derive(serde::Serialize, serde::Deserialize, Debug)]
    struct Placed {
        order: i64,
    }

    impl Event for Placed {
        const TYPE: &'static str = "order.placed";
        const TOPIC: &'static str = "orders.placed";

        fn key(&self) -> Option<std::borrow::Cow<'_, str>> {
            Some(self.order.to_string().into())
        }
    }

    #[test]
    fn a_test_receives_what_a_relay_would_have_shipped() {
        let first = Received::for_test(Placed { order: 7 }).build().unwrap();
        let second = Received::for_test(Placed { order: 7 }).source("/shop").build().unwrap();
        assert_eq!((first.attempt(), first.raw().key()), (1, Some("7")));
        assert_eq!(first.raw().topic(), "orders.placed");
        assert_eq!(first.raw().decode::<Placed>().unwrap().order, 7);
        assert_ne!(first.id(), second.id());
        assert_eq!(second.idempotency_key(), second.id().as_str(), "as of what a relay ships");
    }

    #[test]
    fn a_test_can_set_what_else_a_handler_sees() {
        let placed = Received::for_test(Placed { order: 7 })
            .id("no-uuid")
            .key("k")
            .topic("orders.eu.placed")
            .source("/shop")
            .correlation_id("c")
            .header("tenant", "t")
            .attempt(3)
            .build()
            .unwrap();
        let raw = placed.raw();
        assert_eq!((placed.id().as_str(), placed.attempt()), ("no-uuid", 3));
        assert_eq!((raw.key(), raw.topic()), (Some("k"), "orders.eu.placed"));
        assert_eq!((raw.source(), raw.header("tenant")), (Some("/shop"), Some("t")));
        assert_eq!(placed.context().correlation_id, "c");
        assert_ne!(placed.idempotency_key(), "no-uuid", "as of a foreign event");
        let raw = Received::for_test(RawEvent::builder("a", "b").build().unwrap()).build().unwrap();
        assert_eq!(raw.event_type(), "a");
    }

    #[test]
    fn the_first_value_that_is_refused_is_reported() {
        let wrong = Received::for_test(Placed { order: 7 }).topic("no topic").id("").build();
        assert!(wrong.unwrap_err().to_string().contains("no topic"));
        assert!(Received::for_test(Placed { order: 7 }).id("").build().is_err());
        assert!(Received::for_test(Placed { order: 7 }).header("x", "a\nb").build().is_err());
    }
}
