//! One trace from the first request to the last handler.
//!
//! With the feature `opentelemetry`, an event carries the trace context (W3C `traceparent` and `tracestate`) of
//! the `tracing` span in which it is published. Its handler's span joins that trace, and so do the events that
//! the handler publishes. The program must put `tracing_opentelemetry`'s layer on its subscriber. Without the
//! feature, an event inherits the trace context of the event that caused it, and a handler's span begins a trace
//! of its own.

#[cfg(feature = "opentelemetry")]
mod otel;

use tracing::Span;

use crate::RawEvent;

/// Makes a span a part of the trace that the event carries. Call it before the span is entered. Does nothing if the
/// event carries no trace, or one that cannot be read, or without the feature `opentelemetry`.
pub fn join(span: &Span, event: &RawEvent) {
    #[cfg(feature = "opentelemetry")]
    otel::join(span, event);
    #[cfg(not(feature = "opentelemetry"))]
    let _ = (span, event);
}

/// The `traceparent` and `tracestate` of the current span, if it belongs to a trace that this program knows.
pub(crate) fn current() -> Option<(String, Option<String>)> {
    #[cfg(feature = "opentelemetry")]
    let current = otel::current();
    #[cfg(not(feature = "opentelemetry"))]
    let current = None;
    current
}
