//! Messages that the client library cannot parse: a foreign producer, or a broken one, put them into the stream.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::support::{self, OrderPlaced, Shop, record};
use pillarbox_consumer::ConsumerState;
use pillarbox_consumer::{Consumer, ConsumerConfig, HandlingOrder};
use pillarbox_inbox::{Handler, HandlerError, Received, Router, Tx};
use pillarbox_testkit::{Nats, Postgres, Servers};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Publishes as the bytes are.
async fn publish(port: u16, subject: &[u8], headers: &[u8], payload: &[u8]) {
    let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
    stream.read_line(&mut String::new()).await.unwrap();
    let mut said = b"CONNECT {\"verbose\":false,\"headers\":true}\r\nHPUB ".to_vec();
    said.extend_from_slice(subject);
    said.extend_from_slice(
        format!(" {} {}\r\n", headers.len(), headers.len() + payload.len()).as_bytes(),
    );
    said.extend_from_slice(headers);
    said.extend_from_slice(payload);
    said.extend_from_slice(b"\r\nPING\r\n");
    stream.write_all(&said).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"PONG\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).await.expect("the server hung up");
        answer.push(byte[0]);
    }
}

/// Header blocks that are no such, or that nobody should read as one.
const UNREADABLE: &[(&str, &[u8])] = &[
    ("Latin-1", b"NATS/1.0\r\nce-id: 1\r\nx-name: Caf\xe9\r\n\r\n"),
    ("no colon", b"NATS/1.0\r\nthere is no colon in this\r\n\r\n"),
    ("a status that is no number", b"NATS/1.0 abc\r\nx: y\r\n\r\n"),
    ("the status of a deleted consumer", b"NATS/1.0 409 Consumer Deleted\r\n\r\n"),
    ("the status of a heartbeat", b"NATS/1.0 100 Idle Heartbeat\r\n\r\n"),
    ("an unknown status", b"NATS/1.0 250\r\nx: y\r\n\r\n"),
    ("a name with a blank", b"NATS/1.0\r\nbad name: x\r\n\r\n"),
    ("a name with a NUL", b"NATS/1.0\r\nbad\0name: x\r\n\r\n"),
    ("no version", b"x: y\r\n\r\n"),
    ("a lone carriage return", b"NATS/1.0\r\nx: a\rb\r\n\r\n"),
];

/// What can be parsed, and is no event all the same.
const ODD: &[(&str, &[u8])] = &[
    ("an empty name", b"NATS/1.0\r\n: x\r\n\r\n"),
    ("a NUL in a value", b"NATS/1.0\r\nx: a\0b\r\n\r\n"),
    ("a block without an end", b"NATS/1.0\r\nx: y"),
    ("only a version", b"NATS/1.0\r\n\r\n"),
];

const EFFECTS: &str = "select count(*) from effects";
const LETTERS: &str = "select count(*) from pillarbox.inbox_dead_letter";

/// Far more than it takes, on a busy machine too.
const SOON: Duration = Duration::from_secs(30);

