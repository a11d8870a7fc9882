//! An event whose failure looks like an outage, while the database is well, is given up alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::support::{DEADLINE, OrderPlaced, Shop, Started, number, record, until};
use pillarbox_consumer::{Consumer, ConsumerConfig, HandlingOrder};
use pillarbox_consumer::{ConsumerState, Watch};
use pillarbox_event::{Event, RawEvent};
use pillarbox_inbox::{BatchHandler, Handler, HandlerError, InboxLayer, Received, Router, Tx};
use pillarbox_testkit::{Nats, Postgres, Servers, eventually};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tower::{Layer, ServiceExt};

/// How an event breaks what it needs.
#[derive(Clone, Copy, Debug)]
enum Breaks {
    /// More values than a statement can have: the client refuses to send it.
    TooManyValues,
    /// The database ends this connection.
    Terminates,
    /// A function of the application raises this SQLSTATE.
    Raises(&'static str),
    /// The server process of this connection crashes, and the server restarts all of them.
    Crashes,
}

const BREAKS: [Breaks; 7] = [
    Breaks::TooManyValues,
    Breaks::Terminates,
    Breaks::Raises("57P03"),
    Breaks::Raises("08006"),
    Breaks::Raises("58030"),
    Breaks::Raises("25006"),
    Breaks::Raises("53100"),
];

/// The order whose events break something.
const BAD: i64 = 7;

impl Breaks {
    async fn run(self, tx: &mut Tx) -> Result<(), HandlerError> {
        match self {
            Self::TooManyValues => {
                let mut query = sqlx::query("select 1");
                for value in 0..70_000_i32 {
                    query = query.bind(value);
                }
                query.execute(&mut **tx).await?;
            }
            Self::Terminates => {
                let terminate = sqlx::query("select pg_terminate_backend(pg_backend_pid())");
                terminate.execute(&mut **tx).await?;
                sqlx::query("select 1").execute(&mut **tx).await?;
            }
            Self::Raises(code) => {
                let raise = format!(
                    "do $$ begin raise exception 'no more of these' using errcode = '{code}'; end $$"
                );
                sqlx::raw_sql(AssertSqlSafe(raise)).execute(&mut **tx).await?;
            }
            Self::Crashes => {
                let crash = "create temporary table lines (line text); \
                             copy lines from program 'kill -SEGV $PPID'; select pg_sleep(1)";
                sqlx::raw_sql(crash).execute(&mut **tx).await?;
            }
        }
        Ok(())
    }
}

impl Handler<Received<OrderPlaced>> for Breaks {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        if placed.order == BAD {
            self.run(tx).await?;
        }
        record(tx, placed).await
    }
}

impl BatchHandler<OrderPlaced> for Breaks {
    async fn handle(
        &self,
        tx: &mut Tx,
        events: &[Received<OrderPlaced>],
    ) -> Result<(), HandlerError> {
        for event in events {
            Handler::handle(self, tx, event.clone()).await?;
        }
        Ok(())
    }
}

/// Twenty orders of two steps each; both steps of one of them are bad.
async fn send(shop: &Shop) {
    for step in 1..=2 {
        for order in 1..=20 {
            shop.send(&shop.event(order, step)).await;
        }
    }
}

async fn assert_only_the_bad_ones_were_given_up(shop: &Shop, reason: &str) {
    shop.until("select count(*) from effects", 38).await;
    shop.until("select count(*) from pillarbox.inbox_dead_letter where state = 'dead'", 2).await;
    shop.drained().await;
    assert_eq!(shop.number("select count(distinct event_id) from effects").await, 38);
    let bad = format!(
        "select count(*) from pillarbox.inbox_dead_letter \
         where key = '{BAD}' and reason = '{reason}' and error <> ''"
    );
    assert_eq!(shop.number(&bad).await, 2);
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_failure").await, 0);
}

#[tokio::test]
async fn an_event_that_breaks_its_connection_is_given_up_and_the_others_are_handled() {
    for breaks in BREAKS {
        for order in [HandlingOrder::Key, HandlingOrder::None] {
            let shop = Shop::open().await;
            let config = ConsumerConfig { order, ..shop.config() };
            let (started, status) = shop.start_on(shop.pool(), config, Router::new().on(breaks));
            send(&shop).await;
            println!("{breaks:?}, {order:?}");
            assert_only_the_bad_ones_were_given_up(&shop, "attempts").await;
            if order == HandlingOrder::Key {
                shop.assert_each_once_in_order(38).await;
            }
            assert_eq!(status.get().totals.dead_letters, 2);
            started.stop().await;
        }
    }
}

