//! One handler for each type of event.

use std::any::type_name;
use std::collections::HashMap;
use std::fmt;
use std::future::ready;
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use pillarbox_event::{FromEvent, topic};
use tower_service::Service;

use crate::batch::{
    BatchRoute, Batches, IntoBatchHandler, One, Rules, RunBatch, ToHandler, no_handler,
};
use crate::delivery::Handling;
use crate::error::HandlerError;
use crate::error::InboxError;
use crate::handler::{FromHandling, Handler, IntoHandler, Received};
use crate::tx::Tx;

/// Hands each event to the handler of its type. It is the service inside [`Inbox`](crate::Inbox).
///
/// An event of a type without a handler is a permanent failure, and so becomes a dead letter, unless
/// [`ignore_others`](Self::ignore_others) was called.
#[derive(Clone, Default)]
pub struct Router {
    routes: HashMap<&'static str, Entry>,
    /// The handler of types without a handler of their own.
    others: Option<Entry>,
    ignores_others: bool,
    second: Option<SecondHandler>,
}

/// Two handlers were added for the same type of event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("two handlers take {events}: {first} and {second}; keep one of them")]
pub struct SecondHandler {
    /// The events that both take.
    pub events: String,
    /// The handler that was added first.
    pub first: &'static str,
    /// The other one.
    pub second: &'static str,
}

#[derive(Clone)]
struct Entry {
    handler: &'static str,
    topic: Option<&'static str>,
    route: Arc<dyn Route>,
    batch: Option<Arc<dyn BatchRoute>>,
}

trait Route: Send + Sync {
    fn handle<'a>(
        &'a self,
        tx: &'a mut Tx,
        handling: &'a Handling,
    ) -> BoxFuture<'a, Result<(), HandlerError>>;
}

struct Typed<H, E> {
    handler: Arc<H>,
    event: PhantomData<fn(E)>,
}

impl<H: Handler<E>, E: FromHandling> Route for Typed<H, E> {
    fn handle<'a>(
        &'a self,
        tx: &'a mut Tx,
        handling: &'a Handling,
    ) -> BoxFuture<'a, Result<(), HandlerError>> {
        match E::from_handling(handling) {
            Ok(event) => Box::pin(self.handler.handle(tx, event)),
            Err(error) => Box::pin(ready(Err(HandlerError::permanent(error)))),
        }
    }
}

impl Router {
    /// No handlers yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a handler for the type of event that it takes: a function, or a struct that implements [`Handler`]. One of
    /// [`RawEvent`](pillarbox_event::RawEvent) takes the events of all types that no other handler takes.
    ///
    /// A second handler for a type is refused by [`check`](Self::check), which consumers call at their start.
    #[must_use]
    pub fn on<E: FromHandling, Kind>(self, handler: impl IntoHandler<E, Kind>) -> Self {
        self.add(Arc::new(handler.into_handler()))
    }

    /// Adds one handler for several types of events, which it takes one by one.
    ///
    /// ```
    /// use pillarbox_event::Event;
    /// use pillarbox_inbox::{Handler, HandlerError, Router, Tx};
    ///
    /// #[derive(Event, serde::Deserialize)]
    /// #[event(type = "order.placed", topic = "orders.placed", key = order)]
    /// struct OrderPlaced { order: i64 }
    ///
    /// #[derive(Event, serde::Deserialize)]
    /// #[event(type = "order.cancelled", topic = "orders.cancelled", key = order)]
    /// struct OrderCancelled { order: i64 }
    ///
    /// struct OpenOrders;
    ///
    /// impl Handler<OrderPlaced> for OpenOrders {
    ///     async fn handle(&self, tx: &mut Tx, placed: OrderPlaced) -> Result<(), HandlerError> {
    ///         sqlx::query("insert into open_orders values ($1)").bind(placed.order).execute(&mut **tx).await?;
    ///         Ok(())
    ///     }
    /// }
    ///
    /// impl Handler<OrderCancelled> for OpenOrders {
    ///     async fn handle(&self, tx: &mut Tx, cancelled: OrderCancelled) -> Result<(), HandlerError> {
    ///         sqlx::query("delete from open_orders where id = $1").bind(cancelled.order).execute(&mut **tx).await?;
    ///         Ok(())
    ///     }
    /// }
    ///
    /// let router = Router::new().on_each::<(OrderPlaced, OrderCancelled)>(OpenOrders);
    /// ```
    #[must_use]
    pub fn on_each<Events>(self, handler: impl HandlerOfEach<Events>) -> Self {
        Arc::new(handler).add_to(self)
    }

    /// Adds several handlers that belong together, such as those of a saga.
    #[must_use]
    pub fn with(self, handlers: impl Handlers) -> Self {
        handlers.add_to(self)
    }