async fn assert_all_take_effect(
    order: HandlingOrder,
    config: impl FnOnce(ConsumerConfig) -> ConsumerConfig,
) {
    let shop = Shop::open().await;
    let port = pillarbox_testkit::servers().await.unwrap().nats.port();
    let subject = format!("{}.placed", shop.scope.prefix());
    for order in 0..10 {
        shop.send(&shop.event(order, 1)).await;
    }
    for (number, (_, headers)) in UNREADABLE.iter().chain(ODD).enumerate() {
        publish(port, subject.as_bytes(), headers, b"{}").await;
        shop.send(&shop.event(i64::try_from(number).unwrap() % 10, 2)).await;
    }
    let huge = [&b"NATS/1.0\r\nx: "[..], &vec![b'x'; 60_000], b"\r\n\r\n"].concat();
    publish(port, subject.as_bytes(), &huge, b"{}").await;
    let odd_subject = [subject.as_bytes(), b".\xff"].concat();
    publish(port, &odd_subject, b"NATS/1.0\r\nx: y\r\n\r\n", b"{}").await;
    for order in 10..60 {
        shop.send(&shop.event(order, 1)).await;
    }
    let unreadable = UNREADABLE.len() + ODD.len() + 2;
    let good = i64::try_from(60 + UNREADABLE.len() + ODD.len()).unwrap();

    let client = pillarbox_testkit::servers().await.unwrap().nats.connect().await.unwrap();
    let config = config(ConsumerConfig { order, ..shop.config() });
    let consumer =
        pillarbox_consumer::Consumer::with_config(client.clone(), shop.pool().clone(), config)
            .unwrap();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let began = Instant::now();
    let router = Router::new().on(record);
    let running = tokio::spawn(consumer.router(router).run(shutdown.clone()));
    shop.until(EFFECTS, good).await;
    shop.until(LETTERS, i64::try_from(unreadable).unwrap()).await;
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    shop.drained().await;
    assert_eq!(shop.number(EFFECTS).await, good);
    assert_eq!(
        client.statistics().connects.load(Ordering::Relaxed),
        1,
        "the service's own client keeps its connection"
    );
    shutdown.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn messages_that_cannot_be_parsed_are_set_aside_and_everything_else_takes_effect() {
    assert_all_take_effect(HandlingOrder::Key, |config| config).await;
}

#[tokio::test]
async fn messages_that_cannot_be_parsed_are_set_aside_without_an_order_too() {
    assert_all_take_effect(HandlingOrder::None, |config| ConsumerConfig {
        ack_wait: Duration::from_secs(30),
        ..config
    })
    .await;
}

#[tokio::test]
async fn events_lost_with_the_connection_come_again_at_once_also_after_others_were_acknowledged() {
    let shop = Shop::open().await;
    let port = pillarbox_testkit::servers().await.unwrap().nats.port();
    let subject = format!("{}.placed", shop.scope.prefix());
    let config = || ConsumerConfig {
        order: HandlingOrder::None,
        ack_wait: Duration::from_secs(120),
        ..shop.config()
    };
    let router = || Router::new().on(record);
    let mut good = 0;
    for round in 0..3 {
        // The first round has none that ends the connection, and the durable acknowledges its events.
        for order in 0..30 {
            shop.send(&shop.event(round * 100 + order, 1)).await;
            if round > 0 && order % 10 == 5 {
                publish(port, subject.as_bytes(), UNREADABLE[0].1, b"{}").await;
            }
        }
        good += 30;
        let began = Instant::now();
        let running = shop.start(config(), router());
        shop.until(EFFECTS, good).await;
        shop.until(LETTERS, 3 * round).await;
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        shop.drained().await;
        running.stop().await;
    }
}

#[tokio::test]
async fn a_message_that_cannot_be_parsed_keeps_its_bytes_and_its_letter_names_its_place() {
    let shop = Shop::open().await;
    let port = pillarbox_testkit::servers().await.unwrap().nats.port();
    let subject = format!("{}.placed", shop.scope.prefix());
    shop.send(&shop.event(1, 1)).await;
    let headers = b"NATS/1.0\r\nce-id: 1\r\nx-name: Caf\xe9\r\n\r\n";
    publish(port, subject.as_bytes(), headers, b"\x00\xffpayload").await;
    shop.send(&shop.event(2, 1)).await;
    let started = shop.start(shop.config(), Router::new().on(record));
    shop.until(EFFECTS, 2).await;
    shop.until(LETTERS, 1).await;
    shop.drained().await;
    started.stop().await;
    let place = format!(
        "select count(*) from pillarbox.inbox_dead_letter \
         where error like '%{}%sequence 2%not UTF-8%' and payload = '\\x00ff7061796c6f6164' \
         and topic = '{subject}' and reason = 'undecodable' \
         and decode(headers ->> 'pillarbox-raw-headers', 'base64') \
             = '\\x4e4154532f312e300d0a63652d69643a20310d0a782d6e616d653a20436166e90d0a0d0a'",
        shop.stream
    );
    assert_eq!(shop.number(&place).await, 1);
}

/// Holds the events of order 1 back.
struct HoldsOne;

impl Handler<Received<OrderPlaced>> for HoldsOne {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        if placed.order == 1 {
            return Err(HandlerError::outage("the provider is away"));
        }
        record(tx, placed).await
    }
}

#[tokio::test]
async fn an_event_that_is_held_before_a_message_that_cannot_be_parsed_holds_no_other_key() {
    let shop = Shop::open().await;
    let port = pillarbox_testkit::servers().await.unwrap().nats.port();
    let subject = format!("{}.placed", shop.scope.prefix());
    shop.send(&shop.event(1, 1)).await;
    for (_, headers) in &UNREADABLE[..2] {
        publish(port, subject.as_bytes(), headers, b"{}").await;
    }
    for order in 2..50 {
        shop.send(&shop.event(order, 1)).await;
    }
    let started = shop.start(shop.config(), Router::new().on(HoldsOne));
    shop.until(EFFECTS, 48).await;
    shop.until(LETTERS, 2).await;
    // Also what comes later, and to another process.
    started.running.abort();
    for order in 50..60 {
        shop.send(&shop.event(order, 1)).await;
    }
    let started = shop.start(shop.config(), Router::new().on(record));
    shop.until(EFFECTS, 59).await;
    shop.until(LETTERS, 2).await;
    shop.drained().await;
    started.stop().await;
}

#[tokio::test]
async fn a_broker_that_restarts_brings_no_message_back_that_was_set_aside() {
    let postgres = Postgres::start().await.unwrap();
    let mut servers = Servers { postgres, nats: Nats::start().await.unwrap() };
    let shop = Shop::on(servers.scope().await.unwrap()).await;
    let subject = format!("{}.placed", shop.scope.prefix());
    publish(servers.nats.port(), subject.as_bytes(), UNREADABLE[0].1, b"{}").await;
    shop.send(&shop.event(1, 1)).await;
    let started = shop.start(shop.config(), Router::new().on(record));
    shop.until(EFFECTS, 1).await;
    shop.until(LETTERS, 1).await;
    servers.nats.kill().unwrap();
    servers.nats.restart().await.unwrap();
    for order in 2..=10 {
        shop.send(&shop.event(order, 1)).await;
    }
    shop.until(EFFECTS, 10).await;
    shop.until(LETTERS, 1).await;
    started.stop().await;
}

