//! What is away is waited for: a lost database is noticed soon, a provider delays those who need it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::{DEADLINE, OrderPlaced, Shop, Slow, record, until};
use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use pillarbox_consumer::{ConsumerConfig, HandlingOrder};
use pillarbox_consumer::{ConsumerState, ConsumerStatus};
use pillarbox_inbox::{Fault, Handler, HandlerError, Received, Router, Tx};
use pillarbox_testkit::{Nats, Postgres, Proxy, Servers};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// Far less than the 30 s of a pool's acquire_timeout, and enough for a busy machine.
const SOON: Duration = Duration::from_secs(12);

fn is_paused(status: &ConsumerStatus) -> bool {
    matches!(status.state, ConsumerState::Paused { .. })
}

#[tokio::test]
async fn a_killed_database_pauses_the_consumer_soon_also_one_without_events() {
    let postgres = Postgres::start().await.unwrap();
    let mut servers = Servers { postgres, nats: Nats::start().await.unwrap() };
    let shop = Shop::on(servers.scope().await.unwrap()).await;
    let (started, mut status) = shop.start_on(shop.pool(), shop.config(), Router::new().on(record));
    until("a subscription", &mut status, ConsumerStatus::is_well).await;
    for step in 1..=2 {
        servers.postgres.kill().unwrap();
        let killed = Instant::now();
        if step == 2 {
            shop.send(&shop.event(1, 1)).await;
        }
        until("a pause", &mut status, is_paused).await;
        assert!(killed.elapsed() < SOON, "{:?}", killed.elapsed());
        servers.postgres.restart().await.unwrap();
        until("the end of the pause", &mut status, ConsumerStatus::is_well).await;
    }
    shop.until("select count(*) from effects", 1).await;
    started.stop().await;
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_failure").await, 0);
}

/// Writes, tells, and goes on when it may.
struct Steps {
    written: Arc<Notify>,
    go_on: Arc<Notify>,
}

impl Handler<Received<OrderPlaced>> for Steps {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        record(tx, placed).await?;
        self.written.notify_one();
        self.go_on.notified().await;
        sqlx::query("select 1").execute(&mut **tx).await?;
        Ok(())
    }
}

#[tokio::test]
async fn a_database_that_hangs_under_a_handler_pauses_the_consumer_soon() {
    let shop = Shop::open().await;
    let port = pillarbox_testkit::servers().await.unwrap().postgres.port();
    let proxy = Proxy::to_port(port).await.unwrap();
    let through: PgConnectOptions = shop.scope.database_url().parse().unwrap();
    let pool = PgPoolOptions::new().connect_with(through.port(proxy.port())).await.unwrap();
    let (written, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let handler = Steps { written: written.clone(), go_on: go_on.clone() };
    let (started, mut status) = shop.start_on(&pool, shop.config(), Router::new().on(handler));
    shop.send(&shop.event(1, 1)).await;
    written.notified().await;
    proxy.stall();
    let stalled = Instant::now();
    go_on.notify_one();
    until("a pause", &mut status, is_paused).await;
    assert!(stalled.elapsed() < SOON, "{:?}", stalled.elapsed());
    proxy.flow();
    until("the end of the pause", &mut status, ConsumerStatus::is_well).await;
    shop.until("select count(*) from effects", 1).await;
    shop.drained().await;
    started.stop().await;
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_failure").await, 0);
}

#[tokio::test]
async fn neither_a_busy_pool_nor_a_slow_handler_is_taken_for_a_lost_database() {
    let shop = Shop::open().await;
    let pool =
        PgPoolOptions::new().max_connections(1).connect(shop.scope.database_url()).await.unwrap();
    let others = pool.acquire().await.unwrap();
    let slow = Router::new().on(Slow(Duration::from_secs(4)));
    let (started, mut status) = shop.start_on(&pool, shop.config(), slow);
    until("a subscription", &mut status, ConsumerStatus::is_well).await;
    shop.send(&shop.event(1, 1)).await;
    // Others have the only connection for longer than it takes to find out about the database.
    let never = |status: &ConsumerStatus| {
        assert!(!is_paused(status), "{status:?}");
        false
    };
    let busy = tokio::time::timeout(Duration::from_secs(5), status.until(never)).await;
    assert!(busy.is_err());
    drop(others);
    let handled = until("the event to be handled", &mut status, |status| {
        assert!(!is_paused(status), "{status:?}");
        status.is_caught_up() && status.totals.handled == 1
    });
    handled.await;
    started.stop().await;
}

/// Asks a provider about each event of order 1.
struct Asks(SocketAddr);

impl Handler<Received<OrderPlaced>> for Asks {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        if placed.order == 1 {
            TcpStream::connect(self.0).await?;
        }
        record(tx, placed).await
    }
}

