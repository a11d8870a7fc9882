//! Setting events aside: whose letter is whose, and how fast many are set aside.

use std::time::{Duration, Instant};

use crate::support::http::Endpoint;
use crate::support::{DEADLINE, Process, Shop, discarded, large, retried};
use async_nats::jetstream::stream;
use pillarbox_relay::{Relay, RelayConfig, RelayState, ShippingOrder};
use pillarbox_store::dead_letters::{DeadLetters, Filter, LetterView, Side};
use pillarbox_testkit::eventually;
use sqlx::AssertSqlSafe;
use sqlx::types::Uuid;
use tokio_util::sync::CancellationToken;

fn letters(shop: &Shop) -> DeadLetters {
    DeadLetters::new(shop.pool().clone(), "pillarbox", Side::Outbox).unwrap()
}

async fn listed(shop: &Shop) -> Vec<LetterView> {
    letters(shop).list(&Filter::default(), 1_000).await.unwrap()
}

async fn until(shop: &Shop, what: &str, sql: &str, wanted: i64) {
    eventually(what, DEADLINE, async || match shop.number(sql).await {
        found if found == wanted => Ok(Some(())),
        found => Err(format!("{found}")),
    })
    .await
    .unwrap();
}

async fn run(shop: &Shop, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(shop.pool()).await.unwrap();
}

const COUNT: &str = "select count(*) from pillarbox.outbox_dead_letter";

/// A letter at this position, of an event that could be shipped today.
async fn old_letter(shop: &Shop, position: i64, id: Uuid, state: &str) {
    sqlx::query(
        "insert into pillarbox.outbox_dead_letter \
         (position, relay, event_id, event_type, topic, key, headers, payload, created_at, reason, error, attempts, state, resolved_at) \
         values ($1, 'default', $2, 'order.placed', $3, 'old', '{}', 'old', now() - interval '9 days', \
                 'too_large', 'of an earlier life', 1, $4, case when $4 in ('retried', 'discarded') then now() - interval '8 days' end)",
    )
    .bind(position)
    .bind(id)
    .bind(shop.topic())
    .bind(state)
    .execute(shop.pool())
    .await
    .unwrap();
}

/// An event that no broker takes, at the position that comes next.
async fn insert_invalid(shop: &Shop, key: &str, id: Uuid) {
    sqlx::query(
        "insert into pillarbox.outbox (event_id, event_type, topic, key, payload) \
         values ($1, 't', 'a topic with spaces', $2, 'new')",
    )
    .bind(id)
    .bind(key)
    .execute(shop.pool())
    .await
    .unwrap();
}

#[tokio::test]
async fn a_letter_of_an_earlier_life_of_the_table_swallows_no_new_one() {
    for state in ["dead", "parked", "retried", "discarded"] {
        for same_id in [false, true] {
            let shop = Shop::open().await;
            let (old, new) = (Uuid::now_v7(), Uuid::now_v7());
            let old = if same_id { new } else { old };
            old_letter(&shop, 1, old, state).await;
            insert_invalid(&shop, "new", new).await;
            shop.insert_one("new", "behind it").await;
            let relay = shop.start(shop.config());
            shop.until_messages(1).await;
            shop.shipped().await;
            let dead = "select count(*) from pillarbox.outbox_dead_letter where state = 'dead' and reason = 'invalid' and position = 1";
            until(&shop, &format!("the new one beside one that is {state}"), dead, 1).await;
            assert_eq!(shop.number(COUNT).await, 2, "{state}: the old one is kept as well");

            // Each is retried by itself.
            if state == "dead" {
                let found = listed(&shop).await;
                assert_eq!(found.len(), 2);
                let first = found.iter().find(|letter| letter.payload == "old").unwrap();
                assert!(retried(&letters(&shop), first).await);
                shop.until_messages(2).await;
                let left = "select count(*) from pillarbox.outbox_dead_letter where state = 'dead' and payload = 'new' and attempts = 1";
                until(&shop, "the new one is as it was", left, 1).await;
                let unresolved = "select count(*) from pillarbox.outbox_dead_letter where state in ('dead', 'parked')";
                until(&shop, "the old one to be shipped, and noted so", unresolved, 1).await;
                let second = listed(&shop).await;
                assert_eq!(second.len(), 1);
                assert!(discarded(&letters(&shop), &second[0]).await);
                assert!(listed(&shop).await.is_empty());
            }
            relay.stop().await;
        }
    }
}

