//! Connections that a busy consumer keeps from one event to the next.

use std::time::Duration;

use crate::support::{OrderPlaced, Shop, record};
use pillarbox_consumer::{Consumer, ConsumerConfig};
use pillarbox_event::{EventId, RawEvent};
use pillarbox_inbox::{HandlerError, Received, Router, Tx};
use sqlx::postgres::PgPoolOptions;
use tokio_util::sync::CancellationToken;

fn one_at_a_time(shop: &Shop) -> ConsumerConfig {
    ConsumerConfig { concurrency: 1, ..shop.config() }
}

async fn passes_over(tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
    let order = placed.order;
    record(tx, placed).await?;
    if order == 2 {
        let _ = sqlx::query("insert into no_such_table values (1)").execute(&mut **tx).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_failed_statement_that_is_passed_over_is_found_on_a_kept_connection_too() {
    let shop = Shop::open().await;
    for order in [1, 2, 3] {
        shop.send(&shop.event(order, 1)).await;
    }
    let started = shop.start(one_at_a_time(&shop), Router::new().on(passes_over));
    shop.until("select count(*) from pillarbox.inbox_dead_letter where key = '2'", 1).await;
    shop.until("select count(*) from effects", 2).await;
    shop.drained().await;
    started.stop().await;
}

/// Ids that mean something to whoever quotes them wrongly. On a connection that is kept, ids travel in the text of
/// simple queries, which take no parameters.
const HOSTILE: [&str; 18] = [
    // They end a literal, by each way to quote a quote.
    "o'clock",
    "''",
    "\\'",
    "\\' or true --",
    "'; drop table effects; --",
    "' or ''='",
    // They are taken for an escape if standard_conforming_strings is off.
    "back\\slash",
    "\\x27",
    "\\u0027",
    // They end a dollar quote, such as that of the statement that prepares the claim, or look like a parameter.
    "$prepare$",
    "$pillarbox$; rollback; --",
    "$1$2",
    // They begin a comment, an identifier, or another statement.
    "--",
    "/*",
    "\"inbox\"",
    ";commit;",
    // The last byte is a backslash or a quote in other encodings.
    "\u{8868}\u{5341}",
    "\u{bf}'",
];

/// Fails at first, so that the commit forgets a failure by its id. Then it leaves settings behind under which quoting
/// would go wrong.
async fn twists(tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
    if placed.attempt() == 1 {
        return Err(HandlerError::transient("the first time"));
    }
    record(tx, placed).await?;
    let twist = "set standard_conforming_strings = off; set backslash_quote = on; set client_encoding = 'SJIS'";
    sqlx::raw_sql(twist).execute(&mut **tx).await?;
    Ok(())
}

#[tokio::test]
async fn an_id_is_recorded_and_forgotten_as_it_is_whatever_it_means_to_sql() {
    let shop = Shop::open().await;
    let started = shop.start(one_at_a_time(&shop), Router::new().on(twists));
    let plain = shop.event(1, 1);
    for _ in 0..2 {
        for id in HOSTILE {
            let event = RawEvent::from_parts(
                EventId::parse(id).unwrap(),
                plain.event_type().to_owned(),
                plain.topic().to_owned(),
                None,
                plain.headers().clone(),
                plain.payload().clone(),
            );
            shop.send(&event.unwrap()).await;
        }
    }
    shop.until("select count(*) from effects", 18).await;
    shop.drained().await;
    started.stop().await;
    let recorded = "select count(*) from effects join pillarbox.inbox using (event_id)";
    assert_eq!(shop.number(recorded).await, 18);
    assert_eq!(shop.number("select count(*) from pillarbox.inbox").await, 18);
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_failure").await, 0);
    for id in HOSTILE {
        let there = sqlx::query("select from pillarbox.inbox where event_id = $1").bind(id);
        assert_eq!(there.fetch_all(shop.pool()).await.unwrap().len(), 1, "{id}");
    }
}

/// Records, and how often what is prepared to claim by was used; then, once it was used, has the connection forget it.
async fn forgets(tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
    record(tx, placed).await?;
    let prepared: Option<(String, i64)> = sqlx::query_as(
        "select name, generic_plans + custom_plans from pg_prepared_statements \
         where name like 'pillarbox_claim_%'",
    )
    .fetch_optional(&mut **tx)
    .await?;
    if let Some((name, used)) = prepared.filter(|(_, used)| *used > 1) {
        sqlx::query("insert into used values ($1)").bind(used).execute(&mut **tx).await?;
        let forget = sqlx::AssertSqlSafe(format!("deallocate {name}"));
        sqlx::raw_sql(forget).execute(&mut **tx).await?;
    }
    Ok(())
}

#[tokio::test]
async fn claims_are_prepared_and_a_connection_that_forgets_them_costs_nothing() {
    let shop = Shop::open().await;
    sqlx::raw_sql("create table used (times bigint)").execute(shop.pool()).await.unwrap();
    for order in 1..=20 {
        shop.send(&shop.event(order, 1)).await;
    }
    let started = shop.start(one_at_a_time(&shop), Router::new().on(forgets));
    shop.until("select count(*) from effects", 20).await;
    shop.drained().await;
    started.stop().await;
    shop.assert_each_once_in_order(20).await;
    assert!(shop.number("select count(*) from used").await > 0, "nothing was prepared, or used");
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_failure").await, 0);
}

async fn first_time_only(tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
    match placed.attempt() {
        1 => record(tx, placed).await,
        _ => Err(HandlerError::permanent("an attempt was counted")),
    }
}

#[tokio::test]
async fn a_kept_connection_that_is_lost_costs_nothing() {
    let shop = Shop::open().await;
    let started = shop.start(one_at_a_time(&shop), Router::new().on(first_time_only));
    for order in 1..=10 {
        shop.send(&shop.event(order, 1)).await;
        shop.until("select count(*) from effects", order).await;
        // Also the one that is kept.
        let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                   where datname = current_database() and pid <> pg_backend_pid()";
        shop.number(end).await;
    }
    shop.drained().await;
    started.stop().await;
    shop.assert_each_once_in_order(10).await;
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_failure").await, 0);
}

#[tokio::test]
async fn others_who_share_a_small_pool_do_not_wait_for_a_busy_consumer() {
    let shop = Shop::open().await;
    for step in 0..300 {
        shop.send(&shop.event(1, step)).await;
    }
    let pool =
        PgPoolOptions::new().max_connections(1).connect(shop.scope.database_url()).await.unwrap();
    let consumer =
        Consumer::with_config(shop.scope.nats().clone(), pool.clone(), one_at_a_time(&shop))
            .unwrap();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(consumer.on(record).run(shutdown.clone()));
    shop.until("select least(count(*), 20) from effects", 20).await;
    let turns = async {
        for _ in 0..10 {
            sqlx::query("select 1").execute(&pool).await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(2), turns).await.unwrap();
    assert!(shop.number("select count(*) from effects").await < 300, "it was busy");
    shutdown.cancel();
    running.await.unwrap().unwrap();
    let open = "select count(*) from pg_stat_activity \
                where datname = current_database() and state like 'idle in%'";
    shop.until(open, 0).await;
}
