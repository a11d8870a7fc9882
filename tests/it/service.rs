//! A service in one process: it waits for what is away, stops in order, and ends when a part fails.

use std::future::pending;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::routing::{get, post};
use pillarbox::relay::{Relay, RelayConfig, Role};
use pillarbox::service::{Service, ServiceError};
use pillarbox::{Consumer, Event, HandlerError, Tx, consumer, inbox, outbox, with_state};
use pillarbox_store::Operator;
use pillarbox_store::consumers::Consumers;
use pillarbox_testkit::{Nats, Postgres, Scope, eventually, isolated};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Event, Debug, serde::Serialize, serde::Deserialize)]
#[event(type = "order.placed", topic = "orders.placed", key = order)]
struct OrderPlaced {
    order: i64,
}

/// Lets the test hold back a handler or a request: it takes a permit that only the test gives.
type Gate = Arc<Semaphore>;

async fn count(tx: &mut Tx, placed: OrderPlaced, gate: &Gate) -> Result<(), HandlerError> {
    sqlx::query("insert into effects values ($1)").bind(placed.order).execute(&mut **tx).await?;
    // The first order waits for the test.
    if placed.order == 1 {
        gate.acquire().await?.forget();
    }
    Ok(())
}

async fn place(pool: &PgPool, order: i64) -> anyhow::Result<()> {
    let mut tx = pool.begin().await?;
    outbox::publish(&mut tx, OrderPlaced { order }).await?;
    tx.commit().await?;
    Ok(())
}

async fn prepare((pool, nats): (PgPool, async_nats::Client)) -> anyhow::Result<()> {
    outbox::migrate(&pool).await?;
    inbox::migrate(&pool).await?;
    sqlx::raw_sql("create table if not exists effects (id bigint)").execute(&pool).await?;
    let jetstream = async_nats::jetstream::new(nats);
    consumer::streams::StreamSpec::fan_out("ORDERS", ["orders.>"]).ensure(&jetstream).await?;
    Ok(())
}

/// A service that places orders over HTTP and counts them.
struct Shop {
    pool: PgPool,
    url: String,
    consumer: Consumer,
    relay: tokio::sync::watch::Receiver<pillarbox::relay::RelayState>,
    stop: CancellationToken,
    running: JoinHandle<Result<(), ServiceError>>,
    /// One permit lets a slow request end, and the handler of the first order.
    slow_request: Gate,
    slow_handler: Gate,
    /// Has a permit once the slow request is under way.
    under_way: Gate,
}

impl Shop {
    async fn start(database_url: &str, nats_url: &str) -> Self {
        let pool = PgPoolOptions::new()
            .max_connections(20)
            .acquire_timeout(Duration::from_secs(2))
            .connect_lazy(database_url)
            .unwrap();
        let nats = pillarbox_testkit::nats::connect_options(nats_url).retry_on_initial_connect();
        let nats = nats.connect(nats_url).await.unwrap();
        let (slow_request, slow_handler) =
            (Gate::new(Semaphore::new(0)), Gate::new(Semaphore::new(0)));
        let service = Service::new();
        let under_way = Gate::new(Semaphore::new(0));
        let (gate, begun) = (slow_request.clone(), under_way.clone());
        let app = axum::Router::new()
            .route(
                "/orders/{order}",
                post(async |State(pool): State<PgPool>, axum::extract::Path(order)| {
                    place(&pool, order).await.map_err(|error| error.to_string())
                }),
            )
            .route(
                "/slow",
                get(|| async move {
                    begun.add_permits(1);
                    gate.acquire().await.unwrap().forget();
                    "done"
                }),
            )
            .with_state(pool.clone())
            .merge(service.readiness().routes());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let consumer = Consumer::new(nats.clone(), pool.clone(), "ORDERS", "counts").unwrap();
        let consumer = consumer.on(with_state(slow_handler.clone(), count));
        let relay = Relay::new(RelayConfig {
            database_url: database_url.to_owned(),
            nats_url: nats_url.to_owned(),
            ..RelayConfig::default()
        })
        .unwrap();
        let (state, stop) = (relay.state(), CancellationToken::new());
        let service = service
            .prepare("tables and stream", (pool.clone(), nats), prepare)
            .http(listener, app)
            .consumer(consumer.clone())
            .relay(relay)
            .stop_within(DEADLINE * 5);
        let running = tokio::spawn(service.run(stop.clone()));
        Self {
            pool,
            url,
            consumer,
            relay: state,
            stop,
            running,
            slow_request,
            slow_handler,
            under_way,
        }
    }

