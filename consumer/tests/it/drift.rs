//! What somebody else configured: refused at the start by name, and said while it runs.

use std::time::Duration;

use crate::support::{self, DEADLINE, Shop, record, until};
use async_nats::jetstream::consumer::{self, AckPolicy, Config, DeliverPolicy, ReplayPolicy};
use async_nats::jetstream::stream::{self, Stream};
use pillarbox_consumer::{ConsumerConfig, ConsumerError};
use pillarbox_consumer::{ConsumerState, ConsumerStatus};
use pillarbox_inbox::Router;
use pillarbox_testkit::{Nats, Postgres, Servers};

fn router() -> Router {
    Router::new().on(record)
}

/// The durable that a consumer makes by itself, as its configuration.
async fn made_by_itself(shop: &Shop) -> (Stream, Config) {
    let (started, mut status) = shop.start_on(shop.pool(), shop.config(), router());
    until("a subscription", &mut status, ConsumerStatus::is_well).await;
    started.stop().await;
    let stream = shop.scope.jetstream().get_stream(&shop.stream).await.unwrap();
    let config = stream.consumer_info("payments").await.unwrap().config;
    (stream, config)
}

#[tokio::test]
async fn a_durable_with_any_other_setting_is_refused_by_its_name() {
    let shop = Shop::open().await;
    let (stream, right) = made_by_itself(&shop).await;
    for order in 0..3 {
        shop.send(&shop.event(order, 1)).await;
    }
    let wrong = |change: fn(&mut Config)| {
        let mut config = right.clone();
        change(&mut config);
        config
    };
    let all = [
        ("headers_only", wrong(|c| c.headers_only = true)),
        ("deliver_policy", wrong(|c| c.deliver_policy = DeliverPolicy::New)),
        ("deliver_policy", wrong(|c| c.deliver_policy = DeliverPolicy::Last)),
        (
            "deliver_policy",
            wrong(|c| c.deliver_policy = DeliverPolicy::ByStartSequence { start_sequence: 2 }),
        ),
        ("replay_policy", wrong(|c| c.replay_policy = ReplayPolicy::Original)),
        ("ack_policy", wrong(|c| c.ack_policy = AckPolicy::All)),
        ("ack_wait", wrong(|c| c.ack_wait = Duration::from_secs(77))),
        ("max_deliver", wrong(|c| c.max_deliver = 3)),
        ("max_ack_pending", wrong(|c| c.max_ack_pending = 7)),
        ("inactive_threshold", wrong(|c| c.inactive_threshold = Duration::from_secs(600))),
        ("memory_storage", wrong(|c| c.memory_storage = true)),
        ("max_batch", wrong(|c| c.max_batch = 5)),
        ("filter_subjects", wrong(|c| c.filter_subject = "*.other".into())),
        ("priority_policy", {
            let mut config = right.clone();
            config.priority_policy = consumer::PriorityPolicy::None;
            config.priority_groups.clear();
            config.priority_timeout = Duration::ZERO;
            config
        }),
        ("deliver_subject", {
            let mut config = wrong(|c| c.deliver_subject = Some("pushed.to".into()));
            config.priority_policy = consumer::PriorityPolicy::None;
            config.priority_groups.clear();
            config.priority_timeout = Duration::ZERO;
            config.max_waiting = 0;
            config
        }),
        (
            "backoff",
            wrong(|c| {
                c.max_deliver = -1;
                c.backoff = vec![Duration::from_secs(2), Duration::from_secs(5)];
            }),
        ),
    ];
    for (field, config) in all {
        stream.delete_consumer("payments").await.unwrap();
        stream.create_consumer(config).await.unwrap_or_else(|error| panic!("{field}: {error}"));
        let (started, status) = shop.start_on(shop.pool(), shop.config(), router());
        let ended = tokio::time::timeout(DEADLINE, started.running).await;
        let ended = ended.unwrap_or_else(|_| panic!("{field}: it runs, and is {:?}", status.get()));
        match ended.unwrap() {
            Err(ConsumerError::Differs { field: named, name, .. }) => {
                assert_eq!((named, name.as_str()), (field, "payments"));
            }
            other => panic!("{field}: {other:?}"),
        }
        assert_eq!(shop.number("select count(*) from effects").await, 0, "{field}");
    }
}

