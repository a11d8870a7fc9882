//! The metrics of HTTP commands.

use std::sync::Arc;

use axum::http::{Method, StatusCode};
use metrics_exporter_prometheus::PrometheusBuilder;
use pillarbox_inbox::http::metrics::{DURATION, REQUESTS};
use pillarbox_testkit::eventually;

use super::DEADLINE;
use super::shop::Shop;

#[tokio::test]
async fn each_request_is_counted_by_what_came_of_it() {
    // The test's runtime has one thread, so this is the recorder of everything in it.
    let recorder = PrometheusBuilder::new().build_recorder();
    let rendered = recorder.handle();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let counted = |outcome: &str| -> u64 {
        let line = format!("{REQUESTS}{{outcome=\"{outcome}\"}} ");
        let text = rendered.render();
        text.lines().find_map(|text| text.strip_prefix(&line)).map_or(0, |n| n.parse().unwrap())
    };
    let shop = Arc::new(Shop::open().await);
    for outcome in ["committed", "refused", "undone", "replayed"] {
        let present = format!("{REQUESTS}{{outcome=\"{outcome}\"}} 0");
        assert!(rendered.render().contains(&present), "{}", rendered.render());
    }

    shop.post("a", "fail-once").await; // undone
    for _ in 0..3 {
        shop.post("a", "fail-once").await; // committed, and replayed twice
    }
    shop.post("b", "refuse").await;
    shop.post("a", "tea").await;
    shop.send(Method::POST, "/orders", &[], "tea").await.unwrap();
    shop.send(Method::GET, "/orders", &[], "").await.unwrap();
    for (outcome, times) in [
        ("undone", 1),
        ("committed", 1),
        ("replayed", 2),
        ("refused", 1),
        ("key-reused", 1),
        ("key-missing", 1),
        ("abandoned", 0),
    ] {
        assert_eq!(counted(outcome), times, "{outcome}: {}", rendered.render());
    }
    let handled = format!("{DURATION}_count 3\n");
    assert!(rendered.render().contains(&handled), "{}", rendered.render());

    // Somebody goes away while another one asks for the same.
    shop.signals.calls.store(0, std::sync::atomic::Ordering::SeqCst);
    let first = tokio::spawn({
        let shop = shop.clone();
        async move { shop.post("c", "wait-once").await }
    });
    shop.signals.entered.notified().await;
    assert_eq!(shop.post("c", "wait-once").await.status, StatusCode::CONFLICT);
    assert_eq!(counted("in-progress"), 1);
    first.abort();
    eventually("the request to be counted", DEADLINE, async || match counted("abandoned") {
        1 => Ok(Some(())),
        times => Err(times.to_string()),
    })
    .await
    .unwrap();
}
