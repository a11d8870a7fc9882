//! What operators pause and limit, in running consumers.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::support::{DEADLINE, Shop, record, until};
use pillarbox_consumer::{ConsumerConfig, ConsumerState, HandlingOrder};
use pillarbox_event::{Event, RawEvent};
use pillarbox_inbox::{HandlerError, Received, Router, Tx};
use pillarbox_store::Operator;
use pillarbox_store::consumers::{Condition, Consumers, ControlError};
use pillarbox_testkit::eventually;
use sqlx::Row;

#[derive(Event, Clone, Debug, serde::Serialize, serde::Deserialize)]
#[event(type = "order.refunded", topic = "orders.refunded", key = order)]
struct Refunded {
    order: i64,
    step: i64,
}

async fn refund(tx: &mut Tx, refunded: Received<Refunded>) -> Result<(), HandlerError> {
    sqlx::query("insert into effects (event_id, order_id, step) values ($1, $2, $3)")
        .bind(refunded.id().as_str())
        .bind(refunded.order)
        .bind(refunded.step)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

fn router() -> Router {
    Router::new().on(record).on(refund)
}

fn refunded(shop: &Shop, order: i64, step: i64) -> RawEvent {
    let event = Refunded { order, step };
    RawEvent::builder(Refunded::TYPE, format!("{}.refunded", shop.scope.prefix()))
        .key(order.to_string())
        .payload(serde_json::to_vec(&event).unwrap())
        .build()
        .unwrap()
}

fn consumers(shop: &Shop) -> Consumers {
    Consumers::new(shop.pool().clone(), "pillarbox").unwrap()
}

fn mia(note: &str) -> Operator {
    Operator::new("mia", Some(note))
}

/// Waits until an effect is there.
async fn effects(shop: &Shop, wanted: i64) {
    shop.until("select count(*) from effects", wanted).await;
}

#[tokio::test]
async fn a_paused_consumer_is_well_says_who_paused_it_and_goes_on_where_it_was() {
    let shop = Shop::open().await;
    let (started, mut status) = shop.start_on(shop.pool(), shop.config(), router());
    until("active", &mut status, |status| status.state == ConsumerState::Ready).await;
    shop.send(&shop.event(1, 1)).await;
    effects(&shop, 1).await;
    let consumers = consumers(&shop);
    assert!(consumers.pause("payments", None, &mia("the bank is down")).await.unwrap());
    assert!(!consumers.pause("payments", None, &mia("again")).await.unwrap());
    let paused = until("a pause", &mut status, |status| {
        matches!(status.state, ConsumerState::PausedByOperator { .. })
    })
    .await;
    let ConsumerState::PausedByOperator { reason } = &paused.state else { unreachable!() };
    assert!(reason.starts_with("paused by mia since 20"), "{reason}");
    assert!(reason.ends_with("Z: the bank is down") && paused.is_well(), "{reason}");
    for step in 2..=20 {
        shop.send(&shop.event(1, step)).await;
        shop.send(&shop.event(step, 1)).await;
    }
    // A process that starts now does not begin anything either.
    started.stop().await;
    let (started, mut status) = shop.start_on(shop.pool(), shop.config(), router());
    until("a pause", &mut status, |status| {
        matches!(status.state, ConsumerState::PausedByOperator { .. }) && status.lag.is_some()
    })
    .await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(shop.number("select count(*) from effects").await, 1);
    let seen = consumers.find("payments").await.unwrap().unwrap();
    assert_eq!((seen.condition, seen.processes), (Condition::Paused, 1));
    assert_eq!(seen.pauses[0].note.as_deref(), Some("the bank is down"));

    assert!(consumers.resume("payments", None, &mia("the bank is back")).await.unwrap());
    assert!(!consumers.resume("payments", None, &mia("again")).await.unwrap());
    effects(&shop, 39).await;
    shop.assert_each_once_in_order(39).await;
    until("active", &mut status, |status| status.state == ConsumerState::Active).await;
    started.stop().await;
    let seen = consumers.find("payments").await.unwrap().unwrap();
    assert_eq!((seen.condition, seen.processes), (Condition::Gone, 0), "it said that it stops");
    let told = "select count(*) from pillarbox.operator_action \
                where what in ('consumers.pause', 'consumers.resume') and who = 'mia'";
    assert_eq!(shop.number(told).await, 2, "what changed nothing is not recorded");
}

/// Pauses one type, and sends events of both types for these orders, in this order of steps.
#[tokio::test]
async fn a_consumer_that_cannot_learn_what_is_paused_begins_nothing_and_says_so() {
    let shop = Shop::open().await;
    // As if the role had no right to it, or it was locked.
    let rename = async |from: &str, to: &str| {
        let rename = format!("alter table pillarbox.{from} rename to {to}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(rename)).execute(shop.pool()).await.unwrap();
    };
    rename("inbox_pause", "away").await;
    shop.send(&shop.event(1, 1)).await;
    let (started, mut status) = shop.start_on(shop.pool(), shop.config(), router());
    let unknown = until("nothing to be known", &mut status, |status| {
        matches!(&status.state, ConsumerState::Paused { reason }
            if reason.starts_with("the database does not say what operators have paused: "))
    });
    assert!(!unknown.await.is_well());
    let handled = "select count(*) from effects";
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(shop.number(handled).await, 0);
    rename("away", "inbox_pause").await;
    effects(&shop, 1).await;
    assert!(until("well", &mut status, |status| status.is_well()).await.is_well());
    started.stop().await;
}

async fn one_type_is_paused(order: HandlingOrder) {
    let shop = Shop::open().await;
    let config = ConsumerConfig { prefetch: 8, concurrency: 4, order, ..shop.config() };
    let (started, mut status) = shop.start_on(shop.pool(), config, router());
    until("ready", &mut status, |status| status.is_well()).await;
    let consumers = consumers(&shop);
    // Known by its process.
    eventually("the consumer to be known", DEADLINE, async || {
        consumers.find("payments").await.map(|found| found.map(drop))
    })
    .await
    .unwrap();
    consumers.pause("payments", Some("order.refunded"), &mia("wrong amounts")).await.unwrap();
    until("a pause", &mut status, |status| !status.paused_types.is_empty()).await;
    // More refunds than the consumer has places, each of another order, and then events behind them.
    for order in 1..=30 {
        shop.send(&shop.event(order, 1)).await;
        shop.send(&refunded(&shop, order, 2)).await;
    }
    for order in 1..=30 {
        shop.send(&shop.event(order, 3)).await;
        shop.send(&shop.event(100 + order, 1)).await;
    }
    // Those in front of the refunds, and those of other orders. Without an order, also those behind.
    let free = if order == HandlingOrder::None { 90 } else { 60 };
    effects(&shop, free).await;
    shop.drained().await;
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert_eq!(shop.number("select count(*) from effects").await, free);
    let paused = status.get();
    assert!(
        paused.is_well() && paused.paused_types[0].event_type == "order.refunded",
        "{paused:?}"
    );
    assert!(paused.paused_types[0].reason.ends_with(": wrong amounts"), "{paused:?}");
    assert_eq!(consumers.find("payments").await.unwrap().unwrap().dead_letters, 0);

    consumers.resume("payments", Some("order.refunded"), &mia("mended")).await.unwrap();
    effects(&shop, 120).await;
    match order {
        HandlingOrder::None => {}
        _ => shop.assert_each_once_in_order(120).await,
    }
    assert_eq!(shop.number("select count(distinct event_id) from effects").await, 120);
    started.stop().await;
}

#[tokio::test]
async fn events_of_a_paused_type_wait_their_keys_wait_behind_them_and_all_others_go_on() {
    one_type_is_paused(HandlingOrder::Key).await;
}

#[tokio::test]
async fn a_paused_type_waits_in_a_strict_order() {
    one_type_is_paused(HandlingOrder::Strict).await;
}

#[tokio::test]
async fn a_paused_type_waits_where_no_order_is_kept() {
    one_type_is_paused(HandlingOrder::None).await;
}

#[tokio::test]
async fn a_parked_event_of_a_paused_type_goes_back_to_the_table() {
    let shop = Shop::open().await;
    let (started, mut status) = shop.start_on(shop.pool(), shop.config(), router());
    until("ready", &mut status, |status| status.is_well()).await;
    let consumers = consumers(&shop);
    shop.until("select count(*) from pillarbox.inbox_member", 1).await;
    consumers.pause("payments", Some("order.refunded"), &mia("wrong amounts")).await.unwrap();
    until("a pause", &mut status, |status| !status.paused_types.is_empty()).await;
    // As a retry leaves them: two of the paused type, one of another.
    sqlx::query(
        r#"insert into pillarbox.inbox_dead_letter (consumer, event_id, stream, event_type, topic, key, headers, payload,
         reason, error, attempts, first_failed_at, state) values
         ('payments', 'a', $1, 'order.placed', 't', '7', '{}', '{"order":7,"step":1}', 'attempts', 'e', 5, now(), 'parked'),
         ('payments', 'b', $1, 'order.refunded', 't', '7', '{}', '{"order":7,"step":2}', 'attempts', 'e', 5, now(), 'parked'),
         ('payments', 'c', $1, 'order.placed', 't', '7', '{}', '{"order":7,"step":3}', 'attempts', 'e', 5, now(), 'parked'),
         ('payments', 'd', $1, 'order.refunded', 't', '8', '{}', '{"order":8,"step":1}', 'attempts', 'e', 5, now(), 'parked')"#,
    )
    .bind(&shop.stream)
    .execute(shop.pool())
    .await
    .unwrap();
    let rests = "select count(*) from pillarbox.inbox_dead_letter where state = 'parked' \
                 and error = 'events of its type are paused' and due_at > now() + interval '1 minute'";
    shop.until(rests, 2).await;
    effects(&shop, 1).await;
    consumers.resume("payments", Some("order.refunded"), &mia("mended")).await.unwrap();
    effects(&shop, 4).await;
    let inversions = "select count(*) from (select step, lag(step) over (partition by order_id order by position) \
                      as before from effects) as steps where before >= step";
    assert_eq!(shop.number(inversions).await, 0);
    started.stop().await;
}

#[tokio::test]
async fn a_rate_holds_over_all_processes_and_each_gets_its_turns() {
    const EVENTS: i64 = 60;
    const PER_SECOND: f64 = 20.0;
    let shop = Shop::open().await;
    let config = ConsumerConfig { order: HandlingOrder::None, prefetch: 16, ..shop.config() };
    let consumers = consumers(&shop);
    sqlx::query("insert into pillarbox.inbox (consumer, event_id) values ('payments', 'before')")
        .execute(shop.pool())
        .await
        .unwrap();
    for rate in [0.0, -1.0, f64::NAN, f64::INFINITY, 2_000_000.0] {
        let refused = consumers.limit("payments", Some(rate), &mia("x")).await;
        assert!(matches!(refused, Err(ControlError::Rate)), "{rate}: {refused:?}");
    }
    let unknown = consumers.limit("payment", Some(1.0), &mia("x")).await.unwrap_err().to_string();
    assert!(unknown.contains("no consumer \"payment\"; it knows payments"), "{unknown}");
    consumers.limit("payments", Some(PER_SECOND), &mia("the provider throttles")).await.unwrap();
    sqlx::raw_sql("alter table effects add at timestamptz not null default clock_timestamp(), add who integer default pg_backend_pid()")
        .execute(shop.pool())
        .await
        .unwrap();
    for order in 0..EVENTS {
        shop.send(&shop.event(order, 1)).await;
    }
    let began = Instant::now();
    let pools = [shop.scope.pool().clone(), another_pool(&shop).await];
    let processes: Vec<_> =
        pools.iter().map(|pool| shop.start_on(pool, config.clone(), router())).collect();
    effects(&shop, EVENTS).await;
    let took = began.elapsed().as_secs_f64();
    let least = EVENTS as f64 / PER_SECOND;
    assert!(took > least - 0.5, "{EVENTS} events took {took} s");
    assert!(took < 5.0 * least + 10.0, "{EVENTS} events took {took} s");
    // In no second more than the rate allows, and one piece for each process.
    let most = "select max(events) from (select count(*) over (order by at range between current row and \
                interval '1 second' following) as events from effects) as seconds";
    let most = shop.number(most).await;
    assert!(most as f64 <= PER_SECOND + 2.0 * PER_SECOND * 0.1 + 4.0, "{most} in a second");
    let handled: Vec<u64> =
        processes.iter().map(|(_, status)| status.get().totals.handled).collect();
    assert_eq!(handled.iter().sum::<u64>(), EVENTS.unsigned_abs());
    assert!(handled.iter().all(|one| *one >= 10), "{handled:?}");
    assert_eq!(processes[0].1.get().per_second, Some(PER_SECOND));

    // Without the limit, they are as fast as ever.
    consumers.limit("payments", None, &mia("it is well again")).await.unwrap();
    let mut watch = processes[0].1.clone();
    until("no limit", &mut watch, |status| status.per_second.is_none()).await;
    for order in 0..200 {
        shop.send(&shop.event(order, 2)).await;
    }
    let began = Instant::now();
    effects(&shop, EVENTS + 200).await;
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    for (started, _) in processes {
        started.stop().await;
    }
}

async fn another_pool(shop: &Shop) -> sqlx::PgPool {
    sqlx::PgPool::connect(shop.scope.database_url()).await.unwrap()
}

#[tokio::test]
async fn a_consumer_that_is_gone_is_removed_and_one_that_runs_is_not() {
    let shop = Shop::open().await;
    let (started, _) = shop.start_on(shop.pool(), shop.config(), router());
    shop.send(&shop.event(1, 1)).await;
    effects(&shop, 1).await;
    let consumers = consumers(&shop);
    eventually("a process", DEADLINE, async || {
        consumers.running("payments").await.map(|running| (running == 1).then_some(()))
    })
    .await
    .unwrap();
    let refused = consumers.remove("payments", true, &mia("gone")).await.unwrap_err();
    assert!(matches!(refused, ControlError::Running { processes: 1, .. }), "{refused}");
    started.stop().await;
    sqlx::query(
        "insert into pillarbox.inbox_dead_letter (consumer, event_id, event_type, topic, headers, payload, reason, error, \
         attempts, first_failed_at) values ('payments', 'x', 't', 't', '{}', '', 'permanent', 'e', 1, now())",
    )
    .execute(shop.pool())
    .await
    .unwrap();
    sqlx::query("insert into pillarbox.inbox (consumer, event_id) values ('mails', 'y')")
        .execute(shop.pool())
        .await
        .unwrap();
    let refused = consumers.remove("payments", false, &mia("gone")).await.unwrap_err();
    assert!(matches!(refused, ControlError::Unresolved { letters: 1, .. }), "{refused}");
    assert_eq!(consumers.remove("payments", true, &mia("gone")).await.unwrap(), 1);
    let known: BTreeSet<String> =
        consumers.list().await.unwrap().into_iter().map(|one| one.consumer).collect();
    assert_eq!(known, BTreeSet::from(["mails".to_owned()]));
    let row = sqlx::query(
        "select who, count, note from pillarbox.operator_action where what = 'consumers.remove'",
    )
    .fetch_one(shop.pool())
    .await
    .unwrap();
    assert_eq!((row.get::<&str, _>(0), row.get::<i64, _>(1)), ("mia", 1));
}

/// What was removed is recorded, even if the rest could not be removed.
#[tokio::test]
async fn a_removal_that_is_interrupted_is_recorded_as_far_as_it_came() {
    let shop = Shop::open().await;
    sqlx::raw_sql(
        "insert into pillarbox.inbox (consumer, event_id) select 'payments', i::text from generate_series(1, 10001) i; \
         create function no() returns trigger language plpgsql as $$ begin raise 'not now'; end $$; \
         create trigger no before delete on pillarbox.inbox_dead_letter execute function no()",
    )
    .execute(shop.pool())
    .await
    .unwrap();
    let consumers = consumers(&shop);
    let recorded = async || -> (i64, i64) {
        let sums = "select coalesce(sum(count), 0)::bigint, count(distinct run) from pillarbox.operator_action \
                    where what = 'consumers.remove' and target = 'payments'";
        sqlx::query_as(sums).fetch_one(shop.pool()).await.unwrap()
    };
    let operator = mia("gone");
    let refused = consumers.remove("payments", false, &operator).await.unwrap_err();
    assert!(refused.to_string().contains("not now"), "{refused}");
    assert_eq!(recorded().await, (10_001, 1));
    sqlx::raw_sql(
        "drop trigger no on pillarbox.inbox_dead_letter; \
         insert into pillarbox.inbox (consumer, event_id) values ('payments', 'last')",
    )
    .execute(shop.pool())
    .await
    .unwrap();
    assert_eq!(consumers.remove("payments", false, &operator).await.unwrap(), 1);
    assert_eq!(recorded().await, (10_002, 1));
}
