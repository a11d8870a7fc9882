//! One key fails, hundreds of its events wait behind, and no other key waits for it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pillarbox_consumer::{Consumer, ConsumerConfig, Order};
use pillarbox_event::{Partition, header};
use pillarbox_inbox::{
    BatchHandler, DeadLetters, Handler, HandlerError, Received, Router, Tx, handler_fn,
};
use pillarbox_testkit::eventually;
use sqlx::AssertSqlSafe;
use support::{DEADLINE, OrderPlaced, Shop, Started, headers, record, until};
use tokio_util::sync::CancellationToken;

/// The order whose first step fails.
const BAD: i64 = 1;

/// While it is broken, the first step of the bad order fails, and is tried again without being counted.
#[derive(Clone)]
struct Broken {
    now: Arc<AtomicBool>,
    tries: Arc<AtomicU32>,
    /// What has been handled, by this process, of the bad order.
    seen: Arc<Mutex<HashSet<i64>>>,
}

fn broken() -> Broken {
    Broken { now: Arc::new(AtomicBool::new(true)), tries: Arc::default(), seen: Arc::default() }
}

impl Broken {
    fn check(&self, placed: &Received<OrderPlaced>) -> Result<(), HandlerError> {
        if (placed.order, placed.step) == (BAD, 0) && self.now.load(Ordering::SeqCst) {
            self.tries.fetch_add(1, Ordering::SeqCst);
            let away = HandlerError::outage("the ledger is away");
            return Err(away.retry_after(Duration::from_millis(300)));
        }
        if placed.order == BAD {
            self.seen.lock().unwrap().insert(placed.step);
        }
        Ok(())
    }

    fn mend(&self) {
        self.now.store(false, Ordering::SeqCst);
    }
}

impl Handler<Received<OrderPlaced>> for Broken {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        self.check(&placed)?;
        record(tx, placed).await
    }
}

impl BatchHandler<OrderPlaced> for Broken {
    async fn handle(
        &self,
        tx: &mut Tx,
        events: &[Received<OrderPlaced>],
    ) -> Result<(), HandlerError> {
        for placed in events {
            self.check(placed)?;
            record(tx, placed.clone()).await?;
        }
        Ok(())
    }
}

/// Sends many steps of the bad order, with others between them and behind. How many there are in all.
async fn send(shop: &Shop, followers: i64, partitions: u32) -> i64 {
    let others = (2..22).map(|order| (order, 0));
    let between = |step: i64| (step % 20 == 10).then_some((100 + step, 0));
    let bad = (0..=followers).flat_map(|step| [Some((BAD, step)), between(step)]).flatten();
    let jetstream = shop.scope.jetstream();
    let mut sent = Vec::new();
    for (order, step) in bad.chain(others) {
        let event = shop.event(order, step);
        let mut headers = headers(&event);
        let mut subject = event.topic().to_owned();
        if partitions > 1 {
            let partition = Partition::of_key(event.key().unwrap(), partitions);
            headers.insert(header::PARTITION, partition.to_string());
            subject = partition.subject(event.topic());
        }
        let sending = jetstream.publish_with_headers(subject, headers, event.payload().clone());
        sent.push(sending.await.unwrap());
    }
    let all = sent.len() as i64;
    for sent in sent {
        sent.await.unwrap();
    }
    all
}

fn start_batches(shop: &Shop, config: ConsumerConfig, handler: Broken) -> Started {
    let consumer = Consumer::new(shop.scope.nats().clone(), shop.pool().clone(), config).unwrap();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(consumer.run_batches(handler, shutdown.clone()));
    Started { running, shutdown }
}

/// All that is not of the bad order is handled within seconds, while that one fails.
async fn others_are_handled(shop: &Shop, all: i64, followers: i64, handler: &Broken) {
    let began = Instant::now();
    shop.until("select count(*) from effects", all - followers - 1).await;
    let took = began.elapsed();
    println!("{} others took {took:?} beside {followers} followers", all - followers - 1);
    assert!(took < Duration::from_secs(15), "the others took {took:?}");
    let bad = format!("select count(*) from effects where order_id = {BAD}");
    assert_eq!(shop.number(&bad).await, 0);
    assert!(handler.now.load(Ordering::SeqCst) && handler.tries.load(Ordering::SeqCst) > 0);
}