#[tokio::test]
async fn a_provider_that_is_away_delays_those_who_need_it_and_makes_no_dead_letter() {
    let with = async |order| {
        let shop = Shop::open().await;
        let provider = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = provider.local_addr().unwrap();
        drop(provider);
        let config = ConsumerConfig { order, ..shop.config() };
        let (started, status) = shop.start_on(shop.pool(), config, Router::new().on(Asks(address)));
        shop.send(&shop.event(1, 1)).await;
        // Three attempts would be the last.
        shop.until(
            "select least(coalesce(max(outages), 0), 7)::bigint from pillarbox.inbox_failure",
            7,
        )
        .await;
        for other in 2..=10 {
            shop.send(&shop.event(other, 1)).await;
        }
        shop.send(&shop.event(1, 2)).await;
        shop.until("select count(*) from effects", 9).await;
        let now = status.get();
        assert_eq!(now.state, ConsumerState::Active, "the others go on");
        assert!(now.last_error.unwrap().error.contains("refused"));
        assert_eq!(shop.number("select sum(attempts) from pillarbox.inbox_failure").await, 0);

        let provider = TcpListener::bind(address).await.unwrap();
        shop.until("select count(*) from effects", 11).await;
        drop(provider);
        shop.drained().await;
        started.stop().await;
        if order == HandlingOrder::Key {
            shop.assert_each_once_in_order(11).await;
        }
        assert_eq!(shop.number("select count(*) from pillarbox.inbox_dead_letter").await, 0);
        assert_eq!(shop.number("select count(*) from pillarbox.inbox_failure").await, 0);
    };
    tokio::join!(with(HandlingOrder::Key), with(HandlingOrder::None));
}

#[tokio::test]
async fn an_http_client_that_is_refused_tells_of_an_outage_by_a_plain_question_mark() {
    async fn ask(address: SocketAddr) -> Result<(), HandlerError> {
        let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
        client.get(format!("http://{address}/").parse()?).await?;
        Ok(())
    }
    let provider = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = provider.local_addr().unwrap();
    // It hangs up on whoever asks, which the question may have brought about.
    let hangs_up = tokio::spawn(async move {
        loop {
            drop(provider.accept().await.unwrap());
        }
    });
    assert_eq!(ask(address).await.unwrap_err().fault(), Fault::Transient);
    hangs_up.abort();
    let _ = hangs_up.await;
    assert_eq!(ask(address).await.unwrap_err().fault(), Fault::Outage);
}

/// Hangs in a statement at the first attempt.
struct HangsOnce;

impl Handler<Received<OrderPlaced>> for HangsOnce {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        if placed.attempt() == 1 {
            sqlx::query("select pg_sleep(600)").execute(&mut **tx).await?;
        }
        record(tx, placed).await
    }
}

#[tokio::test]
async fn a_statement_that_hangs_ends_in_the_database_too_and_the_event_is_tried_again() {
    let shop = Shop::open().await;
    let config = ConsumerConfig { handler_timeout: Duration::from_secs(1), ..shop.config() };
    let started = shop.start(config, Router::new().on(HangsOnce));
    shop.send(&shop.event(1, 1)).await;
    let hangs = "select count(*) from pg_stat_activity \
                 where datname = current_database() and query like 'select pg_sleep%' and state = 'active'";
    shop.until(hangs, 1).await;
    shop.until(hangs, 0).await;
    shop.until("select count(*) from effects", 1).await;
    shop.drained().await;
    started.stop().await;
}