fn start_batches(shop: &Shop, breaks: Breaks) -> Started {
    let config = ConsumerConfig {
        batch_size: 50,
        batch_linger: Duration::from_millis(50),
        prefetch: 200,
        concurrency: 4,
        ..shop.config()
    };
    let consumer =
        Consumer::with_config(shop.scope.nats().clone(), shop.pool().clone(), config).unwrap();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(consumer.on_batch(breaks).run(shutdown.clone()));
    Started { running, shutdown }
}

#[tokio::test]
async fn in_a_batch_the_neighbours_of_such_an_event_are_handled() {
    for breaks in BREAKS {
        let shop = Shop::open().await;
        send(&shop).await;
        println!("{breaks:?}");
        let started = start_batches(&shop, breaks);
        assert_only_the_bad_ones_were_given_up(&shop, "attempts").await;
        shop.assert_each_once_in_order(38).await;
        started.stop().await;
    }
}

#[tokio::test]
async fn an_event_that_crashes_the_server_is_found_and_given_up() {
    for batches in [false, true] {
        let postgres = Postgres::start().await.unwrap();
        let servers = Servers { postgres, nats: Nats::start().await.unwrap() };
        let shop = Shop::on(servers.scope().await.unwrap()).await;
        send(&shop).await;
        let started = match batches {
            true => start_batches(&shop, Breaks::Crashes),
            false => shop.start(shop.config(), Router::new().on(Breaks::Crashes)),
        };
        assert_only_the_bad_ones_were_given_up(&shop, "attempts").await;
        shop.assert_each_once_in_order(38).await;
        started.stop().await;
    }
}

/// Asks another database about the events of one order.
struct Elsewhere(PgPool);

impl Handler<Received<OrderPlaced>> for Elsewhere {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        if placed.order == BAD {
            sqlx::query("select 1").execute(&self.0).await?;
        }
        record(tx, placed).await
    }
}

#[tokio::test]
async fn another_database_that_is_away_delays_those_who_need_it_and_pauses_nothing() {
    let shop = Shop::open().await;
    let mut other = Postgres::start().await.unwrap();
    let options: PgConnectOptions = other.url("postgres").parse().unwrap();
    let pool = PgPoolOptions::new()
        .acquire_timeout(Duration::from_secs(1))
        .connect_with(options)
        .await
        .unwrap();
    other.kill().unwrap();
    let (started, mut status) =
        shop.start_on(shop.pool(), shop.config(), Router::new().on(Elsewhere(pool)));
    until("a subscription", &mut status, |status| status.is_well()).await;
    send(&shop).await;
    shop.until("select count(*) from effects", 38).await;
    // More than the attempts that would make a dead letter.
    shop.until(
        "select least(coalesce(max(outages), 0), 5)::bigint from pillarbox.inbox_failure",
        5,
    )
    .await;
    assert_eq!(status.get().state, ConsumerState::Active);
    assert_eq!(shop.number("select sum(attempts) from pillarbox.inbox_failure").await, 0);
    other.restart().await.unwrap();
    shop.until("select count(*) from effects", 40).await;
    shop.drained().await;
    started.stop().await;
    shop.assert_each_once_in_order(40).await;
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_dead_letter").await, 0);
}

/// What the handler was called for, and how often.
#[derive(Clone, Default)]
struct Calls(Arc<AtomicU32>);

/// Leaves its transaction idle for longer than the database lets it.
struct Idles(Calls);

impl Handler<Received<OrderPlaced>> for Idles {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        if placed.order == BAD {
            self.0.0.fetch_add(1, Ordering::SeqCst);
            sqlx::query("set local idle_in_transaction_session_timeout = 50")
                .execute(&mut **tx)
                .await?;
            tokio::time::sleep(Duration::from_millis(500)).await;
            sqlx::query("select 1").execute(&mut **tx).await?;
        }
        record(tx, placed).await
    }
}

#[tokio::test]
async fn a_handler_that_leaves_its_transaction_idle_is_called_a_bounded_number_of_times() {
    let shop = Shop::open().await;
    let calls = Calls::default();
    let started = shop.start(shop.config(), Router::new().on(Idles(calls.clone())));
    send(&shop).await;
    assert_only_the_bad_ones_were_given_up(&shop, "attempts").await;
    started.stop().await;
    // Two events: each is excused twice, and has three attempts.
    let calls = calls.0.load(Ordering::SeqCst);
    assert!(calls <= 10, "{calls} calls");
}

/// Conflicts, and counts how often.
struct Conflicts(&'static str, Calls);

impl Handler<Received<OrderPlaced>> for Conflicts {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        if placed.order == BAD {
            self.1.0.fetch_add(1, Ordering::SeqCst);
            Breaks::Raises(self.0).run(tx).await?;
        }
        record(tx, placed).await
    }
}

