//! `/healthz`, `/readyz`, and what the log says, of the real program and through the library.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use pillarbox_relay::Role;
use pillarbox_testkit::{Nats, Postgres, Servers};
use rustix::process::Signal;
use support::http::Endpoint;
use support::{DEADLINE, Process, Shop};

const FREE: &[&str] = &["--http", "127.0.0.1:0"];

#[tokio::test]
async fn an_outage_is_told_by_readyz_and_in_one_line() {
    let servers =
        Servers { postgres: Postgres::start().await.unwrap(), nats: Nats::start().await.unwrap() };
    let shop = Shop::on(servers.scope().await.unwrap()).await;
    let Servers { mut postgres, mut nats } = servers;
    let relay = Process::relay(&shop, FREE);
    let http = Endpoint::of(&relay).await;
    let well = http.until_ready(200).await;
    assert_eq!(well["outboxes"][0]["role"], "leading", "{well}");
    shop.insert_many(10).await;
    shop.shipped().await;

    nats.kill().unwrap();
    let lost = http.until_ready(503).await;
    assert!(lost["reason"].as_str().unwrap().contains("/pillarbox: the connection"), "{lost}");
    assert_eq!(http.get("/healthz").await.status, 200);
    shop.insert_one("1", "the payload").await;
    http.until(r#"pillarbox_held{relay="default"}"#, 1.0).await;
    http.until(r#"pillarbox_backlog_events{relay="default"}"#, 1.0).await;
    nats.restart().await.unwrap();
    assert!(http.until_ready(200).await["outboxes"][0].get("held").is_none());
    http.until(r#"pillarbox_held{relay="default"}"#, 0.0).await;

    postgres.kill().unwrap();
    let lost = http.until_ready(503).await;
    assert_eq!(lost["outboxes"][0]["role"], "connecting", "{lost}");
    assert_eq!(http.scrape().await.get(r#"pillarbox_database_up{relay="default"}"#), 0.0);
    assert_eq!(http.scrape().await.get(r#"pillarbox_leader{relay="default"}"#), 0.0);
    // Long enough for many tries.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    postgres.restart().await.unwrap();
    http.until_ready(200).await;

    let lines = relay.lines.lock().unwrap().clone();
    let said = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    for (text, times) in [
        ("the connection to the broker is lost", 1),
        ("the broker stores messages again", 1),
        ("the trouble is over", 1),
        ("leading", 2),
    ] {
        assert_eq!(said(text), times, "{text}: {lines:#?}");
    }
    // Reasons may change while a server goes down and comes up; they do not repeat with every try.
    assert!((1..=2).contains(&said("holding")), "{lines:#?}");
    assert!((1..=4).contains(&said("waiting")), "{lines:#?}");
    assert!(lines.len() <= 16, "{lines:#?}");
    for secret in ["the payload", "order.placed"] {
        assert_eq!(said(secret), 0, "{lines:#?}");
    }
}

#[tokio::test]
async fn an_outage_in_which_nothing_happens_ends_by_itself() {
    let servers =
        Servers { postgres: Postgres::start().await.unwrap(), nats: Nats::start().await.unwrap() };
    let shop = Shop::on(servers.scope().await.unwrap()).await;
    let Servers { postgres: _postgres, mut nats } = servers;
    // Checkpoints come often with a short retention.
    let relay = Process::relay(&shop, &["--http", "127.0.0.1:0", "--retention-s", "2"]);
    let http = Endpoint::of(&relay).await;
    shop.insert_many(10).await;
    shop.shipped().await;
    nats.kill().unwrap();
    // Only the look at the streams meets the outage.
    http.until(r#"pillarbox_held{relay="default"}"#, 1.0).await;
    nats.restart().await.unwrap();
    assert!(http.until_ready(200).await["outboxes"][0].get("held").is_none());
    assert_eq!(http.scrape().await.get(r#"pillarbox_held{relay="default"}"#), 0.0);
}

#[tokio::test]
async fn a_relay_that_stops_is_alive_and_not_ready() {
    let servers =
        Servers { postgres: Postgres::start().await.unwrap(), nats: Nats::start().await.unwrap() };
    let shop = Shop::on(servers.scope().await.unwrap()).await;
    let Servers { postgres: _postgres, nats } = servers;
    let mut relay = Process::relay(&shop, FREE);
    let http = Endpoint::of(&relay).await;
    http.until_ready(200).await;
    nats.pause().unwrap();
    shop.insert_many(100).await;
    // Given to the broker, which does not answer.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    relay.signal(Signal::TERM);
    let stopping = http.until_ready(503).await;
    assert!(stopping["reason"].as_str().unwrap().ends_with("it is stopping"), "{stopping}");
    assert_eq!(http.get("/healthz").await.status, 200);
    nats.resume().unwrap();
    assert_eq!(relay.ended().await, 0);
    assert!(http.ask("GET", "/healthz").await.is_err(), "the endpoints end with the process");
}

#[tokio::test]
async fn an_address_that_is_taken_ends_the_start_and_is_named() {
    let shop = Shop::open().await;
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut relay = Process::relay(&shop, &["--http", &address]);
    assert_eq!(relay.ended().await, 1);
    relay.until_said(&format!("http = \"{address}\" cannot be used")).await;
    relay.until_said("PILLARBOX_HTTP").await;
}

#[tokio::test]
async fn other_questions_are_answered_with_what_there_is() {
    let shop = Shop::open().await;
    let relay = Process::relay(&shop, FREE);
    let http = Endpoint::of(&relay).await;
    assert!(http.get("/metrics").await.kind.starts_with("text/plain; version=0.0.4"));
    assert_eq!(http.until_ready(200).await["ready"], true);
    assert_eq!(http.get("/readyz").await.kind, "application/json");
    let lost = http.get("/").await;
    assert_eq!((lost.status, lost.body.contains("/metrics")), (404, true));
    assert_eq!(http.ask("POST", "/metrics").await.unwrap().status, 405);
    let head = http.ask("HEAD", "/metrics").await.unwrap();
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

#[tokio::test]
async fn a_log_in_json_is_json_on_every_line() {
    let shop = Shop::open().await;
    let relay = Process::relay(&shop, &["--log-format", "json"]);
    relay.until_said("leading").await;
    for line in &*relay.lines.lock().unwrap() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["level"].is_string() && line["fields"]["message"].is_string(), "{line}");
    }
}

#[tokio::test]
async fn whoever_embeds_a_relay_can_watch_its_state() {
    let shop = Shop::open().await;
    let relay = pillarbox_relay::Relay::new(shop.config()).unwrap();
    let mut state = relay.state();
    assert_eq!(state.borrow().role, Role::Connecting);
    let shutdown = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(relay.run(shutdown.clone()));
    let ready = tokio::time::timeout(DEADLINE, state.wait_for(|state| state.is_ready()));
    assert_eq!(ready.await.unwrap().unwrap().epoch, Some(1));
    shutdown.cancel();
    running.await.unwrap().unwrap();
    assert_eq!(state.borrow().role, Role::Stopped);
}
