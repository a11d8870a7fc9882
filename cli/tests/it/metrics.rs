//! `/metrics` of the real program: names, meanings, and values that move as they should.
#![allow(clippy::float_cmp)]

use std::io::Write;
use std::process::{Command, Stdio};

use crate::support::http::{Endpoint, Scrape};
use crate::support::{Process, Shop};
use pillarbox_relay::metrics::{ALL, Kind};

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
        println!("NOT TESTED: there is no promtool, so the page was only parsed");
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

/// Publishes an event under an id that is given.
async fn insert_as(shop: &Shop, id: uuid::Uuid, payload: &str) {
    sqlx::query(
        "insert into pillarbox.outbox (event_id, event_type, topic, payload) \
         values ($1, 'order.placed', $2, convert_to($3, 'utf8'))",
    )
    .bind(id)
    .bind(shop.topic())
    .bind(payload)
    .execute(shop.pool())
    .await
    .unwrap();
}

#[tokio::test]
async fn an_event_that_is_dropped_because_its_id_was_used_before_is_counted_and_named() {
    let shop = Shop::open().await;
    let relay = Process::relay(&shop, FREE);
    let http = Endpoint::of(&relay).await;
    let swallowed = r#"pillarbox_duplicate_ids_total{relay="default"}"#;
    let used = uuid::Uuid::new_v4();
    insert_as(&shop, used, "one").await;
    shop.shipped().await;
    assert_eq!(http.scrape().await.get(swallowed), 0.0);
    insert_as(&shop, used, "two").await;
    http.until(swallowed, 1.0).await;
    const LINE: &str = "this event is not in the stream";
    relay.until_said(LINE).await;
    let line = relay.lines.lock().unwrap().iter().find(|line| line.contains(LINE)).unwrap().clone();
    assert!(line.contains(&used.to_string()) && line.contains(&shop.topic()), "{line}");

    // Two of one id within a page, and one more of the first: counted, and not said each time.
    let twice = uuid::Uuid::new_v4();
    let mut tx = shop.pool().begin().await.unwrap();
    for payload in ["three", "four"] {
        sqlx::query(
            "insert into pillarbox.outbox (event_id, event_type, topic, payload) \
             values ($1, 'order.placed', $2, convert_to($3, 'utf8'))",
        )
        .bind(twice)
        .bind(shop.topic())
        .bind(payload)
        .execute(&mut *tx)
        .await
        .unwrap();
    }
    tx.commit().await.unwrap();
    insert_as(&shop, used, "five").await;
    http.until(swallowed, 3.0).await;
    assert_eq!(relay.said(LINE), 1, "{:#?}", relay.lines.lock().unwrap());
    assert_eq!(shop.messages().await, 2);
}

#[tokio::test]
async fn an_event_that_is_sent_again_is_no_alarm() {
    let shop = Shop::open().await;
    let mut first = Process::relay(&shop, FREE);
    Endpoint::of(&first).await;
    for number in 0..20 {
        shop.insert_one("1", &number.to_string()).await;
    }
    shop.shipped().await;
    first.kill();
    // All that is new to this one is known to the stream: a duplicate at each first send.
    let second = Process::relay(&shop, &["--http", "127.0.0.1:0", "--name", "second"]);
    let http = Endpoint::of(&second).await;
    http.until(r#"pillarbox_shipped_events_total{relay="second"}"#, 20.0).await;
    shop.insert_one("1", "new").await;
    let scrape = http.until(r#"pillarbox_shipped_events_total{relay="second"}"#, 21.0).await;
    assert_eq!(shop.messages().await, 21);
    // They are looked at one after the other, and this is the last.
    let used = uuid::Uuid::new_v4();
    insert_as(&shop, used, "one").await;
    insert_as(&shop, used, "another").await;
    let swallowed = r#"pillarbox_duplicate_ids_total{relay="second"}"#;
    assert_eq!(scrape.get(swallowed), 0.0);
    http.until(swallowed, 1.0).await;
    assert_eq!(second.said("this event is not in the stream"), 1);
}