#[tokio::test]
async fn a_conflict_that_never_ends_counts_after_a_while() {
    for code in ["40001", "40P01"] {
        let shop = Shop::open().await;
        let calls = Calls::default();
        let conflicts = Conflicts(code, calls.clone());
        let started = shop.start(shop.config(), Router::new().on(conflicts));
        send(&shop).await;
        assert_only_the_bad_ones_were_given_up(&shop, "attempts").await;
        started.stop().await;
        // Two events: each conflicts 20 times uncounted, and has three attempts.
        assert_eq!(calls.0.load(Ordering::SeqCst), 2 * 23, "{code}");
    }
}

/// Says about the events of one order, for ever, that something is away.
struct Webhook(fn(&'static str) -> HandlerError);

impl Handler<Received<OrderPlaced>> for Webhook {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        if placed.order == BAD {
            return Err(self.0("it is gone for good"));
        }
        record(tx, placed).await
    }
}

#[tokio::test]
async fn an_outage_that_lasts_longer_than_max_outage_counts_however_it_is_told() {
    for tells in [HandlerError::outage, HandlerError::environment] {
        let shop = Shop::open().await;
        let config = ConsumerConfig { max_outage: Duration::from_secs(3), ..shop.config() };
        let started = shop.start(config, Router::new().on(Webhook(tells)));
        shop.send(&shop.event(BAD, 1)).await;
        let uncounted =
            "select count(*) from pillarbox.inbox_failure where outages > 3 and attempts = 0";
        shop.until(uncounted, 1).await;
        shop.send(&shop.event(1, 1)).await;
        shop.until("select count(*) from effects", 1).await;
        shop.until("select count(*) from pillarbox.inbox_dead_letter where attempts = 3", 1).await;
        let lasted = "select count(*) from pillarbox.inbox_dead_letter where dead_at - first_failed_at >= '3 s'";
        assert_eq!(shop.number(lasted).await, 1);
        started.stop().await;
    }
}

#[tokio::test]
async fn an_absurd_wait_that_a_handler_asks_for_is_a_long_one() {
    struct Later(Duration);
    impl Handler<Received<OrderPlaced>> for Later {
        async fn handle(
            &self,
            tx: &mut Tx,
            placed: Received<OrderPlaced>,
        ) -> Result<(), HandlerError> {
            if placed.order == BAD {
                return Err(HandlerError::transient("too many requests").retry_after(self.0));
            }
            record(tx, placed).await
        }
    }
    let absurd =
        [Duration::MAX, Duration::from_secs(u64::MAX), Duration::from_secs(10_000_000_000)];
    for wait in absurd {
        for order in [HandlingOrder::Key, HandlingOrder::Strict, HandlingOrder::None] {
            let shop = Shop::open().await;
            let config = ConsumerConfig { order, ..shop.config() };
            let started = shop.start(config, Router::new().on(Later(wait)));
            send(&shop).await;
            shop.until("select count(*) from effects", 38).await;
            let failed = "select coalesce(sum(attempts), 0)::bigint from pillarbox.inbox_failure";
            let first = if order == HandlingOrder::None { 2 } else { 1 };
            shop.until(failed, first).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert_eq!(shop.number(failed).await, first, "{wait:?}, {order:?}");
            assert!(!started.running.is_finished());
            started.stop().await;
        }
    }
}

#[tokio::test]
async fn an_event_that_the_encoding_of_the_database_refuses_is_given_up() {
    let shop = Shop::open().await;
    let name = format!("{}_latin1", shop.scope.prefix());
    let create = format!(
        "create database {name} encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0"
    );
    sqlx::raw_sql(AssertSqlSafe(create)).execute(shop.pool()).await.unwrap();
    let options: PgConnectOptions = shop.scope.database_url().parse().unwrap();
    let pool = PgPoolOptions::new().connect_with(options.database(&name)).await.unwrap();
    pillarbox_inbox::migrate(&pool).await.unwrap();
    let effects = "create table effects (event_id text, order_id bigint, step bigint)";
    sqlx::raw_sql(effects).execute(&pool).await.unwrap();

    let event = || {
        RawEvent::builder(OrderPlaced::TYPE, format!("{}.placed", shop.scope.prefix()))
            .payload(r#"{"order": 7, "step": 1}"#)
    };
    let odd = [
        event().id("order-\u{65e5}").build().unwrap(),
        event().key("\u{65e5}").build().unwrap(),
        event().header("note", "\u{65e5}").build().unwrap(),
    ];
    for event in &odd {
        shop.send(event).await;
    }
    shop.send(&shop.event(1, 1)).await;
    for order in [HandlingOrder::Key, HandlingOrder::Strict, HandlingOrder::None] {
        for table in ["inbox", "inbox_dead_letter", "inbox_failure", "inbox_request"] {
            let empty = format!("truncate pillarbox.{table}");
            sqlx::raw_sql(AssertSqlSafe(empty)).execute(&pool).await.unwrap();
        }
        // Under another name everything that was sent is new.
        let name = format!("payments-{order:?}");
        let config = ConsumerConfig { name, order, ..shop.config() };
        // Its error text is not of the encoding either.
        struct Refuses;
        impl Handler<Received<OrderPlaced>> for Refuses {
            async fn handle(
                &self,
                tx: &mut Tx,
                placed: Received<OrderPlaced>,
            ) -> Result<(), HandlerError> {
                if placed.order == BAD {
                    return Err(HandlerError::transient("\u{65e5}\u{672c}"));
                }
                record(tx, placed).await
            }
        }
        let (started, _) = shop.start_on(&pool, config, Router::new().on(Refuses));
        eventually("the letters", DEADLINE, async || {
            let dead = number(&pool, "select count(*) from pillarbox.inbox_dead_letter").await;
            let handled = number(&pool, "select count(distinct event_id) from effects").await;
            match dead {
                3 if handled > 0 => Ok(Some(())),
                _ => Err(format!("{dead} letters, {handled} handled, {order:?}")),
            }
        })
        .await
        .unwrap();
        started.stop().await;
    }
    pool.close().await;
}

async fn until_handled_without_a_pause(status: &mut Watch, events: u64) {
    until("the others to be handled", status, |status| {
        assert!(!matches!(status.state, ConsumerState::Paused { .. }), "{status:?}");
        status.totals.handled >= events
    })
    .await;
}

#[tokio::test]
async fn an_event_that_is_in_work_elsewhere_delays_only_itself_under_a_lock_timeout() {
    struct Holds(Arc<Notify>, Arc<Notify>);
    impl Handler<Received<OrderPlaced>> for Holds {
        async fn handle(
            &self,
            tx: &mut Tx,
            placed: Received<OrderPlaced>,
        ) -> Result<(), HandlerError> {
            self.0.notify_one();
            self.1.notified().await;
            record(tx, placed).await
        }
    }
    let shop = Shop::open().await;
    let held = shop.event(BAD, 1);
    let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let router = Router::new().on(Holds(begun.clone(), go_on.clone()));
    let inbox = InboxLayer::new(shop.pool().clone(), "payments").unwrap().layer(router);
    let elsewhere = tokio::spawn(inbox.oneshot(held.clone().into()));
    begun.notified().await;

    let options: PgConnectOptions = shop.scope.database_url().parse().unwrap();
    let options = options.options([("lock_timeout", "50")]);
    let pool = PgPoolOptions::new().connect_with(options).await.unwrap();
    let router = Router::new().on(record);
    let (started, mut status) = shop.start_on(&pool, shop.config(), router);
    shop.send(&held).await;
    shop.until("select count(*) from pillarbox.inbox_failure where outages > 2", 1).await;
    for order in 8..=20 {
        shop.send(&shop.event(order, 1)).await;
    }
    until_handled_without_a_pause(&mut status, 13).await;
    go_on.notify_one();
    elsewhere.await.unwrap().unwrap();
    shop.drained().await;
    started.stop().await;
    shop.assert_each_once_in_order(14).await;
}

#[tokio::test]
async fn a_letter_that_cannot_be_written_delays_only_its_own_event() {
    let shop = Shop::open().await;
    sqlx::raw_sql(
        "create function refuse() returns trigger language plpgsql as \
         $$ begin raise exception 'no letters of this key'; end $$; \
         create trigger refuse before insert on pillarbox.inbox_dead_letter \
         for each row when (new.key = '7') execute function refuse()",
    )
    .execute(shop.pool())
    .await
    .unwrap();
    let webhook = Webhook(HandlerError::permanent);
    let (started, mut status) =
        shop.start_on(shop.pool(), shop.config(), Router::new().on(webhook));
    shop.send(&shop.event(BAD, 1)).await;
    until("a failure", &mut status, |status| status.totals.failures > 2).await;
    send(&shop).await;
    until_handled_without_a_pause(&mut status, 38).await;
    sqlx::raw_sql("drop trigger refuse on pillarbox.inbox_dead_letter")
        .execute(shop.pool())
        .await
        .unwrap();
    shop.until("select count(*) from pillarbox.inbox_dead_letter", 3).await;
    started.stop().await;
}