/// Once it is mended, all of the bad order is handled, each once and in order.
async fn all_is_handled(shop: &Shop, all: i64, handler: &Broken) {
    handler.mend();
    let began = Instant::now();
    shop.until("select count(*) from effects", all).await;
    println!("the followers took {:?}", began.elapsed());
    shop.drained().await;
    shop.assert_each_once_in_order(all).await;
}

async fn nothing_is_left(shop: &Shop) {
    let left = "select count(*) from pillarbox.inbox_dead_letter where state <> 'retried'";
    shop.until(left, 0).await;
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_failure").await, 0);
}

#[tokio::test]
async fn four_hundred_followers_of_a_failing_key_hold_up_no_other_key() {
    for (order, followers) in [(Order::Key, 400), (Order::Strict, 150)] {
        let shop = Shop::open().await;
        let all = send(&shop, followers, 1).await;
        let handler = broken();
        let config = ConsumerConfig { order, ..shop.config() };
        let started = shop.start(config, Router::new().on(handler.clone()));
        others_are_handled(&shop, all, followers, &handler).await;
        all_is_handled(&shop, all, &handler).await;
        // The key is an ordinary one again.
        shop.send(&shop.event(BAD, 1_000)).await;
        shop.until("select count(*) from effects", all + 1).await;
        nothing_is_left(&shop).await;
        started.stop().await;
        shop.assert_each_once_in_order(all + 1).await;
    }
}

#[tokio::test]
async fn two_thousand_do_not_either_and_a_restart_in_the_middle_of_it_changes_nothing() {
    let shop = Shop::open().await;
    let all = send(&shop, 2_000, 1).await;
    let handler = broken();
    let config = ConsumerConfig { handler_timeout_ms: 2_000, ..shop.config() };
    let killed = shop.start(config.clone(), Router::new().on(handler.clone()));
    let parked = "select (count(*) > 300)::integer::bigint from pillarbox.inbox_dead_letter";
    shop.until(parked, 1).await;
    // Dropped as by a crash, somewhere in the middle of parking.
    killed.running.abort();
    let _ = killed.running.await;
    let killed = shop.start(config.clone(), Router::new().on(handler.clone()));
    others_are_handled(&shop, all, 2_000, &handler).await;
    handler.mend();
    shop.until("select (count(*) > 300)::integer::bigint from effects where order_id = 1", 1).await;
    // And somewhere in the middle of handling what is parked.
    killed.running.abort();
    let _ = killed.running.await;
    // That is taken for a while longer, which need not be waited for here.
    let now = sqlx::query("update pillarbox.inbox_dead_letter set due_at = clock_timestamp()");
    now.execute(shop.pool()).await.unwrap();
    let started = shop.start(config, Router::new().on(handler.clone()));
    all_is_handled(&shop, all, &handler).await;
    nothing_is_left(&shop).await;
    started.stop().await;
}

#[tokio::test]
async fn nor_do_they_in_batches() {
    let shop = Shop::open().await;
    let all = send(&shop, 300, 1).await;
    let handler = broken();
    let config = ConsumerConfig { batch_size: 20, concurrency: 4, ..shop.config() };
    let started = start_batches(&shop, config, handler.clone());
    others_are_handled(&shop, all, 300, &handler).await;
    all_is_handled(&shop, all, &handler).await;
    nothing_is_left(&shop).await;
    started.stop().await;
}