async fn note_timeout(tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
    sqlx::query(
        "insert into effects (event_id, order_id, step) \
         select current_setting('statement_timeout'), $1, $2",
    )
    .bind(placed.order)
    .bind(placed.step)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_lower_statement_timeout_of_the_connection_stays() {
    let shop = Shop::open().await;
    for (own, expected) in [("0", "32s"), ("1500", "1500ms"), ("2min", "32s")] {
        let options: PgConnectOptions = shop.scope.database_url().parse().unwrap();
        let options = options.options([("statement_timeout", own)]);
        let pool = PgPoolOptions::new().max_connections(2).connect_with(options).await.unwrap();
        let config = ConsumerConfig { concurrency: 1, ..shop.config() };
        let (started, _) = shop.start_on(&pool, config, Router::new().on(note_timeout));
        // Also on a connection that is kept: the second event finds the limit out, and the later ones go by it.
        for step in 1..=5 {
            shop.send(&shop.event(1, step)).await;
        }
        let noted = format!("select count(*) from effects where event_id = '{expected}'");
        shop.until(&noted, 5).await;
        started.stop().await;
        sqlx::raw_sql("truncate effects").execute(shop.pool()).await.unwrap();
    }
}

#[tokio::test]
async fn a_handler_says_when_to_be_called_again() {
    struct Later(tokio::sync::mpsc::UnboundedSender<Instant>);
    impl Handler<Received<OrderPlaced>> for Later {
        async fn handle(
            &self,
            tx: &mut Tx,
            placed: Received<OrderPlaced>,
        ) -> Result<(), HandlerError> {
            self.0.send(Instant::now()).unwrap();
            match placed.attempt() {
                1 => Err(HandlerError::transient("too many requests")
                    .retry_after(Duration::from_secs(3))),
                _ => record(tx, placed).await,
            }
        }
    }
    let with = async |order| {
        let shop = Shop::open().await;
        let (called, mut calls) = tokio::sync::mpsc::unbounded_channel();
        // The usual backoff is 40 ms at the most.
        let config = ConsumerConfig { order, ..shop.config() };
        let started = shop.start(config, Router::new().on(Later(called)));
        shop.send(&shop.event(1, 1)).await;
        let (first, second) = (calls.recv().await.unwrap(), calls.recv().await.unwrap());
        let waited = second - first;
        assert!(waited >= Duration::from_millis(2_900), "{waited:?}");
        shop.until("select count(*) from effects", 1).await;
        started.stop().await;
    };
    tokio::join!(with(HandlingOrder::Key), with(HandlingOrder::None));
}

#[tokio::test]
async fn a_stop_that_cannot_wait_rolls_back_and_the_event_comes_again_as_if_nothing_had_been() {
    struct Stuck(Arc<Notify>);
    impl Handler<Received<OrderPlaced>> for Stuck {
        async fn handle(
            &self,
            tx: &mut Tx,
            placed: Received<OrderPlaced>,
        ) -> Result<(), HandlerError> {
            record(tx, placed).await?;
            self.0.notify_one();
            std::future::pending().await
        }
    }
    async fn first_attempt(tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        assert_eq!(placed.attempt(), 1);
        record(tx, placed).await
    }
    let with = async |order| {
        let shop = Shop::open().await;
        let written = Arc::new(Notify::new());
        let config =
            ConsumerConfig { order, shutdown_timeout: Duration::from_millis(200), ..shop.config() };
        let started = shop.start(config.clone(), Router::new().on(Stuck(written.clone())));
        shop.send(&shop.event(1, 1)).await;
        written.notified().await;
        tokio::time::timeout(DEADLINE, started.stop()).await.expect("it waits no longer");
        let open = "select count(*) from pg_stat_activity \
                    where datname = current_database() and state like 'idle in%'";
        shop.until(open, 0).await;
        assert_eq!(shop.number("select count(*) from effects").await, 0);
        let started = shop.start(config, Router::new().on(first_attempt));
        shop.until("select count(*) from effects", 1).await;
        shop.drained().await;
        started.stop().await;
        assert_eq!(shop.number("select count(*) from pillarbox.inbox_failure").await, 0);
    };
    tokio::join!(with(HandlingOrder::Key), with(HandlingOrder::None));
}
