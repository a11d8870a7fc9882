//! Handlers that cannot be right are refused at the start, with names.

use crate::support::{DEADLINE, Shop};
use async_nats::jetstream::stream;
use pillarbox_consumer::{Consumer, ConsumerConfig, ConsumerError, ConsumerState};
use pillarbox_event::{Event, RawEvent};
use pillarbox_inbox::{Handler, HandlerError, Received, Router, Tx};
use tokio_util::sync::CancellationToken;

macro_rules! events {
    ($($name:ident $topic:literal),+) => {$(
        #[derive(serde::Serialize, serde::Deserialize)]
        struct $name;
        impl Event for $name {
            const TYPE: &'static str = stringify!($name);
            const TOPIC: &'static str = $topic;
        }
    )+};
}
events!(Sown "garden.sown", Watered "garden.watered", Sold "market.*.sold");

async fn note_sown(_: &mut Tx, _: Sown) -> Result<(), HandlerError> {
    Ok(())
}

async fn bill_sold(_: &mut Tx, _: Received<Sold>) -> Result<(), HandlerError> {
    Ok(())
}

async fn pack_sold(_: &mut Tx, _: &[Received<Sold>]) -> Result<(), HandlerError> {
    Ok(())
}

async fn log_all(_: &mut Tx, _: RawEvent) -> Result<(), HandlerError> {
    Ok(())
}

struct Diary;

impl<E: Send + 'static> Handler<E> for Diary {
    async fn handle(&self, _: &mut Tx, _: E) -> Result<(), HandlerError> {
        Ok(())
    }
}

/// A consumer whose filters follow from its handlers.
fn consumer(shop: &Shop, partitions: u32, router: Router) -> Consumer {
    let config = ConsumerConfig { filter_subjects: Vec::new(), partitions, ..shop.config() };
    let consumer = Consumer::with_config(shop.scope.nats().clone(), shop.pool().clone(), config);
    consumer.unwrap().router(router)
}

/// What the consumer says at its start, and when it is prepared.
async fn refused(shop: &Shop, partitions: u32, router: Router) -> ConsumerError {
    let consumer = consumer(shop, partitions, router);
    let prepared = tokio::time::timeout(DEADLINE, consumer.prepare()).await.unwrap().unwrap_err();
    let running = consumer.run(CancellationToken::new());
    let ran = tokio::time::timeout(DEADLINE, running).await.unwrap().unwrap_err();
    assert_eq!(prepared.to_string(), ran.to_string());
    ran
}

async fn shop_of(subjects: &[&str]) -> Shop {
    let shop = Shop::open().await;
    let mut config = stream::Config { name: shop.stream.clone(), ..Default::default() };
    config.subjects = subjects.iter().map(|&subject| subject.to_owned()).collect();
    shop.scope.jetstream().update_stream(config).await.unwrap();
    shop
}

#[tokio::test]
async fn a_handler_of_a_topic_that_the_stream_does_not_take_is_refused_with_names() {
    let shop = shop_of(&["garden.sown", "garden.*.watered"]).await;
    let routers = [
        (1, Router::new().on(note_sown).on(bill_sold), "topics::bill_sold", "market.*.sold"),
        (1, Router::new().on(note_sown).on_batch(pack_sold), "topics::pack_sold", "market.*.sold"),
        (1, Router::new().on_each::<(Sown, Watered)>(Diary), "topics::Diary", "garden.watered"),
        (1, Router::new().on(log_all).on(bill_sold), "topics::bill_sold", "market.*.sold"),
        (4, Router::new().on(note_sown), "topics::note_sown", "garden.sown"),
    ];
    for (partitions, router, handler, topic) in routers {
        let error = refused(&shop, partitions, router).await;
        assert!(matches!(error, ConsumerError::NotInStream { .. }), "{error}");
        let said = error.to_string();
        let stream = format!("{} takes only garden.sown, garden.*.watered", shop.stream);
        for part in [&format!("{handler} takes"), &format!("of topic {topic}"), &stream] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}

#[tokio::test]
async fn two_handlers_of_a_type_are_refused_with_names() {
    let shop = Shop::open().await;
    for router in [
        Router::new().on(bill_sold).on_batch(pack_sold),
        Router::new().on(note_sown).on_each::<(Sown, Watered)>(Diary),
        Router::new().on(log_all).on::<RawEvent, _>(Diary),
    ] {
        let error = refused(&shop, 1, router).await;
        let ConsumerError::SecondHandler(second) = &error else { panic!("{error}") };
        assert!(second.first.contains("topics::") && second.second.contains("topics::"));
        let said = error.to_string();
        assert!(said.contains(second.first) && said.contains(second.second), "{said}");
    }
}

#[tokio::test]
async fn a_stream_whose_messages_come_from_elsewhere_is_not_compared() {
    let shop = Shop::open().await;
    let copy = Shop::without_stream(
        pillarbox_testkit::servers().await.unwrap().scope().await.unwrap(),
        &format!("{}_COPY", shop.stream),
    )
    .await;
    let mirror = stream::Source { name: shop.stream.clone(), ..Default::default() };
    let config =
        stream::Config { name: copy.stream.clone(), mirror: Some(mirror), ..Default::default() };
    shop.scope.jetstream().create_stream(config).await.unwrap();
    let consumer = consumer(&copy, 1, Router::new().on(bill_sold));
    let (mut status, stop) = (consumer.status(), CancellationToken::new());
    let running = tokio::spawn(consumer.run(stop.clone()));
    crate::support::until("it to start", &mut status, |status| {
        status.state != ConsumerState::Starting
    })
    .await;
    stop.cancel();
    running.await.unwrap().unwrap();
}