#[tokio::test]
async fn nor_in_their_own_partition_or_another_one() {
    let shop = Shop::open().await;
    let all = send(&shop, 300, 2).await;
    let handler = broken();
    let config = ConsumerConfig { partitions: 2, ..shop.config() };
    // Two processes take what is parked from one table.
    let first = shop.start(config.clone(), Router::new().on(handler.clone()));
    let second = shop.start(config, Router::new().on(handler.clone()));
    others_are_handled(&shop, all, 300, &handler).await;
    all_is_handled(&shop, all, &handler).await;
    nothing_is_left(&shop).await;
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn what_waits_behind_an_event_that_becomes_a_dead_letter_goes_on_without_it_or_waits_for_it()
{
    for order in [Order::Key, Order::Strict] {
        let shop = Shop::open().await;
        let all = send(&shop, 80, 1).await;
        let counted = |placed: &Received<OrderPlaced>| (placed.order, placed.step) == (BAD, 0);
        struct Fails<F>(F, Arc<AtomicBool>);
        impl<F: Fn(&Received<OrderPlaced>) -> bool + Send + Sync + 'static>
            Handler<Received<OrderPlaced>> for Fails<F>
        {
            async fn handle(
                &self,
                tx: &mut Tx,
                placed: Received<OrderPlaced>,
            ) -> Result<(), HandlerError> {
                if (self.0)(&placed) && self.1.load(Ordering::SeqCst) {
                    let error = HandlerError::transient("no such account");
                    return Err(error.retry_after(Duration::from_millis(500)));
                }
                record(tx, placed).await
            }
        }
        let broken = Arc::new(AtomicBool::new(true));
        let config = ConsumerConfig { order, ..shop.config() };
        let started = shop.start(config, Router::new().on(Fails(counted, broken.clone())));
        let dead = "select count(*) from pillarbox.inbox_dead_letter where state = 'dead' and attempts = 3 and \
                    reason = 'attempts'";
        shop.until(dead, 1).await;
        let handled = if order == Order::Key { all - 1 } else { all - 81 };
        shop.until("select count(*) from effects", handled).await;
        shop.drained().await;
        assert_eq!(shop.number("select count(*) from effects").await, handled);
        broken.store(false, Ordering::SeqCst);
        let letters = DeadLetters::new(shop.pool().clone(), "payments").unwrap();
        assert_eq!(letters.retry_all().await.unwrap(), 1);
        shop.until("select count(*) from effects", all).await;
        started.stop().await;
        if order == Order::Strict {
            shop.assert_each_once_in_order(all).await;
        }
        nothing_is_left(&shop).await;
    }
}

/// Fails with the first attempts, and has them wait for long.
async fn fails_for_long(_: &mut Tx, _: Received<OrderPlaced>) -> Result<(), HandlerError> {
    let error = HandlerError::transient("no such account");
    Err(error.retry_after(Duration::from_secs(600)))
}

#[tokio::test]
async fn a_parked_event_that_is_delivered_again_keeps_the_attempts_that_were_counted() {
    let shop = Shop::open().await;
    let first = shop.event(BAD, 0);
    shop.send(&first).await;
    for step in 1..=40 {
        shop.send(&shop.event(BAD, step)).await;
    }
    let (started, mut status) =
        shop.start_on(shop.pool(), shop.config(), Router::new().on(handler_fn(fails_for_long)));
    let parked = "select count(*) from pillarbox.inbox_dead_letter where state = 'parked'";
    shop.until(parked, 41).await;
    let known = "select count(*) from pillarbox.inbox_failure where attempts = 1 and started = 0";
    assert_eq!(shop.number(known).await, 1);
    // From its producer, and from the server, which was not told of the end.
    shop.send(&first).await;
    shop.drained().await;
    until("the age of what waits", &mut status, |status| {
        status.lag.as_ref().is_some_and(|lag| {
            lag.unhandled() == 0 && lag.oldest_age_seconds.is_some_and(|age| age > 1.0)
        })
    })
    .await;
    assert_eq!(shop.number(known).await, 1);
    started.stop().await;
    let stream = shop.scope.jetstream().get_stream(&shop.stream).await.unwrap();
    stream.reset_consumer("payments", Some(1)).await.unwrap();
    let (started, mut status) =
        shop.start_on(shop.pool(), shop.config(), Router::new().on(handler_fn(fails_for_long)));
    until("many duplicates", &mut status, |status| status.totals.duplicates > 40).await;
    started.stop().await;
    let all = "select count(*) from pillarbox.inbox_failure";
    assert_eq!((shop.number(known).await, shop.number(all).await), (1, 1));
    assert_eq!(shop.number(parked).await, 41);
}

/// How many blocks a look for parked events reads, and how many it takes.
async fn look(shop: &Shop, after: &str) -> (i64, i64) {
    let sql = include_str!("../../inbox/src/store/due.sql");
    let mut tx = shop.pool().begin().await.unwrap();
    let explained = AssertSqlSafe(format!("explain (analyze, buffers, format json) {sql}"));
    let rows: Vec<serde_json::Value> = sqlx::query_scalar(explained)
        .bind("payments")
        .bind(false)
        .bind(1_000_i64)
        .bind(8_i64)
        .bind(&shop.stream)
        .bind(after)
        .bind(0_i64)
        .fetch_all(&mut *tx)
        .await
        .unwrap();
    let plan = &rows[0][0]["Plan"];
    let number = |name: &str| plan[name].as_i64().unwrap();
    (number("Shared Hit Blocks") + number("Shared Read Blocks"), number("Actual Rows"))
}

#[tokio::test]
async fn a_look_for_parked_events_costs_the_same_whatever_is_parked() {
    let shop = Shop::open().await;
    let park = |key: &str, due: &str| {
        format!(
            "insert into pillarbox.inbox_dead_letter (consumer, event_id, stream, event_type, topic, key, headers, \
             payload, reason, error, attempts, first_failed_at, state, due_at) select 'payments', 'event-' || n, '{}', \
             'order.placed', 'orders', {key}, '{{}}', 'x', 'waiting', '', 0, now(), 'parked', {due} \
             from generate_series(1, 100000) as n",
            shop.stream
        )
    };
    let later = "now() + interval '1 hour'";
    for (key, due, takes) in [
        ("'one'", format!("case when n = 1 then {later} end"), 1),
        ("'one'", "null".to_owned(), 200),
        ("'key-' || n", later.to_owned(), 1),
        ("'key-' || n % 20000", "null".to_owned(), 40),
        ("null", later.to_owned(), 1),
        ("null", "null".to_owned(), 8),
    ] {
        sqlx::raw_sql("truncate pillarbox.inbox_dead_letter").execute(shop.pool()).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(park(key, &due))).execute(shop.pool()).await.unwrap();
        sqlx::raw_sql("analyze pillarbox.inbox_dead_letter").execute(shop.pool()).await.unwrap();
        let (blocks, taken) = look(&shop, "").await;
        println!("{key} due {due}: {blocks} blocks, {taken} rows");
        assert_eq!(taken, takes, "{key} due {due}");
        assert!(blocks < 12_000, "{key} due {due}: {blocks} blocks");
    }
}

