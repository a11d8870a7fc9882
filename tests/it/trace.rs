//! One trace, from the request to the last handler: through the outbox, the relay, the broker and two consumers.

use std::collections::HashMap;
use std::time::Duration;

use opentelemetry::trace::{SpanId, SpanKind, Status, TracerProvider};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use pillarbox::event::RawEvent;
use pillarbox::{Consumer, ConsumerConfig, HandlerError, Received, Router, Tx};
use pillarbox::{inbox, outbox};
use pillarbox_relay::{Relay, RelayConfig};
use pillarbox_testkit::{eventually, servers};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use tracing_subscriber::layer::SubscriberExt;

fn event(event_type: &str, topic: String) -> RawEvent {
    RawEvent::builder(event_type, topic).key("7").payload("the payload").build().unwrap()
}

/// Publishes the next event from a span of its own.
async fn charge(tx: &mut Tx, placed: Received<RawEvent>) -> Result<(), HandlerError> {
    if placed.attempt() == 1 {
        return Err(HandlerError::transient("the card reader sleeps"));
    }
    let taken = event("payment.taken", placed.raw().topic().replace("orders", "payments"));
    outbox::publish(tx, taken).instrument(tracing::info_span!("charging")).await?;
    Ok(())
}

async fn ship(_tx: &mut Tx, _paid: RawEvent) -> Result<(), HandlerError> {
    Ok(())
}

#[tokio::test]
async fn a_request_and_all_that_follows_from_it_are_one_trace() {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("shop"));
    let subscriber = tracing_subscriber::registry()
        .with(tracing_subscriber::filter::LevelFilter::INFO)
        .with(layer);
    // While a process has only one subscriber, `tracing` asks nobody but the thread that comes first to a span whether
    // the span is wanted, and remembers the answer for all threads. Other tests' threads have no subscriber.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    // For this thread, on which all of the test runs.
    let _traced = tracing::subscriber::set_default(subscriber);

    let scope = servers().await.unwrap().scope().await.unwrap();
    let (pool, prefix) = (scope.pool(), scope.prefix());
    outbox::migrate(pool).await.unwrap();
    inbox::migrate(pool).await.unwrap();
    let stream = async_nats::jetstream::stream::Config {
        name: prefix.to_owned(),
        subjects: vec![format!("{prefix}.>")],
        ..Default::default()
    };
    scope.jetstream().create_stream(stream).await.unwrap();
    let shutdown = CancellationToken::new();
    let relay = RelayConfig {
        database_url: scope.database_url().into(),
        nats_url: scope.nats_url().into(),
        ..RelayConfig::default()
    };
    let relay = tokio::spawn(Relay::new(relay).unwrap().run(shutdown.clone()));
    let consumer = |name: &str, subject: &str, router: Router| {
        let config = ConsumerConfig {
            filter_subjects: vec![format!("{prefix}.{subject}")],
            backoff: Duration::from_millis(5),
            ..ConsumerConfig::new(prefix, name)
        };
        let consumer = Consumer::with_config(scope.nats().clone(), pool.clone(), config).unwrap();
        tokio::spawn(consumer.router(router).run(shutdown.clone()))
    };
    let payments = consumer("payments", "orders", Router::new().on(charge));
    let shipping = consumer("shipping", "payments", Router::new().on(ship));

    let request = tracing::info_span!(parent: None, "POST /orders", otel.kind = "server");
    async {
        let mut tx = pool.begin().await.unwrap();
        outbox::publish(&mut tx, event("order.placed", format!("{prefix}.orders"))).await.unwrap();
        tx.commit().await.unwrap();
    }
    .instrument(request)
    .await;

    // Other work, which is not part of the trace.
    let elsewhere = tracing::info_span!(parent: None, "GET /health");
    elsewhere.in_scope(|| ());
    drop(elsewhere);
    let spans = eventually("the last handler's span", Duration::from_secs(20), async || {
        let spans = exporter.get_finished_spans().map_err(|error| error.to_string())?;
        let names: Vec<_> = spans.iter().map(|span| span.name.to_string()).collect();
        match names.iter().any(|name| name == "handle payment.taken") {
            true => Ok(Some(spans)),
            false => Err(format!("{names:?}")),
        }
    })
    .await
    .unwrap();
    shutdown.cancel();
    relay.await.unwrap().unwrap();
    payments.await.unwrap().unwrap();
    shipping.await.unwrap().unwrap();

    let root = spans.iter().find(|span| span.name == "POST /orders").unwrap();
    assert_eq!(root.parent_span_id, SpanId::INVALID);
    let trace: Vec<&SpanData> = spans
        .iter()
        .filter(|span| span.span_context.trace_id() == root.span_context.trace_id())
        .collect();
    let by_id: HashMap<SpanId, &SpanData> =
        trace.iter().map(|span| (span.span_context.span_id(), *span)).collect();
    let way = |span: &SpanData| {
        let mut way = vec![span.name.to_string()];
        let mut parent = span.parent_span_id;
        while let Some(span) = by_id.get(&parent) {
            way.insert(0, span.name.to_string());
            parent = span.parent_span_id;
        }
        way.join(" > ")
    };
    let mut ways: Vec<String> = trace.iter().map(|span| way(span)).collect();
    ways.sort();
    assert_eq!(
        ways,
        [
            "POST /orders",
            "POST /orders > handle order.placed",
            "POST /orders > handle order.placed",
            "POST /orders > handle order.placed > charging",
            "POST /orders > handle order.placed > charging > handle payment.taken",
        ]
    );

    let mut attempts: Vec<&SpanData> =
        trace.iter().filter(|span| span.name == "handle order.placed").copied().collect();
    attempts.sort_by_key(|span| span.start_time);
    assert!(attempts.iter().all(|span| span.span_kind == SpanKind::Consumer));
    assert!(matches!(attempts[0].status, Status::Error { .. }), "{:?}", attempts[0].status);
    assert!(matches!(attempts[1].status, Status::Unset), "{:?}", attempts[1].status);
    let said = |name: &str| {
        let found = attempts[1].attributes.iter().find(|said| said.key.as_str() == name);
        found.map(|said| said.value.as_str().into_owned()).unwrap_or_default()
    };
    assert_eq!(
        ["consumer", "event_type", "key", "attempt"].map(said),
        ["payments", "order.placed", "7", "2"]
    );
    assert!(!said("event_id").is_empty());
    assert!(!format!("{spans:?}").contains("the payload"), "a payload in a span");
}