#[tokio::test]
async fn two_relays_of_one_outbox_set_the_same_event_aside_each_for_itself() {
    let shop = Shop::open().await;
    insert_invalid(&shop, "a", Uuid::now_v7()).await;
    let first = shop.start(shop.config());
    until(&shop, "the first relay's letter", COUNT, 1).await;
    let second = shop.start(RelayConfig { name: "second".into(), ..shop.config() });
    until(
        &shop,
        "the second relay's letter",
        "select count(distinct relay) from pillarbox.outbox_dead_letter",
        2,
    )
    .await;
    let found = listed(&shop).await;
    let of_second = found.iter().find(|letter| letter.owner == "second").unwrap();
    assert!(discarded(&letters(&shop), of_second).await);
    assert_eq!(listed(&shop).await.len(), 1, "the other relay's is still there");
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn an_event_met_again_has_one_letter_and_one_that_was_shipped_is_dead_again() {
    let shop = Shop::open().await;
    shop.create_stream(|config| stream::Config { max_message_size: 2_000, ..config }).await;
    insert_invalid(&shop, "a", Uuid::now_v7()).await;
    shop.insert_one("b", &"x".repeat(5_000)).await;
    insert_invalid(&shop, "c", Uuid::now_v7()).await;
    let relay = shop.start(shop.config());
    until(&shop, "three letters", COUNT, 3).await;
    shop.shipped().await;
    relay.stop().await;
    // The second has been shipped, the third is not to be; then the relay starts anew.
    run(&shop, "update pillarbox.outbox_dead_letter set state = case key when 'b' then 'retried' else 'discarded' end, \
                resolved_at = now() where key <> 'a'; delete from pillarbox.relay".to_owned()).await;
    let relay = shop.start(shop.config());
    shop.shipped().await;
    until(
        &shop,
        "the shipped one is dead again",
        "select count(*) from pillarbox.outbox_dead_letter where key = 'b' and state = 'dead' and attempts = 2 and resolved_at is null",
        1,
    )
    .await;
    assert_eq!(shop.number(COUNT).await, 3);
    let discarded =
        "select count(*) from pillarbox.outbox_dead_letter where key = 'c' and state = 'discarded'";
    assert_eq!(shop.number(discarded).await, 1, "what was discarded stays so");
    relay.stop().await;
}

#[tokio::test]
async fn a_parked_event_finds_its_place_taken_and_is_shipped_all_the_same() {
    for state in ["retried", "discarded", "dead"] {
        let shop = Shop::open().await;
        old_letter(&shop, 2, Uuid::now_v7(), state).await;
        insert_invalid(&shop, "a", Uuid::now_v7()).await;
        shop.insert_one("a", "2").await;
        shop.insert_one("a", "3").await;
        shop.insert_one("b", "1").await;
        let relay = shop.start(RelayConfig { order: ShippingOrder::Strict, ..shop.config() });
        shop.until_messages(1).await;
        let parked = "select count(*) from pillarbox.outbox_dead_letter where key = 'a' and state = 'parked'";
        until(&shop, &format!("two parked beside one that is {state}"), parked, 2).await;
        let found = listed(&shop).await;
        let dead = found.iter().find(|letter| letter.reason == "invalid").unwrap();
        assert!(discarded(&letters(&shop), dead).await);
        shop.until_messages(3).await;
        let payloads: Vec<_> = (shop.stored().await.into_iter())
            .filter(|stored| stored.key.as_deref() == Some("a"))
            .map(|stored| stored.payload)
            .collect();
        assert_eq!(payloads, ["2", "3"]);
        relay.stop().await;
    }
}

#[tokio::test]
async fn a_resolved_letter_that_goes_takes_no_other_of_its_place_along() {
    let shop = Shop::open().await;
    old_letter(&shop, 9, Uuid::now_v7(), "retried").await;
    old_letter(&shop, 9, Uuid::now_v7(), "dead").await;
    shop.insert_one("a", "1").await;
    let relay = shop.start(RelayConfig { retention: Duration::from_secs(1), ..shop.config() });
    until(&shop, "the resolved one to go", COUNT, 1).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(listed(&shop).await.len(), 1);
    relay.stop().await;
}

#[tokio::test]
async fn many_events_that_cannot_be_sent_are_set_aside_at_once_among_those_that_can() {
    for order in [ShippingOrder::Key, ShippingOrder::Strict] {
        let shop = Shop::open().await;
        run(
            &shop,
            format!(
                "insert into pillarbox.outbox (event_type, topic, key, payload) \
                 select 't', case when i % 4 = 0 then '{}' else 'a topic with spaces' end, (i % 4)::text || 'k', \
                        convert_to(i::text, 'utf8') \
                 from generate_series(1, 8000) i",
                shop.topic()
            ),
        )
        .await;
        let started = Instant::now();
        let relay = shop.start(RelayConfig { order, ..shop.config() });
        until(&shop, "6000 letters", COUNT, 6_000).await;
        shop.until_messages(2_000).await;
        let took = started.elapsed();
        println!("{order:?}: 6000 of 8000 events were set aside in {took:?}");
        assert!(took < Duration::from_secs(15), "{took:?}");
        shop.shipped().await;
        relay.stop().await;
        let sound = "select count(*) from pillarbox.outbox_dead_letter join pillarbox.outbox using (position, event_id, payload) \
                     where reason = 'invalid' and attempts = 1 and state = 'dead'";
        assert_eq!(shop.number(sound).await, 6_000);
        let payloads: Vec<i64> =
            shop.stored().await.iter().map(|stored| stored.payload.parse().unwrap()).collect();
        assert!(payloads.is_sorted(), "in order");
    }
}

#[tokio::test]
async fn in_a_strict_order_what_follows_a_bad_event_on_the_same_page_waits_behind_it() {
    let shop = Shop::open().await;
    let mut transaction = shop.pool().begin().await.unwrap();
    shop.insert(&mut transaction, "a", "1").await;
    shop.insert(&mut transaction, "b", "1").await;
    sqlx::query("insert into pillarbox.outbox (event_type, topic, key, payload) values ('t', 'no topic', 'a', 'bad')")
        .execute(&mut *transaction)
        .await
        .unwrap();
    for payload in ["3", "4"] {
        shop.insert(&mut transaction, "a", payload).await;
        shop.insert(&mut transaction, "b", payload).await;
    }
    transaction.commit().await.unwrap();
    let relay = shop.start(RelayConfig { order: ShippingOrder::Strict, ..shop.config() });
    shop.until_messages(4).await;
    let parked =
        "select count(*) from pillarbox.outbox_dead_letter where key = 'a' and state = 'parked'";
    until(&shop, "two behind it", parked, 2).await;
    let found = listed(&shop).await;
    let dead = found.iter().find(|letter| letter.reason == "invalid").unwrap();
    assert!(discarded(&letters(&shop), dead).await);
    shop.until_messages(6).await;
    let of_a: Vec<_> = (shop.stored().await.into_iter())
        .filter(|stored| stored.key.as_deref() == Some("a"))
        .map(|stored| stored.payload)
        .collect();
    assert_eq!(of_a, ["1", "3", "4"]);
    relay.stop().await;
}

// On two threads, as in the program: in a debug build, a page of such rows takes longer to decode than the lease lasts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_legal_headers_that_are_too_many_together_hold_nobody_up() {
    let _large = large().await;
    let shop = Shop::open().await;
    run(
        &shop,
        format!(
            "insert into pillarbox.outbox (event_type, topic, key, headers, payload) \
             select 't', '{}', 'a', \
                    case when i % 3 = 0 then '{{}}'::jsonb \
                         else (select jsonb_object_agg('x-' || n, repeat('x', 8000)) from generate_series(1, 10) n) end, \
                    convert_to(i::text, 'utf8') \
             from generate_series(1, 300) i",
            shop.topic()
        ),
    )
    .await;
    let relay = shop.start(shop.config());
    shop.until_messages(100).await;
    let dead = "select count(*) from pillarbox.outbox_dead_letter where reason = 'too_large' and error like '%65535%'";
    until(&shop, "200 letters", dead, 200).await;
    shop.shipped().await;
    assert_eq!(shop.messages().await, 100);
    relay.stop().await;
}

