//! Streams are made or checked, and never changed; generations are built anew, and retired.

use std::time::Duration;

use crate::support::{DEADLINE, Shop, record};
use async_nats::jetstream::stream::{DiscardPolicy, RetentionPolicy};
use pillarbox_consumer::ConsumerConfig;
use pillarbox_consumer::generation::{RetireError, retire};
use pillarbox_consumer::streams::{FAN_OUT_MAX_AGE, StreamError, StreamSpec};
use pillarbox_inbox::Router;
use pillarbox_testkit::{eventually, servers};

#[tokio::test]
async fn a_stream_is_made_as_its_pattern_asks_and_found_again() {
    let scope = servers().await.unwrap().scope().await.unwrap();
    let (jetstream, prefix) = (scope.jetstream(), scope.prefix());
    let subjects = |word: &str| [format!("{prefix}.{word}.>")];
    let specs = [
        StreamSpec::work_queue(format!("{prefix}_jobs"), subjects("jobs")),
        StreamSpec::fan_out(format!("{prefix}_orders"), subjects("orders")).max_bytes(1 << 20),
        StreamSpec::event_log(format!("{prefix}_log"), subjects("log")),
    ];
    let mut found = Vec::new();
    for spec in &specs {
        // Of several that come at once, all find it.
        let (one, two) = tokio::join!(spec.ensure(&jetstream), spec.ensure(&jetstream));
        two.unwrap();
        found.push(one.unwrap().cached_info().config.clone());
        spec.ensure(&jetstream).await.unwrap();
    }
    let [jobs, orders, log] = &found[..] else { panic!("three") };
    assert_eq!(jobs.retention, RetentionPolicy::WorkQueue);
    assert_eq!((orders.retention, orders.max_age), (RetentionPolicy::Limits, FAN_OUT_MAX_AGE));
    assert_eq!((log.max_age, log.deny_purge, log.deny_delete), (Duration::ZERO, true, true));
    assert!(found.iter().all(|c| c.allow_batch_publish && c.discard == DiscardPolicy::New));
    let endless = StreamSpec::fan_out(format!("{prefix}_endless"), subjects("endless"));
    let endless = endless.max_age(Duration::MAX);
    for _ in 0..2 {
        let stream = endless.ensure(&jetstream).await.unwrap();
        assert_eq!(stream.cached_info().config.max_age, Duration::from_secs(100 * 365 * 86_400));
    }
}

#[tokio::test]
async fn a_stream_that_differs_is_named_and_left_as_it_is() {
    let scope = servers().await.unwrap().scope().await.unwrap();
    let (jetstream, prefix) = (scope.jetstream(), scope.prefix());
    let subjects = [format!("{prefix}.>")];
    let spec = || StreamSpec::fan_out(prefix, subjects.clone());
    spec().ensure(&jetstream).await.unwrap();
    let differing = async |spec: StreamSpec| match spec.ensure(&jetstream).await {
        Err(error @ StreamError::Differs { setting, .. }) => {
            assert!(error.to_string().contains(setting), "{error}");
            setting
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(differing(StreamSpec::work_queue(prefix, subjects.clone())).await, "retention");
    assert_eq!(differing(StreamSpec::event_log(prefix, subjects.clone())).await, "max_age");
    assert_eq!(differing(StreamSpec::fan_out(prefix, [format!("{prefix}.a")])).await, "subjects");
    assert_eq!(differing(spec().max_age(Duration::from_secs(60))).await, "max_age");
    assert_eq!(differing(spec().max_bytes(1_000)).await, "max_bytes");
    spec().ensure(&jetstream).await.unwrap();

    let refused = StreamSpec::fan_out(format!("{prefix}_2"), subjects.clone());
    let refused = refused.ensure(&jetstream).await.unwrap_err();
    assert!(matches!(refused, StreamError::Refused { .. }), "its subjects are taken: {refused:?}");
    let nameless = StreamSpec::fan_out("a.b", subjects).ensure(&jetstream).await.unwrap_err();
    assert!(matches!(nameless, StreamError::Refused { .. }), "{nameless:?}");
}

#[tokio::test]
async fn a_new_generation_gets_every_event_anew_and_the_old_one_is_retired_with_its_rows() {
    let shop = Shop::open().await;
    for order in 0..20 {
        shop.send(&shop.event(order, 1)).await;
    }
    let (old, new) = (shop.config(), shop.config().generation(2));
    assert_eq!((old.clone().generation(1).name, &*new.name), (old.name.clone(), "payments-g2"));
    let first = shop.start(old.clone(), Router::new().on(record));
    shop.until("select count(*) from effects", 20).await;
    let second = shop.start(new.clone(), Router::new().on(record));
    shop.until("select count(*) from effects", 40).await;

    let jetstream = shop.scope.jetstream();
    let in_use = retire(&jetstream, shop.pool(), &old).await;
    assert!(matches!(in_use, Err(RetireError::InUse { .. })), "{in_use:?}");
    assert_eq!(shop.number("select count(*) from pillarbox.inbox").await, 40);
    first.stop().await;
    let retired = eventually("the old generation to be free", DEADLINE, async || {
        match retire(&jetstream, shop.pool(), &old).await {
            Ok(retired) => Ok(Some(retired)),
            Err(error) => Err(error.to_string()),
        }
    })
    .await
    .unwrap();
    assert_eq!((retired.consumer, retired.inbox_rows, retired.dead_letters), (true, 20, 0));
    let left = "select count(*) from pillarbox.inbox where consumer = 'payments-g2'";
    assert_eq!(shop.number(left).await, 20);
    assert_eq!(shop.number("select count(*) from pillarbox.inbox").await, 20);
    assert!(!retire(&jetstream, shop.pool(), &old).await.unwrap().consumer, "it is gone");
    second.stop().await;

    let elsewhere = ConsumerConfig { schema: "no such".into(), ..old };
    let refused = retire(&jetstream, shop.pool(), &elsewhere).await;
    assert!(matches!(refused, Err(RetireError::Inbox(_))), "{refused:?}");
}
