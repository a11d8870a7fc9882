//! Rows that somebody else put into the outbox: with another cluster's transaction ids, or at positions of their own.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::http::Endpoint;
use crate::support::{self, Process, Shop};
use pillarbox_relay::RelayConfig;
use pillarbox_testkit::{Database, Postgres, eventually, servers};
use rustix::process::Signal;
use sqlx::{AssertSqlSafe, PgPool, Row};

const COLUMNS: &str =
    "txid, position, event_id, synchronous, event_type, topic, key, headers, payload, created_at";

/// Events with these numbers as payloads, in a statement each.
async fn insert(pool: &PgPool, topic: &str, numbers: std::ops::RangeInclusive<i64>) {
    sqlx::query(
        "insert into pillarbox.outbox (event_type, topic, key, payload) \
         select 'order.placed', $1, '1', convert_to(i::text, 'utf8') from generate_series($2, $3) i",
    )
    .bind(topic)
    .bind(*numbers.start())
    .bind(*numbers.end())
    .execute(pool)
    .await
    .unwrap();
}

/// What a dump and a restore carry over: the rows and the sequence, and the relays' cursors if there are any.
async fn restore(from: &PgPool, to: &PgPool) {
    pillarbox_outbox::migrate(to).await.unwrap();
    for (table, columns) in [("outbox", COLUMNS), ("relay", "name, cursor, epoch")] {
        let rows: Option<String> = sqlx::query_scalar(AssertSqlSafe(format!(
            "select jsonb_agg(t)::text from (select {columns} from pillarbox.{table}) as t"
        )))
        .fetch_one(from)
        .await
        .unwrap();
        sqlx::query(AssertSqlSafe(format!(
            "insert into pillarbox.{table} ({columns}) overriding system value \
             select {columns} from jsonb_populate_recordset(null::pillarbox.{table}, $1::jsonb)"
        )))
        .bind(rows.unwrap_or_else(|| "[]".into()))
        .execute(to)
        .await
        .unwrap();
    }
    sqlx::query("select setval('pillarbox.outbox_position_seq', (select max(position) from pillarbox.outbox))")
        .execute(to)
        .await
        .unwrap();
}

async fn spend(pool: &PgPool, ids: i64) {
    sqlx::raw_sql(AssertSqlSafe(format!(
        "do $$ begin for i in 1..{ids} loop perform pg_current_xact_id(); commit; end loop; end $$"
    )))
    .execute(pool)
    .await
    .unwrap();
}

async fn cluster(ids: i64) -> (Postgres, Database) {
    let postgres = Postgres::options().own_identity().start().await.unwrap();
    let database = postgres.create_database("shop").await.unwrap();
    spend(&database.pool, ids).await;
    (postgres, database)
}

/// A shop of the shared servers, whose outbox is somewhere else.
async fn shop() -> Shop {
    Shop::on(servers().await.unwrap().scope().await.unwrap()).await
}

fn config(shop: &Shop, url: &str) -> RelayConfig {
    RelayConfig { database_url: url.to_owned(), lease: Duration::from_secs(2), ..shop.config() }
}

async fn until_all_of(shop: &Shop, wanted: std::ops::RangeInclusive<i64>) {
    let wanted: BTreeSet<String> = wanted.map(|number| number.to_string()).collect();
    let everything = eventually("every event to be stored", Duration::from_secs(60), async || {
        let stored: BTreeSet<String> =
            shop.stored().await.into_iter().map(|stored| stored.payload).collect();
        match wanted.difference(&stored).count() {
            0 => Ok(Some(())),
            missing => Err(format!("{missing} are missing")),
        }
    });
    everything.await.unwrap();
}

