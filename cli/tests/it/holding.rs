//! What happens while the broker does not store an event: the others are not repeated, and the event does not hold
//! them for longer than it must.

use std::time::Duration;

use crate::support::http::Endpoint;
use crate::support::{DEADLINE, Process, Shop};
use async_nats::jetstream::stream;
use futures::StreamExt;
use pillarbox_relay::SinkChoice;
use pillarbox_testkit::eventually;

const FREE: [&str; 2] = ["--http", "127.0.0.1:0"];

async fn insert(shop: &Shop, topic: &str, key: Option<&str>, headers: &str) {
    sqlx::query(
        "insert into pillarbox.outbox (event_type, topic, key, headers, payload) \
         values ('t', $1, $2, $3::jsonb, 'x')",
    )
    .bind(topic)
    .bind(key)
    .bind(headers)
    .execute(shop.pool())
    .await
    .unwrap();
}

/// Headers that every rule for events allows, and that nats-server stores in no stream.
fn too_many_headers() -> String {
    let headers: Vec<String> =
        (0..10).map(|number| format!("\"h{number}\": \"{}\"", "x".repeat(8_000))).collect();
    format!("{{{}}}", headers.join(","))
}

#[tokio::test]
async fn an_event_that_the_server_refuses_is_set_aside_and_the_others_go_on() {
    for sink in [SinkChoice::Auto, SinkChoice::KeyedWindow] {
        let shop = Shop::open().await;
        insert(&shop, &shop.topic(), Some("1"), &too_many_headers()).await;
        shop.insert_many(50).await;
        // Two in a row, and one that only has followers of its own key.
        for _ in 0..2 {
            insert(&shop, &shop.topic(), None, &too_many_headers()).await;
        }
        shop.insert_many(50).await;
        insert(&shop, &shop.topic(), Some("7"), &too_many_headers()).await;
        insert(&shop, &shop.topic(), Some("7"), "{}").await;
        let relay = shop.start(pillarbox_relay::RelayConfig { sink, ..shop.config() });
        shop.until_messages(101).await;
        shop.shipped().await;
        relay.stop().await;
        assert_eq!(shop.messages().await, 101);
        let letters = "select count(*) from pillarbox.outbox_dead_letter \
                       where state = 'dead' and reason in ('too_large', 'refused') and error <> ''";
        assert_eq!(shop.number(letters).await, 4);
    }
}