/// What keeps letters from being written, what names it, and how to get rid of it.
const REFUSERS: [(&str, &str, &str); 4] = [
    (
        "create function raise() returns trigger language plpgsql as $$ begin \
         raise exception 'no letters here'; end $$; \
         create trigger audit before insert on pillarbox.outbox_dead_letter for each row execute function raise()",
        "no letters here",
        "drop trigger audit on pillarbox.outbox_dead_letter",
    ),
    (
        "create function fail() returns trigger language plpgsql as $$ begin \
         insert into nowhere values (new.position); return new; end $$; \
         create trigger audit after insert on pillarbox.outbox_dead_letter for each row execute function fail()",
        "fail()",
        "drop trigger audit on pillarbox.outbox_dead_letter",
    ),
    // Without an error.
    (
        "create function leave_out() returns trigger language plpgsql as 'begin return null; end'; \
         create trigger audit before insert on pillarbox.outbox_dead_letter \
         for each row execute function leave_out()",
        "trigger audit",
        "drop trigger audit on pillarbox.outbox_dead_letter",
    ),
    (
        "alter table pillarbox.outbox_dead_letter add constraint audit check (reason <> 'invalid')",
        "audit",
        "alter table pillarbox.outbox_dead_letter drop constraint audit",
    ),
];

