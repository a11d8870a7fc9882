//! One handler for each type of event.

use std::collections::HashMap;
use std::fmt;
use std::future::ready;
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use tower_service::Service;

use crate::delivery::Handling;
use crate::error::HandlerError;
use crate::error::InboxError;
use crate::handler::{FromHandling, Handler};
use crate::tx::Tx;

/// Hands each event to the handler of its type. It is the service inside [`Inbox`](crate::Inbox).
///
/// An event of a type without a handler is a permanent failure, and so becomes a dead letter, unless
/// [`ignore_others`](Self::ignore_others) was called: what is not wanted is better left out by the consumer's
/// filter subjects.
#[derive(Clone, Default)]
pub struct Router {
    routes: HashMap<&'static str, Arc<dyn Route>>,
    others: Others,
}

#[derive(Clone, Default)]
enum Others {
    #[default]
    Refuse,
    Ignore,
    Take(Arc<dyn Route>),
}

trait Route: Send + Sync {
    fn handle<'a>(
        &'a self,
        tx: &'a mut Tx,
        handling: &'a Handling,
    ) -> BoxFuture<'a, Result<(), HandlerError>>;
}

struct Typed<H, E> {
    handler: H,
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

    /// Adds a handler for the type of event that it takes; one of [`RawEvent`](pillarbox_event::RawEvent)
    /// takes all that no other handler does. A later handler of the same type replaces an earlier one.
    #[must_use]
    pub fn on<E: FromHandling>(mut self, handler: impl Handler<E>) -> Self {
        let route = Arc::new(Typed { handler, event: PhantomData });
        match E::ACCEPTS {
            Some(event_type) => drop(self.routes.insert(event_type, route)),
            None => self.others = Others::Take(route),
        }
        self
    }

    /// Takes events of types without a handler for handled.
    #[must_use]
    pub fn ignore_others(mut self) -> Self {
        self.others = Others::Ignore;
        self
    }
}

impl Service<Handling> for Router {
    type Response = ();
    type Error = InboxError;
    type Future = BoxFuture<'static, Result<(), InboxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), InboxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, handling: Handling) -> Self::Future {
        let event_type = handling.event().event_type();
        let route = match (self.routes.get(event_type), &self.others) {
            (Some(route), _) | (None, Others::Take(route)) => route.clone(),
            (None, Others::Ignore) => return Box::pin(ready(Ok(()))),
            (None, Others::Refuse) => {
                let error = format!("no handler for events of type {event_type:?}");
                return Box::pin(ready(Err(InboxError::handler(HandlerError::permanent(error)))));
            }
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
