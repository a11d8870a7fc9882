//! Processes that die for reasons of their own, and the events that happen to be in work then. The processes are this
//! test binary again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::Duration;

use pillarbox_consumer::ConsumerConfig;
use pillarbox_inbox::{BatchHandler, Handler, HandlerError, Received, Router, Tx};
use sqlx::Row;
use support::process::{self, Process};
use support::{DEADLINE, OrderPlaced, Shop, record};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// The order whose event kills the process.
const KILLER: i64 = 99;

/// How long an event takes.
const LONG: Duration = Duration::from_millis(900);

struct Slow;

impl Handler<Received<OrderPlaced>> for Slow {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        die_of(&placed).await;
        sleep(LONG).await;
        record(tx, placed).await
    }
}

impl BatchHandler<OrderPlaced> for Slow {
    async fn handle(
        &self,
        tx: &mut Tx,
        events: &[Received<OrderPlaced>],
    ) -> Result<(), HandlerError> {
        // Several take longer than any of the short lives.
        sleep(if events.len() > 1 { Duration::from_millis(1_900) } else { LONG }).await;
        for placed in events {
            die_of(placed).await;
            record(tx, placed.clone()).await?;
        }
        Ok(())
    }
}

async fn die_of(placed: &OrderPlaced) {
    if placed.order == KILLER {
        sleep(Duration::from_millis(50)).await;
        std::process::abort();
    }
}

#[tokio::test]
async fn child() {
    let Some((consumer, pool, config)) = process::consumer().await else {
        return;
    };
    let life = sqlx::query("insert into lives default values returning life, short");
    let life = life.fetch_one(&pool).await.unwrap();
    if life.get::<bool, _>(1) {
        // At some moment after the process before has lost its place as the active one.
        let moment = life.get::<i64, _>(0).unsigned_abs() * 7_919 % 600;
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(1_150 + moment));
            std::process::abort();
        });
    }
    let shutdown = CancellationToken::new();
    match config.name.as_str() {
        "batches" => consumer.run_batches(Slow, shutdown).await.unwrap(),
        _ => consumer.run(Router::new().on(Slow), shutdown).await.unwrap(),
    }
}

/// A shop whose first processes die by themselves, this many of them.
async fn shop_of_short_lives(short: i64) -> Shop {
    let shop = Shop::open().await;
    let lives = format!(
        "create table lives (life bigint generated always as identity primary key, short boolean);
         create function say_short() returns trigger language plpgsql as
             $$ begin new.short := new.life <= {short}; return new; end $$;
         create trigger say_short before insert on lives for each row execute function say_short()"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(lives)).execute(shop.pool()).await.unwrap();
    shop
}

fn config(shop: &Shop, name: &str) -> ConsumerConfig {
    ConsumerConfig {
        name: name.into(),
        ack_wait_ms: 60_000,
        takeover_ms: 1_000,
        handler_timeout_ms: 3_000,
        batch_size: 4,
        ..shop.config()
    }
}

/// Starts one process after the other until all events but those that are given up have taken effect, and says how many
/// died.
async fn run_until(shop: &Shop, config: &ConsumerConfig, effects: i64, letters: i64) -> i64 {
    let mut deaths = 0;
    loop {
        let mut process = Process::start(shop, config);
        let until = Instant::now() + DEADLINE;
        while process.0.try_wait().unwrap().is_none() {
            let given_up = "select count(*) from pillarbox.inbox_dead_letter";
            let given_up = shop.number(given_up).await;
            assert!(given_up <= letters, "{given_up} letters after {deaths} deaths");
            let handled = shop.number("select count(*) from effects").await;
            assert!(Instant::now() < until, "{handled} handled, {given_up} letters");
            if handled >= effects && given_up >= letters {
                shop.drained().await;
                return deaths;
            }
            sleep(Duration::from_millis(50)).await;
        }
        deaths += 1;
        assert!(deaths < 30, "processes die without end");
    }
}

async fn innocent_events_stay_innocent(name: &str) {
    let shop = shop_of_short_lives(9).await;
    for order in 0..12 {
        shop.send(&shop.event(order, 1)).await;
    }
    let deaths = run_until(&shop, &config(&shop, name), 12, 0).await;
    assert!(deaths >= 8, "{deaths} processes died, which says little");
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_dead_letter").await, 0);
    shop.assert_each_once_in_order(12).await;
    shop.until("select count(*) from pillarbox.inbox_failure", 0).await;
}

/// All of them mostly wait, so they wait together.
#[tokio::test]
async fn processes_that_die_by_themselves_make_no_letters_and_hide_no_killer() {
    tokio::join!(
        a_process_that_dies_by_itself_makes_no_letters_of_what_it_handles(),
        nor_of_what_it_handles_in_batches(),
        a_killer_among_innocent_events_is_found_though_processes_die_by_themselves_too(),
    );
}

async fn a_process_that_dies_by_itself_makes_no_letters_of_what_it_handles() {
    innocent_events_stay_innocent("singly").await;
}

async fn nor_of_what_it_handles_in_batches() {
    innocent_events_stay_innocent("batches").await;
}

async fn a_killer_among_innocent_events_is_found_though_processes_die_by_themselves_too() {
    let shop = shop_of_short_lives(4).await;
    for order in (0..6).chain([KILLER]).chain(6..12) {
        shop.send(&shop.event(order, 1)).await;
    }
    let deaths = run_until(&shop, &config(&shop, "singly"), 12, 1).await;
    assert!(deaths <= 16, "{deaths} processes died");
    let killers =
        "select count(*) from pillarbox.inbox_dead_letter where reason = 'kills' and key = '99'";
    assert_eq!(shop.number(killers).await, 1);
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_dead_letter").await, 1);
    shop.assert_each_once_in_order(12).await;
}
