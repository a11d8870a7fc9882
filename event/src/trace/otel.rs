//! Converts the W3C trace context between an event's headers and OpenTelemetry. It needs no SDK: a span has a context
//! if the program has put `tracing_opentelemetry`'s layer on its subscriber.

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::{RawEvent, header};

pub(super) fn join(span: &Span, event: &RawEvent) {
    if let Some(parent) = read(event) {
        // Without the layer there is no trace to join.
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    }
}

pub(super) fn current() -> Option<(String, Option<String>)> {
    let context = Span::current().context();
    let span = context.span();
    let span = span.span_context();
    if !span.is_valid() {
        return None;
    }
    let flags = span.trace_flags() & TraceFlags::SAMPLED;
    let parent = format!("00-{}-{}-{:02x}", span.trace_id(), span.span_id(), flags.to_u8());
    let state = span.trace_state().header();
    Some((parent, (!state.is_empty()).then_some(state)))
}

/// Reads <https://www.w3.org/TR/trace-context/#traceparent-header>: version, trace, parent, flags. An unknown version
/// is read like the known one, as the specification requires.
fn read(event: &RawEvent) -> Option<SpanContext> {
    let mut parts = event.traceparent()?.split('-');
    let version = parts.next().filter(|version| version.len() == 2 && *version != "ff")?;
    let trace = parts.next().filter(|trace| trace.len() == 32)?;
    let parent = parts.next().filter(|parent| parent.len() == 16)?;
    let flags = parts.next().filter(|flags| flags.len() == 2)?;
    if version == "00" && parts.next().is_some() {
        return None;
    }
    let state = event.header(header::CE_TRACESTATE).or_else(|| event.header("tracestate"));
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(parent).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED,
        true,
        state.and_then(|state| state.parse::<TraceState>().ok()).unwrap_or_default(),
    );
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(traceparent: &str) -> Option<SpanContext> {
        let event = RawEvent::builder("a", "b").header(header::TRACEPARENT, traceparent).build();
        read(&event.unwrap())
    }

    #[test]
    fn a_trace_context_is_read_or_ignored() {
        let parent = with("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").unwrap();
        assert_eq!(parent.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(parent.span_id().to_string(), "b7ad6b7169203331");
        assert!(parent.is_sampled() && parent.is_remote());
        assert!(with("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-more").is_some());
        for refused in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert!(with(refused).is_none(), "{refused}");
        }
    }

    #[test]
    fn outside_a_trace_there_is_none() {
        assert_eq!(current(), None);
    }
}
