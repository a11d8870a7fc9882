//! Several processes of one consumer share a stream by partitions, and the order per key holds across them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::process::{self, Process};
use crate::support::{DEADLINE, OrderPlaced, Shop, Started, headers, record, until};
use async_nats::HeaderMap;
use async_nats::jetstream::stream;
use pillarbox_consumer::{Consumer, ConsumerConfig, ConsumerError, HandlingOrder};
use pillarbox_consumer::{ConsumerState, Watch};
use pillarbox_event::{Partition, RawEvent, header};
use pillarbox_inbox::{DeadLetters, Handler, HandlerError, Received, Router, Tx};
use pillarbox_testkit::{Proxy, eventually};
use tokio_util::sync::CancellationToken;

/// A message as the relay sends it with so many partitions.
fn message(event: &RawEvent, partitions: u32) -> (String, HeaderMap) {
    let partition = Partition::of_key(event.key().unwrap(), partitions);
    let mut headers = headers(event);
    headers.insert(header::PARTITION, partition.to_string());
    (partition.subject(event.topic()), headers)
}

async fn send(shop: &Shop, event: &RawEvent, partitions: u32) {
    let (subject, headers) = message(event, partitions);
    shop.send_raw(&subject, headers, event.payload().clone()).await;
}

fn config(shop: &Shop, partitions: u32) -> ConsumerConfig {
    ConsumerConfig { partitions, ..shop.config() }
}

/// Runs a consumer in this process, and lets it be looked at.
fn watched(shop: &Shop, config: ConsumerConfig, router: Router) -> (Started, Watch) {
    shop.start_on(shop.pool(), config, router)
}

async fn until_held(watch: &mut Watch, wanted: usize) {
    until(&format!("{wanted} partitions"), watch, |status| {
        status.partitions.as_ref().is_some_and(|partitions| partitions.held.len() == wanted)
    })
    .await;
}

/// How many partitions each process has, the fewest first; once all are had.
async fn until_shared(shop: &Shop, wanted: &str) {
    let what = format!("the partitions to be shared as {wanted}");
    eventually(&what, DEADLINE, async || {
        let sql = "select coalesce(string_agg(n::text, ' ' order by n), '') from (select cardinality(held) as n from \
                   pillarbox.inbox_process where seen_at > clock_timestamp() - interval '3 s') as processes";
        let found: String =
            sqlx::query_scalar(sql).fetch_one(shop.pool()).await.map_err(|e| e.to_string())?;
        if found == wanted { Ok(Some(())) } else { Err(found) }
    })
    .await
    .unwrap();
}

async fn take_a_moment(tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
    tokio::time::sleep(Duration::from_millis(10)).await;
    record(tx, placed).await
}

#[tokio::test]
async fn child() {
    process::consume(Router::new().on(take_a_moment)).await;
}

