//! Handlers that end their transaction, or leave something behind in their session.

use std::time::Duration;

use crate::support::{OrderPlaced, Shop, record};
use pillarbox_consumer::{Consumer, ConsumerConfig};
use pillarbox_event::RawEvent;
use pillarbox_inbox::{
    BatchHandler, Delivery, Fault, Handler, HandlerError, InboxLayer, Outcome, Received, Router, Tx,
};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgPool};
use tokio_util::sync::CancellationToken;
use tower::{ServiceBuilder, ServiceExt};

/// Records, and runs a statement: before it or behind it.
#[derive(Clone)]
struct Ends {
    sql: &'static str,
    first: bool,
}

impl Handler<Received<OrderPlaced>> for Ends {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        if self.first {
            sqlx::raw_sql(self.sql).execute(&mut **tx).await?;
            record(tx, placed).await
        } else {
            record(tx, placed).await?;
            sqlx::raw_sql(self.sql).execute(&mut **tx).await?;
            Ok(())
        }
    }
}

impl BatchHandler<OrderPlaced> for Ends {
    async fn handle(
        &self,
        tx: &mut Tx,
        events: &[Received<OrderPlaced>],
    ) -> Result<(), HandlerError> {
        for event in events {
            record(tx, event.clone()).await?;
        }
        if events.iter().any(|event| event.order == 2) {
            sqlx::raw_sql(self.sql).execute(&mut **tx).await?;
        }
        Ok(())
    }
}

const ENDS: [&str; 9] = [
    "rollback",
    "commit",
    "commit and chain",
    "rollback and chain",
    "abort; begin",
    "commit; begin",
    "savepoint mine; commit",
    "end; begin isolation level serializable",
    "savepoint pillarbox_batch; rollback; begin; savepoint pillarbox_batch",
];

#[tokio::test]
async fn a_handler_that_ends_the_transaction_fails_for_good() {
    let shop = Shop::open().await;
    for (number, sql) in (1_i64..).zip(ENDS) {
        for first in [false, true] {
            let layer = InboxLayer::new(shop.pool().clone(), "payments").unwrap();
            let service =
                ServiceBuilder::new().layer(layer).service(Router::new().on(Ends { sql, first }));
            let ended = service.oneshot(shop.event(number, 1).into()).await;
            let error = ended.expect_err(sql);
            assert_eq!(error.fault(), Fault::Permanent, "{sql}: {error}");
            assert!(error.to_string().contains("the handler ended the transaction"), "{error}");
        }
    }
}

#[tokio::test]
async fn an_event_whose_handler_ends_the_transaction_is_a_letter_and_runs_once() {
    for sql in ENDS {
        let shop = Shop::open().await;
        let event = shop.event(1, 1);
        // Beside one that is well, so that a kept connection is used as well.
        shop.send(&shop.event(1, 0)).await;
        shop.send(&event).await;
        let config = ConsumerConfig { concurrency: 1, ..shop.config() };
        let handler = OnlyStepOne(Ends { sql, first: false });
        let started = shop.start(config, Router::new().on(handler));
        let letters = "select count(*) from pillarbox.inbox_dead_letter \
                       where error like '%the handler ended the transaction%'";
        shop.until(letters, 1).await;
        shop.drained().await;
        started.stop().await;
        // Redelivered, it is not run again.
        let layer = InboxLayer::new(shop.pool().clone(), "payments").unwrap();
        let service = ServiceBuilder::new().layer(layer).service(Router::new());
        let again = service.oneshot(Delivery::from(event)).await.unwrap();
        assert_eq!(again, Outcome::Duplicate, "{sql}");
    }
}

/// Only step 1 ends the transaction.
struct OnlyStepOne(Ends);

impl Handler<Received<OrderPlaced>> for OnlyStepOne {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        match placed.step {
            1 => Handler::handle(&self.0, tx, placed).await,
            _ => record(tx, placed).await,
        }
    }
}

#[tokio::test]
async fn a_handler_that_fails_after_it_committed_is_not_run_again_nor_taken_for_handled() {
    let shop = Shop::open().await;
    let config = ConsumerConfig { concurrency: 1, ..shop.config() };
    shop.send(&shop.event(1, 1)).await;
    shop.send(&shop.event(2, 1)).await;
    let sql = "commit; begin; insert into no_such_table values (1)";
    let started = shop.start(config, Router::new().on(Ends { sql, first: false }));
    let letters = "select count(*) from pillarbox.inbox_dead_letter \
                   where error like '%the handler ended the transaction%is committed%'";
    shop.until(letters, 2).await;
    shop.drained().await;
    started.stop().await;
    shop.assert_each_once_in_order(2).await;
}

