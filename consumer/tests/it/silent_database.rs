//! Connections that swallow what is sent over them: each statement of the inbox's own ends all the same, what became of
//! it is found out, and the pool gets other connections.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::{DEADLINE, OrderPlaced, Shop, record};
use axum::http::{Request, Response, StatusCode};
use bytes::Bytes;
use http_body_util::Full;
use pillarbox_consumer::{ConsumerConfig, HandlingOrder};
use pillarbox_inbox::http::{Command, IdempotencyLayer, StoredRequests};
use pillarbox_inbox::{Delivery, Handler, HandlerError, InboxLayer, Received, Router, Tx};
use pillarbox_testkit::{Proxy, servers};
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::sync::Semaphore;
use tower::{Layer, ServiceExt};

/// How long a statement of the inbox's own may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Enough for a machine that is busy.
const SOON: Duration = Duration::from_secs(25);

/// A shop whose database is reached through a proxy.
struct Line {
    shop: Shop,
    proxy: Proxy,
    pool: PgPool,
}

impl Line {
    async fn open(connections: u32) -> Self {
        let shop = Shop::open().await;
        let port = servers().await.unwrap().postgres.port();
        let proxy = Proxy::to_port(port).await.unwrap();
        let through: PgConnectOptions = shop.scope.database_url().parse().unwrap();
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(Duration::from_secs(3))
            .connect_with(through.port(proxy.port()))
            .await
            .unwrap();
        Self { shop, proxy, pool }
    }
}

/// Fails where and as the event says.
struct Moody;

impl Handler<Received<OrderPlaced>> for Moody {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        match (placed.order, placed.step) {
            (8, 1) if placed.attempt() == 1 => Err(HandlerError::transient("the first time")),
            (9, 1) => Err(HandlerError::permanent("never")),
            _ => record(tx, placed).await,
        }
    }
}

/// The connection over which a consumer says this is silent from then on. Whatever that was, everything takes effect
/// once.
async fn silent_at(said: &'static str, order: HandlingOrder) {
    let line = Line::open(4).await;
    let shop = &line.shop;
    line.proxy.swallow_where_said(said);
    let config = ConsumerConfig { order, concurrency: 1, ..shop.config() };
    let (started, _) = shop.start_on(&line.pool, config, Router::new().on(Moody));
    let began = Instant::now();
    for (order, step) in [(1, 1), (8, 1), (9, 1), (9, 2), (1, 2)] {
        shop.send(&shop.event(order, step)).await;
    }
    let parked = i64::from(order == HandlingOrder::Strict);
    shop.until("select count(*) from effects", 4 - parked).await;
    shop.until("select count(*) from pillarbox.inbox_dead_letter", 1 + parked).await;
    shop.drained().await;
    let took = began.elapsed();
    assert!(took >= LIMIT && took < SOON, "{said}: {took:?}");
    started.stop().await;
    shop.assert_each_once_in_order(4 - parked).await;
    // What is parked keeps what is known of it.
    shop.until(
        "select count(*) from pillarbox.inbox_failure where event_id not in \
                (select event_id from pillarbox.inbox_dead_letter where state = 'parked')",
        0,
    )
    .await;
}

/// Each waits for the limit, so they wait together.
#[tokio::test]
async fn whatever_waits_for_a_silent_connection_ends_and_goes_on() {
    tokio::join!(
        a_consumer_goes_on_wherever_its_connection_falls_silent(),
        a_pool_whose_connections_are_all_silent_gets_others(),
        what_is_asked_for_beside_the_consumer_ends_too(),
        a_request_is_answered_wherever_its_connection_falls_silent(),
        a_pool_gets_its_place_back_when_a_transaction_is_not_begun(),
        what_is_dropped_on_a_silent_connection_gives_its_place_back(),
        a_handler_that_is_dropped_on_a_silent_connection_gives_its_place_back(false),
        a_handler_that_is_dropped_on_a_silent_connection_gives_its_place_back(true),
    );
}

async fn a_consumer_goes_on_wherever_its_connection_falls_silent() {
    tokio::join!(
        silent_at("Records an event as handled", HandlingOrder::Key),
        silent_at("$prepare$prepare pillarbox_claim_", HandlingOrder::Key),
        silent_at("pillarbox.the_handler_ended_the_transaction", HandlingOrder::Key),
        silent_at("Counts a failed attempt", HandlingOrder::Key),
        silent_at("Gives an event up", HandlingOrder::Key),
        silent_at("Parks an event behind", HandlingOrder::Strict),
    );
}

/// Writes, and waits until it may go on.
struct Waiting {
    written: Arc<Semaphore>,
    go_on: Arc<Semaphore>,
}

impl Handler<Received<OrderPlaced>> for Waiting {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        record(tx, placed).await?;
        self.written.add_permits(1);
        self.go_on.acquire().await.unwrap().forget();
        Ok(())
    }
}

