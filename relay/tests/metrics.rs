//! `/metrics` of the real program: names, meanings, and values that move as they should.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::float_cmp)]

mod support;

use std::io::Write;
use std::process::{Command, Stdio};

use pillarbox_relay::metrics::{ALL, Kind};
use support::http::{Endpoint, Scrape};
use support::{Process, Shop};

const FREE: &[&str] = &["--http", "127.0.0.1:0"];

#[tokio::test]
async fn the_numbers_follow_the_events() {
    let shop = Shop::open().await;
    shop.insert_many(5000).await;
    let relay = Process::relay(&shop, FREE);
    let http = Endpoint::of(&relay).await;
    let scrape = http.until(r#"pillarbox_shipped_events_total{relay="default"}"#, 5000.0).await;
    assert_eq!(scrape.get(r#"pillarbox_leader{relay="default"}"#), 1.0);
    assert_eq!(scrape.get(r#"pillarbox_epoch{relay="default"}"#), 1.0);
    assert_eq!(scrape.get(r#"pillarbox_lease_takeovers_total{relay="default"}"#), 1.0);
    assert_eq!(scrape.get(r#"pillarbox_database_up{relay="default"}"#), 1.0);
    assert_eq!(scrape.get(r#"pillarbox_broker_up{relay="default"}"#), 1.0);
    assert_eq!(scrape.get(r#"pillarbox_held{relay="default"}"#), 0.0);
    assert_eq!(scrape.get(r#"pillarbox_redelivered_events_total{relay="default"}"#), 0.0);

    // A lone event, whose way must not be measured as longer than the test.
    let measured = scrape.get(r#"pillarbox_commit_to_ack_seconds_count{relay="default"}"#);
    let took = scrape.get(r#"pillarbox_commit_to_ack_seconds_sum{relay="default"}"#);
    assert!(measured >= 16.0, "{measured}");
    assert!(scrape.get(r#"pillarbox_publish_duration_seconds_count{relay="default"}"#) >= 2.0);
    shop.insert_one("1", "alone").await;
    let scrape = http.until(r#"pillarbox_shipped_events_total{relay="default"}"#, 5001.0).await;
    let more = scrape.get(r#"pillarbox_commit_to_ack_seconds_count{relay="default"}"#);
    assert_eq!(more, measured + 1.0);
    let took = scrape.get(r#"pillarbox_commit_to_ack_seconds_sum{relay="default"}"#) - took;
    assert!((0.0..5.0).contains(&took), "{took}");

    // An event that can never be stored, until somebody resolves it.
    sqlx::query(
        "insert into pillarbox.outbox (event_type, topic, payload) values ('a', 'no topic', '')",
    )
    .execute(shop.pool())
    .await
    .unwrap();
    let unresolved = r#"pillarbox_dead_letters_unresolved{relay="default",reason="invalid"}"#;
    let scrape = http.until(unresolved, 1.0).await;
    assert_eq!(
        scrape.get(r#"pillarbox_dead_letters_total{relay="default",reason="invalid"}"#),
        1.0
    );
    sqlx::query("update pillarbox.outbox_dead_letter set state = 'discarded'")
        .execute(shop.pool())
        .await
        .unwrap();
    http.until(unresolved, 0.0).await;

    let scrape = http.until(r#"pillarbox_backlog_events{relay="default"}"#, 0.0).await;
    assert_eq!(scrape.get(r#"pillarbox_backlog_oldest_age_seconds{relay="default"}"#), 0.0);
    assert!(scrape.get(r#"pillarbox_poll_duration_seconds_count{relay="default"}"#) >= 3.0);
    every_number_is_described(&scrape);
    promtool_likes(&scrape.text);
}

fn every_number_is_described(scrape: &Scrape) {
    for metric in ALL {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        assert_eq!(
            scrape.kinds.get(metric.name).map(String::as_str),
            Some(kind),
            "{}",
            metric.name
        );
        assert_eq!(scrape.help.get(metric.name).map(String::as_str), Some(metric.help));
    }
    assert_eq!(scrape.kinds.len(), ALL.len(), "{:?}", scrape.kinds.keys());
}

fn promtool_likes(page: &str) {
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = promtool else {
        println!("no promtool here: the page was only parsed");
        return;
    };
    promtool.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[tokio::test]
async fn a_standby_does_not_lead_until_the_leader_is_gone() {
    let shop = Shop::open().await;
    let mut leader = Process::relay(&shop, FREE);
    let first = Endpoint::of(&leader).await;
    first.until(r#"pillarbox_leader{relay="default"}"#, 1.0).await;
    let standby = Process::relay(&shop, FREE);
    let second = Endpoint::of(&standby).await;
    let ready = second.until_ready(200).await;
    assert_eq!(ready["outboxes"][0]["role"], "standing_by");
    let holder = ready["outboxes"][0]["holder"].as_str().unwrap();
    assert!(holder.contains(&format!("/{}/", leader.id())), "{ready}");
    let scrape = second.scrape().await;
    assert_eq!(scrape.get(r#"pillarbox_leader{relay="default"}"#), 0.0);
    assert_eq!(scrape.get(r#"pillarbox_lease_takeovers_total{relay="default"}"#), 0.0);
    leader.kill();
    let scrape = second.until(r#"pillarbox_leader{relay="default"}"#, 1.0).await;
    assert_eq!(scrape.get(r#"pillarbox_epoch{relay="default"}"#), 2.0);
    assert_eq!(second.until_ready(200).await["outboxes"][0]["role"], "leading");
}

#[tokio::test]
async fn what_is_sent_again_and_what_is_removed_is_counted() {
    let shop = Shop::open().await;
    shop.create_stream(|config| async_nats::jetstream::stream::Config {
        max_messages: 100,
        discard: async_nats::jetstream::stream::DiscardPolicy::New,
        ..config
    })
    .await;
    shop.insert_many(150).await;
    let relay = Process::relay(&shop, &["--http", "127.0.0.1:0", "--retention-s", "1"]);
    let http = Endpoint::of(&relay).await;
    http.until(r#"pillarbox_held{relay="default"}"#, 1.0).await;
    let rewinds = r#"pillarbox_rewinds_total{relay="default",reason="unavailable"}"#;
    let scrape = http.until_is("two rewinds", |scrape| scrape.get(rewinds) >= 2.0).await;
    // Some are stored, but whether that was acknowledged depends on how they were sent.
    let backlog = scrape.get(r#"pillarbox_backlog_events{relay="default"}"#);
    assert!((50.0..=150.0).contains(&backlog), "{backlog}");
    assert!(scrape.get(r#"pillarbox_backlog_oldest_age_seconds{relay="default"}"#) > 0.0);
    shop.jetstream().await.get_stream(&shop.stream).await.unwrap().purge().await.unwrap();
    let scrape = http.until(r#"pillarbox_shipped_events_total{relay="default"}"#, 150.0).await;
    // The log tells of the outage, not of the tries.
    for line in ["shipping to stream", "the broker stores messages again"] {
        relay.until_said(line).await;
        assert_eq!(relay.said(line), 1, "{:#?}", relay.lines.lock().unwrap());
    }
    // Once for each reason.
    assert!(relay.said("holding") <= 2, "{:#?}", relay.lines.lock().unwrap());
    let again = scrape.get(r#"pillarbox_redelivered_events_total{relay="default"}"#);
    assert!((1.0..=150.0).contains(&again), "{again}");
    http.until(r#"pillarbox_held{relay="default"}"#, 0.0).await;
    http.until(r#"pillarbox_retention_deleted_rows_total{relay="default"}"#, 150.0).await;
}