#[tokio::test]
async fn in_a_batch_it_is_a_letter_and_nothing_is_doubled_or_lost() {
    for sql in
        ["rollback", "commit", "rollback and chain", "commit; begin; savepoint pillarbox_batch"]
    {
        let shop = after_five_events(Ends { sql, first: false }, true).await;
        let bad = "select count(*) from pillarbox.inbox_dead_letter where key = '2' \
                   and error like '%the handler ended the transaction%'";
        assert_eq!(shop.number(bad).await, 1, "{sql}");
        let lost = "select count(*) from pillarbox.inbox where event_id not in \
                    (select event_id from effects union all select event_id from pillarbox.inbox_dead_letter)";
        assert_eq!(shop.number(lost).await, 0, "{sql}");
        let doubled = "select count(*) - count(distinct event_id) from effects";
        assert_eq!(shop.number(doubled).await, 0, "{sql}");
    }
}

/// What a handler does with its transaction, whether it fails then, and how many strays are there in the end.
const STRAYS: [(&str, bool, i64); 7] = [
    ("rollback; insert into effects (event_id) values ('stray')", false, 1),
    ("rollback; insert into effects (event_id) values ('stray')", true, 1),
    ("rollback; begin; insert into effects (event_id) values ('stray'); commit", false, 1),
    ("rollback; begin; insert into effects (event_id) values ('stray'); commit; begin", true, 1),
    ("commit; begin; insert into effects (event_id) values ('stray')", false, 0),
    ("commit; begin; insert into effects (event_id) values ('stray')", true, 0),
    ("savepoint mine; rollback; insert into effects (event_id) values ('stray')", true, 1),
];

/// Records, ends the transaction of order 2, and fails if told so.
struct Strays {
    sql: &'static str,
    fails: bool,
}

impl BatchHandler<OrderPlaced> for Strays {
    async fn handle(
        &self,
        tx: &mut Tx,
        events: &[Received<OrderPlaced>],
    ) -> Result<(), HandlerError> {
        for event in events {
            record(tx, event.clone()).await?;
        }
        if !events.iter().any(|event| event.order == 2) {
            return Ok(());
        }
        sqlx::raw_sql(self.sql).execute(&mut **tx).await?;
        if self.fails { Err(HandlerError::transient("so it is said")) } else { Ok(()) }
    }
}

impl Handler<Received<OrderPlaced>> for Strays {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        BatchHandler::handle(self, tx, &[placed]).await
    }
}

/// A shop whose consumer has had five events handled, in batches or one by one.
async fn after_five_events<H>(handler: H, batches: bool) -> Shop
where
    H: BatchHandler<OrderPlaced> + Handler<Received<OrderPlaced>>,
{
    let shop = Shop::open().await;
    for order in 0..5 {
        shop.send(&shop.event(order, 1)).await;
    }
    let config = ConsumerConfig {
        batch_size: 50,
        batch_linger: Duration::from_millis(200),
        ..shop.config()
    };
    let consumer =
        Consumer::with_config(shop.scope.nats().clone(), shop.pool().clone(), config).unwrap();
    let shutdown = CancellationToken::new();
    let running = match batches {
        true => tokio::spawn(consumer.on_batch(handler).run(shutdown.clone())),
        false => tokio::spawn(consumer.on(handler).run(shutdown.clone())),
    };
    shop.until("select count(*) from pillarbox.inbox", 5).await;
    shop.drained().await;
    shutdown.cancel();
    running.await.unwrap().unwrap();
    shop
}

#[tokio::test]
async fn what_is_written_behind_the_end_of_the_transaction_is_written_once() {
    for batches in [true, false] {
        for (sql, fails, strays) in STRAYS {
            let shop = after_five_events(Strays { sql, fails }, batches).await;
            let what = format!("{sql}, fails: {fails}, in batches: {batches}");
            let found = "select count(*) from effects where event_id = 'stray'";
            assert_eq!(shop.number(found).await, strays, "{what}");
            let letter = "select count(*) from pillarbox.inbox_dead_letter \
                          where key = '2' and reason = 'permanent' \
                          and error like '%the handler ended the transaction%'";
            assert_eq!(shop.number(letter).await, 1, "{what}");
            let doubled = "select count(*) - count(distinct event_id) from effects";
            assert_eq!(shop.number(doubled).await, 0, "{what}");
            let lost = "select count(*) from pillarbox.inbox where event_id not in \
                        (select event_id from effects union all select event_id from pillarbox.inbox_dead_letter)";
            assert_eq!(shop.number(lost).await, 0, "{what}");
            if !batches {
                let letters = "select count(*) from pillarbox.inbox_dead_letter";
                assert_eq!(shop.number(letters).await, 1, "{what}: it holds only itself");
            }
        }
    }
}