async fn a_pool_whose_connections_are_all_silent_gets_others() {
    let line = Line::open(2).await;
    let shop = &line.shop;
    let (written, go_on) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let handler = Waiting { written: written.clone(), go_on: go_on.clone() };
    let config = ConsumerConfig { concurrency: 2, ..shop.config() };
    let (started, _) = shop.start_on(&line.pool, config, Router::new().on(handler));
    for order in 1..=4 {
        shop.send(&shop.event(order, 1)).await;
    }
    written.acquire_many(2).await.unwrap().forget();
    line.proxy.swallow();
    let began = Instant::now();
    go_on.add_permits(100);
    shop.until("select count(*) from effects", 4).await;
    shop.drained().await;
    // The server would end the silent ones after 32 s.
    let took = began.elapsed();
    assert!(took >= LIMIT && took < SOON, "{took:?}");
    started.stop().await;
    shop.assert_each_once_in_order(4).await;
    // Nobody else has a place in the pool.
    let both = tokio::join!(line.pool.acquire(), line.pool.acquire());
    both.0.unwrap();
    both.1.unwrap();
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_database_that_is_silent() {
    let line = Line::open(4).await;
    let shop = &line.shop;
    let (written, go_on) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let handler = Waiting { written: written.clone(), go_on: go_on.clone() };
    let config = ConsumerConfig { shutdown_timeout: Duration::from_millis(500), ..shop.config() };
    let (started, _) = shop.start_on(&line.pool, config.clone(), Router::new().on(handler));
    shop.send(&shop.event(1, 1)).await;
    written.acquire().await.unwrap().forget();
    // Also for connections that are made from now on.
    line.proxy.stall();
    go_on.add_permits(100);
    let began = Instant::now();
    tokio::time::timeout(DEADLINE, started.stop()).await.expect("it waits no longer");
    let took = began.elapsed();
    assert!(took < Duration::from_millis(500) + LIMIT, "{took:?}");
    // What was on its way arrives late, or never. Neither is taken for granted.
    line.proxy.flow();
    let started = shop.start(config, Router::new().on(record));
    shop.until("select count(*) from effects", 1).await;
    shop.drained().await;
    started.stop().await;
    shop.assert_each_once_in_order(1).await;
}

/// What an operator, or a service, asks for ends within the limit, and works when it is tried again.
async fn asks(said: &'static str, ask: impl AsyncFn(&Line) -> Result<(), String>) {
    let line = Line::open(2).await;
    line.proxy.swallow_where_said(said);
    let began = Instant::now();
    let error = ask(&line).await.unwrap_err();
    let took = began.elapsed();
    assert!(error.contains("did not answer within 10s"), "{said}: {error}");
    assert!(took >= LIMIT && took < SOON, "{said}: {took:?}");
    ask(&line).await.unwrap();
}

async fn what_is_asked_for_beside_the_consumer_ends_too() {
    let layer = |line: &Line| InboxLayer::new(line.pool.clone(), "payments").unwrap();
    tokio::join!(
        asks("Removes old rows of a consumer", async |line| {
            let removed = layer(line).remove_old(Duration::from_secs(3_600)).await;
            removed.map(drop).map_err(|error| error.to_string())
        }),
        asks("select * from pillarbox.inbox_dead_letter", async |line| {
            let listed = layer(line).dead_letters().list(10).await;
            listed.map(drop).map_err(|error| error.to_string())
        }),
        asks("set state = 'parked'", async |line| {
            let retried = layer(line).dead_letters().retry_all().await;
            retried.map(drop).map_err(|error| error.to_string())
        }),
        asks("delete from pillarbox.inbox_request", async |line| {
            let removed = StoredRequests::new(line.pool.clone());
            let removed = removed.remove_older_than(Duration::from_secs(3_600)).await;
            removed.map(drop).map_err(|error| {
                std::error::Error::source(&error).map_or(error.to_string(), ToString::to_string)
            })
        }),
    );
}

async fn answer(request: Request<Full<Bytes>>) -> Result<Response<Full<Bytes>>, Infallible> {
    let command = request.extensions().get::<Command>().unwrap().clone();
    let mut tx = command.transaction().await.unwrap();
    let effect = sqlx::query("insert into effects (event_id) values ('once')");
    effect.execute(&mut **tx).await.unwrap();
    Ok(Response::new(Full::from("done")))
}

/// A request whose connection falls silent when this is said is answered in time, and its repeat takes effect once.
async fn request_silent_at(said: &'static str) {
    let line = Line::open(2).await;
    let service = tower::ServiceBuilder::new()
        .layer(IdempotencyLayer::new(line.pool.clone(), |_| Some("everybody".into())))
        .service_fn(answer);
    let send = async || {
        let request = Request::post("/").header("idempotency-key", "k1");
        let request = request.body(Full::from("tea")).unwrap();
        service.clone().oneshot(request).await.unwrap().status()
    };
    line.proxy.swallow_where_said(said);
    let began = Instant::now();
    assert_eq!(send().await, StatusCode::SERVICE_UNAVAILABLE, "{said}");
    let took = began.elapsed();
    assert!(took >= LIMIT && took < SOON, "{said}: {took:?}");
    let repeated =
        pillarbox_testkit::eventually("an answer", DEADLINE, async || match send().await {
            StatusCode::OK => Ok(Some(())),
            status => Err(status.to_string()),
        });
    repeated.await.unwrap();
    assert_eq!(line.shop.number("select count(*) from effects").await, 1, "{said}");
}

async fn a_request_is_answered_wherever_its_connection_falls_silent() {
    tokio::join!(
        request_silent_at("pg_try_advisory_xact_lock"),
        request_silent_at("Looks up the answer"),
        request_silent_at("Stores the answer"),
        request_silent_at("commit; begin; close all"),
    );
}

/// The pool has a connection to give, before TCP gives the silent one up.
async fn has_a_place(line: &Line, said: &str) {
    let began = Instant::now();
    let place = pillarbox_testkit::eventually("a connection", DEADLINE, async || {
        drop(line.pool.acquire().await.map_err(|error| error.to_string())?);
        Ok::<_, String>(Some(()))
    });
    place.await.unwrap();
    let took = began.elapsed();
    assert!(took < SOON, "{said}: {took:?}");
}

const BEGIN: &str = "set local idle_in_transaction_session_timeout";

async fn a_pool_gets_its_place_back_when_a_transaction_is_not_begun() {
    let handled = async {
        let line = Line::open(1).await;
        let shop = &line.shop;
        line.proxy.swallow_where_said(BEGIN);
        let config = ConsumerConfig { concurrency: 1, ..shop.config() };
        let began = Instant::now();
        let (started, _) = shop.start_on(&line.pool, config, Router::new().on(record));
        for order in 1..=3 {
            shop.send(&shop.event(order, 1)).await;
        }
        shop.until("select count(*) from effects", 3).await;
        let took = began.elapsed();
        assert!(took >= LIMIT && took < SOON, "{took:?}");
        started.stop().await;
        shop.assert_each_once_in_order(3).await;
        has_a_place(&line, BEGIN).await;
    };
    tokio::join!(handled, request_silent_at(BEGIN));
}

/// Drops what is under way, once its connection is silent.
async fn drop_once_silent(line: &Line, under_way: impl Future<Output: std::fmt::Debug>) {
    let silent = pillarbox_testkit::eventually("a silent connection", DEADLINE, async || {
        Ok::<_, String>(line.proxy.has_swallowed().then_some(()))
    });
    tokio::select! {
        done = under_way => panic!("{done:?}"),
        silent = silent => silent.unwrap(),
    }
}

/// Drops what is handled while its connection is silent.
async fn dropped_at(said: &'static str) {
    let line = Line::open(1).await;
    line.proxy.swallow_where_said(said);
    let layer = InboxLayer::new(line.pool.clone(), "payments").unwrap();
    let service = layer.layer(Router::new().on(record));
    let event = line.shop.event(1, 1);
    drop_once_silent(&line, service.clone().oneshot(Delivery::from(event.clone()))).await;
    has_a_place(&line, said).await;
    service.oneshot(Delivery::from(event)).await.unwrap();
    line.shop.assert_each_once_in_order(1).await;
}

async fn what_is_dropped_on_a_silent_connection_gives_its_place_back() {
    let request = async {
        let line = Line::open(1).await;
        let service = tower::ServiceBuilder::new()
            .layer(IdempotencyLayer::new(line.pool.clone(), |_| Some("everybody".into())))
            .service_fn(answer);
        line.proxy.swallow_where_said(BEGIN);
        let request = Request::post("/").header("idempotency-key", "k1");
        let request = request.body(Full::from("tea")).unwrap();
        drop_once_silent(&line, service.oneshot(request)).await;
        has_a_place(&line, "a dropped request").await;
    };
    tokio::join!(
        dropped_at("Records an event as handled"),
        dropped_at("pillarbox.the_handler_ended_the_transaction"),
        request,
    );
}

const ASKS: &str = "select 'the handler asks'";

/// Asks the database, and records.
struct Asking;

impl Handler<Received<OrderPlaced>> for Asking {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        sqlx::raw_sql(ASKS).execute(&mut **tx).await?;
        record(tx, placed).await
    }
}

/// The server knows of no limit for these transactions, and ends none of them.
async fn a_handler_that_is_dropped_on_a_silent_connection_gives_its_place_back(by_a_layer: bool) {
    let line = Line::open(1).await;
    line.proxy.swallow_where_said(ASKS);
    let layer = InboxLayer::new(line.pool.clone(), "payments").unwrap();
    let longest = Duration::from_millis(if by_a_layer { 500 } else { 600_000 });
    let handler = tower::ServiceBuilder::new().timeout(longest).service(Router::new().on(Asking));
    let service = layer.layer(handler);
    let event = line.shop.event(1, 1);
    let handled = service.clone().oneshot(Delivery::from(event.clone()));
    match by_a_layer {
        true => drop(handled.await.unwrap_err()),
        false => drop_once_silent(&line, handled).await,
    }
    has_a_place(&line, "a dropped handler").await;
    service.oneshot(Delivery::from(event)).await.unwrap();
    line.shop.assert_each_once_in_order(1).await;
}
