//! The event that is being handled, so that the events that its handler publishes can name their cause.

use std::future::Future;

use crate::{EventId, RawEvent, header, trace};

tokio::task_local! {
    static CURRENT: Context;
}

/// What an event passes on to the events that its handler publishes.
///
/// The inbox runs each handler inside [`Context::scope`], and the outbox calls [`Context::current`] when it
/// writes. The context belongs to the task: code that a handler moves to another task (`tokio::spawn`) is
/// outside of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// The id of the handled event. It becomes the causation id of the events that the handler publishes.
    pub event_id: EventId,
    /// The correlation id of the handled event, or its id if it has none.
    pub correlation_id: String,
    /// The trace context of the handled event.
    pub traceparent: Option<String>,
    /// The trace state of the handled event.
    pub tracestate: Option<String>,
}

impl Context {
    /// The context of handling this event.
    pub fn of(event: &RawEvent) -> Self {
        Self {
            event_id: event.id().clone(),
            correlation_id: event.correlation_id().unwrap_or(event.id().as_str()).to_owned(),
            traceparent: event.traceparent().map(str::to_owned),
            tracestate: event.header(header::CE_TRACESTATE).map(str::to_owned),
        }
    }

    /// Runs a future with this context as the current one. Dropping the future also ends the context.
    pub async fn scope<F: Future>(self, future: F) -> F::Output {
        CURRENT.scope(self, future).await
    }

    /// The context of the event that this task is handling, if it is handling one.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok()
    }
}

impl RawEvent {
    /// Adds the causation, correlation and trace of the event that this task is handling, if it is handling one. It
    /// does not overwrite what this event already has. With the feature `opentelemetry`, the trace is that of the
    /// current tracing span, also outside of a handler.
    pub fn caused_by_current(mut self) -> Self {
        if self.traceparent().is_none()
            && let Some((parent, state)) = trace::current()
        {
            self.headers.insert(header::TRACEPARENT.to_owned(), parent);
            if let Some(state) = state {
                self.headers.insert(header::CE_TRACESTATE.to_owned(), state);
            }
        }
        match Context::current() {
            Some(context) => self.caused_by(&context),
            None => self,
        }
    }

    /// Adds the causation, correlation and trace of another event. It does not overwrite what this event already has.
    /// Use it for events that a batch handler publishes; those of a handler of single events get their context by
    /// themselves.
    pub fn caused_by(mut self, context: &Context) -> Self {
        let inherited = [
            (header::CAUSATION_ID, Some(context.event_id.as_str())),
            (header::CORRELATION_ID, Some(&*context.correlation_id)),
            (header::TRACEPARENT, context.traceparent.as_deref()),
            (header::CE_TRACESTATE, context.tracestate.as_deref()),
        ];
        let own_trace = self.headers.contains_key(header::TRACEPARENT);
        for (name, value) in inherited {
            // The trace state belongs to the traceparent, so it is not inherited without it.
            if own_trace && name == header::CE_TRACESTATE {
                continue;
            }
            if let Some(value) = value {
                self.headers.entry(name.to_owned()).or_insert_with(|| value.to_owned());
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_published_while_handling_says_what_caused_it() {
        let first = RawEvent::builder("order.placed", "orders.placed")
            .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
            .build()
            .unwrap();
        let second = Context::of(&first)
            .scope(async {
                RawEvent::builder("payment.taken", "payments.taken")
                    .build()
                    .unwrap()
                    .caused_by_current()
            })
            .await;
        assert_eq!(second.causation_id(), Some(first.id().as_str()));
        assert_eq!(second.correlation_id(), Some(first.id().as_str()));
        assert_eq!(second.traceparent(), first.traceparent());

        let third = Context::of(&second)
            .scope(async { RawEvent::builder("a", "b").build().unwrap().caused_by_current() })
            .await;
        assert_eq!(third.causation_id(), Some(second.id().as_str()));
        assert_eq!(third.correlation_id(), Some(first.id().as_str()));
    }

    #[tokio::test]
    async fn outside_a_handler_nothing_is_added() {
        let event = RawEvent::builder("a", "b").build().unwrap();
        assert_eq!(event.clone().caused_by_current(), event);
    }
}