#[tokio::test]
async fn holding_at_one_event_does_not_repeat_what_lies_behind_it() {
    let shop = Shop::open().await;
    shop.create_stream(|config| stream::Config {
        duplicate_window: Duration::from_secs(3),
        ..config
    })
    .await;
    let other = format!("other{}.placed", shop.scope.prefix());
    insert(&shop, &other, Some("held"), "{}").await;
    for _ in 0..100 {
        insert(&shop, &shop.topic(), None, "{}").await;
    }
    // These are met again at each try, and are set aside, told and counted once.
    for headers in [r#"{"a": 1}"#, r#"{"a": null}"#, r#"{"": "a"}"#] {
        insert(&shop, &shop.topic(), None, headers).await;
    }
    let relay = Process::relay(&shop, &FREE);
    let http = Endpoint::of(&relay).await;
    http.until(r#"pillarbox_held{relay="default"}"#, 1.0).await;
    let held = http.until_ready(503).await;
    assert!(held["reason"].as_str().unwrap().contains(&other), "{held}");
    // Long enough for several windows and many tries.
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert!(shop.messages().await <= 100, "{} messages", shop.messages().await);
    assert_eq!(relay.said("it is a dead letter now"), 3, "{:#?}", relay.lines.lock().unwrap());
    http.until(r#"pillarbox_dead_letters_total{relay="default",reason="invalid"}"#, 3.0).await;
    let config = stream::Config {
        name: format!("{}OTHER", shop.stream),
        subjects: vec![other],
        ..Default::default()
    };
    shop.jetstream().await.create_stream(config).await.unwrap();
    shop.shipped().await;
    http.until_ready(200).await;
    // What was stored behind it before the first refusal came is stored once more at the most.
    assert!((100..=200).contains(&shop.messages().await), "{} messages", shop.messages().await);
    assert_eq!(relay.said("holding"), 1, "{:#?}", relay.lines.lock().unwrap());
}

#[tokio::test]
async fn a_topic_without_a_stream_is_told_also_where_somebody_else_listens_to_it() {
    let shop = Shop::open().await;
    let other = format!("other{}.placed", shop.scope.prefix());
    let nats = async_nats::connect(shop.scope.nats_url()).await.unwrap();
    // Not a stream: it takes everything and acknowledges nothing.
    let mut heard = nats.subscribe(other.clone()).await.unwrap();
    nats.flush().await.unwrap();

    insert(&shop, &other, None, "{}").await;
    shop.insert_many(5).await;
    let mut more = FREE.to_vec();
    more.extend(["--ack-timeout-ms", "1000"]);
    let mut relay = Process::relay(&shop, &more);
    let http = Endpoint::of(&relay).await;
    http.until(r#"pillarbox_held{relay="default"}"#, 1.0).await;
    let held = http.until_ready(503).await;
    assert!(held["reason"].as_str().unwrap().contains("no stream takes"), "{held}");
    // Long enough for many tries.
    tokio::time::sleep(Duration::from_secs(10)).await;
    relay.kill();

    more.extend(["--no-stream", "dead-letter"]);
    let _relay = Process::relay(&shop, &more);
    let letters = "select count(*) from pillarbox.outbox_dead_letter where reason = 'no_stream'";
    eventually("a dead letter", DEADLINE, async || {
        Ok::<_, String>((shop.number(letters).await == 1).then_some(()))
    })
    .await
    .unwrap();
    shop.until_messages(5).await;
    shop.shipped().await;
    let mut times = 0;
    while let Ok(Some(_)) = tokio::time::timeout(Duration::from_secs(1), heard.next()).await {
        times += 1;
    }
    assert!((1..=2).contains(&times), "each relay sent it once to find out: {times}");
}

/// A gateway in front of the stream: it takes events under a subject of its own, refuses those that say so, and hands
/// on the others with the stream's acknowledgement.
async fn gateway(shop: &Shop, subject: String) -> tokio::task::JoinHandle<()> {
    let nats = async_nats::connect(shop.scope.nats_url()).await.unwrap();
    let (mut taken, topic) = (nats.subscribe(subject).await.unwrap(), shop.topic());
    nats.flush().await.unwrap();
    tokio::spawn(async move {
        while let Some(message) = taken.next().await {
            let Some(reply) = message.reply else { continue };
            let headers = message.headers.unwrap_or_default();
            if headers.get("refused").is_some() {
                let refusal = r#"{"error":{"code":400,"err_code":99999,"description":"not this"}}"#;
                nats.publish(reply, refusal.into()).await.unwrap();
            } else {
                nats.publish_with_reply_and_headers(topic.clone(), reply, headers, message.payload)
                    .await
                    .unwrap();
            }
        }
    })
}

#[tokio::test]
async fn an_event_that_is_refused_for_a_reason_nobody_knows_is_set_aside_once_others_are_stored() {
    let shop = Shop::open().await;
    let gate = format!("gate{}.placed", shop.scope.prefix());
    let gateway = gateway(&shop, gate.clone()).await;
    insert(&shop, &gate, Some("1"), "{}").await;
    insert(&shop, &gate, Some("1"), r#"{"refused": "yes"}"#).await;
    let relay = Process::relay(&shop, &FREE);
    let http = Endpoint::of(&relay).await;
    http.until(r#"pillarbox_held{relay="default"}"#, 1.0).await;
    let held = http.until_ready(503).await;
    assert!(held["reason"].as_str().unwrap().contains("not this"), "{held}");
    // Nothing else is there that could be stored, so there is no proof.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let letters = "select count(*) from pillarbox.outbox_dead_letter \
                   where reason = 'refused' and error like '%not this%'";
    assert_eq!(shop.number(letters).await, 0);

    // Of its own key, of another, and more that are refused between them.
    insert(&shop, &gate, Some("1"), "{}").await;
    for _ in 0..5 {
        insert(&shop, &gate, None, r#"{"refused": "yes"}"#).await;
        insert(&shop, &gate, Some("2"), "{}").await;
    }
    shop.until_messages(7).await;
    shop.shipped().await;
    http.until_ready(200).await;
    assert_eq!(shop.messages().await, 7);
    assert_eq!(shop.number(letters).await, 6);
    assert_eq!(relay.said("the broker stores messages again"), 1);
    gateway.abort();
}

#[tokio::test]
async fn a_dead_letter_that_is_retried_in_vain_holds_nothing_else() {
    let shop = Shop::open().await;
    let other = format!("other{}.placed", shop.scope.prefix());
    let gate = format!("gate{}.placed", shop.scope.prefix());
    let gateway = gateway(&shop, gate.clone()).await;
    insert(&shop, &other, Some("1"), "{}").await;
    insert(&shop, &gate, Some("2"), r#"{"refused": "yes"}"#).await;
    insert(&shop, &gate, Some("3"), "{}").await;
    let mut relay = Process::relay(&shop, &["--no-stream", "dead-letter"]);
    let letters = "select count(*) from pillarbox.outbox_dead_letter where state = 'dead'";
    eventually("two dead letters", DEADLINE, async || {
        Ok::<_, String>((shop.number(letters).await == 2).then_some(()))
    })
    .await
    .unwrap();
    relay.kill();
    // Now events without a stream are held, and those two are tried again.
    let relay = Process::relay(&shop, &FREE);
    let http = Endpoint::of(&relay).await;
    http.until_ready(200).await;
    sqlx::query("update pillarbox.outbox_dead_letter set state = 'parked'")
        .execute(shop.pool())
        .await
        .unwrap();
    http.until(r#"pillarbox_held{relay="default"}"#, 1.0).await;
    let held = http.until_ready(503).await;
    assert!(held["reason"].as_str().unwrap().contains(&other), "{held}");
    shop.insert_many(50).await;
    shop.until_messages(51).await;
    assert_eq!(shop.number(letters).await, 1, "the refused one is dead again");
    let config = stream::Config {
        name: format!("{}OTHER", shop.stream),
        subjects: vec![other],
        ..Default::default()
    };
    shop.jetstream().await.create_stream(config).await.unwrap();
    http.until_ready(200).await;
    gateway.abort();
}

/// What another hand has set on the stream keeps events from being stored: that is held, and named with the remedy.
#[tokio::test]
async fn a_stream_that_acknowledges_nothing_or_is_sealed_is_named() {
    type Set = fn(stream::Config) -> stream::Config;
    let cases: [(&str, Set); 2] = [
        ("no_ack", |config| stream::Config { no_ack: true, allow_batch_publish: false, ..config }),
        ("sealed", |config| stream::Config { sealed: true, ..config }),
    ];
    for (named, set) in cases {
        let shop = Shop::open().await;
        shop.create_stream(set).await;
        shop.insert_many(3).await;
        let relay = Process::relay(&shop, &["--http", "127.0.0.1:0", "--ack-timeout-ms", "1000"]);
        let http = Endpoint::of(&relay).await;
        eventually("readiness to name it", DEADLINE, async || {
            let said = http.until_ready(503).await["reason"].to_string();
            if said.contains(named) { Ok(Some(())) } else { Err(said) }
        })
        .await
        .unwrap();
        http.until(r#"pillarbox_held{relay="default"}"#, 1.0).await;
        let letters = "select count(*) from pillarbox.outbox_dead_letter";
        assert_eq!(shop.number(letters).await, 0);
        // A sealed stream stays so.
        if named == "sealed" {
            shop.jetstream().await.delete_stream(&shop.stream).await.unwrap();
        }
        shop.create_stream(|config| config).await;
        shop.shipped().await;
        http.until_ready(200).await;
        assert_eq!(shop.messages().await, 3);
    }
}

/// A stream that refuses new messages of a subject that has three.
async fn limit_subjects(shop: &Shop, max_messages: i64) {
    shop.create_stream(|config| stream::Config {
        discard: stream::DiscardPolicy::New,
        discard_new_per_subject: true,
        max_messages_per_subject: 3,
        max_messages,
        ..config
    })
    .await;
}

const LETTERS: &str = "select count(*) from pillarbox.outbox_dead_letter where state = 'dead'";

#[tokio::test]
async fn a_full_subject_holds_only_its_own_events_and_its_letters_name_it() {
    for (sink, page_rows) in [(SinkChoice::Auto, 1_000), (SinkChoice::KeyedWindow, 5)] {
        let shop = Shop::open().await;
        limit_subjects(&shop, -1).await;
        let topic = |name: &str| format!("{}.{name}", shop.scope.prefix());
        // More than a small page, by one key and by many.
        for number in 0..13 {
            let key = if number % 2 == 0 { "f".to_owned() } else { number.to_string() };
            insert(&shop, &topic("full"), Some(&key), "{}").await;
        }
        for number in 0..40 {
            let key = if number % 2 == 0 { "f".to_owned() } else { format!("o{number}") };
            insert(&shop, &topic(&format!("other{number}")), Some(&key), "{}").await;
        }
        let config = pillarbox_relay::RelayConfig { sink, page_rows, ..shop.config() };
        let relay = shop.start(config);
        shop.until_messages(43).await;
        shop.shipped().await;
        let named = format!(
            "{LETTERS} and reason = 'refused' and error like '%\"{}\" is full%'",
            topic("full")
        );
        assert_eq!((shop.number(&named).await, shop.number(LETTERS).await), (10, 10));
        // With room they can be shipped after all.
        shop.create_stream(|config| config).await;
        sqlx::query("update pillarbox.outbox_dead_letter set state = 'parked'")
            .execute(shop.pool())
            .await
            .unwrap();
        shop.until_messages(53).await;
        relay.stop().await;
    }
}

#[tokio::test]
async fn a_stream_that_is_full_as_a_whole_waits_also_where_subjects_have_limits() {
    let shop = Shop::open().await;
    limit_subjects(&shop, 4).await;
    for number in 0..8 {
        let topic = format!("{}.t{number}", shop.scope.prefix());
        insert(&shop, &topic, None, "{}").await;
    }
    let relay = Process::relay(&shop, &FREE);
    let http = Endpoint::of(&relay).await;
    http.until(r#"pillarbox_held{relay="default"}"#, 1.0).await;
    eventually("the reason", DEADLINE, async || {
        let said = http.until_ready(503).await["reason"].to_string();
        if said.contains("maximum messages exceeded") { Ok(Some(())) } else { Err(said) }
    })
    .await
    .unwrap();
    limit_subjects(&shop, -1).await;
    shop.until_messages(8).await;
    http.until_ready(200).await;
    assert_eq!(shop.number(LETTERS).await, 0);
}
