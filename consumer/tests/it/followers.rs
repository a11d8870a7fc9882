//! One key fails, hundreds of its events wait behind, and no other key waits for it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::{DEADLINE, OrderPlaced, Shop, Started, headers, record, until};
use pillarbox_consumer::{Consumer, ConsumerConfig, HandlingOrder};
use pillarbox_event::{Partition, header};
use pillarbox_inbox::{BatchHandler, DeadLetters, Handler, HandlerError, Received, Router, Tx};
use pillarbox_testkit::eventually;
use sqlx::AssertSqlSafe;
use tokio::sync::Semaphore;
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

fn start_batches(
    shop: &Shop,
    config: ConsumerConfig,
    handler: impl BatchHandler<OrderPlaced>,
) -> Started {
    let consumer =
        Consumer::with_config(shop.scope.nats().clone(), shop.pool().clone(), config).unwrap();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(consumer.on_batch(handler).run(shutdown.clone()));
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
    for (order, followers) in [(HandlingOrder::Key, 400), (HandlingOrder::Strict, 150)] {
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
    let config = ConsumerConfig { handler_timeout: Duration::from_secs(2), ..shop.config() };
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

/// Handles events in batches. Once the bad order is mended, it fails where and as a test says.
#[derive(Clone)]
struct Batches<F> {
    broken: Broken,
    fails: F,
    /// What it sends to the database, once, in the middle of the batch with this step of the bad order.
    sends: Option<(i64, &'static str)>,
    /// How many events of the bad order it got at a time.
    sizes: Arc<Mutex<Vec<usize>>>,
}

fn batches<F>(fails: F) -> Batches<F>
where
    F: Fn(&Received<OrderPlaced>) -> Result<(), HandlerError> + Send + Sync + 'static,
{
    Batches { broken: broken(), fails, sends: None, sizes: Arc::default() }
}

impl<F> BatchHandler<OrderPlaced> for Batches<F>
where
    F: Fn(&Received<OrderPlaced>) -> Result<(), HandlerError> + Send + Sync + 'static,
{
    async fn handle(
        &self,
        tx: &mut Tx,
        events: &[Received<OrderPlaced>],
    ) -> Result<(), HandlerError> {
        for placed in events {
            self.broken.check(placed)?;
        }
        let bad = events.iter().filter(|placed| placed.order == BAD).count();
        self.sizes.lock().unwrap().push(bad);
        for placed in events {
            record(tx, placed.clone()).await?;
            (self.fails)(placed)?;
            if let Some((step, sql)) = self.sends
                && (placed.order, placed.step) == (BAD, step)
            {
                sqlx::raw_sql(sql).execute(&mut **tx).await?;
                return Ok(());
            }
        }
        Ok(())
    }
}

fn config_of_batches(shop: &Shop, order: HandlingOrder) -> ConsumerConfig {
    ConsumerConfig { batch_size: 20, concurrency: 4, order, ..shop.config() }
}

#[tokio::test]
async fn what_is_parked_is_handled_in_batches_and_each_batch_is_a_transaction() {
    for order in [HandlingOrder::Key, HandlingOrder::Strict] {
        let shop = Shop::open().await;
        let all = send(&shop, 300, 1).await;
        let handler = batches(|_| Ok(()));
        let started = start_batches(&shop, config_of_batches(&shop, order), handler.clone());
        others_are_handled(&shop, all, 300, &handler.broken).await;
        let parked = "select (count(*) > 250)::integer::bigint from pillarbox.inbox_dead_letter";
        shop.until(parked, 1).await;
        all_is_handled(&shop, all, &handler.broken).await;
        nothing_is_left(&shop).await;
        started.stop().await;
        let sizes = handler.sizes.lock().unwrap().clone();
        assert!(sizes.iter().max() <= Some(&20), "{sizes:?}");
        assert!(sizes.iter().filter(|size| **size == 20).count() >= 5, "{sizes:?}");
        let transactions = shop
            .number(
                "select count(distinct inbox.xmin::text) from pillarbox.inbox \
                 join effects on effects.event_id = inbox.event_id where order_id = 1",
            )
            .await;
        assert!(transactions < 80, "{order:?}: {transactions} transactions");
    }
}

#[tokio::test]
async fn of_a_batch_of_parked_events_one_that_fails_is_singled_out_and_its_key_goes_on_or_waits() {
    for order in [HandlingOrder::Key, HandlingOrder::Strict] {
        let shop = Shop::open().await;
        let followers = 100;
        let all = send(&shop, followers, 1).await;
        let refuses = Arc::new(AtomicBool::new(true));
        let still = refuses.clone();
        let handler =
            batches(move |placed: &Received<OrderPlaced>| match (placed.order, placed.step) {
                (BAD, 33) if still.load(Ordering::SeqCst) => Err(HandlerError::permanent("never")),
                (BAD, 12 | 71) if placed.attempt() < 3 => Err(HandlerError::transient("not yet")),
                _ => Ok(()),
            });
        let started = start_batches(&shop, config_of_batches(&shop, order), handler.clone());
        others_are_handled(&shop, all, followers, &handler.broken).await;
        handler.broken.mend();
        let waits = if order == HandlingOrder::Key { 1 } else { followers - 33 + 1 };
        shop.until("select count(*) from effects", all - waits).await;
        let dead = "select count(*) from pillarbox.inbox_dead_letter where state = 'dead' and reason = 'permanent' \
                    and payload like '%33}'";
        shop.until(dead, 1).await;
        shop.drained().await;
        shop.assert_each_once_in_order(all - waits).await;
        refuses.store(false, Ordering::SeqCst);
        let letters = DeadLetters::new(shop.pool().clone(), "payments").unwrap();
        assert_eq!(letters.retry_all().await.unwrap(), 1);
        shop.until("select count(*) from effects", all).await;
        nothing_is_left(&shop).await;
        started.stop().await;
        assert_eq!(shop.number("select count(distinct event_id) from effects").await, all);
        if order == HandlingOrder::Strict {
            shop.assert_each_once_in_order(all).await;
        }
    }
}

#[tokio::test]
async fn a_handler_that_ends_the_transaction_of_parked_events_doubles_none_and_loses_none() {
    for (sql, kept) in [("commit", true), ("rollback", false), ("commit; begin", true)] {
        let shop = Shop::open().await;
        let followers = 100;
        let all = send(&shop, followers, 1).await;
        let handler = Batches { sends: Some((50, sql)), ..batches(|_| Ok(())) };
        let started =
            start_batches(&shop, config_of_batches(&shop, HandlingOrder::Key), handler.clone());
        others_are_handled(&shop, all, followers, &handler.broken).await;
        handler.broken.mend();
        shop.until("select count(*) from pillarbox.inbox_dead_letter where state = 'parked'", 0)
            .await;
        shop.drained().await;
        started.stop().await;
        let dead = "from pillarbox.inbox_dead_letter where state = 'dead'";
        let letters = shop.number(&format!("select count(*) {dead}")).await;
        assert!((1..=20).contains(&letters), "{sql}: {letters} letters");
        let effects = shop.number("select count(*) from effects").await;
        assert_eq!(shop.number("select count(distinct event_id) from effects").await, effects);
        let both = shop
            .number(&format!(
                "select count(*) from effects where event_id in (select event_id {dead})"
            ))
            .await;
        assert_eq!(both > 0, kept, "{sql}");
        assert_eq!(effects + letters - both, all, "{sql}");
    }
}

#[tokio::test]
async fn a_process_that_dies_in_a_batch_of_parked_events_leaves_them_to_the_next() {
    let shop = Shop::open().await;
    let followers = 100;
    let all = send(&shop, followers, 1).await;
    let reached = Arc::new(AtomicBool::new(false));
    let now = reached.clone();
    let handler = batches(move |placed: &Received<OrderPlaced>| {
        now.fetch_or((placed.order, placed.step) == (BAD, 50), Ordering::SeqCst);
        Ok(())
    });
    let handler = Batches { sends: Some((50, "select pg_sleep(600)")), ..handler };
    let config = config_of_batches(&shop, HandlingOrder::Key);
    let killed = start_batches(&shop, config.clone(), handler.clone());
    others_are_handled(&shop, all, followers, &handler.broken).await;
    handler.broken.mend();
    eventually("the middle of a batch", DEADLINE, async || {
        Ok::<_, String>(reached.load(Ordering::SeqCst).then_some(()))
    })
    .await
    .unwrap();
    killed.running.abort();
    let _ = killed.running.await;
    let ends = "select pg_terminate_backend(pid) from pg_stat_activity \
                where query like '%pg_sleep(600)%' and pid <> pg_backend_pid() and datname = current_database()";
    sqlx::query(ends).execute(shop.pool()).await.unwrap();
    // What it had taken is its own for a while longer, which need not be waited for here.
    let now = sqlx::query(
        "update pillarbox.inbox_dead_letter set due_at = clock_timestamp() where state = 'parked'",
    );
    now.execute(shop.pool()).await.unwrap();
    let handler = Batches { sends: None, ..handler };
    let started = start_batches(&shop, config, handler.clone());
    all_is_handled(&shop, all, &handler.broken).await;
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
    for order in [HandlingOrder::Key, HandlingOrder::Strict] {
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
        let handled = if order == HandlingOrder::Key { all - 1 } else { all - 81 };
        shop.until("select count(*) from effects", handled).await;
        shop.drained().await;
        assert_eq!(shop.number("select count(*) from effects").await, handled);
        broken.store(false, Ordering::SeqCst);
        let letters = DeadLetters::new(shop.pool().clone(), "payments").unwrap();
        assert_eq!(letters.retry_all().await.unwrap(), 1);
        shop.until("select count(*) from effects", all).await;
        started.stop().await;
        if order == HandlingOrder::Strict {
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
        shop.start_on(shop.pool(), shop.config(), Router::new().on(fails_for_long));
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
        shop.start_on(shop.pool(), shop.config(), Router::new().on(fails_for_long));
    until("many duplicates", &mut status, |status| status.totals.duplicates > 40).await;
    started.stop().await;
    let all = "select count(*) from pillarbox.inbox_failure";
    assert_eq!((shop.number(known).await, shop.number(all).await), (1, 1));
    assert_eq!(shop.number(parked).await, 41);
}

/// How many blocks a look for parked events reads, and how many it takes.
async fn look(shop: &Shop, after: &str) -> (i64, i64) {
    let sql = include_str!("../../../inbox/src/store/due.sql");
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

/// The table is full of this many events of another key, with payloads of so many bytes, and has room again without
/// those that are such.
async fn full_table(events: u32, bytes: u32, without: &str) {
    let shop = Shop::open().await;
    let fill = format!(
        "insert into pillarbox.inbox_dead_letter (consumer, event_id, stream, event_type, topic, key, headers, \
         payload, reason, error, attempts, first_failed_at, state, due_at) select 'payments', 'event-' || n, '{}', \
         'order.placed', 'orders', 'another', '{{}}', convert_to(repeat('x', {bytes}), 'UTF8'), 'waiting', '', 0, \
         now(), 'parked', now() + interval '1 hour' from generate_series(1, {events}) as n",
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
    let remove =
        format!("delete from pillarbox.inbox_dead_letter where key = 'another' and {without}");
    sqlx::raw_sql(AssertSqlSafe(remove)).execute(shop.pool()).await.unwrap();
    others_are_handled(&shop, all, 200, &handler).await;
    all_is_handled(&shop, all, &handler).await;
    let remove = "delete from pillarbox.inbox_dead_letter where key = 'another'";
    sqlx::raw_sql(remove).execute(shop.pool()).await.unwrap();
    nothing_is_left(&shop).await;
    started.stop().await;
}

#[tokio::test]
async fn a_full_table_takes_no_more_and_the_key_is_parked_once_there_is_room() {
    tokio::join!(
        full_table(10_000, 1, "true"),
        // 256 MiB.
        full_table(4, 64 << 20, "event_id = 'event-1'"),
    );
}

#[tokio::test]
async fn what_is_taken_at_a_time_is_bounded_in_bytes() {
    let shop = Shop::open().await;
    for (bytes, takes) in [(200_000, 20), (1 << 20, 4), ((4 << 20) + 1, 1), (6 << 20, 1)] {
        sqlx::raw_sql("truncate pillarbox.inbox_dead_letter").execute(shop.pool()).await.unwrap();
        let park = format!(
            "insert into pillarbox.inbox_dead_letter (consumer, event_id, stream, event_type, topic, key, headers, \
             payload, reason, error, attempts, first_failed_at, state) select 'payments', 'event-' || n, '{}', \
             'order.placed', 'orders', 'one', '{{}}', convert_to(repeat('x', {bytes}), 'UTF8'), 'waiting', '', 0, \
             now(), 'parked' from generate_series(1, 30) as n",
            shop.stream
        );
        sqlx::raw_sql(AssertSqlSafe(park)).execute(shop.pool()).await.unwrap();
        assert_eq!(look(&shop, "").await.1, takes, "{bytes} bytes each");
    }
}

/// Takes its time for each event of the bad order, once it is mended.
struct Long(Broken, Duration);

impl Handler<Received<OrderPlaced>> for Long {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        self.0.check(&placed)?;
        if placed.order == BAD {
            tokio::time::sleep(self.1).await;
        }
        record(tx, placed).await
    }
}

#[tokio::test]
async fn large_events_are_parked_and_handled_from_the_table_in_order() {
    let shop = Shop::open().await;
    let followers = 40;
    for (order, step) in (0..=followers).map(|step| (BAD, step)).chain([(2, 0), (3, 0)]) {
        let event = shop.event(order, step);
        let mut payload = event.payload().to_vec();
        payload.resize(500_000, b' ');
        shop.send_raw(event.topic(), headers(&event), payload).await;
    }
    let handler = broken();
    let config = ConsumerConfig { concurrency: 4, prefetch: 24, ..shop.config() };
    let started = shop.start(config, Router::new().on(handler.clone()));
    others_are_handled(&shop, followers + 3, followers, &handler).await;
    all_is_handled(&shop, followers + 3, &handler).await;
    nothing_is_left(&shop).await;
    started.stop().await;
}

#[tokio::test]
async fn what_is_not_begun_within_five_seconds_is_given_back_and_taken_again() {
    let shop = Shop::open().await;
    let followers = 10;
    for step in 0..=followers {
        shop.send(&shop.event(BAD, step)).await;
    }
    let handler = broken();
    let config = ConsumerConfig { concurrency: 2, prefetch: 4, ..shop.config() };
    let long = Long(handler.clone(), Duration::from_millis(900));
    let started = shop.start(config, Router::new().on(long));
    let parked = "select count(*) from pillarbox.inbox_dead_letter where state = 'parked'";
    shop.until(parked, followers + 1).await;
    handler.mend();
    // Until when the last one is this process's.
    let taken = async |after: i64| {
        let until = "select coalesce(extract(epoch from due_at)::bigint, 0) from pillarbox.inbox_dead_letter \
                     order by position desc limit 1";
        eventually("the last event to be taken", DEADLINE, async || {
            let until = shop.number(until).await;
            Ok::<_, String>((until > after).then_some(until))
        })
        .await
        .unwrap()
    };
    let first = taken(0).await;
    assert!(taken(first).await >= first + 4, "it was taken again too early");
    shop.until("select count(*) from effects", followers + 1).await;
    started.stop().await;
    shop.assert_each_once_in_order(followers + 1).await;
    nothing_is_left(&shop).await;
}

/// Events of the bad order wait until they may go on; they do not fail.
struct Slow(Arc<Semaphore>);

impl Handler<Received<OrderPlaced>> for Slow {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        if placed.order == BAD {
            self.0.acquire().await.unwrap().forget();
        }
        record(tx, placed).await
    }
}

/// This many events of a slow key are sent, so many of other keys behind them, and so many of these wait for it.
async fn slow_key((slow, others, concurrency, wait): (i64, i64, usize, i64)) {
    let shop = Shop::open().await;
    for step in 0..slow {
        shop.send(&shop.event(BAD, step)).await;
    }
    for order in 0..others {
        shop.send(&shop.event(100 + order, 0)).await;
    }
    let go_on = Arc::new(Semaphore::new(0));
    let config = ConsumerConfig { concurrency, prefetch: 8, ..shop.config() };
    let router = Router::new().on(Slow(go_on.clone()));
    let (started, mut status) = shop.start_on(shop.pool(), config, router);
    shop.until("select count(*) from effects", others - wait).await;
    let mut before = None;
    // Two looks at it, with seconds between them.
    for _ in 0..2 {
        let found = until("what waits", &mut status, |status| {
            status.lag.as_ref().is_some_and(|lag| {
                lag.unhandled() == (slow + wait) as u64 && Some(lag.measured_at) > before
            })
        });
        before = found.await.lag.map(|lag| lag.measured_at);
    }
    assert_eq!(shop.number("select count(*) from effects").await, others - wait);
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_dead_letter").await, 0);
    go_on.add_permits(100);
    shop.until("select count(*) from effects", slow + others).await;
    started.stop().await;
    shop.assert_each_once_in_order(slow + others).await;
}

#[tokio::test]
async fn other_keys_wait_for_a_slow_one_only_once_it_holds_all_places_or_handlers() {
    let cases = [(7, 20, 4, 0), (8, 5, 4, 5), (3, 5, 1, 5)];
    futures::future::join_all(cases.map(slow_key)).await;
}