/// Fails in a statement of its own at the first try of order 2, in a savepoint or without, or in its own function.
struct FailsOnce {
    sql: &'static str,
}

impl BatchHandler<OrderPlaced> for FailsOnce {
    async fn handle(
        &self,
        tx: &mut Tx,
        events: &[Received<OrderPlaced>],
    ) -> Result<(), HandlerError> {
        for event in events {
            record(tx, event.clone()).await?;
            if event.order == 2 && event.attempt() == 1 {
                sqlx::raw_sql(self.sql).execute(&mut **tx).await?;
            }
        }
        Ok(())
    }
}

impl Handler<Received<OrderPlaced>> for FailsOnce {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        BatchHandler::handle(self, tx, &[placed]).await
    }
}

#[tokio::test]
async fn a_failed_statement_is_no_end_of_the_transaction() {
    for batches in [true, false] {
        for sql in [
            "select 1 / 0",
            "set statement_timeout = '1ms'; select pg_sleep(1)",
            "savepoint mine; insert into no_such_table values (1)",
            "do $$ begin raise exception 'no'; end $$",
        ] {
            let shop = after_five_events(FailsOnce { sql }, batches).await;
            shop.assert_each_once_in_order(5).await;
            let letters = "select count(*) from pillarbox.inbox_dead_letter";
            assert_eq!(shop.number(letters).await, 0, "{sql}, in batches: {batches}");
        }
    }
}

/// Fails for more than one event at a time, and commits the first.
struct CommitsOne;

impl BatchHandler<OrderPlaced> for CommitsOne {
    async fn handle(
        &self,
        tx: &mut Tx,
        events: &[Received<OrderPlaced>],
    ) -> Result<(), HandlerError> {
        let [event] = events else { return Err(HandlerError::transient("one at a time")) };
        record(tx, event.clone()).await?;
        if event.order == 0 {
            sqlx::raw_sql("commit").execute(&mut **tx).await?;
        }
        Ok(())
    }
}

#[tokio::test]
async fn events_that_waited_in_a_batch_that_the_handler_committed_take_effect() {
    let shop = Shop::open().await;
    for order in 0..5 {
        // With a source the inbox knows it by another text than its id.
        let event = RawEvent::builder("order.placed", shop.event(order, 1).topic().to_owned())
            .source("/elsewhere")
            .key(order.to_string())
            .payload(shop.event(order, 1).payload().clone());
        shop.send(&event.build().unwrap()).await;
    }
    let config = ConsumerConfig {
        batch_size: 50,
        batch_linger: Duration::from_millis(200),
        ..shop.config()
    };
    let consumer =
        Consumer::with_config(shop.scope.nats().clone(), shop.pool().clone(), config).unwrap();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(consumer.on_batch(CommitsOne).run(shutdown.clone()));
    shop.until("select count(*) from effects", 5).await;
    shop.drained().await;
    shutdown.cancel();
    running.await.unwrap().unwrap();
    shop.assert_each_once_in_order(5).await;
}

/// Fails for more than one event at a time and for the first of them, and commits the fourth.
struct FailsAndCommits(bool);

impl BatchHandler<OrderPlaced> for FailsAndCommits {
    async fn handle(
        &self,
        tx: &mut Tx,
        events: &[Received<OrderPlaced>],
    ) -> Result<(), HandlerError> {
        let [event] = events else { return Err(HandlerError::transient("one at a time")) };
        match event.order {
            0 if self.0 => return Err(HandlerError::permanent("never")),
            0 if event.attempt() == 1 => return Err(HandlerError::transient("not yet")),
            _ => record(tx, event.clone()).await?,
        }
        if event.order == 3 {
            sqlx::raw_sql("commit").execute(&mut **tx).await?;
        }
        Ok(())
    }
}