/// The client is gone for good after such a message, and what came before it is still there to be read.
#[tokio::test]
async fn a_message_that_ends_the_client_is_found_wherever_it_lies_in_the_first_messages() {
    let headers = b"NATS/1.0\r\nx: a\rb\r\n\r\n";
    for (before, processes) in [(0, 1), (1, 1), (20, 1), (3, 2)] {
        let nats = Nats::start().await.unwrap();
        let servers = Servers { postgres: Postgres::start().await.unwrap(), nats };
        let shop = Shop::on(servers.scope().await.unwrap()).await;
        // The server numbers its connections.
        let connections = async || {
            let client = async_nats::connect(servers.nats.url()).await.unwrap();
            client.server_info().client_id
        };
        let port = servers.nats.port();
        let subject = format!("{}.placed", shop.scope.prefix());
        for order in 0..before {
            shop.send(&shop.event(order, 1)).await;
        }
        publish(port, subject.as_bytes(), headers, b"{}").await;
        for order in 0..20 {
            shop.send(&shop.event(order, 2)).await;
        }
        let (connected, mut started) = (connections().await, Vec::new());
        for _ in 0..processes {
            started.push(shop.start(shop.config(), Router::new().on(record)));
        }
        let all = tokio::time::timeout(SOON, shop.until(EFFECTS, before + 20)).await;
        all.unwrap_or_else(|_| {
            panic!("it stands still: {before} before it, {processes} processes")
        });
        let connected = connections().await - connected;
        println!("{before} before it, {processes} processes: {connected} connections");
        assert!(connected <= 8 * processes, "{before} before it: {connected} connections");
        shop.until(LETTERS, 1).await;
        for started in started {
            started.stop().await;
        }
    }
}

/// Of a service that must not read messages from the stream.
const FORBIDDEN: &str = "deny: [\"$JS.API.STREAM.MSG.GET.>\"]";

/// One that cannot be parsed stops its consumer, which is not well then and names the right, until somebody mends it.
async fn assert_stopped_until(mended: impl AsyncFnOnce(&Servers, &Shop)) {
    let users = format!(
        "authorization {{ users: [ {{ user: admin, password: a }}, {{ user: service, password: s, permissions: \
         {{ publish: {{ {FORBIDDEN} }} }} }} ] }}\nno_auth_user: admin"
    );
    let nats = Nats::options().config(&users).start().await.unwrap();
    let servers = Servers { postgres: Postgres::start().await.unwrap(), nats };
    let shop = Shop::on(servers.scope().await.unwrap()).await;
    let url = format!("nats://127.0.0.1:{}", servers.nats.port());
    let options = async_nats::ConnectOptions::with_user_and_password("service".into(), "s".into());
    let client = options.clone().connect(&*url).await.unwrap();
    let consumer = Consumer::with_config(client, shop.pool().clone(), shop.config()).unwrap();
    let consumer = consumer.reading_with(options, &*url).unwrap();
    let (mut status, shutdown) = (consumer.status(), tokio_util::sync::CancellationToken::new());
    let router = Router::new().on(record);
    let running = tokio::spawn(consumer.router(router).run(shutdown.clone()));

    shop.send(&shop.event(1, 1)).await;
    shop.until(EFFECTS, 1).await;
    let subject = format!("{}.placed", shop.scope.prefix());
    publish(servers.nats.port(), subject.as_bytes(), UNREADABLE[0].1, b"{}").await;
    shop.send(&shop.event(2, 1)).await;
    let right = format!("$JS.API.STREAM.MSG.GET.{}", shop.stream);
    let told = status.until(|status| match &status.state {
        ConsumerState::Waiting { reason } => reason.contains(&right),
        _ => false,
    });
    let told =
        tokio::time::timeout(support::DEADLINE, told).await.expect("nothing names the right");
    assert!(!told.unwrap().is_well());

    mended(&servers, &shop).await;
    shop.until(EFFECTS, 2).await;
    let well = status.until(|status| status.is_well());
    tokio::time::timeout(support::DEADLINE, well).await.expect("not well again").unwrap();
    shutdown.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_consumer_that_may_not_read_what_stops_it_goes_on_once_that_is_removed() {
    assert_stopped_until(async |_, shop| {
        let stream = shop.scope.jetstream().get_stream(&shop.stream).await.unwrap();
        stream.delete_message(2).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_consumer_that_may_not_read_what_stops_it_sets_it_aside_soon_after_it_may() {
    assert_stopped_until(async |servers, shop| {
        let settings = servers.nats.folder().join("server.conf");
        let before = std::fs::read_to_string(&settings).unwrap();
        std::fs::write(&settings, before.replace(FORBIDDEN, "allow: [\">\"]")).unwrap();
        let pid = i32::try_from(servers.nats.pid().unwrap()).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
        let soon = tokio::time::timeout(SOON, shop.until(LETTERS, 1)).await;
        soon.expect("it waits too long before it looks again");
    })
    .await;
}
