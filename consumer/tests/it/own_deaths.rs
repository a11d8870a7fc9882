//! Processes that die for reasons of their own, and the events that happen to be in progress then. The processes are
//! this test binary again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::process::{self, Process};
use crate::support::{DEADLINE, OrderPlaced, Shop, record};
use pillarbox_consumer::ConsumerConfig;
use pillarbox_inbox::source::{Killers, Ruling, Store};
use pillarbox_inbox::{BatchHandler, Handler, HandlerError, Received, Tx};
use sqlx::Row;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// The order whose event kills the process.
const KILLER: i64 = 99;

/// How long an event takes: much longer than a process that dies by itself lives after it has begun.
const LONG: Duration = Duration::from_millis(1_500);

/// Whether anything has been in progress in this process.
static WORKS: AtomicBool = AtomicBool::new(false);

struct Slow;

impl Handler<Received<OrderPlaced>> for Slow {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        WORKS.store(true, Ordering::SeqCst);
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
        WORKS.store(true, Ordering::SeqCst);
        // Several take longer than any of the short lives.
        sleep(if events.len() > 1 { Duration::from_millis(2_500) } else { LONG }).await;
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
        tokio::spawn(die_by_itself(pool, life.get(0)));
    }
    let shutdown = CancellationToken::new();
    match config.name.as_str() {
        "batches" => consumer.on_batch(Slow).run(shutdown).await.unwrap(),
        _ => consumer.on(Slow).run(shutdown).await.unwrap(),
    }
}

/// Ends the process at some moment after something is in progress in it, or is held back. The clock does not decide: on
/// a busy machine the process would die before either.
async fn die_by_itself(pool: sqlx::PgPool, life: i64) {
    let held_back = "select exists (select from pillarbox.inbox_failure where started in (3, 5) and started_at > \
                     (select began from lives where life = $1))";
    let held_back = async || -> bool {
        sqlx::query_scalar(held_back).bind(life).fetch_one(&pool).await.unwrap()
    };
    while !WORKS.load(Ordering::SeqCst) && !held_back().await {
        sleep(Duration::from_millis(10)).await;
    }
    if !WORKS.load(Ordering::SeqCst) {
        sleep(Duration::from_secs(1)).await;
    }
    sleep(Duration::from_millis(life.unsigned_abs() * 7_919 % 600)).await;
    let note = sqlx::query("update lives set held_back = $2 where life = $1").bind(life);
    note.bind(held_back().await).execute(&pool).await.unwrap();
    std::process::abort();
}

/// A shop whose first processes die by themselves, this many of them.
async fn shop_of_short_lives(short: i64) -> Shop {
    let shop = Shop::open().await;
    let lives = format!(
        "create table lives (life bigint generated always as identity primary key, short boolean, \
             began timestamptz default clock_timestamp(), held_back boolean);
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
        ack_wait: Duration::from_secs(60),
        takeover: Duration::from_secs(1),
        handler_timeout: Duration::from_secs(6),
        batch_size: 4,
        ..shop.config()
    }
}

/// Starts one process after the other until all events but those that are given up have taken effect, and says how many
/// died.
async fn run_until(shop: &Shop, config: &ConsumerConfig, effects: i64, letters: i64) -> i64 {
    let mut deaths = 0;
    loop {
        let mut process = Process::start(module_path!(), shop, config);
        let until = Instant::now() + DEADLINE;
        while process.0.try_wait().unwrap().is_none() {
            let given_up = "select count(*) from pillarbox.inbox_dead_letter";
            let given_up = shop.number(given_up).await;
            assert!(given_up <= letters, "{given_up} letters after {deaths} deaths");
            let handled = shop.number("select count(*) from effects").await;
            assert!(Instant::now() < until, "{handled} handled, {given_up} letters");
            // The process may die before it has acknowledged the last event.
            if handled >= effects
                && given_up >= letters
                && timeout(Duration::from_secs(1), shop.drained()).await.is_ok()
            {
                return deaths;
            }
            sleep(Duration::from_millis(50)).await;
        }
        deaths += 1;
        assert!(deaths < 30, "processes die without end");
    }
}