    /// Adds a handler that takes many events of a type at a time: a function, or a struct that implements
    /// `BatchHandler`.
    ///
    /// It gets batches from a `Consumer` of `pillarbox-consumer`. As a service by itself, a router hands it one event
    /// at a time.
    #[must_use]
    pub fn on_batch<E, Kind>(mut self, handler: impl IntoBatchHandler<E, Kind>) -> Self
    where
        E: FromEvent + Send + Sync + 'static,
    {
        let handler = Arc::new(handler.into_batch_handler());
        let one = Arc::new(Typed { handler: Arc::new(One(handler.clone())), event: PhantomData });
        let batch = Arc::new(ToHandler { handler: handler.clone(), event: PhantomData });
        self.insert::<Received<E>>(name_of(&handler), one, Some(batch));
        self
    }

    /// Treats events of types without a handler as handled.
    #[must_use]
    pub fn ignore_others(mut self) -> Self {
        self.ignores_others = true;
        self
    }

    /// Whether every type of event has one handler at most.
    ///
    /// # Errors
    /// [`SecondHandler`], with the first type that has two.
    pub fn check(&self) -> Result<(), SecondHandler> {
        self.second.clone().map_or(Ok(()), Err)
    }

    /// Whether no handler was added.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty() && self.others.is_none()
    }

    /// The topics of the events that have a handler: subjects, perhaps with wildcards, of which none covers another.
    /// `None` if a handler takes events of every type, which may have any topic.
    pub fn topics(&self) -> Option<Vec<&'static str>> {
        if self.others.is_some() {
            return None;
        }
        let all = self.routes.values().map(|entry| entry.topic);
        let mut all: Vec<&str> = all.collect::<Option<_>>()?;
        all.sort_unstable();
        all.dedup();
        let covered =
            |one: &&str| all.iter().any(|other| other != one && topic::covers(other, one));
        Some(all.iter().copied().filter(|one| !covered(one)).collect())
    }

    /// The name of each handler, and the topic of the events that it takes. Handlers of events of every type are left
    /// out.
    pub fn handler_topics(&self) -> Vec<(&'static str, &'static str)> {
        let topic = |entry: &Entry| Some((entry.handler, entry.topic?));
        let mut all: Vec<_> = self.routes.values().filter_map(topic).collect();
        all.sort_unstable();
        all
    }

    /// What handles events in batches, for a source of events. `None` if no handler takes batches.
    ///
    /// `longest` is how long one call of a handler may take; a longer one fails. `keeps_keys` says whether an event
    /// that fails holds back the later ones of its key.
    pub fn batches(&self, longest: Duration, keeps_keys: bool) -> Option<Arc<dyn RunBatch>> {
        let batch = |(event_type, entry): (&&'static str, &Entry)| {
            Some((*event_type, entry.batch.clone()?))
        };
        let routes: HashMap<_, _> = self.routes.iter().filter_map(batch).collect();
        let others = self.others.as_ref().and_then(|entry| entry.batch.clone());
        if routes.is_empty() && others.is_none() {
            return None;
        }
        let singly =
            self.routes.keys().copied().filter(|name| !routes.contains_key(name)).collect();
        let rules = Rules { longest, keeps_keys };
        Some(Arc::new(Batches { routes, others, singly, rules }))
    }

    fn add<H: Handler<E>, E: FromHandling>(mut self, handler: Arc<H>) -> Self {
        let name = name_of(&handler);
        self.insert::<E>(name, Arc::new(Typed { handler, event: PhantomData }), None);
        self
    }

    fn insert<E: FromHandling>(
        &mut self,
        handler: &'static str,
        route: Arc<dyn Route>,
        batch: Option<Arc<dyn BatchRoute>>,
    ) {
        let entry = Entry { handler, topic: E::TOPIC, route, batch };
        let before = match E::ACCEPTS {
            Some(event_type) => self.routes.insert(event_type, entry),
            None => self.others.replace(entry),
        };
        if let Some(Entry { handler: first, .. }) = before {
            let events = match E::ACCEPTS {
                Some(event_type) => format!("events of type {event_type:?}"),
                None => "events of every type".to_owned(),
            };
            self.second.get_or_insert(SecondHandler { events, first, second: handler });
        }
    }
}

/// The name of a struct, or of the function in [`OfFunction`](crate::handler::OfFunction) and its like.
fn name_of<H>(_: &Arc<H>) -> &'static str {
    let name = type_name::<H>();
    let function = name.split_once("Function<").and_then(|(_, rest)| rest.strip_suffix('>'));
    function.filter(|_| name.starts_with("pillarbox_inbox::")).unwrap_or(name)
}

/// Several handlers that belong together, each for its own type of event: see [`Router::with`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a group of handlers",
    label = "this is not a group of handlers",
    note = "`with` takes a saga; add a single handler by `on`"
)]
pub trait Handlers {
    /// Adds them to a router.
    fn add_to(self, router: Router) -> Router;
}

/// A handler of each of these types of events, which are given as a tuple of up to eight: see [`Router::on_each`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not handle each event of `{Events}`",
    label = "this does not handle all of them",
    note = "implement `Handler` for each type of event, and name two to eight of them: \
            `.on_each::<(OrderPlaced, OrderCancelled)>(handler)`"
)]
pub trait HandlerOfEach<Events>: Send + Sync + 'static {
    /// Adds it to a router, for each of the types.
    fn add_to(self: Arc<Self>, router: Router) -> Router;
}