#[tokio::test]
async fn a_first_relay_ships_what_was_loaded_before_whatever_ids_it_carries() {
    // The ids of what is loaded lie ahead of the new cluster's, and behind.
    for (old_ids, new_ids) in [(60_000, 0), (0, 60_000)] {
        let shop = shop().await;
        let (_old, from) = cluster(old_ids).await;
        pillarbox_outbox::migrate(&from.pool).await.unwrap();
        for page in 0..30 {
            insert(&from.pool, &shop.topic(), page * 100 + 1..=page * 100 + 100).await;
        }
        let (_new, to) = cluster(new_ids).await;
        restore(&from.pool, &to.pool).await;
        insert(&to.pool, &shop.topic(), 3_001..=3_010).await;

        let relay = shop.start(config(&shop, &to.url));
        until_all_of(&shop, 1..=3_010).await;
        insert(&to.pool, &shop.topic(), 3_011..=3_020).await;
        until_all_of(&shop, 1..=3_020).await;
        relay.stop().await;
        let payloads: Vec<_> =
            shop.stored().await.into_iter().map(|stored| stored.payload).collect();
        let wanted: Vec<_> = (1..=3_020).map(|number| number.to_string()).collect();
        assert_eq!(payloads, wanted, "in order, and each once");
    }
}

