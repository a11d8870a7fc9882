//! Events that come again after they were handled, many at a time.

use std::time::Duration;

use crate::support::{OrderPlaced, Shop, Started, record};
use pillarbox_consumer::{Consumer, ConsumerConfig, Watch};
use pillarbox_event::RawEvent;
use pillarbox_inbox::{BatchHandler, DeadLetters, HandlerError, Received, Router, Tx};
use tokio_util::sync::CancellationToken;

fn config(shop: &Shop) -> ConsumerConfig {
    ConsumerConfig { batch_size: 20, batch_linger: Duration::from_millis(5), ..shop.config() }
}

struct InBatches;

impl BatchHandler<OrderPlaced> for InBatches {
    async fn handle(
        &self,
        tx: &mut Tx,
        events: &[Received<OrderPlaced>],
    ) -> Result<(), HandlerError> {
        for event in events {
            record(tx, event.clone()).await?;
        }
        Ok(())
    }
}

fn start(shop: &Shop, in_batches: bool) -> (Started, Watch) {
    let (nats, pool) = (shop.scope.nats().clone(), shop.pool().clone());
    let consumer = Consumer::with_config(nats, pool, config(shop)).unwrap();
    let (status, shutdown) = (consumer.status(), CancellationToken::new());
    let running = match in_batches {
        true => tokio::spawn(consumer.on_batch(InBatches).run(shutdown.clone())),
        false => tokio::spawn(consumer.router(Router::new().on(record)).run(shutdown.clone())),
    };
    (Started { running, shutdown }, status)
}

/// Deletes the consumer's durable, so that the next process is sent the whole stream as if for the first time.
async fn forget_place(shop: &Shop) {
    let stream = shop.scope.jetstream().get_stream(&shop.stream).await.unwrap();
    stream.delete_consumer(&shop.config().name).await.unwrap();
}

/// Counts the claims from now on: what is skipped by a lookup is not claimed.
async fn count_claims(shop: &Shop) {
    let counter = "create sequence claims minvalue 0 start 0; select nextval('claims'); \
                   create function count_claim() returns trigger language plpgsql as $$ \
                   begin perform nextval('public.claims'); return new; end $$; \
                   create trigger count_claim before insert on pillarbox.inbox \
                   for each row execute function count_claim()";
    sqlx::raw_sql(counter).execute(shop.pool()).await.unwrap();
}

async fn claims(shop: &Shop) -> i64 {
    shop.number("select last_value from claims").await
}

/// The most claims of events that are skipped. Those that are held (`prefetch`, 64) may be under way when enough in a
/// row are known, and four more may be tried twice, because they had failed. From then on events are looked up until 64
/// new ones in a row were, which happens only behind the stretch. With batches 93 have been seen, so some are claimed
/// twice there; it is not known which. Without lookups, all of the 300 or 320 are claimed.
fn most_claims(in_batches: bool) -> i64 {
    if in_batches { 8 * 20 + 40 } else { 64 + 4 }
}

async fn send_all(shop: &Shop, events: &[RawEvent]) {
    for event in events {
        shop.send(event).await;
    }
}

/// Steps of ten orders.
fn events(shop: &Shop, steps: std::ops::Range<i64>) -> Vec<RawEvent> {
    steps
        .flat_map(|step| (0..10).map(move |order| (order, step)))
        .map(|(o, s)| shop.event(o, s))
        .collect()
}

async fn a_stretch_comes_again(in_batches: bool) {
    let shop = Shop::open().await;
    send_all(&shop, &events(&shop, 1..31)).await;
    let (first, _) = start(&shop, in_batches);
    shop.until("select count(*) from effects", 300).await;
    shop.drained().await;
    first.stop().await;
    forget_place(&shop).await;
    // As a process leaves it that notices late that an event was handled.
    let late = "insert into pillarbox.inbox_failure (consumer, event_id, attempts, last_error) \
                select consumer, event_id, 1, 'late' from pillarbox.inbox limit 3";
    sqlx::raw_sql(late).execute(shop.pool()).await.unwrap();
    count_claims(&shop).await;
    send_all(&shop, &events(&shop, 31..41)).await;
    let (second, status) = start(&shop, in_batches);
    shop.until("select count(*) from effects", 400).await;
    shop.drained().await;
    assert_eq!(status.get().totals.duplicates, 300);
    shop.until("select count(*) from pillarbox.inbox_failure", 0).await;
    second.stop().await;
    shop.assert_each_once_in_order(400).await;
    let claims = claims(&shop).await;
    assert!((100..100 + most_claims(in_batches)).contains(&claims), "{claims} claims");
}