async fn innocent_events_stay_innocent(name: &str, events: i64) {
    let shop = shop_of_short_lives(9).await;
    for order in 0..events {
        shop.send(&shop.event(order, 1)).await;
    }
    let deaths = run_until(&shop, &config(&shop, name), events, 0).await;
    assert!(deaths >= 8, "{deaths} processes died, which says little");
    let held_back = shop.number("select count(*) from lives where held_back").await;
    assert!(held_back >= 2, "an event was held back in {held_back} of them, which says little");
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_dead_letter").await, 0);
    shop.assert_each_once_in_order(events).await;
    shop.until("select count(*) from pillarbox.inbox_failure", 0).await;
}

/// All of them mostly wait, so they wait together.
#[tokio::test]
async fn processes_that_die_by_themselves_make_no_letters_and_hide_no_killer() {
    tokio::join!(
        a_process_that_dies_by_itself_makes_no_letters_of_what_it_handles(),
        nor_of_what_it_handles_in_batches(),
        nor_of_an_event_that_is_the_only_one(),
        a_killer_among_innocent_events_is_found_though_processes_die_by_themselves_too(),
    );
}

async fn a_process_that_dies_by_itself_makes_no_letters_of_what_it_handles() {
    innocent_events_stay_innocent("singly", 12).await;
}

async fn nor_of_what_it_handles_in_batches() {
    innocent_events_stay_innocent("batches", 12).await;
}

/// While it is held back, there is nothing else to run. So it would be given up at once if the process were not given
/// the time to die without it.
async fn nor_of_an_event_that_is_the_only_one() {
    innocent_events_stay_innocent("singly", 1).await;
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

/// A death is a process's own if the event that was held back then is still to be handled. Otherwise the mark was left
/// behind by a process that was slow to see the event handled.
#[tokio::test]
async fn only_an_event_that_is_still_to_be_handled_tells_of_an_own_death() {
    let shop = Shop::open().await;
    let store = Store::new(shop.pool().clone(), "payments", "pillarbox", None).unwrap();
    let process = || Killers::new(store.clone(), LONG);
    let handled = "insert into pillarbox.inbox (consumer, event_id) values ('payments', $1)";
    let letter = "insert into pillarbox.inbox_dead_letter (consumer, event_id, event_type, topic, headers, payload, \
                  reason, error, attempts, first_failed_at, state) \
                  values ('payments', $1, 'order.placed', 'orders', '{}', 'x', 'kills', '', 3, now(), $2)";
    let cases = [
        // How it is marked; whether it is handled; its letter; whether it comes from there; whether that tells of one.
        (3, false, None, false, true),
        (5, false, None, false, true),
        (3, true, None, false, false),
        (5, true, None, false, false),
        (3, true, Some("dead"), false, false),
        (5, true, Some("retried"), true, false),
        (3, true, Some("parked"), true, true),
        (2, false, None, false, false),
    ];
    for (order, case) in (0..).zip(cases) {
        let (started, is_handled, state, from_there, tells) = case;
        let event = shop.event(order, 1);
        let (identity, pool) = (event.identity(), shop.pool());
        assert_eq!(process().begin(&event, false, false).await.unwrap(), Ruling::Run);
        let mark =
            sqlx::query("update pillarbox.inbox_failure set started = $2 where event_id = $1");
        mark.bind(identity.as_str()).bind(started).execute(pool).await.unwrap();
        if is_handled {
            sqlx::query(handled).bind(identity.as_str()).execute(pool).await.unwrap();
        }
        if let Some(state) = state {
            let letter = sqlx::query(letter).bind(identity.as_str()).bind(state);
            letter.execute(pool).await.unwrap();
        }
        process().begin(&event, false, from_there).await.unwrap();
        let deaths = shop.number("select count(*) from pillarbox.inbox_own_death").await;
        assert_eq!(deaths, i64::from(tells), "{case:?}");
        sqlx::query("delete from pillarbox.inbox_own_death").execute(pool).await.unwrap();
    }
}