#[tokio::test]
async fn a_full_table_takes_no_more_and_the_key_is_parked_once_there_is_room() {
    let shop = Shop::open().await;
    let fill = format!(
        "insert into pillarbox.inbox_dead_letter (consumer, event_id, stream, event_type, topic, key, headers, \
         payload, reason, error, attempts, first_failed_at, state, due_at) select 'payments', 'event-' || n, '{}', \
         'order.placed', 'orders', 'another', '{{}}', 'x', 'waiting', '', 0, now(), 'parked', \
         now() + interval '1 hour' from generate_series(1, 10000) as n",
        shop.stream
    );
    sqlx::raw_sql(AssertSqlSafe(fill)).execute(shop.pool()).await.unwrap();
    let all = send(&shop, 200, 1).await;
    let handler = broken();
    let (started, mut status) =
        shop.start_on(shop.pool(), shop.config(), Router::new().on(handler.clone()));
    // All places are held by the failing key, and several attempts at parking it were made.
    until("all places to be held", &mut status, |status| {
        status.lag.as_ref().is_some_and(|lag| lag.pending > 0 && lag.ack_pending >= 60)
    })
    .await;
    let tries = handler.tries.load(Ordering::SeqCst);
    eventually("more attempts", DEADLINE, async || {
        Ok::<_, String>((handler.tries.load(Ordering::SeqCst) > tries + 5).then_some(()))
    })
    .await
    .unwrap();
    let bad = format!("select count(*) from pillarbox.inbox_dead_letter where key = '{BAD}'");
    assert_eq!(shop.number(&bad).await, 0);
    let empty = sqlx::query("delete from pillarbox.inbox_dead_letter where key = 'another'");
    empty.execute(shop.pool()).await.unwrap();
    others_are_handled(&shop, all, 200, &handler).await;
    all_is_handled(&shop, all, &handler).await;
    nothing_is_left(&shop).await;
    started.stop().await;
}