#[tokio::test]
async fn an_event_that_failed_before_the_handler_committed_its_batch_comes_again_or_is_a_letter() {
    for permanent in [false, true] {
        let shop = Shop::open().await;
        for order in 0..5 {
            shop.send(&shop.event(order, 1)).await;
        }
        let config = ConsumerConfig {
            batch_size: 50,
            batch_linger: Duration::from_millis(500),
            ..shop.config()
        };
        let consumer =
            Consumer::with_config(shop.scope.nats().clone(), shop.pool().clone(), config).unwrap();
        let shutdown = CancellationToken::new();
        let consumer = consumer.on_batch(FailsAndCommits(permanent));
        let running = tokio::spawn(consumer.run(shutdown.clone()));
        shop.until("select count(*) from pillarbox.inbox", 5).await;
        shop.drained().await;
        shutdown.cancel();
        running.await.unwrap().unwrap();
        shop.assert_each_once_in_order(if permanent { 4 } else { 5 }).await;
        let letters =
            "select count(*) from pillarbox.inbox_dead_letter where state = 'dead' and key = '0'";
        assert_eq!(shop.number(letters).await, i64::from(permanent));
    }
}

/// Passes over a failed statement, in a savepoint or without.
struct PassesOver(&'static str);

impl BatchHandler<OrderPlaced> for PassesOver {
    async fn handle(
        &self,
        tx: &mut Tx,
        events: &[Received<OrderPlaced>],
    ) -> Result<(), HandlerError> {
        for event in events {
            record(tx, event.clone()).await?;
            if event.order == 2 {
                for sql in self.0.split(';') {
                    let _ = sqlx::raw_sql(sql).execute(&mut **tx).await;
                }
            }
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_failed_statement_that_a_batch_passes_over_is_seen_unless_a_savepoint_undid_it() {
    for (sql, letters) in [
        ("savepoint mine; insert into no_such_table values (1); rollback to savepoint mine", 0),
        ("insert into no_such_table values (1)", 1),
        ("savepoint mine; insert into no_such_table values (1); release savepoint mine", 1),
    ] {
        let shop = Shop::open().await;
        for order in 0..5 {
            shop.send(&shop.event(order, 1)).await;
        }
        let config = ConsumerConfig {
            batch_size: 50,
            batch_linger: Duration::from_millis(200),
            ..shop.config()
        };
        let consumer =
            Consumer::with_config(shop.scope.nats().clone(), shop.pool().clone(), config).unwrap();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(consumer.on_batch(PassesOver(sql)).run(shutdown.clone()));
        shop.until("select count(*) from pillarbox.inbox", 5).await;
        shop.drained().await;
        shutdown.cancel();
        running.await.unwrap().unwrap();
        shop.assert_each_once_in_order(5 - letters).await;
        let found = "select count(*) from pillarbox.inbox_dead_letter where key = '2'";
        assert_eq!(shop.number(found).await, letters, "{sql}");
    }
}

/// Leaves something behind in its session, and fails if something is there already.
struct Leaves {
    sql: &'static str,
    clean: &'static str,
}

impl Handler<Received<OrderPlaced>> for Leaves {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        let clean: bool = sqlx::query_scalar(self.clean).fetch_one(&mut **tx).await?;
        if !clean {
            return Err(HandlerError::permanent("something was left behind"));
        }
        let fails = placed.step == 1 && placed.attempt() == 1;
        record(tx, placed).await?;
        sqlx::raw_sql(self.sql).execute(&mut **tx).await?;
        if fails { Err(HandlerError::transient("the first time")) } else { Ok(()) }
    }
}

/// What is left, and how one sees that nothing is.
const LEFT: [(&str, &str); 15] = [
    ("set role nobody_else", "select current_user <> 'nobody_else'"),
    ("set local role nobody_else", "select current_user <> 'nobody_else'"),
    ("set session authorization nobody_else", "select session_user <> 'nobody_else'"),
    ("set search_path = pg_temp", "select current_setting('search_path') like '%public%'"),
    ("set local search_path = pg_temp", "select current_setting('search_path') like '%public%'"),
    ("set app.tenant = 'mine'", "select coalesce(current_setting('app.tenant', true), '') = ''"),
    (
        "set default_transaction_read_only = on",
        "select current_setting('default_transaction_read_only') = 'off'",
    ),
    ("set statement_timeout = 100", "select current_setting('statement_timeout') <> '100ms'"),
    ("set client_encoding = 'SJIS'", "select current_setting('client_encoding') = 'UTF8'"),
    (
        "set standard_conforming_strings = off",
        "select current_setting('standard_conforming_strings') = 'on'",
    ),
    ("create temporary table scratch (n integer)", "select to_regclass('pg_temp.scratch') is null"),
    (
        "select pg_advisory_lock(4711)",
        "select not exists (select from pg_locks where locktype = 'advisory' and objid = 4711)",
    ),
    ("listen somebody", "select not exists (select from pg_listening_channels())"),
    (
        "prepare mine as select 1",
        "select not exists (select from pg_prepared_statements where name = 'mine')",
    ),
    (
        "declare mine cursor with hold for select 1",
        "select not exists (select from pg_cursors where name = 'mine')",
    ),
];

#[tokio::test]
async fn what_a_handler_leaves_in_its_session_does_not_reach_the_next_event() {
    let shop = Shop::open().await;
    nobody_else(shop.pool()).await;
    // One connection, so that every event gets the same one, kept or not.
    let pool =
        PgPoolOptions::new().max_connections(2).connect(shop.scope.database_url()).await.unwrap();
    for (number, (sql, clean)) in (0_i64..).zip(LEFT) {
        let name = format!("leaves-{number}");
        let config = ConsumerConfig { concurrency: 1, name: name.clone(), ..shop.config() };
        for step in 0..4 {
            shop.send(&shop.event(number, step)).await;
        }
        let consumer =
            Consumer::with_config(shop.scope.nats().clone(), pool.clone(), config).unwrap();
        let shutdown = CancellationToken::new();
        let router = Router::new().on(Leaves { sql, clean });
        let running = tokio::spawn(consumer.router(router).run(shutdown.clone()));
        let handled = format!("select count(*) from pillarbox.inbox where consumer = '{name}'");
        shop.until(&handled, (number + 1) * 4).await;
        shutdown.cancel();
        running.await.unwrap().unwrap();
        let letters =
            format!("select count(*) from pillarbox.inbox_dead_letter where consumer = '{name}'");
        assert_eq!(shop.number(&letters).await, 0, "{sql}");
        let clean: bool = sqlx::query_scalar(clean).fetch_one(&pool).await.unwrap();
        assert!(clean, "{sql}: the pool's next user finds it");
    }
}

#[tokio::test]
async fn what_the_service_has_set_for_its_sessions_stays() {
    let shop = Shop::open().await;
    nobody_else(shop.pool()).await;
    sqlx::raw_sql(
        "create schema mine; grant usage on schema mine, pillarbox, public to nobody_else; \
         grant all on all tables in schema pillarbox, public to nobody_else; \
         grant all on all sequences in schema pillarbox, public to nobody_else",
    )
    .execute(shop.pool())
    .await
    .unwrap();
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .after_connect(|connection, _| {
            Box::pin(async move {
                let own = "set search_path = mine, public; set role nobody_else; listen own; \
                           create temporary table scratch (n integer); select pg_advisory_lock(1)";
                sqlx::raw_sql(own).execute(connection).await.map(drop)
            })
        })
        .connect(shop.scope.database_url())
        .await
        .unwrap();
    let layer = InboxLayer::new(pool.clone(), "payments").unwrap();
    let leaves = Leaves { sql: "set role none; set search_path = public", clean: "select true" };
    let service = ServiceBuilder::new().layer(layer).service(Router::new().on(leaves));
    for step in 0..3 {
        let _ = service.clone().oneshot(shop.event(1, step).into()).await;
        let kept = "select current_user = 'nobody_else' \
            and current_setting('search_path') = 'mine, public' \
            and to_regclass('pg_temp.scratch') is not null \
            and exists (select from pg_listening_channels()) \
            and exists (select from pg_locks where locktype = 'advisory' and pid = pg_backend_pid())";
        let kept: bool = sqlx::query_scalar(kept).fetch_one(&pool).await.unwrap();
        assert!(kept, "step {step}");
    }
    shop.until("select count(*) from effects", 2).await;
}

/// A role of the whole cluster that may write effects, and nothing of the inbox.
async fn nobody_else(pool: &PgPool) {
    let create = "do $$ begin create role nobody_else; \
                  exception when duplicate_object or unique_violation then null; end $$; \
                  grant all on table effects to nobody_else";
    sqlx::raw_sql(AssertSqlSafe(create)).execute(pool).await.unwrap();
}