macro_rules! handler_of_each {
    ($($event:ident)+) => {
        impl<H, $($event),+> HandlerOfEach<($($event,)+)> for H
        where
            $(H: Handler<$event>, $event: FromHandling),+
        {
            fn add_to(self: Arc<Self>, router: Router) -> Router {
                $(let router = router.add::<H, $event>(self.clone());)+
                router
            }
        }
    };
}

handler_of_each!(A B);
handler_of_each!(A B C);
handler_of_each!(A B C D);
handler_of_each!(A B C D E);
handler_of_each!(A B C D E F);
handler_of_each!(A B C D E F G);
handler_of_each!(A B C D E F G I);

impl Service<Handling> for Router {
    type Response = ();
    type Error = InboxError;
    type Future = BoxFuture<'static, Result<(), InboxError>>;

    /// Fails if a type has a second handler.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), InboxError>> {
        let second = |error| InboxError::handler(HandlerError::environment(error));
        Poll::Ready(self.check().map_err(second))
    }

    fn call(&mut self, handling: Handling) -> Self::Future {
        let event_type = handling.event().event_type();
        let route = match self.routes.get(event_type).or(self.others.as_ref()) {
            Some(entry) => entry.route.clone(),
            None if self.ignores_others => return Box::pin(ready(Ok(()))),
            None => return Box::pin(ready(Err(no_handler(event_type)))),
        };
        Box::pin(async move {
            let mut transaction = handling.transaction().await;
            let Some(tx) = transaction.get() else {
                return Err(InboxError::InUse);
            };
            route.handle(tx, &handling).await.map_err(InboxError::handler)
        })
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router").field("types", &self.routes.keys()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use pillarbox_event::{Event, RawEvent};

    use super::*;

    macro_rules! events {
        ($($name:ident $topic:literal),+) => {$(
            #[derive(serde::Deserialize)]
            struct $name;
            impl Event for $name {
                const TYPE: &'static str = stringify!($name);
                const TOPIC: &'static str = $topic;
            }
        )+};
    }
    events!(Placed "orders.placed", Paid "orders.*", Refunded "refunds.eu", Closed "orders.eu.closed");

    struct All;

    impl<E: Send + 'static> Handler<E> for All {
        async fn handle(&self, _: &mut Tx, _: E) -> Result<(), HandlerError> {
            Ok(())
        }
    }

    async fn placed(_: &mut Tx, _: Placed) -> Result<(), HandlerError> {
        Ok(())
    }

    async fn placed_again(_: &mut Tx, _: Received<Placed>) -> Result<(), std::io::Error> {
        Ok(())
    }

    async fn placed_batch(_: &mut Tx, _: &[Received<Placed>]) -> Result<(), HandlerError> {
        Ok(())
    }

    async fn any(_: &mut Tx, _: &[Received<RawEvent>]) -> Result<(), HandlerError> {
        Ok(())
    }

    #[test]
    fn a_second_handler_of_a_type_is_refused_with_both_names() {
        Router::new().on(placed).on_batch(any).check().unwrap();
        for router in [
            Router::new().on(placed).on(placed_again),
            Router::new().on(placed).on_batch(placed_batch),
            Router::new().on_each::<(Placed, Paid)>(All).on(placed),
        ] {
            let said = router.check().unwrap_err().to_string();
            assert!(said.contains("events of type \"Placed\""), "{said}");
            assert!(
                said.contains("router::tests::placed") && said.contains("; keep one"),
                "{said}"
            );
        }
        let twice = Router::new().on_batch(any).on::<RawEvent, _>(All).check().unwrap_err();
        assert_eq!(twice.events, "events of every type");
    }

    #[test]
    fn topics_are_those_of_the_events_that_have_a_handler() {
        assert_eq!(Router::new().on(placed).topics(), Some(vec!["orders.placed"]));
        let each = Router::new().on_each::<(Placed, Paid, Refunded, Closed)>(All);
        assert_eq!(each.topics(), Some(vec!["orders.*", "orders.eu.closed", "refunds.eu"]));
        let names = each.handler_topics();
        assert_eq!(names.len(), 4);
        assert!(names.iter().all(|(name, _)| name.ends_with("router::tests::All")), "{names:?}");
        assert_eq!(Router::new().on(placed).on_batch(any).topics(), None);
        assert_eq!(Router::new().topics(), Some(Vec::new()));
    }

    #[test]
    fn only_types_with_a_batch_handler_come_in_batches() {
        let rules = (Duration::from_secs(1), true);
        let batches = |router: Router| router.batches(rules.0, rules.1);
        assert!(batches(Router::new().on(placed)).is_none());
        let some = batches(Router::new().on_batch(placed_batch).on::<Paid, _>(All)).unwrap();
        assert!(some.takes("Placed") && !some.takes("Paid") && !some.takes("Closed"));
        let rest = batches(Router::new().on_batch(any).on::<Paid, _>(All)).unwrap();
        assert!(rest.takes("Placed") && !rest.takes("Paid") && rest.takes("Closed"));
    }
}
