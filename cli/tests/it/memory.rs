//! The relay stays within the 256 MB of the shipped unit and manifest, whatever waits in the outbox. Each test has servers
//! of its own, so that its gigabytes leave the disk with it.

use std::time::Duration;

use crate::support::http::Endpoint;
use crate::support::{Process, Shop, large};
use async_nats::jetstream::stream::{Config, StorageType};
use pillarbox_testkit::{Nats, Postgres, Scope, Servers, eventually};
use sqlx::AssertSqlSafe;

const LIMIT_KB: u64 = 256 * 1024;
const PATIENCE: Duration = Duration::from_secs(120);

/// The most memory that a process has ever had, in kB. `None` when it has ended.
fn peak(process: &Process) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1).unwrap().parse().ok()
}

async fn run(shop: &Shop, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(shop.pool()).await.unwrap();
}

async fn until(shop: &Shop, process: &Process, what: &str, shipped: u64, letters: i64) {
    let mut most = 0;
    eventually(what, PATIENCE, async || {
        most = most.max(peak(process).unwrap_or(0));
        assert!(most < LIMIT_KB, "{what}: {most} kB");
        let found = (
            shop.messages().await,
            shop.number("select count(*) from pillarbox.outbox_dead_letter").await,
        );
        match found == (shipped, letters) {
            true => Ok(Some(())),
            false => Err(format!("{found:?}: {:#?}", process.lines.lock().unwrap())),
        }
    })
    .await
    .unwrap();
    println!("{what}: a peak of {most} kB");
}