fn waits(text: &'static str) -> impl Fn(&ConsumerStatus) -> bool {
    move |status| {
        matches!(&status.state, ConsumerState::Waiting { reason } if reason.contains(text))
            && !status.is_well()
    }
}

#[tokio::test]
async fn events_that_come_at_once_after_headers_only_is_set_wait_for_their_payloads() {
    let shop = Shop::open().await;
    let (started, mut status) = shop.start_on(shop.pool(), shop.config(), router());
    until("a subscription", &mut status, ConsumerStatus::is_well).await;
    shop.send(&shop.event(0, 0)).await;
    shop.until("select count(*) from effects", 1).await;
    let stream = shop.scope.jetstream().get_stream(&shop.stream).await.unwrap();
    let right = stream.consumer_info("payments").await.unwrap().config;
    stream.update_consumer(consumer::Config { headers_only: true, ..right.clone() }).await.unwrap();
    for order in 0..20 {
        shop.send(&shop.event(order, 1)).await;
    }
    until("the difference", &mut status, waits("headers_only")).await;
    stream.update_consumer(right).await.unwrap();
    shop.until("select count(*) from effects", 21).await;
    shop.drained().await;
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_dead_letter").await, 0);
    started.stop().await;
    shop.assert_each_once_in_order(21).await;
}

#[tokio::test]
async fn an_event_that_was_sent_as_if_its_payload_were_left_out_stops_nothing() {
    let shop = Shop::open().await;
    let (started, mut status) = shop.start_on(shop.pool(), shop.config(), router());
    until("a subscription", &mut status, ConsumerStatus::is_well).await;
    let event = shop.event(1, 1);
    let mut headers = support::headers(&event);
    headers.insert("Nats-Msg-Size", "17");
    shop.send_raw(event.topic(), headers.clone(), "").await;
    shop.send_raw(event.topic(), headers, "").await;
    shop.send(&shop.event(1, 2)).await;
    shop.until("select count(*) from effects", 1).await;
    shop.drained().await;
    // The first is no order, and the second the same event.
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_dead_letter").await, 1);
    started.stop().await;
}

#[tokio::test]
async fn a_durable_edited_while_it_runs_is_said_and_gone_on_with_when_it_is_mended() {
    let shop = Shop::open().await;
    let (started, mut status) = shop.start_on(shop.pool(), shop.config(), router());
    until("a subscription", &mut status, ConsumerStatus::is_well).await;
    let stream = shop.scope.jetstream().get_stream(&shop.stream).await.unwrap();
    let right = stream.consumer_info("payments").await.unwrap().config;
    let wrong = consumer::Config { headers_only: true, ..right.clone() };
    stream.update_consumer(wrong).await.unwrap();
    let said = until("the difference", &mut status, waits("headers_only")).await;
    assert!(!started.running.is_finished(), "{said:?}");
    for order in 0..5 {
        shop.send(&shop.event(order, 1)).await;
    }
    stream.update_consumer(right).await.unwrap();
    until("it to go on", &mut status, ConsumerStatus::is_well).await;
    shop.until("select count(*) from effects", 5).await;
    started.stop().await;
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_dead_letter").await, 0);
}