    async fn on(scope: &Scope) -> Self {
        Self::start(scope.database_url(), scope.nats_url()).await
    }

    /// The status and the text of an answer.
    async fn get(&self, path: &str) -> Result<(u16, String), reqwest::Error> {
        let answer = reqwest::get(format!("{}{path}", self.url)).await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// Waits until `/readyz` answers with this status and this word.
    async fn until_ready_is(&self, status: u16, word: &str) {
        eventually(&format!("{status} {word}"), DEADLINE, async || {
            match self.get("/readyz").await {
                Ok(answer) if answer.0 == status && answer.1.contains(word) => Ok(Some(())),
                Ok(answer) => Err(format!("{answer:?}")),
                Err(error) => Err(error.to_string()),
            }
        })
        .await
        .unwrap();
    }

    async fn until_effects_are(&self, wanted: i64) {
        eventually(&format!("{wanted} effects"), DEADLINE, async || {
            let count = sqlx::query_scalar::<_, i64>("select count(*) from effects");
            match count.fetch_one(&self.pool).await {
                Ok(count) if count == wanted => Ok(Some(())),
                Ok(count) => Err(format!("there are {count}")),
                Err(error) => Err(error.to_string()),
            }
        })
        .await
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_and_a_broker_that_are_away_at_the_start_are_waited_for() {
    let (mut postgres, mut nats) = (Postgres::start().await.unwrap(), Nats::start().await.unwrap());
    let database = postgres.create_database("shop").await.unwrap();
    database.pool.close().await;
    postgres.stop().await.unwrap();
    nats.stop().await.unwrap();

    let shop = Shop::start(&database.url, &nats.url()).await;
    shop.until_ready_is(503, "tables and stream waits").await;
    assert_eq!(shop.get("/healthz").await.unwrap().0, 200);
    assert_eq!(shop.get("/readyz/http").await.unwrap().0, 503, "nothing is prepared");
    // One is back, the other is not: what depends on both still waits.
    postgres.restart().await.unwrap();
    shop.until_ready_is(503, "stream ORDERS").await;
    nats.restart().await.unwrap();
    shop.until_ready_is(200, "ready").await;

    let posted =
        reqwest::Client::new().post(format!("{}/orders/2", shop.url)).send().await.unwrap();
    assert_eq!(posted.status(), 200);
    shop.until_effects_are(1).await;
    // Requests are answered while the broker is away, and their events wait.
    nats.stop().await.unwrap();
    shop.until_ready_is(503, "consumer counts").await;
    assert_eq!(shop.get("/readyz/http").await.unwrap().0, 200);
    place(&shop.pool, 3).await.unwrap();
    nats.restart().await.unwrap();
    shop.until_effects_are(2).await;
    shop.until_ready_is(200, "ready").await;
    shop.stop.cancel();
    shop.running.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_an_operator_paused_leaves_the_service_ready_and_readyz_says_so() {
    let scope = isolated().await.unwrap();
    let shop = Shop::on(&scope).await;
    shop.until_ready_is(200, "ready").await;
    place(&shop.pool, 2).await.unwrap();
    shop.until_effects_are(1).await;
    let consumers = Consumers::new(shop.pool.clone(), "pillarbox").unwrap();
    let mia = Operator::new("mia", Some("the books are closed"));
    assert!(consumers.pause("counts", None, &mia).await.unwrap());
    shop.until_ready_is(200, "counts: paused by mia since 20").await;
    shop.until_ready_is(200, "Z: the books are closed\n").await;
    place(&shop.pool, 3).await.unwrap();
    consumers.pause("counts", Some("order.placed"), &mia).await.unwrap();
    shop.until_ready_is(200, "; type order.placed is paused by mia").await;
    for event_type in [None, Some("order.placed")] {
        assert!(consumers.resume("counts", event_type, &mia).await.unwrap());
    }
    shop.until_effects_are(2).await;
    shop.stop.cancel();
    shop.running.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_end_first_then_handlers_and_the_relay_last() {
    let scope = isolated().await.unwrap();
    let shop = Shop::on(&scope).await;
    shop.until_ready_is(200, "ready").await;
    let request = tokio::spawn(reqwest::get(format!("{}/slow", shop.url)));
    tokio::time::timeout(DEADLINE, shop.under_way.acquire()).await.unwrap().unwrap().forget();
    shop.stop.cancel();
    // No connection is accepted any more, but the consumer and the relay work as before, for the request's sake.
    eventually("connections to be refused", DEADLINE, async || {
        Ok::<_, String>(shop.get("/healthz").await.is_err().then_some(()))
    })
    .await
    .unwrap();
    place(&shop.pool, 2).await.unwrap();
    shop.until_effects_are(1).await;
    // The handler of the first order is under way when the request ends.
    place(&shop.pool, 1).await.unwrap();
    eventually("the handler to be under way", DEADLINE, async || {
        let left = shop.consumer.unhandled().await.map_err(|error| error.to_string())?;
        Ok::<_, String>((left.ack_pending == 1).then_some(()))
    })
    .await
    .unwrap();
    shop.slow_request.add_permits(1);
    assert_eq!(request.await.unwrap().unwrap().text().await.unwrap(), "done");
    // The consumer takes nothing new, and the relay still ships.
    let shipped = async || {
        let stream = scope.jetstream().get_stream("ORDERS").await.map_err(|e| e.to_string())?;
        Ok::<_, String>(stream.cached_info().state.messages)
    };
    place(&shop.pool, 3).await.unwrap();
    eventually("the relay to ship", DEADLINE, async || {
        Ok::<_, String>((shipped().await? == 3).then_some(()))
    })
    .await
    .unwrap();
    assert_eq!(shop.relay.borrow().role, Role::Leading);
    assert!(!shop.running.is_finished());
    shop.slow_handler.add_permits(1);
    shop.running.await.unwrap().unwrap();
    assert_eq!(shop.relay.borrow().role, Role::Stopped);
    let effects: Vec<i64> = sqlx::query_scalar("select id from effects order by id")
        .fetch_all(&shop.pool)
        .await
        .unwrap();
    assert_eq!(effects[..2], [1, 2], "the handler that was under way has finished");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_fails_ends_the_others_in_order_and_its_error_is_returned() {
    let scope = isolated().await.unwrap();
    prepare((scope.pool().clone(), scope.nats().clone())).await.unwrap();
    let consumer = |name| Consumer::new(scope.nats().clone(), scope.pool().clone(), "ORDERS", name);
    let well = consumer("well").unwrap().on(with_state(Gate::new(Semaphore::new(9)), count));
    let status = well.status();
    let (seen, was_up) = (status.clone(), CancellationToken::new());
    let up = was_up.clone();
    let service = Service::new()
        .task("front", move |stop| async move {
            stop.cancelled().await;
            // The consumers stop after this.
            if seen.get().state != consumer::ConsumerState::Stopped {
                up.cancel();
            }
            Ok::<_, std::io::Error>(())
        })
        .consumer(well)
        .consumer(consumer("without-handlers").unwrap());
    let ended = tokio::time::timeout(DEADLINE, service.run(CancellationToken::new()));
    let error = ended.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "consumer without-handlers failed");
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("has no handler"));
    assert!(was_up.is_cancelled(), "the consumer was stopped before the task had ended");
    assert_eq!(status.get().state, consumer::ConsumerState::Stopped);
}

#[tokio::test]
async fn a_task_may_end_but_its_error_or_panic_ends_the_service() {
    let run = |service: Service| service.run(CancellationToken::new());
    let well = || Service::new().task("job", |_| async { Ok::<_, String>(()) });
    run(well()).await.unwrap();
    let failing =
        well().task("job 2", |_| async { Err("no disk") }).task("loop", |stop| async move {
            stop.cancelled().await;
            Ok::<_, String>(())
        });
    let error = run(failing).await.unwrap_err();
    assert!(
        matches!(&error, ServiceError::Failed { part, source } if part == "job 2" && source.to_string() == "no disk")
    );
    let panics = well().task("job 3", |_| async {
        assert!(std::env::args().count() == 0, "by design");
        Ok::<_, String>(())
    });
    let error = run(panics).await.unwrap_err();
    assert!(
        matches!(&error, ServiceError::Panicked { part, text } if part == "job 3" && text == "by design")
    );
    let impossible =
        well().prepare("tables", (), |()| async { Err::<(), _>(sqlx::Error::RowNotFound) });
    let error = run(impossible).await.unwrap_err();
    assert_eq!(error.to_string(), "tables failed");
}

#[tokio::test]
async fn a_stop_is_bounded_and_a_preparation_does_not_hold_it_up() {
    let stop = CancellationToken::new();
    let service = Service::new()
        .task("deaf", |_| pending::<Result<(), String>>())
        .prepare("the impossible", (), |()| async { Err::<(), _>("not yet") })
        .stop_within(Duration::from_millis(500));
    let (readiness, running) = (service.readiness(), tokio::spawn(service.run(stop.clone())));
    eventually("the preparation to be tried", DEADLINE, async || {
        let said = readiness.check().to_string();
        if said.contains("the impossible waits: not yet") { Ok(Some(())) } else { Err(said) }
    })
    .await
    .unwrap();
    let asked = Instant::now();
    stop.cancel();
    running.await.unwrap().unwrap();
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    assert!(readiness.check().to_string().contains("has stopped"));
}

#[tokio::test]
async fn no_stop_is_too_long_for_the_clock() {
    let stop = CancellationToken::new();
    stop.cancel();
    let service = Service::new().task("front", |stop| async move {
        stop.cancelled().await;
        Ok::<_, String>(())
    });
    service.stop_within(Duration::MAX).run(stop).await.unwrap();
}

/// The process of the next test: it says when it runs, and what happened.
#[tokio::test]
#[ignore = "it is started by the next test"]
async fn child() {
    let slow = std::env::var("PILLARBOX_TEST_SLOW").is_ok();
    let service = Service::new().task("front", move |stop| async move {
        println!("it runs");
        stop.cancelled().await;
        println!("it stops");
        if slow {
            pending::<()>().await;
        }
        Ok::<_, String>(())
    });
    match service.run_until_signal().await {
        Ok(()) => println!("it has stopped"),
        Err(error) => println!("it failed: {error}"),
    }
}

#[tokio::test]
async fn sigterm_stops_it_and_a_second_one_ends_it_at_once() {
    use process::{kill, lines_of};
    for (slow, last) in [(false, "it has stopped"), (true, "it failed: a second signal")] {
        let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "service::child", "--ignored", "--nocapture"]);
        if slow {
            command.env("PILLARBOX_TEST_SLOW", "1");
        }
        let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let mut lines = lines_of(&mut child);
        lines.until("it runs").await;
        kill(&child);
        lines.until("it stops").await;
        if slow {
            kill(&child);
        }
        lines.until(last).await;
    }
}

mod process {
    use tokio::io::{AsyncBufReadExt, BufReader, Lines};
    use tokio::process::{Child, ChildStdout};

    /// Sends SIGTERM.
    pub(super) fn kill(child: &Child) {
        let id = child.id().unwrap().to_string();
        let sent = std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap();
        assert!(sent.success());
    }

    pub(super) struct Output(Lines<BufReader<ChildStdout>>);

    pub(super) fn lines_of(child: &mut Child) -> Output {
        Output(BufReader::new(child.stdout.take().unwrap()).lines())
    }

    impl Output {
        /// Reads until a line contains this.
        pub(super) async fn until(&mut self, wanted: &str) {
            let reading = async {
                while let Some(line) = self.0.next_line().await.unwrap() {
                    if line.contains(wanted) {
                        return;
                    }
                }
                panic!("the process ended without saying {wanted:?}");
            };
            tokio::time::timeout(super::DEADLINE, reading).await.unwrap();
        }
    }
}