#[tokio::test]
async fn four_hundred_events_of_a_megabyte_are_shipped() {
    let _large = large().await;
    let servers = Servers::start().await.unwrap();
    let shop = Shop::on(servers.scope().await.unwrap()).await;
    run(
        &shop,
        format!(
            "insert into pillarbox.outbox (event_type, topic, key, payload) \
             select 't', '{}', i::text, convert_to(repeat('x', 1000000), 'utf8') from generate_series(1, 400) i",
            shop.topic()
        ),
    )
    .await;
    let relay = Process::relay(&shop, &["--http", "127.0.0.1:0"]);
    let http = Endpoint::of(&relay).await;
    until(&shop, &relay, "400 events of 1 MB", 400, 0).await;
    http.until(r#"pillarbox_backlog_events{relay="default"}"#, 0.0).await;
    http.until(r#"pillarbox_shipped_events_total{relay="default"}"#, 400.0).await;
    http.until_ready(200).await;
}

#[tokio::test]
async fn four_hundred_letters_of_a_megabyte_are_shipped_and_replayed() {
    let _large = large().await;
    let servers = Servers::start().await.unwrap();
    let shop = Shop::on(servers.scope().await.unwrap()).await;
    let columns = "position, relay, event_id, event_type, topic, key, headers, payload, created_at, reason, error, attempts, state";
    run(
        &shop,
        format!(
            "insert into pillarbox.outbox_dead_letter ({columns}) \
             select i, 'default', gen_random_uuid(), 't', '{}', i::text, '{{}}', convert_to(repeat('x', 1000000), 'utf8'), \
                    now(), 'too_large', 'too large', 1, 'parked' \
             from generate_series(1, 400) i",
            shop.topic()
        ),
    )
    .await;
    let relay = Process::relay(&shop, &[]);
    until(&shop, &relay, "400 letters of 1 MB", 400, 400).await;
    run(
        &shop,
        "insert into pillarbox.outbox (event_type, topic, key, payload) \
         select event_type, topic, key, payload from pillarbox.outbox_dead_letter"
            .to_owned(),
    )
    .await;
    until(&shop, &relay, "400 events of 1 MB", 800, 400).await;
    shop.shipped_within(PATIENCE).await;
    let replay = Process::run(
        &["replay", "--from-position", "1", "--yes"],
        &[("DATABASE_URL", shop.scope.database_url()), ("NATS_URL", shop.scope.nats_url())],
    );
    until(&shop, &replay, "a replay of 400 events of 1 MB", 1_200, 400).await;
}

#[tokio::test]
async fn small_events_with_large_ones_among_them_are_shipped_with_the_largest_page() {
    let _large = large().await;
    let servers = Servers::start().await.unwrap();
    let shop = Shop::on(servers.scope().await.unwrap()).await;
    run(
        &shop,
        format!(
            "insert into pillarbox.outbox (event_type, topic, key, payload) \
             select 't', '{}', (i % 9)::text, convert_to(repeat('x', case when i > 20000 and i % 2 = 0 then 900000 else 20 end), 'utf8') \
             from generate_series(1, 20600) i",
            shop.topic()
        ),
    )
    .await;
    let relay = Process::relay(&shop, &["--page-rows", "100000"]);
    until(&shop, &relay, "20600 events of 20 bytes to 0.9 MB", 20_600, 0).await;
}

#[tokio::test]
async fn events_of_a_raised_max_payload_are_shipped_and_larger_ones_set_aside_unread() {
    let _large = large().await;
    let postgres = Postgres::start().await.unwrap();
    // A stream in files takes no message over 32 MiB.
    for (megabytes, count, storage) in [(64, 3, StorageType::Memory), (8, 24, StorageType::File)] {
        let nats =
            Nats::options().config(&format!("max_payload: {megabytes}MB\nmax_pending: 256MB"));
        let nats = nats.start().await.unwrap();
        let scope = Scope::on(&postgres, &nats.url()).await.unwrap();
        let shop = Shop::with_stream(scope, |config| Config { storage, ..config }).await;
        run(
            &shop,
            format!(
                "alter table pillarbox.outbox drop constraint if exists outbox_payload_size; \
                 insert into pillarbox.outbox (event_type, topic, key, payload) \
                 select 't', '{topic}', i::text, decode(repeat('00', {size} - 1000), 'hex') from generate_series(1, {count}) i; \
                 insert into pillarbox.outbox (event_type, topic, key, payload) \
                 values ('t', '{topic}', 'large', decode(repeat('00', {size} + 1), 'hex')); \
                 insert into pillarbox.outbox (event_type, topic, key, payload) \
                 values ('t', '{topic}', 'small', 'small')",
                topic = shop.topic(),
                size = megabytes * 1024 * 1024,
            ),
        )
        .await;
        let relay = Process::relay(&shop, &["--ack-timeout-ms", "20000"]);
        until(&shop, &relay, &format!("{count} events of {megabytes} MB"), count + 1, 1).await;
    }
}

#[tokio::test]
async fn a_message_larger_than_a_stream_in_files_takes_is_set_aside() {
    let _large = large().await;
    let postgres = Postgres::start().await.unwrap();
    let nats =
        Nats::options().config("max_payload: 64MB\nmax_pending: 256MB").start().await.unwrap();
    let scope = Scope::on(&postgres, &nats.url()).await.unwrap();
    let shop = Shop::on(scope).await;
    run(
        &shop,
        format!(
            "insert into pillarbox.outbox (event_type, topic, key, payload) \
             values ('t', '{topic}', 'a', decode(repeat('00', 40000000), 'hex')), ('t', '{topic}', 'a', 'small')",
            topic = shop.topic()
        ),
    )
    .await;
    let relay = Process::relay(&shop, &["--ack-timeout-ms", "20000"]);
    until(&shop, &relay, "an event of 40 MB", 1, 1).await;
}

#[tokio::test]
async fn headers_that_can_never_be_sent_are_refused_by_the_table() {
    let _large = large().await;
    let servers = Servers::start().await.unwrap();
    let shop = Shop::on(servers.scope().await.unwrap()).await;
    for (headers, fits) in [
        ("jsonb_build_object('x', repeat('x', 190000000))", false),
        ("jsonb_build_object('x', repeat('x', 3000000))", false),
        ("jsonb_build_object('x', repeat('x', 60000))", true),
    ] {
        let sql = format!(
            "insert into pillarbox.outbox (event_type, topic, headers, payload) values ('t', '{}', {headers}, '')",
            shop.topic()
        );
        let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(shop.pool()).await;
        assert_eq!(done.is_ok(), fits, "{headers}: {done:?}");
    }
    for column in ["event_type", "topic", "key"] {
        let sql = format!(
            "insert into pillarbox.outbox (event_type, topic, key, payload) values ('t', 't', 'k', ''); \
             update pillarbox.outbox set {column} = repeat('x', 200000)"
        );
        assert!(sqlx::raw_sql(AssertSqlSafe(sql)).execute(shop.pool()).await.is_err(), "{column}");
    }
}

/// Tables without the checks, as another tool may have made them.
#[tokio::test]
async fn rows_far_too_large_are_set_aside_unread() {
    let _large = large().await;
    let servers = Servers::start().await.unwrap();
    let shop = Shop::on(servers.scope().await.unwrap()).await;
    let mut transaction = shop.pool().begin().await.unwrap();
    sqlx::raw_sql(
        "do $$ declare name text; begin \
           for name in select conname from pg_constraint where conrelid = 'pillarbox.outbox'::regclass and contype = 'c' loop \
             execute format('alter table pillarbox.outbox drop constraint %I', name); \
           end loop; end $$; \
         alter table pillarbox.outbox alter column headers set storage extended",
    )
    .execute(&mut *transaction)
    .await
    .unwrap();
    let insert = |headers: &str, count: u32| {
        AssertSqlSafe(format!(
            "insert into pillarbox.outbox (event_type, topic, key, headers, payload) \
             select 't', '{topic}', 'good', '{{}}', 'good' from generate_series(1, 3); \
             insert into pillarbox.outbox (event_type, topic, key, headers, payload) \
             select 't', '{topic}', 'bad', {headers}, 'bad' from generate_series(1, {count})",
            topic = shop.topic()
        ))
    };
    for (headers, count) in [
        ("jsonb_build_object('x', repeat('x', 190000000))", 2),
        ("jsonb_build_object('x', repeat('x', 3000000))", 120),
        ("jsonb_build_object('x', repeat('x', 20000000))", 20),
        // Few bytes in the table, and many as text.
        ("('{\"a\": [' || repeat('1e131071,', 60) || '1]}')::jsonb", 60),
        (
            "jsonb_build_object('x', (select string_agg(md5(i::text), '') from generate_series(1, 100000) i))",
            4,
        ),
    ] {
        sqlx::raw_sql(insert(headers, count)).execute(&mut *transaction).await.unwrap();
    }
    sqlx::raw_sql(insert("'{}'", 0)).execute(&mut *transaction).await.unwrap();
    for column in ["event_type", "topic", "key"] {
        sqlx::raw_sql(AssertSqlSafe(format!(
            "insert into pillarbox.outbox (event_type, topic, key, payload) values ('t', '{}', 'bad', 'bad'); \
             update pillarbox.outbox set {column} = repeat('x', 30000000) where position = lastval()",
            shop.topic()
        )))
        .execute(&mut *transaction)
        .await
        .unwrap();
    }
    transaction.commit().await.unwrap();
    let relay = Process::relay(&shop, &[]);
    until(&shop, &relay, "rows far too large", 18, 2 + 120 + 20 + 60 + 4 + 3).await;
    let said = relay.said("the trouble is over");
    assert_eq!(said, 0, "it never stopped");
}