#[tokio::test]
async fn what_was_edited_is_no_end_of_it_after_an_outage_either() {
    let postgres = Postgres::start().await.unwrap();
    let mut servers = Servers { postgres, nats: Nats::start().await.unwrap() };
    let shop = Shop::on(servers.scope().await.unwrap()).await;
    let stream_config = |days: u64| stream::Config {
        name: shop.stream.clone(),
        subjects: vec![format!("{}.>", shop.scope.prefix())],
        max_age: Duration::from_secs(days * 86_400),
        ..Default::default()
    };
    let jetstream = shop.scope.jetstream();
    jetstream.update_stream(stream_config(1)).await.unwrap();
    let (started, mut status) = shop.start_on(shop.pool(), shop.config(), router());
    until("a subscription", &mut status, ConsumerStatus::is_well).await;
    jetstream.update_stream(stream_config(30)).await.unwrap();
    servers.nats.kill().unwrap();
    servers.nats.restart().await.unwrap();
    let said = until("the age", &mut status, waits("max_age")).await;
    assert!(!started.running.is_finished(), "{said:?}");
    jetstream.update_stream(stream_config(1)).await.unwrap();
    until("it to go on", &mut status, ConsumerStatus::is_well).await;
    shop.send(&shop.event(1, 1)).await;
    shop.until("select count(*) from effects", 1).await;
    started.stop().await;
}

#[tokio::test]
async fn a_durable_that_is_paused_on_the_server_is_not_well_and_says_so() {
    let shop = Shop::open().await;
    let (started, mut status) = shop.start_on(shop.pool(), shop.config(), router());
    until("a subscription", &mut status, ConsumerStatus::is_well).await;
    let stream = shop.scope.jetstream().get_stream(&shop.stream).await.unwrap();
    let far = time::OffsetDateTime::now_utc() + Duration::from_secs(3_600);
    stream.pause_consumer("payments", far).await.unwrap();
    until("the pause", &mut status, waits("paused on the server")).await;
    stream.resume_consumer("payments").await.unwrap();
    until("it to go on", &mut status, ConsumerStatus::is_well).await;
    shop.send(&shop.event(1, 1)).await;
    shop.until("select count(*) from effects", 1).await;
    started.stop().await;
}

#[tokio::test]
async fn a_filter_that_matches_nothing_is_not_well_and_named() {
    let shop = Shop::open().await;
    shop.send(&shop.event(1, 1)).await;
    let prefix = shop.scope.prefix();
    for (name, filter) in [("typo", format!("{prefix}.plced")), ("foreign", "other.placed".into())]
    {
        let filter_subjects = vec![filter.clone()];
        let config = ConsumerConfig { name: name.into(), filter_subjects, ..shop.config() };
        let (started, mut status) = shop.start_on(shop.pool(), config, router());
        until("the filter to be named", &mut status, |status| {
            matches!(&status.state, ConsumerState::Waiting { reason } if reason.contains(&filter))
                && !status.is_well()
        })
        .await;
        if name == "typo" {
            let event = pillarbox_event::RawEvent::builder("order.placed", filter)
                .payload("{\"order\":1,\"step\":1}")
                .build()
                .unwrap();
            shop.send(&event).await;
            until("it to be well", &mut status, ConsumerStatus::is_well).await;
            shop.until("select count(*) from effects", 1).await;
        }
        started.stop().await;
    }
}

#[tokio::test]
async fn filters_that_overlap_are_refused_with_both() {
    let shop = Shop::open().await;
    for (one, other) in [
        ("orders.>", "orders.placed"),
        ("orders.*", "orders.placed"),
        ("orders.*.eu", "*.placed.eu"),
        ("orders.placed", "orders.placed"),
        ("orders.eu.>", "*.*.placed"),
    ] {
        let filter_subjects = vec![one.to_owned(), "returns.made".to_owned(), other.to_owned()];
        let config = ConsumerConfig { filter_subjects, ..shop.config() };
        let refused = config.validate().unwrap_err();
        let said = refused.to_string();
        assert!(matches!(refused, ConsumerError::Config { key: "filter_subjects", .. }), "{said}");
        assert!(said.contains(one) && said.contains(other), "{said}");
    }
    for (one, other) in
        [("orders.placed", "orders.paid"), ("orders.*", "orders.*.eu"), ("a.>", "a")]
    {
        let filter_subjects = vec![one.to_owned(), other.to_owned()];
        ConsumerConfig { filter_subjects, ..shop.config() }.validate().unwrap();
    }
}