#[tokio::test]
async fn processes_share_the_partitions_while_one_is_killed_and_one_joins() {
    let shop = Shop::open().await;
    // Nothing is waited for until the broker gives up on a process.
    let config =
        ConsumerConfig { ack_wait: Duration::from_secs(60), concurrency: 4, ..config(&shop, 6) };
    let events: Vec<_> = (0..150)
        .flat_map(|step| (0..30).map(move |order| (order, step)))
        .map(|(order, step)| shop.event(order, step))
        .collect();
    let total = events.len() as i64;
    let sender = shop.scope.jetstream();
    let sending = tokio::spawn(async move {
        for few in events.chunks(30) {
            for event in few {
                let (subject, headers) = message(event, 6);
                let sent = sender.publish_with_headers(subject, headers, event.payload().clone());
                sent.await.unwrap().await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
    });
    let mut first = Process::start(module_path!(), &shop, &config);
    until_shared(&shop, "6").await;
    let _second = Process::start(module_path!(), &shop, &config);
    until_shared(&shop, "3 3").await;
    shop.until("select least(count(*), 500) from effects", 500).await;
    first.kill();
    until_shared(&shop, "6").await;
    let _third = Process::start(module_path!(), &shop, &config);
    let _fourth = Process::start(module_path!(), &shop, &config);
    until_shared(&shop, "2 2 2").await;
    sending.await.unwrap();
    shop.until("select count(*) from effects", total).await;
    shop.drained().await;
    shop.assert_each_once_in_order(total).await;
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_dead_letter").await, 0);
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_failure").await, 0);
}

#[tokio::test]
async fn a_process_that_was_stopped_as_it_stood_and_goes_on_does_no_harm() {
    let shop = Shop::open().await;
    let config = ConsumerConfig {
        ack_wait: Duration::from_secs(60),
        takeover: Duration::from_secs(1),
        handler_timeout: Duration::from_secs(2),
        ..config(&shop, 4)
    };
    for step in 0..150 {
        for order in 0..10 {
            send(&shop, &shop.event(order, step), 4).await;
        }
    }
    let first = Process::start(module_path!(), &shop, &config);
    shop.until("select least(count(*), 100) from effects", 100).await;
    let _second = Process::start(module_path!(), &shop, &config);
    until_shared(&shop, "2 2").await;
    // It holds events, and transactions in the middle.
    first.signal("-STOP");
    eventually("the other process to have all", DEADLINE, async || {
        let held = "select max(cardinality(held))::bigint from pillarbox.inbox_process where \
                    seen_at > clock_timestamp() - interval '1 s'";
        Ok::<_, String>((shop.number(held).await == 4).then_some(()))
    })
    .await
    .unwrap();
    first.signal("-CONT");
    until_shared(&shop, "2 2").await;
    shop.until("select count(*) from effects", 1_500).await;
    shop.drained().await;
    shop.assert_each_once_in_order(1_500).await;
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_dead_letter").await, 0);
}

/// Sees to it that no key is handled twice at a time.
#[derive(Clone, Default)]
struct OneAtATime(Arc<Mutex<BTreeSet<i64>>>);

impl Handler<Received<OrderPlaced>> for OneAtATime {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        let order = placed.order;
        if !self.0.lock().unwrap().insert(order) {
            return Err(HandlerError::permanent("somebody else handles this order now"));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        let recorded = record(tx, placed).await;
        self.0.lock().unwrap().remove(&order);
        recorded
    }
}

#[tokio::test]
async fn a_partition_is_handed_over_when_what_runs_of_it_has_ended_and_at_once_at_a_stop() {
    let shop = Shop::open().await;
    // Far longer than this test waits: nothing may depend on it.
    let config = ConsumerConfig { takeover: Duration::from_secs(120), ..config(&shop, 4) };
    for step in 0..30 {
        for order in 0..12 {
            send(&shop, &shop.event(order, step), 4).await;
        }
    }
    let handler = OneAtATime::default();
    let router = || Router::new().on(handler.clone());
    let (first, mut first_watch) = watched(&shop, config.clone(), router());
    until_held(&mut first_watch, 4).await;
    shop.until("select least(count(*), 20) from effects", 20).await;
    let (second, mut second_watch) = watched(&shop, config.clone(), router());
    until_held(&mut second_watch, 2).await;
    until_held(&mut first_watch, 2).await;
    until("it to be active", &mut second_watch, |status| status.state == ConsumerState::Active)
        .await;
    first.stop().await;
    until_held(&mut second_watch, 4).await;
    shop.until("select count(*) from effects", 360).await;
    shop.drained().await;
    second.stop().await;
    shop.assert_each_once_in_order(360).await;
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_dead_letter").await, 0);
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_process").await, 0);
}

#[tokio::test]
async fn a_process_that_reaches_the_broker_or_the_database_no_more_has_no_share() {
    let shop = Shop::open().await;
    let config = ConsumerConfig { takeover: Duration::from_millis(1_500), ..config(&shop, 4) };
    let proxy_of = async |url: &str| {
        let port = url.rsplit(':').next().unwrap().split('/').next().unwrap().parse().unwrap();
        Proxy::to_port(port).await.unwrap()
    };
    let (to_broker, to_database) =
        (proxy_of(shop.scope.nats_url()).await, proxy_of(shop.scope.database_url()).await);
    let url = format!("nats://127.0.0.1:{}", to_broker.port());
    let client = async_nats::connect(url).await.unwrap();
    let options: sqlx::postgres::PgConnectOptions = shop.scope.database_url().parse().unwrap();
    let pool = sqlx::PgPool::connect_with(options.port(to_database.port())).await.unwrap();
    let far = Consumer::with_config(client, pool, config.clone()).unwrap();
    let (mut far_watch, shutdown) = (far.status(), CancellationToken::new());
    let far = tokio::spawn(far.on(record).run(shutdown.clone()));
    until_held(&mut far_watch, 4).await;
    let (near, mut near_watch) = watched(&shop, config.clone(), Router::new().on(record));
    until_held(&mut near_watch, 2).await;

    let mut step = 0;
    for proxy in [&to_broker, &to_database] {
        proxy.refuse();
        proxy.cut();
        until_held(&mut near_watch, 4).await;
        until_held(&mut far_watch, 0).await;
        until("the other one to be unwell", &mut far_watch, |status| !status.is_well()).await;
        step += 1;
        for order in 0..10 {
            send(&shop, &shop.event(order, step), 4).await;
        }
        shop.until("select count(*) from effects", step * 10).await;
        proxy.accept();
        until_held(&mut far_watch, 2).await;
        until_held(&mut near_watch, 2).await;
    }
    shop.drained().await;
    near.stop().await;
    shutdown.cancel();
    far.await.unwrap().unwrap();
    shop.assert_each_once_in_order(20).await;
}

#[tokio::test]
async fn handlers_and_dead_letters_see_the_topic_and_not_the_partition() {
    let shop = Shop::open().await;
    let topics = Arc::new(Mutex::new(BTreeSet::new()));
    let seen = topics.clone();
    #[derive(Clone)]
    struct Sees(Arc<Mutex<BTreeSet<String>>>);
    impl Handler<Received<OrderPlaced>> for Sees {
        async fn handle(
            &self,
            _: &mut Tx,
            placed: Received<OrderPlaced>,
        ) -> Result<(), HandlerError> {
            self.0.lock().unwrap().insert(placed.raw().topic().to_owned());
            Err(HandlerError::permanent("seen enough"))
        }
    }
    let (started, _) = watched(&shop, config(&shop, 4), Router::new().on(Sees(seen)));
    send(&shop, &shop.event(1, 1), 4).await;
    // Put there by somebody who knows nothing of the header.
    let event = shop.event(2, 1);
    let (subject, _) = message(&event, 4);
    shop.send_raw(&subject, headers(&event), event.payload().clone()).await;
    shop.until("select count(*) from pillarbox.inbox_dead_letter", 2).await;
    let topic = event.topic().to_owned();
    assert_eq!(*topics.lock().unwrap(), BTreeSet::from([topic.clone()]));
    let letters = DeadLetters::new(shop.pool().clone(), "payments").unwrap();
    for letter in letters.list(10).await.unwrap() {
        assert_eq!(letter.topic, topic);
        assert!(!letter.event().unwrap().headers().contains_key(header::PARTITION));
    }
    started.stop().await;
}

#[tokio::test]
async fn the_servers_own_mapping_puts_keys_where_the_relay_does() {
    let shop = Shop::open().await;
    let name = format!("{}-MAPPED", shop.stream);
    let source = format!("{}-mapped.*", shop.scope.prefix());
    let config = stream::Config {
        name: name.clone(),
        subjects: vec![source.clone()],
        subject_transform: Some(stream::SubjectTransform {
            source,
            destination: "orders.{{partition(8,1)}}.{{wildcard(1)}}".into(),
        }),
        ..Default::default()
    };
    let stream = shop.scope.jetstream().create_stream(config).await.unwrap();
    for number in 0..64 {
        let key = format!("größe-{number}");
        let subject = format!("{}-mapped.{key}", shop.scope.prefix());
        let sent = shop.scope.jetstream().publish(subject, "".into()).await.unwrap();
        let stored = stream.get_raw_message(sent.await.unwrap().sequence).await.unwrap();
        let ours = Partition::of_key(&key, 8).subject(&format!("orders.{key}"));
        assert_eq!(stored.subject.as_str(), ours);
    }
}

async fn durables(shop: &Shop) -> BTreeSet<String> {
    use futures::TryStreamExt;
    let stream = shop.scope.jetstream().get_stream(&shop.stream).await.unwrap();
    stream.consumer_names().try_collect().await.unwrap()
}

fn names(of: u32) -> BTreeSet<String> {
    (0..of).map(|number| format!("payments-p{number}of{of}")).collect()
}

#[tokio::test]
async fn another_number_of_partitions_begins_when_everything_of_the_old_one_is_read() {
    let shop = Shop::open().await;
    let start = |partitions| shop.start(config(&shop, partitions), Router::new().on(record));
    // From none to two.
    for order in 0..10 {
        shop.send(&shop.event(order, 0)).await;
    }
    let plain = start(1);
    shop.until("select count(*) from effects", 10).await;
    shop.drained().await;
    plain.stop().await;
    // The relay may have begun before the consumer.
    for order in 0..5 {
        send(&shop, &shop.event(order, 1), 2).await;
    }
    let two = start(2);
    for order in 5..10 {
        send(&shop, &shop.event(order, 1), 2).await;
    }
    shop.until("select count(*) from effects", 20).await;
    shop.drained().await;
    two.stop().await;
    assert_eq!(durables(&shop).await, names(2));

    // From two to three, too early.
    for order in 0..10 {
        send(&shop, &shop.event(order, 2), 2).await;
    }
    let refused = start(3).running.await.unwrap().unwrap_err();
    let said = refused.to_string();
    assert!(matches!(refused, ConsumerError::Unread { before: 2, wanted: 3, .. }), "{said}");
    assert!(said.contains("had partitions = 2") && said.contains("then with 3"), "{said}");
    assert_eq!(durables(&shop).await, names(2));
    let two = start(2);
    shop.until("select count(*) from effects", 30).await;
    shop.drained().await;
    two.stop().await;
    let three = start(3);
    for order in 0..10 {
        send(&shop, &shop.event(order, 3), 3).await;
    }
    shop.until("select count(*) from effects", 40).await;
    shop.drained().await;
    assert_eq!(durables(&shop).await, names(3));
    three.stop().await;

    // And back to none.
    let plain = start(1);
    shop.send(&shop.event(0, 4)).await;
    shop.until("select count(*) from effects", 41).await;
    shop.drained().await;
    assert_eq!(durables(&shop).await, BTreeSet::from(["payments".to_owned()]));
    plain.stop().await;
    shop.assert_each_once_in_order(41).await;
}

#[tokio::test]
async fn processes_with_another_number_of_partitions_are_waited_for() {
    let shop = Shop::open().await;
    let router = || Router::new().on(record);
    let (two, mut watch) = watched(&shop, config(&shop, 2), router());
    until_held(&mut watch, 2).await;
    let (three, mut watch) = watched(&shop, config(&shop, 3), router());
    until("it to wait, and say for whom", &mut watch, |status| {
        matches!(&status.state, ConsumerState::Waiting { reason } if reason.contains("partitions = 2"))
    })
    .await;
    two.stop().await;
    until_held(&mut watch, 3).await;
    until("it to be active", &mut watch, |status| status.state == ConsumerState::Active).await;
    // And one without partitions waits, too.
    let (plain, mut watch) = watched(&shop, config(&shop, 1), router());
    until("it to wait, and say for whom", &mut watch, |status| {
        matches!(&status.state, ConsumerState::Waiting { reason } if reason.contains("another number"))
    })
    .await;
    three.stop().await;
    until("it to be well", &mut watch, pillarbox_consumer::ConsumerStatus::is_well).await;
    plain.stop().await;
}

#[tokio::test]
async fn an_event_of_another_number_waits_and_one_without_a_number_is_named() {
    let shop = Shop::open().await;
    // The consumer has handled it before there were partitions: nothing to say about it.
    shop.send(&shop.event(1, 0)).await;
    let plain = shop.start(config(&shop, 1), Router::new().on(record));
    shop.until("select count(*) from effects", 1).await;
    shop.drained().await;
    plain.stop().await;
    let (started, mut watch) = watched(&shop, config(&shop, 4), Router::new().on(record));
    until_held(&mut watch, 4).await;
    started.stop().await;
    let elsewhere = RawEvent::builder("order.placed", format!("{}.elsewhere", shop.scope.prefix()))
        .key("1")
        .payload(shop.event(1, 1).payload().clone())
        .build()
        .unwrap();
    shop.send(&elsewhere).await;
    send(&shop, &shop.event(2, 0), 4).await;
    let (started, mut watch) = watched(&shop, config(&shop, 4), Router::new().on(record));
    until("it to be named", &mut watch, |status| {
        let strays = status.partitions.as_ref().map(|partitions| &partitions.strays[..]);
        strays == Some(&[elsewhere.topic().to_owned()])
    })
    .await;
    shop.until("select count(*) from effects", 2).await;

    // An event of another number that has its place in one of these partitions: what was sent before it goes on.
    let in_both = |order: i64| {
        let event = shop.event(order, 1);
        (Partition::of_key(event.key().unwrap(), 8).number() < 4).then_some(event)
    };
    let other = (10..).find_map(in_both).unwrap();
    send(&shop, &other, 8).await;
    for order in 2..10 {
        send(&shop, &shop.event(order, 1), 4).await;
    }
    shop.until("select count(*) from effects", 10).await;
    let said = until("it to say so", &mut watch, |status| {
        !status.is_well() && status.partitions.as_ref().unwrap().sent_with == Some(8)
    })
    .await;
    assert!(said.last_error.unwrap().error.contains("sent with partitions = 8"));
    started.stop().await;
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_process").await, 0);

    // It is left for a consumer with that number, which finds nothing else unhandled.
    let eight = shop.start(config(&shop, 8), Router::new().on(record));
    shop.until("select count(*) from effects", 11).await;
    shop.drained().await;
    eight.stop().await;
    shop.assert_each_once_in_order(11).await;
}

/// Refuses the second step of each order while it is broken.
async fn fails_at_one(tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
    let open: bool = sqlx::query_scalar("select exists (select from effects where order_id = -1)")
        .fetch_one(&mut **tx)
        .await?;
    if placed.step == 1 && !open {
        return Err(HandlerError::permanent("no such account"));
    }
    record(tx, placed).await
}

#[tokio::test]
async fn parked_events_keep_the_order_of_their_keys_whichever_process_handles_them() {
    let shop = Shop::open().await;
    let config = ConsumerConfig { order: HandlingOrder::Strict, ..config(&shop, 4) };
    let router = || Router::new().on(fails_at_one);
    let (first, mut first_watch) = watched(&shop, config.clone(), router());
    let (second, mut second_watch) = watched(&shop, config.clone(), router());
    until_held(&mut first_watch, 2).await;
    until_held(&mut second_watch, 2).await;
    for step in 0..6 {
        for order in 0..12 {
            send(&shop, &shop.event(order, step), 4).await;
        }
    }
    let count = |state: &str| {
        format!("select count(*) from pillarbox.inbox_dead_letter where state = '{state}'")
    };
    shop.until(&count("dead"), 12).await;
    shop.until(&count("parked"), 48).await;
    // One joins, so that partitions move while letters are handled and new events come.
    sqlx::query("insert into effects (event_id, order_id, step) values ('open', -1, 0)")
        .execute(shop.pool())
        .await
        .unwrap();
    let (third, _) = watched(&shop, config.clone(), router());
    let letters = DeadLetters::new(shop.pool().clone(), "payments").unwrap();
    assert_eq!(letters.retry_all().await.unwrap(), 12);
    for step in 6..12 {
        for order in 0..12 {
            send(&shop, &shop.event(order, step), 4).await;
        }
    }
    shop.until("select count(*) from effects", 12 * 12 + 1).await;
    shop.drained().await;
    for started in [first, second, third] {
        started.stop().await;
    }
    shop.assert_each_once_in_order(12 * 12 + 1).await;
}