#[tokio::test]
async fn a_stretch_that_was_handled_is_skipped_and_what_is_new_behind_it_is_handled() {
    a_stretch_comes_again(false).await;
}

#[tokio::test]
async fn a_batch_consumer_skips_a_stretch_too() {
    a_stretch_comes_again(true).await;
}

async fn some_of_each_key_is_new(in_batches: bool) {
    let shop = Shop::open().await;
    send_all(&shop, &events(&shop, 1..41)).await;
    let (first, _) = start(&shop, in_batches);
    shop.until("select count(*) from effects", 400).await;
    shop.drained().await;
    first.stop().await;
    forget_place(&shop).await;
    // After the first stretch, every fourth event of each key is as new, as if its row had been removed for its age.
    let removed = "delete from pillarbox.inbox using effects \
                   where inbox.event_id = effects.event_id and step > 10 and step % 4 = 0; \
                   delete from effects where step > 10 and step % 4 = 0; \
                   create table first_effects as select * from effects; delete from effects";
    sqlx::raw_sql(removed).execute(shop.pool()).await.unwrap();
    count_claims(&shop).await;
    let (second, status) = start(&shop, in_batches);
    shop.until("select count(*) from effects", 80).await;
    shop.drained().await;
    assert_eq!(status.get().totals.duplicates, 320);
    second.stop().await;
    shop.assert_each_once_in_order(80).await;
    let both = "select count(distinct event_id) from (table effects union all table first_effects) as all_effects";
    assert_eq!(shop.number(both).await, 400);
    let claims = claims(&shop).await;
    assert!((80..80 + most_claims(in_batches)).contains(&claims), "{claims} claims");
}

#[tokio::test]
async fn what_is_new_in_between_is_handled_in_the_order_of_its_key() {
    some_of_each_key_is_new(false).await;
}

#[tokio::test]
async fn what_is_new_in_between_is_handled_in_batches_in_the_order_of_its_key() {
    some_of_each_key_is_new(true).await;
}

async fn refuses_the_seventh(
    tx: &mut Tx,
    placed: Received<OrderPlaced>,
) -> Result<(), HandlerError> {
    match placed.step {
        7 => Err(HandlerError::permanent("no such account")),
        _ => record(tx, placed).await,
    }
}

#[tokio::test]
async fn letters_in_a_stretch_stay_letters_and_those_that_are_retried_are_handled_once() {
    let shop = Shop::open().await;
    send_all(&shop, &events(&shop, 1..31)).await;
    let first = shop.start(config(&shop), Router::new().on(refuses_the_seventh));
    shop.until("select count(*) from effects", 290).await;
    shop.drained().await;
    first.stop().await;
    forget_place(&shop).await;
    let letters = DeadLetters::new(shop.pool().clone(), "payments").unwrap();
    let some = letters.list(4).await.unwrap();
    for letter in &some {
        assert!(letters.retry(&letter.event_id).await.unwrap());
    }
    count_claims(&shop).await;
    let (second, status) = start(&shop, false);
    shop.until("select count(*) from effects", 294).await;
    shop.drained().await;
    shop.until("select count(*) from pillarbox.inbox_dead_letter where state = 'retried'", 4).await;
    assert_eq!(
        shop.number("select count(*) from pillarbox.inbox_dead_letter where state = 'dead'").await,
        6
    );
    assert_eq!(status.get().totals.duplicates, 300);
    second.stop().await;
    assert_eq!(shop.number("select count(distinct event_id) from effects").await, 294);
    let claims = claims(&shop).await;
    assert!((4..4 + most_claims(false)).contains(&claims), "{claims} claims");
}