#[tokio::test]
async fn an_event_whose_letter_the_table_does_not_take_holds_only_itself_and_the_cause_is_named() {
    for (refuse, named, mend) in REFUSERS {
        let shop = Shop::open().await;
        run(&shop, refuse.to_owned()).await;
        shop.insert_many(5).await;
        insert_invalid(&shop, "1", Uuid::now_v7()).await;
        shop.insert_many(5).await;
        let relay =
            Relay::new(RelayConfig { retention: Duration::from_secs(1), ..shop.config() }).unwrap();
        let state = relay.state();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(relay.run(shutdown.clone()));
        shop.until_messages(10).await;
        until_told(&state, &["outbox_dead_letter", "position 6", named]).await;
        assert_eq!(shop.number(COUNT).await, 0, "{named}");
        // It is not forgotten, and does not go with the others.
        let kept = "select count(*) from pillarbox.outbox";
        until(&shop, "the others to go", kept, 1).await;
        assert_eq!(shop.status().await.held_events, 1);
        shop.insert_many(3).await;
        shop.until_messages(13).await;
        assert!(!state.borrow().is_ready());
        run(&shop, mend.to_owned()).await;
        until(&shop, "the letter", COUNT, 1).await;
        until_ready(&state).await;
        assert_eq!(shop.status().await.held_events, 0);
        let whole = "select count(*) from pillarbox.outbox_dead_letter \
                     where position = 6 and reason = 'invalid' and state = 'dead' and payload = 'new'";
        assert_eq!(shop.number(whole).await, 1);
        shutdown.cancel();
        running.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_trigger_that_raises_for_one_letter_leaves_the_others_and_the_next_leader_goes_on_with_it()
 {
    let shop = Shop::open().await;
    run(
        &shop,
        "create function raise() returns trigger language plpgsql as $$ begin \
         if new.key = 'a' then raise exception 'not this one' using errcode = 'PB001'; end if; return new; end $$; \
         create trigger audit before insert on pillarbox.outbox_dead_letter for each row execute function raise()"
            .to_owned(),
    )
    .await;
    for key in ["b", "a", "c"] {
        insert_invalid(&shop, key, Uuid::now_v7()).await;
    }
    // The keys wait, in a strict order.
    for key in ["a", "b", "d"] {
        shop.insert_one(key, key).await;
    }
    let config = || RelayConfig { order: ShippingOrder::Strict, ..shop.config() };
    let first = shop.start(config());
    shop.until_messages(1).await;
    let letters_of = "select count(*) from pillarbox.outbox_dead_letter where key <> 'a'";
    until(&shop, "the others' letters", letters_of, 3).await;
    eventually("two to be held", DEADLINE, async || match shop.status().await.held_events {
        2 => Ok(Some(())),
        held => Err(format!("{held}")),
    })
    .await
    .unwrap();
    first.stop().await;
    let second = shop.start(config());
    shop.insert_one("a", "a again").await;
    shop.insert_one("e", "e").await;
    shop.until_messages(2).await;
    let stored: Vec<_> = shop.stored().await.into_iter().map(|stored| stored.payload).collect();
    assert_eq!(stored, ["d", "e"]);
    run(&shop, "drop trigger audit on pillarbox.outbox_dead_letter".to_owned()).await;
    until(&shop, "all letters", COUNT, 6).await;
    let found = listed(&shop).await;
    let dead = found
        .iter()
        .find(|letter| letter.key.as_deref() == Some("a") && letter.reason == "invalid");
    assert!(discarded(&letters(&shop), dead.unwrap()).await);
    shop.until_messages(4).await;
    let stored: Vec<_> = shop.stored().await.into_iter().map(|stored| stored.payload).collect();
    assert_eq!(stored, ["d", "e", "a", "a again"]);
    second.stop().await;
}

#[tokio::test]
async fn more_refused_letters_than_can_be_noted_stop_the_relay_with_one_line() {
    let shop = Shop::open().await;
    let (refuse, _, mend) = REFUSERS[0];
    run(&shop, refuse.to_owned()).await;
    shop.insert_many(5).await;
    run(
        &shop,
        "insert into pillarbox.outbox (event_type, topic, payload) \
         select 't', 'a topic with spaces', '' from generate_series(1, 1100)"
            .to_owned(),
    )
    .await;
    shop.insert_many(5).await;
    let relay = Process::relay(&shop, &["--http", "127.0.0.1:0"]);
    let http = Endpoint::of(&relay).await;
    relay.until_said("takes no letter of more than 1000 events").await;
    http.until_ready(503).await;
    // It begins again with small pages, and notes what fits.
    eventually("as many to be noted as can be", DEADLINE, async || {
        match shop.status().await.held_events {
            held if held > 800 => Ok(Some(())),
            held => Err(format!("{held}")),
        }
    })
    .await
    .unwrap();
    // Three sessions that could note no more.
    let epoch = "select epoch from pillarbox.relay";
    let (mut held, mut since) = (0, 0);
    eventually("no more to be noted", DEADLINE, async || {
        let (now, led) = (shop.status().await.held_events, shop.number(epoch).await);
        if now != held {
            (held, since) = (now, led);
        }
        if led >= since + 3 {
            Ok(Some(()))
        } else {
            Err(format!("{held} since epoch {since}, now {led}"))
        }
    })
    .await
    .unwrap();
    let (before, lines) = (shop.number(epoch).await, relay.lines.lock().unwrap().len());
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (epochs, lines) =
        (shop.number(epoch).await - before, relay.lines.lock().unwrap().len() - lines);
    assert!(
        epochs <= 8 && lines <= 1,
        "{epochs} epochs and {lines} lines in 5 s: {:#?}",
        relay.lines.lock().unwrap()
    );
    http.until("pillarbox_database_up{relay=\"default\"}", 0.0).await;
    run(&shop, mend.to_owned()).await;
    shop.until_messages(10).await;
    until(&shop, "all letters", COUNT, 1_100).await;
    http.until_ready(200).await;
}

/// What keeps an update of a parked letter from being stored, and how to get rid of it. Only the last one is an error.
const SUPPRESSORS: [(&str, &str, &str); 4] = [
    (
        "create sequence tries; \
         create function leave_out() returns trigger language plpgsql as $$ begin \
         if old.state = 'parked' then perform nextval('public.tries'); return null; end if; return new; end $$; \
         create trigger guard before update on pillarbox.outbox_dead_letter for each row execute function leave_out()",
        "trigger guard",
        "drop trigger guard on pillarbox.outbox_dead_letter",
    ),
    (
        "create rule keep as on update to pillarbox.outbox_dead_letter do instead nothing",
        "rule keep",
        "drop rule keep on pillarbox.outbox_dead_letter",
    ),
    (
        "create function set_back() returns trigger language plpgsql as $$ begin \
         new.state := 'parked'; new.resolved_at := null; return new; end $$; \
         create trigger \"Back\" before update on pillarbox.outbox_dead_letter for each row execute function set_back()",
        "trigger \"Back\"",
        "drop trigger \"Back\" on pillarbox.outbox_dead_letter",
    ),
    (
        "create function refuse() returns trigger language plpgsql as $$ begin \
         raise exception 'nothing is updated here'; end $$; \
         create trigger refuse before update on pillarbox.outbox_dead_letter for each row execute function refuse()",
        "nothing is updated here",
        "drop trigger refuse on pillarbox.outbox_dead_letter",
    ),
];

async fn until_told(state: &tokio::sync::watch::Receiver<RelayState>, words: &[&str]) {
    eventually("the reason to be told", DEADLINE, async || {
        let said = state.borrow().not_ready().unwrap_or_else(|| "ready".to_owned());
        if words.iter().all(|word| said.contains(word)) { Ok(Some(())) } else { Err(said) }
    })
    .await
    .unwrap();
}

async fn until_ready(state: &tokio::sync::watch::Receiver<RelayState>) {
    eventually("the relay to be ready", DEADLINE, async || match state.borrow().not_ready() {
        None => Ok(Some(())),
        Some(said) => Err(said),
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_parked_event_whose_letter_keeps_no_update_goes_out_once_and_the_cause_is_named() {
    for (suppress, named, mend) in SUPPRESSORS {
        let shop = Shop::open().await;
        // Soon after, the stream does not know an event that comes again.
        let duplicate_window = Duration::from_millis(100);
        shop.create_stream(|config| stream::Config { duplicate_window, ..config }).await;
        old_letter(&shop, 9, Uuid::now_v7(), "parked").await;
        run(&shop, suppress.to_owned()).await;
        let relay = Relay::new(shop.config()).unwrap();
        let state = relay.state();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(relay.run(shutdown.clone()));
        until_told(&state, &["outbox_dead_letter", named, "drop it"]).await;
        shop.insert_many(10).await;
        shop.until_messages(11).await;
        if suppress.contains("tries") {
            until(&shop, "three more tries", "select (last_value >= 4)::int::bigint from tries", 1)
                .await;
        }
        assert_eq!(shop.messages().await, 11, "{named}: it went out once");
        until_told(&state, &[named]).await;
        run(&shop, mend.to_owned()).await;
        let retried = "select count(*) from pillarbox.outbox_dead_letter where state = 'retried'";
        until(&shop, "the letter to say so", retried, 1).await;
        until_ready(&state).await;
        assert_eq!(shop.messages().await, 11);
        shutdown.cancel();
        running.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_parked_event_that_cannot_be_marked_dead_is_told_and_holds_nothing_else() {
    for (suppress, named, mend) in SUPPRESSORS {
        let shop = Shop::open().await;
        old_letter(&shop, 9, Uuid::now_v7(), "parked").await;
        run(&shop, "update pillarbox.outbox_dead_letter set topic = 'no topic'".to_owned()).await;
        run(&shop, suppress.to_owned()).await;
        let relay = Relay::new(shop.config()).unwrap();
        let state = relay.state();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(relay.run(shutdown.clone()));
        until_told(&state, &["outbox_dead_letter", named, "drop it"]).await;
        shop.insert_many(10).await;
        shop.until_messages(10).await;
        until_told(&state, &[named]).await;
        run(&shop, mend.to_owned()).await;
        let dead = "select count(*) from pillarbox.outbox_dead_letter \
                    where state = 'dead' and reason = 'invalid'";
        until(&shop, "the letter to be dead", dead, 1).await;
        until_ready(&state).await;
        shutdown.cancel();
        running.await.unwrap().unwrap();
    }
}

/// More parked events than are read at a time, at the first positions, and what it takes to insert them.
const MANY: i64 = 250;

/// Parks events from this position on, with these keys and this topic.
async fn park(shop: &Shop, positions: std::ops::RangeInclusive<i64>, key: &str, topic: &str) {
    sqlx::query(AssertSqlSafe(format!(
        "insert into pillarbox.outbox_dead_letter \
         (position, relay, event_id, event_type, topic, key, headers, payload, created_at, reason, error, attempts, state) \
         select i, 'default', gen_random_uuid(), 't', $3, {key}, '{{}}', convert_to(i::text, 'utf8'), now(), \
                'parked', 'somebody retried it', 1, 'parked' \
         from generate_series($1, $2) i"
    )))
    .bind(*positions.start())
    .bind(*positions.end())
    .bind(topic)
    .execute(shop.pool())
    .await
    .unwrap();
}

#[tokio::test]
async fn parked_events_without_a_stream_do_not_hide_those_behind_them() {
    for order in [ShippingOrder::Key, ShippingOrder::Strict] {
        let shop = Shop::open().await;
        let nowhere = format!("nowhere.{}", shop.scope.prefix());
        park(&shop, 1..=MANY, "(i % 20)::text", &nowhere).await;
        park(&shop, 1_000..=1_009, "'behind'", &shop.topic()).await;
        // Of a key that waits.
        park(&shop, 1_010..=1_010, "'7'", &shop.topic()).await;
        let relay = shop.start(RelayConfig { order, ..shop.config() });
        let strict = order == ShippingOrder::Strict;
        shop.until_messages(if strict { 10 } else { 11 }).await;
        shop.insert_one("new", "new").await;
        shop.until_messages(if strict { 11 } else { 12 }).await;
        let payloads: Vec<_> = shop.stored().await.into_iter().map(|s| s.payload).collect();
        assert_eq!(payloads.contains(&"1010".to_owned()), !strict, "{order:?}: {payloads:?}");
        // With a stream for them, they all go, in the order of their keys.
        shop.create_stream(|config| stream::Config {
            subjects: vec![format!("{}.>", shop.scope.prefix()), nowhere.clone()],
            ..config
        })
        .await;
        shop.until_messages(u64::try_from(MANY).unwrap() + 12).await;
        relay.stop().await;
        let of_seven = shop.stored().await.into_iter().filter(|s| s.key.as_deref() == Some("7"));
        let of_seven: Vec<i64> = of_seven.map(|s| s.payload.parse().unwrap()).collect();
        if strict {
            assert!(of_seven.is_sorted(), "{of_seven:?}");
        }
        assert_eq!(of_seven.len(), 14);
    }
}

#[tokio::test]
async fn parked_events_that_are_not_noted_as_shipped_do_not_hide_those_behind_them() {
    let shop = Shop::open().await;
    park(&shop, 1..=MANY, "(i % 20)::text", &shop.topic()).await;
    park(&shop, 1_000..=1_009, "'behind'", &shop.topic()).await;
    run(
        &shop,
        "create function leave_out() returns trigger language plpgsql as $$ begin \
         if old.position <= 250 then return null; end if; return new; end $$; \
         create trigger guard before update on pillarbox.outbox_dead_letter \
         for each row execute function leave_out()"
            .to_owned(),
    )
    .await;
    let relay = shop.start(shop.config());
    let retried = "select count(*) from pillarbox.outbox_dead_letter where state = 'retried'";
    until(&shop, "those behind to be shipped", retried, 10).await;
    assert_eq!(shop.messages().await, 260);
    run(&shop, "drop trigger guard on pillarbox.outbox_dead_letter".to_owned()).await;
    until(&shop, "all to be noted", retried, 260).await;
    assert_eq!(shop.messages().await, 260, "each went out once");
    relay.stop().await;
}

#[tokio::test]
async fn a_parked_event_without_an_answer_holds_up_neither_parked_ones_nor_pages() {
    let shop = Shop::open().await;
    // Somebody listens there, and is no stream; in the case of each of these subjects by itself.
    let nowhere = format!("nowhere.{}", shop.scope.prefix());
    let listener = async_nats::connect(shop.scope.nats_url()).await.unwrap();
    let _heard = listener.subscribe(format!("{nowhere}.*")).await.unwrap();
    listener.flush().await.unwrap();
    for position in 1..=20 {
        park(&shop, position..=position, "null", &format!("{nowhere}.{position}")).await;
    }
    park(&shop, 1_000..=1_009, "'behind'", &shop.topic()).await;
    let relay =
        shop.start(RelayConfig { ack_timeout: Duration::from_millis(500), ..shop.config() });
    let began = Instant::now();
    shop.insert_one("new", "new").await;
    eventually("the page to have its turn", DEADLINE, async || {
        let new = shop.stored().await.into_iter().any(|stored| stored.payload == "new");
        Ok::<_, String>(new.then_some(()))
    })
    .await
    .unwrap();
    println!("the page had its turn after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    shop.until_messages(11).await;
    relay.stop().await;
}
