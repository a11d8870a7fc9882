//! One trace from the first request to the last handler.
//!
//! With the feature `opentelemetry`, an event carries the trace context (W3C `traceparent` and `tracestate`) of
//! the `tracing` span in which it is published, and its handler's span joins that trace; so do the events that
//! the handler publishes. The program brings the exporter: `tracing_opentelemetry`'s layer on its subscriber.
//! Without the feature an event inherits the trace context of the event that caused it, and a handler's span
//! begins a trace of its own.

#[cfg(feature = "opentelemetry")]
mod otel;

use tracing::Span;

use crate::RawEvent;

/// Makes a span, which has not been entered yet, a part of the trace that the event brings. Does nothing if it
/// brings none, or none that can be read, or without the feature `opentelemetry`.
pub fn join(span: &Span, event: &RawEvent) {
    #[cfg(feature = "opentelemetry")]
    otel::join(span, event);
    #[cfg(not(feature = "opentelemetry"))]
    let _ = (span, event);
}

/// The `traceparent` and `tracestate` of the current span, if it is in a trace that is known here.
pub(crate) fn current() -> Option<(String, Option<String>)> {
    #[cfg(feature = "opentelemetry")]
    let current = otel::current();
    #[cfg(not(feature = "opentelemetry"))]
    let current = None;
    current
}