#[tokio::test]
async fn a_change_of_cluster_rewrites_no_row_and_disturbs_no_other_relay() {
    let shop = shop().await;
    let other = Shop::on(servers().await.unwrap().scope().await.unwrap()).await;
    let (_old, from) = cluster(50_000).await;
    pillarbox_outbox::migrate(&from.pool).await.unwrap();
    insert(&from.pool, &shop.topic(), 1..=50_000).await;
    // A relay under another name ships the same outbox elsewhere, and is behind.
    let named = |url: &str| RelayConfig { name: "other".into(), ..config(&shop, url) };
    let first = shop.start(config(&shop, &from.url));
    shop.until_messages(50_000).await;
    first.stop().await;
    insert(&from.pool, &shop.topic(), 50_001..=50_010).await;

    let (_new, to) = cluster(0).await;
    restore(&from.pool, &to.pool).await;
    insert(&to.pool, &shop.topic(), 50_011..=50_020).await;
    let mut relay = Process::relay(&shop, &["--database-url", &to.url, "--http", "127.0.0.1:0"]);
    let http = Endpoint::of(&relay).await;
    // It leads, is ready, and knows that nothing waits, however large the outbox is.
    http.until_ready(200).await;
    http.until(r#"pillarbox_leader{relay="default"}"#, 1.0).await;
    shop.until_messages(50_020).await;
    http.until(r#"pillarbox_backlog_events{relay="default"}"#, 0.0).await;
    let second = shop.start(named(&to.url));
    insert(&to.pool, &shop.topic(), 50_021..=50_030).await;
    until_all_of(&shop, 1..=50_030).await;
    let moved = eventually("the other relay to be through", Duration::from_secs(60), async || {
        let high: Option<i64> = sqlx::query_scalar(
            "select (cursor ->> 'top')::bigint from pillarbox.relay where name = 'other'",
        )
        .fetch_optional(&to.pool)
        .await?;
        Ok::<_, sqlx::Error>(high.filter(|high| *high == 50_030))
    });
    moved.await.unwrap();
    let scrape = http.scrape().await;
    assert_eq!(
        scrape.get(r#"pillarbox_lease_takeovers_total{relay="default"}"#),
        1.0,
        "{}",
        scrape.text
    );
    // The stream would drop what it knows, so its messages alone do not tell.
    let shipped = scrape.get(r#"pillarbox_shipped_events_total{relay="default"}"#);
    assert_eq!(shipped, 30.0, "what had been shipped was not shipped again");
    relay.signal(Signal::TERM);
    assert_eq!(relay.ended().await, 0);
    second.stop().await;
    drop(other);
    assert_eq!(shop.messages().await, 50_030);
    let updated = "select pg_stat_get_tuples_updated('pillarbox.outbox'::regclass) + \
                   (select count(*) from pillarbox.outbox where xmax::text <> '0')";
    let updated: i64 = sqlx::query_scalar(updated).fetch_one(&to.pool).await.unwrap();
    assert_eq!(updated, 0, "no row was rewritten");
}

/// Loads four events with these ids, at these positions or the next ones, and says under which numbers.
async fn load(shop: &Shop, txid: &str, position: Option<i64>, savepoint: bool, first: i64) {
    let mut tx = shop.pool().begin().await.unwrap();
    if savepoint {
        sqlx::raw_sql("savepoint a").execute(&mut *tx).await.unwrap();
    }
    for number in first..first + 4 {
        let place = position.map(|position| position + number - first);
        sqlx::query(AssertSqlSafe(format!(
            "insert into pillarbox.outbox (txid, position, event_type, topic, key, payload) overriding system value \
             values ({txid}, coalesce($1, nextval('pillarbox.outbox_position_seq')), 't', $2, '1', convert_to($3, 'utf8'))"
        )))
        .bind(place)
        .bind(shop.topic())
        .bind(number.to_string())
        .execute(&mut *tx)
        .await
        .unwrap();
    }
    tx.commit().await.unwrap();
}

const BEHIND: &str = "'5'::xid8";
const AHEAD: &str = "(pg_current_xact_id()::text::bigint + 5000000)::text::xid8";

#[tokio::test]
async fn foreign_rows_are_shipped_whenever_and_wherever_they_arrive() {
    let shop = shop().await;
    sqlx::query("select setval('pillarbox.outbox_position_seq', 1000)")
        .execute(shop.pool())
        .await
        .unwrap();
    spend(shop.pool(), 100).await;
    load(&shop, BEHIND, None, false, 1).await;
    load(&shop, AHEAD, None, true, 5).await;
    let relay = shop.start(shop.config());
    until_all_of(&shop, 1..=8).await;
    // While it runs: behind what was shipped, above it, and far above the sequence.
    let mut next = 9;
    for (position, savepoint) in [
        (None, false),
        (None, true),
        (Some(10), false),
        (Some(20), true),
        (Some(5_000), false),
        (Some(700), false),
    ] {
        for txid in [BEHIND, AHEAD] {
            let position = position.map(|position| position + if txid == AHEAD { 5 } else { 0 });
            load(&shop, txid, position, savepoint, next).await;
            next += 4;
        }
        // Ordinary ones between them, whose positions the sequence gives.
        insert(shop.pool(), &shop.topic(), next..=next + 4).await;
        next += 5;
    }
    until_all_of(&shop, 1..=next - 1).await;
    // And a second time, when everything is at rest.
    load(&shop, BEHIND, Some(40), false, next).await;
    load(&shop, AHEAD, Some(50), false, next + 4).await;
    until_all_of(&shop, 1..=next + 7).await;
    shop.shipped().await;
    relay.stop().await;
}

/// A relay that runs, and whose scan has left the positions up to 1000 behind.
async fn far_ahead(shop: &Shop) -> support::Started {
    sqlx::query("select setval('pillarbox.outbox_position_seq', 1000)")
        .execute(shop.pool())
        .await
        .unwrap();
    let relay = shop.start(shop.config());
    for first in [1, 11] {
        insert(shop.pool(), &shop.topic(), first..=first + 9).await;
        until_all_of(shop, 1..=first + 9).await;
    }
    let floor = "select coalesce(max((cursor ->> 'floor')::bigint), 0) from pillarbox.relay where name = 'default'";
    let behind = eventually("the floor to rise", Duration::from_secs(60), async || {
        match shop.number(floor).await {
            floor if floor > 1_000 => Ok(Some(())),
            floor => Err(format!("it is {floor}")),
        }
    });
    behind.await.unwrap();
    relay
}

/// Puts an event at a position that the scan has left behind, together with a letter of the same position and id.
async fn late_with_a_letter(shop: &Shop, number: i64, letter: Letter) {
    let Letter { relay, state, written } = letter;
    let mut tx = shop.pool().begin().await.unwrap();
    sqlx::query(
        "insert into pillarbox.outbox (position, event_type, topic, key, payload) overriding system value \
         values ($1, 't', $2, '1', convert_to($1::text, 'utf8'))",
    )
    .bind(number)
    .bind(shop.topic())
    .execute(&mut *tx)
    .await
    .unwrap();
    sqlx::query(
        "insert into pillarbox.outbox_dead_letter (position, relay, event_id, event_type, topic, key, headers, payload, \
             created_at, reason, error, attempts, state) \
         select position, $2, event_id, event_type, topic, key, headers, payload, created_at + $3::text::interval, \
             'too_large', 'it was too large', 1, $4 \
         from pillarbox.outbox where position = $1",
    )
    .bind(number)
    .bind(relay)
    .bind(written)
    .bind(state)
    .execute(&mut *tx)
    .await
    .unwrap();
    tx.commit().await.unwrap();
}

/// Whose letter it is, what became of its event, and when that was written beside the row.
struct Letter {
    relay: &'static str,
    state: &'static str,
    written: &'static str,
}

#[tokio::test]
async fn a_letter_of_another_relay_does_not_hide_a_late_row() {
    let shop = shop().await;
    let relay = far_ahead(&shop).await;
    for (number, state) in [(101, "dead"), (102, "discarded"), (103, "parked")] {
        late_with_a_letter(&shop, number, Letter { relay: "other", state, written: "0" }).await;
    }
    until_all_of(&shop, 101..=103).await;
    relay.stop().await;
}

#[tokio::test]
async fn an_old_letter_does_not_hide_a_late_row_at_its_place() {
    let shop = shop().await;
    let relay = far_ahead(&shop).await;
    // Of an earlier life of the table.
    for (number, written) in [(101, "-1 day"), (102, "1 microsecond"), (103, "-100000 days")] {
        let letter = Letter { relay: "default", state: "dead", written };
        late_with_a_letter(&shop, number, letter).await;
    }
    // Of the same event, which the relay had shipped in the meantime: it goes back behind that only if the broker has
    // lost something.
    let letter = Letter { relay: "default", state: "retried", written: "0" };
    late_with_a_letter(&shop, 104, letter).await;
    until_all_of(&shop, 101..=104).await;
    // And one that is set aside stays so.
    for (number, state) in [(201, "dead"), (202, "discarded")] {
        let letter = Letter { relay: "default", state, written: "0" };
        late_with_a_letter(&shop, number, letter).await;
    }
    late_with_a_letter(&shop, 203, Letter { relay: "other", state: "dead", written: "0" }).await;
    until_all_of(&shop, 203..=203).await;
    relay.stop().await;
    let stored: BTreeSet<String> = shop.stored().await.into_iter().map(|s| s.payload).collect();
    assert!(!stored.contains("201") && !stored.contains("202"), "{stored:?}");
}

/// A restore in one transaction takes long, and writes at positions that the relay has passed.
#[tokio::test]
async fn a_long_transaction_hides_nothing_that_it_writes_at_low_positions() {
    let shop = shop().await;
    let relay = far_ahead(&shop).await;
    // It has its id, and all that the relay does next lists it.
    let mut long = shop.pool().begin().await.unwrap();
    let own: String = sqlx::query_scalar("select pg_current_xact_id()::text")
        .fetch_one(&mut *long)
        .await
        .unwrap();
    let listed = "select count(*) from pillarbox.relay where strpos(cursor #>> '{marks,0,in_flight}', $1) > 0";
    let mut next = 21;
    let seen = eventually("the lowest mark to list it", Duration::from_secs(60), async || {
        insert(shop.pool(), &shop.topic(), next..=next).await;
        next += 1;
        let marks: i64 = sqlx::query_scalar(listed).bind(&own).fetch_one(shop.pool()).await?;
        Ok::<_, sqlx::Error>((marks > 0).then_some(()))
    });
    seen.await.unwrap();
    until_all_of(&shop, 1..=next - 1).await;
    // With its own id, with another cluster's, and, in another transaction, with the id that is its own.
    let mut short = shop.pool().begin().await.unwrap();
    for (position, txid) in [(10, own.as_str()), (11, "5"), (12, "99999999999"), (20, &own)] {
        let tx = if position == 20 { &mut short } else { &mut long };
        sqlx::query(
            "insert into pillarbox.outbox (txid, position, event_type, topic, payload) overriding system value \
             values ($1::text::xid8, $2, 't', $3, convert_to('low ' || $2, 'utf8'))",
        )
        .bind(txid)
        .bind(position)
        .bind(shop.topic())
        .execute(&mut **tx)
        .await
        .unwrap();
    }
    short.commit().await.unwrap();
    // Ordinary ones of the same transaction, with and without a savepoint.
    shop.insert(&mut long, "k", "ordinary 1").await;
    sqlx::raw_sql("savepoint a").execute(&mut *long).await.unwrap();
    shop.insert(&mut long, "k", "ordinary 2").await;
    long.commit().await.unwrap();
    let wanted = ["low 10", "low 11", "low 12", "low 20", "ordinary 1", "ordinary 2"];
    let shipped = eventually("all of it to be stored", Duration::from_secs(60), async || {
        // There is always something new, so that the cursor moves on.
        insert(shop.pool(), &shop.topic(), next..=next).await;
        next += 1;
        let stored: Vec<_> = shop.stored().await.into_iter().map(|s| s.payload).collect();
        let missing: Vec<_> = wanted.iter().filter(|w| !stored.iter().any(|s| s == **w)).collect();
        if missing.is_empty() { Ok(Some(stored)) } else { Err(format!("{missing:?}")) }
    });
    let stored = shipped.await.unwrap();
    let ordinary: Vec<_> = stored.iter().filter(|s| s.starts_with("ordinary")).collect();
    assert_eq!(ordinary, ["ordinary 1", "ordinary 2"], "each once, in order");
    relay.stop().await;
}

#[tokio::test]
async fn rows_under_savepoints_are_shipped_once_also_beside_an_open_transaction() {
    let shop = shop().await;
    let mut open = shop.pool().begin().await.unwrap();
    sqlx::query("select pg_current_xact_id()::text").fetch_one(&mut *open).await.unwrap();
    let relay = shop.start(shop.config());
    for number in 0..60_i64 {
        let mut tx = shop.pool().begin().await.unwrap();
        for part in 0..2 {
            sqlx::raw_sql("savepoint a").execute(&mut *tx).await.unwrap();
            shop.insert(&mut tx, &(number % 5).to_string(), &format!("{number}.{part}")).await;
            if part == 1 && number % 3 == 0 {
                sqlx::raw_sql("rollback to savepoint a").execute(&mut *tx).await.unwrap();
            }
        }
        tx.commit().await.unwrap();
        if number == 30 {
            shop.until_messages(31 + 20).await;
        }
    }
    shop.until_messages(60 + 40).await;
    shop.insert(&mut open, "late", "late").await;
    open.commit().await.unwrap();
    shop.until_messages(101).await;
    shop.shipped().await;
    relay.stop().await;
    shop.assert_each_once_in_order().await;
}

#[tokio::test]
async fn a_sequence_that_was_set_back_hides_nothing() {
    let shop = shop().await;
    insert(shop.pool(), &shop.topic(), 1..=50).await;
    let relay = shop.start(shop.config());
    until_all_of(&shop, 1..=50).await;
    // While it runs, and then while it does not: the table is emptied, and the positions begin again.
    sqlx::raw_sql("truncate pillarbox.outbox restart identity").execute(shop.pool()).await.unwrap();
    insert(shop.pool(), &shop.topic(), 51..=60).await;
    until_all_of(&shop, 1..=60).await;
    relay.stop().await;
    sqlx::raw_sql("truncate pillarbox.outbox restart identity").execute(shop.pool()).await.unwrap();
    insert(shop.pool(), &shop.topic(), 61..=120).await;
    let relay = shop.start(shop.config());
    until_all_of(&shop, 1..=120).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_sequence_that_passes_its_old_place_again_between_two_looks_is_told_and_hides_nothing() {
    let shop = shop().await;
    let relay = Process::relay(&shop, &[]);
    let mut last = 0;
    for _ in 0..3 {
        insert(shop.pool(), &shop.topic(), last + 1..=last + 20).await;
        last += 20;
        until_all_of(&shop, 1..=last).await;
    }
    shop.shipped().await;
    let told = "set back and has passed its old place";
    for (back, many, times) in [(10, 200, 1), (1, 300, 2)] {
        // It looks before, and when the sequence is further than it was.
        relay.signal(Signal::STOP);
        sqlx::raw_sql(AssertSqlSafe(format!(
            "delete from pillarbox.outbox; select setval('pillarbox.outbox_position_seq', {back})"
        )))
        .execute(shop.pool())
        .await
        .unwrap();
        insert(shop.pool(), &shop.topic(), last + 1..=last + many).await;
        relay.signal(Signal::CONT);
        last += many;
        until_all_of(&shop, 1..=last).await;
        let said = eventually("a warning", Duration::from_secs(60), async || {
            let said = relay.said(told);
            Ok::<_, String>((said == times).then_some(()))
        });
        said.await.unwrap();
    }
    assert_eq!(relay.said("was set back below rows"), 0);
    relay.until_said("nothing is lost, and no row is to be mended").await;
    insert(shop.pool(), &shop.topic(), last + 1..=last + 10).await;
    until_all_of(&shop, 1..=last + 10).await;
}

#[tokio::test]
async fn a_sequence_or_a_table_that_is_set_back_under_a_running_relay_is_told_with_the_remedy() {
    let shop = shop().await;
    let relay = Process::relay(&shop, &[]);
    let run = async |sql: &str| {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(shop.pool()).await.unwrap();
    };
    insert(shop.pool(), &shop.topic(), 1..=30).await;
    until_all_of(&shop, 1..=30).await;
    insert(shop.pool(), &shop.topic(), 31..=50).await;
    until_all_of(&shop, 1..=50).await;
    shop.shipped().await;

    // The rows are there still, so writers are refused. The relay knows the way out.
    run("select setval('pillarbox.outbox_position_seq', 10)").await;
    let remedy = "alter sequence pillarbox.outbox_position_seq restart with 51;";
    relay.until_said(remedy).await;
    run(remedy).await;
    insert(shop.pool(), &shop.topic(), 51..=60).await;
    until_all_of(&shop, 1..=60).await;

    // Emptied, and begun anew: that is told, and nothing is to be done.
    run("truncate pillarbox.outbox restart identity").await;
    relay.until_said("nothing is to be mended").await;
    insert(shop.pool(), &shop.topic(), 61..=70).await;
    until_all_of(&shop, 1..=70).await;
    // Emptied alone: the sequence goes on.
    run("truncate pillarbox.outbox").await;
    insert(shop.pool(), &shop.topic(), 71..=80).await;
    until_all_of(&shop, 1..=80).await;
    assert_eq!(relay.said("was set back"), 2, "{:#?}", relay.lines.lock().unwrap());
    // Dropped and made anew, with the letters and the cursors as they were.
    run("drop table pillarbox.outbox").await;
    for (_, sql) in pillarbox_outbox::migrations("pillarbox").unwrap() {
        run(&sql).await;
    }
    insert(shop.pool(), &shop.topic(), 81..=90).await;
    until_all_of(&shop, 1..=90).await;
}

#[tokio::test]
async fn retention_keeps_what_was_loaded_until_it_is_shipped() {
    let shop = shop().await;
    let config = || RelayConfig { retention: Duration::from_secs(1), ..shop.config() };
    spend(shop.pool(), 100).await;
    insert(shop.pool(), &shop.topic(), 1..=20).await;
    let relay = shop.start(config());
    until_all_of(&shop, 1..=20).await;
    let empty = || async { shop.number("select count(*) from pillarbox.outbox").await };
    let removed = eventually("old rows to go", Duration::from_secs(60), async || {
        Ok::<_, String>((empty().await == 0).then_some(()))
    });
    removed.await.unwrap();
    // At a position that retention passed long ago, with an id that every checkpoint sees.
    load(&shop, BEHIND, Some(3), false, 21).await;
    until_all_of(&shop, 1..=24).await;
    // The sweep has just been there, and comes again in five seconds. Until then checkpoints are taken that see the
    // rows, and are older than the retention.
    load(&shop, BEHIND, Some(10), false, 25).await;
    let mut next = 29;
    let found = eventually("the rows to be found", Duration::from_secs(60), async || {
        insert(shop.pool(), &shop.topic(), next..=next).await;
        next += 1;
        let stored = shop.stored().await;
        let found =
            (25..=28).filter(|number| stored.iter().any(|s| s.payload == number.to_string()));
        match found.count() {
            4 => Ok(Some(())),
            found => Err(format!("{found} of 4 are stored")),
        }
    });
    found.await.unwrap();
    relay.stop().await;
}

#[tokio::test]
async fn a_subscription_brings_its_rows_while_the_relay_runs() {
    let publisher = Postgres::options().own_identity().setting("wal_level", "logical").start();
    let publisher = publisher.await.unwrap();
    let from = publisher.create_database("shop").await.unwrap();
    let shop = shop().await;
    pillarbox_outbox::migrate(&from.pool).await.unwrap();
    spend(&from.pool, 2_000).await;
    insert(&from.pool, &shop.topic(), 1..=100).await;
    let (_subscriber, to) = cluster(0).await;
    pillarbox_outbox::migrate(&to.pool).await.unwrap();
    // Positions of its own first, so that what comes lies behind them.
    insert(&to.pool, &shop.topic(), 1_001..=1_150).await;
    sqlx::raw_sql("delete from pillarbox.outbox where position <= 120")
        .execute(&to.pool)
        .await
        .unwrap();
    let relay = shop.start(config(&shop, &to.url));
    until_all_of(&shop, 1_121..=1_150).await;

    sqlx::raw_sql("create publication events for table pillarbox.outbox")
        .execute(&from.pool)
        .await
        .unwrap();
    let subscribe =
        format!("create subscription events connection '{}' publication events", from.url);
    sqlx::raw_sql(AssertSqlSafe(subscribe)).execute(&to.pool).await.unwrap();
    until_all_of(&shop, 1..=100).await;
    // Streamed, after the first copy, between local events.
    for number in 0..5 {
        insert(&from.pool, &shop.topic(), 101 + number * 10..=110 + number * 10).await;
        insert(&to.pool, &shop.topic(), 1_151 + number * 10..=1_160 + number * 10).await;
    }
    until_all_of(&shop, 1..=150).await;
    until_all_of(&shop, 1_121..=1_200).await;
    // What the publisher removes has the position of another event here.
    let here = "select count(*) from pillarbox.outbox";
    let before: i64 = sqlx::query_scalar(here).fetch_one(&to.pool).await.unwrap();
    sqlx::raw_sql("delete from pillarbox.outbox").execute(&from.pool).await.unwrap();
    insert(&from.pool, &shop.topic(), 2_001..=2_001).await;
    until_all_of(&shop, 2_001..=2_001).await;
    let after: i64 = sqlx::query_scalar(here).fetch_one(&to.pool).await.unwrap();
    assert_eq!(after, before + 1, "a subscription removes nothing");
    relay.stop().await;
    let own: i64 =
        sqlx::query_scalar("select count(*) from pillarbox.outbox where txid::xid <> xmin")
            .fetch_one(&to.pool)
            .await
            .unwrap();
    assert_eq!(own, 0, "the rows carry ids of the cluster that they are in");
    // In the order of the publisher's commits.
    let replicated: Vec<i64> = shop
        .stored()
        .await
        .iter()
        .filter_map(|stored| stored.payload.parse().ok())
        .filter(|number| *number <= 150)
        .collect();
    assert!(replicated.is_sorted(), "{replicated:?}");
    let drop = "alter subscription events disable; alter subscription events set (slot_name = none); \
                drop subscription events";
    for statement in drop.split(';') {
        sqlx::query(AssertSqlSafe(statement.to_owned())).execute(&to.pool).await.unwrap();
    }
    let slot: String = sqlx::query("select slot_name::text from pg_replication_slots")
        .fetch_one(&from.pool)
        .await
        .unwrap()
        .get(0);
    assert!(!slot.is_empty());
}

/// Ways to give the name of the outbox to another table, in one transaction.
const SWAPS: [&str; 3] = [
    "alter table pillarbox.outbox rename to outbox_old; \
     create table pillarbox.outbox (like pillarbox.outbox_old including all)",
    // It goes on with the old table's sequence.
    "alter table pillarbox.outbox rename to outbox_old; \
     create table pillarbox.outbox (like pillarbox.outbox_old including defaults including constraints) \
     partition by range (position); \
     create table pillarbox.outbox_low partition of pillarbox.outbox for values from (1) to (1000000); \
     alter table pillarbox.outbox add primary key (position); \
     alter table pillarbox.outbox alter column position set default nextval('pillarbox.outbox_position_seq')",
    // With its last events.
    "alter table pillarbox.outbox rename to outbox_old; \
     create table pillarbox.outbox (like pillarbox.outbox_old including all); \
     insert into pillarbox.outbox overriding system value \
     select * from pillarbox.outbox_old order by position desc limit 20; \
     select setval(pg_get_serial_sequence('pillarbox.outbox', 'position'), 50)",
];

#[tokio::test]
async fn a_table_that_takes_the_outboxs_name_is_read_at_once_and_in_order() {
    for swap in SWAPS {
        for running in [true, false] {
            println!("running: {running}; {swap}");
            let shop = shop().await;
            let run = async |sql: &str| {
                sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(shop.pool()).await.unwrap();
            };
            let mut relay = Process::relay(&shop, &[]);
            for first in [1, 41] {
                insert(shop.pool(), &shop.topic(), first..=first + 9).await;
                until_all_of(&shop, first..=first + 9).await;
            }
            shop.shipped().await;
            if !running {
                relay.signal(Signal::TERM);
                relay.ended().await;
            }
            run(swap).await;
            insert(shop.pool(), &shop.topic(), 101..=105).await;
            if !running {
                relay = Process::relay(&shop, &[]);
            }
            for number in 106..=160 {
                insert(shop.pool(), &shop.topic(), number..=number).await;
            }
            relay.until_said("another table is the outbox now").await;
            until_all_of(&shop, 101..=160).await;
            shop.shipped().await;
            let new: Vec<i64> = (shop.stored().await.iter())
                .filter_map(|stored| stored.payload.parse().ok().filter(|number| *number > 100))
                .collect();
            assert!(new.is_sorted(), "{new:?}");
            assert_eq!(shop.status().await.left_table.as_deref(), Some("pillarbox.outbox_old"));
            relay.signal(Signal::TERM);
            relay.ended().await;
            // A relay that reads on says it no more.
            let relay = Process::relay(&shop, &[]);
            relay.until_said("leading").await;
            insert(shop.pool(), &shop.topic(), 161..=161).await;
            until_all_of(&shop, 161..=161).await;
            assert_eq!(relay.said("another table is the outbox now"), 0);
            // A partition's default draws from a sequence that belongs to the old table.
            run("drop table pillarbox.outbox_old cascade").await;
            assert_eq!(shop.status().await.left_table, None);
        }
    }
}

#[tokio::test]
async fn nothing_waits_unseen_in_a_new_table_while_no_relay_runs_and_retention_keeps_it() {
    let shop = shop().await;
    let config = || RelayConfig { retention: Duration::from_secs(1), ..shop.config() };
    let named = || RelayConfig { name: "other".into(), ..config() };
    let (relay, other) = (shop.start(config()), shop.start(named()));
    insert(shop.pool(), &shop.topic(), 1..=20).await;
    until_all_of(&shop, 1..=20).await;
    other.stop().await;
    relay.stop().await;
    // It has events before it becomes the outbox, which all snapshots see.
    let made = "create table pillarbox.next (like pillarbox.outbox including all); \
                insert into pillarbox.next (event_type, topic, key, payload) \
                select 't', topic, '1', convert_to((100 + n)::text, 'utf8') \
                from generate_series(1, 5) n, (select topic from pillarbox.outbox limit 1) as any_row";
    sqlx::raw_sql(made).execute(shop.pool()).await.unwrap();
    let relay = shop.start(config());
    insert(shop.pool(), &shop.topic(), 21..=30).await;
    until_all_of(&shop, 21..=30).await;
    shop.shipped().await;
    relay.stop().await;
    sqlx::raw_sql(
        "alter table pillarbox.outbox rename to outbox_old; alter table pillarbox.next rename to outbox",
    )
    .execute(shop.pool())
    .await
    .unwrap();
    assert_eq!(shop.status().await.backlog_events, 5);
    let relay = shop.start(config());
    until_all_of(&shop, 101..=105).await;
    shop.shipped().await;
    // The other relay has not seen the new table, so its rows stay.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(shop.number("select count(*) from pillarbox.outbox").await, 5);
    let other = shop.start(named());
    let removed = eventually("old rows to go", Duration::from_secs(60), async || {
        let left = shop.number("select count(*) from pillarbox.outbox").await;
        if left == 0 { Ok(Some(())) } else { Err(format!("{left} are left")) }
    });
    removed.await.unwrap();
    other.stop().await;
    relay.stop().await;
}
