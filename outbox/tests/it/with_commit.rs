//! Events that travel with the commit.

use pillarbox_event::RawEvent;
use pillarbox_outbox::testing::published;
use pillarbox_outbox::{Outbox, Tx, publish, publish_all, publish_with_commit};
use pillarbox_testkit::{PgBouncer, PoolMode, Scope, servers};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Acquire, PgPool};
use tokio::task::JoinSet;

/// A key that means something to whoever quotes it wrongly.
const HOSTILE: &str = "o'clock\\ $1 $2; -- \u{8868}";

async fn scope() -> Scope {
    let scope = servers().await.unwrap().scope().await.unwrap();
    pillarbox_outbox::migrate(scope.pool()).await.unwrap();
    sqlx::raw_sql("create table orders (id bigint)").execute(scope.pool()).await.unwrap();
    scope
}

fn event(name: &str) -> RawEvent {
    RawEvent::builder("order.placed", "orders.placed").key(name).payload("{}").build().unwrap()
}

async fn order(tx: &mut Tx) {
    sqlx::query("insert into orders values (1)").execute(&mut **tx).await.unwrap();
}

/// The keys in the outbox in the order in which they leave, and the number of orders.
async fn left(pool: &PgPool) -> (Vec<String>, i64) {
    let keys = sqlx::query_scalar("select key from pillarbox.outbox order by position");
    let orders = sqlx::query_scalar("select count(*) from orders");
    (keys.fetch_all(pool).await.unwrap(), orders.fetch_one(pool).await.unwrap())
}

#[tokio::test]
async fn the_event_is_there_if_and_only_if_the_transaction_commits() {
    let scope = scope().await;
    let pool = scope.pool();
    for ends in ["commit", "roll back", "drop"] {
        let mut tx = Tx::open(pool).await.unwrap();
        order(&mut tx).await;
        let sent = event(ends);
        let id = publish_with_commit(&mut tx, &sent).await.unwrap();
        assert_eq!(id, *sent.id());
        match ends {
            "commit" => tx.commit().await.unwrap(),
            "roll back" => tx.roll_back(),
            _ => drop(tx),
        }
    }
    assert_eq!(left(pool).await, (vec!["commit".into()], 1));
}

#[tokio::test]
async fn events_leave_in_the_order_of_the_calls_whatever_they_are_published_by() {
    let scope = scope().await;
    let mut tx = Tx::open(scope.pool()).await.unwrap();
    publish(&mut tx, event("1")).await.unwrap();
    publish_with_commit(&mut tx, event("2")).await.unwrap();
    publish(&mut tx, event("3")).await.unwrap();
    publish_all(&mut tx, [event("4"), event("5")]).await.unwrap();
    publish_with_commit(&mut tx, event("6")).await.unwrap();
    assert_eq!(
        published(&mut tx).await.unwrap().events().len(),
        6,
        "a test sees what is collected"
    );
    publish_with_commit(&mut tx, event("7")).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(left(scope.pool()).await.0, ["1", "2", "3", "4", "5", "6", "7"]);
}

#[tokio::test]
async fn an_insert_that_fails_fails_the_commit() {
    let scope = scope().await;
    let pool = scope.pool();
    let refuse = "create function refuse() returns trigger language plpgsql as $$ begin \
                  if new.key = 'refused' then raise exception 'no such key'; end if; return new; end $$; \
                  create trigger refuse before insert on pillarbox.outbox for each row execute function refuse()";
    sqlx::raw_sql(refuse).execute(pool).await.unwrap();
    let mut tx = Tx::open(pool).await.unwrap();
    order(&mut tx).await;
    publish_with_commit(&mut tx, event("before")).await.unwrap();
    publish_with_commit(&mut tx, event("refused")).await.unwrap();
    publish_with_commit(&mut tx, event("behind")).await.unwrap();
    let error = tx.commit().await.unwrap_err();
    assert!(error.to_string().contains("no such key"), "{error}");
    // A table that is not there.
    let mut tx = Tx::open(pool).await.unwrap();
    order(&mut tx).await;
    let outbox = Outbox::new().schema("elsewhere").unwrap();
    outbox.publish_with_commit(&mut tx, event("lost")).await.unwrap();
    assert!(tx.commit().await.is_err());
    assert_eq!(left(pool).await, (vec![], 0));
    // The pool's connections are as good as new.
    let mut tx = Tx::open(pool).await.unwrap();
    order(&mut tx).await;
    publish_with_commit(&mut tx, event("well")).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(left(pool).await, (vec!["well".into()], 1));
}

#[tokio::test]
async fn a_transaction_in_which_a_statement_failed_does_not_seem_to_commit() {
    let scope = scope().await;
    for with_event in [false, true] {
        let mut tx = Tx::open(scope.pool()).await.unwrap();
        order(&mut tx).await;
        sqlx::query("select 1 / 0").execute(&mut *tx).await.unwrap_err();
        if with_event {
            publish_with_commit(&mut tx, event("lost")).await.unwrap();
        }
        assert!(tx.commit().await.is_err());
    }
    assert_eq!(left(scope.pool()).await, (vec![], 0));
}

#[tokio::test]
async fn a_savepoint_that_is_rolled_back_takes_its_events_with_it() {
    let scope = scope().await;
    let mut tx = Tx::open(scope.pool()).await.unwrap();
    publish_with_commit(&mut tx, event("before")).await.unwrap();
    for ends in ["released", "rolled back", "dropped"] {
        let mut savepoint = tx.savepoint().await.unwrap();
        order(&mut savepoint).await;
        publish_with_commit(&mut savepoint, event(ends)).await.unwrap();
        // Some are sent already when it ends.
        published(&mut savepoint).await.unwrap();
        publish_with_commit(&mut savepoint, event(&format!("{ends}, too"))).await.unwrap();
        match ends {
            "released" => savepoint.release().await.unwrap(),
            "rolled back" => savepoint.roll_back().await.unwrap(),
            _ => drop(savepoint),
        }
    }
    // One of sqlx's inside of it.
    let mut nested = tx.begin().await.unwrap();
    publish_with_commit(&mut nested, event("nested")).await.unwrap();
    nested.rollback().await.unwrap();
    publish_with_commit(&mut tx, event("behind")).await.unwrap();
    tx.commit().await.unwrap();
    let keys = ["before", "released", "released, too", "behind"].map(String::from);
    assert_eq!(left(scope.pool()).await, (keys.into(), 1));
}

#[tokio::test]
async fn a_transaction_that_sql_has_ended_publishes_nothing_at_its_commit() {
    let scope = scope().await;
    let pool = scope.pool();
    for end in ["rollback", "commit"] {
        let mut tx = Tx::open(pool).await.unwrap();
        order(&mut tx).await;
        publish_with_commit(&mut tx, event(end)).await.unwrap();
        sqlx::raw_sql(end).execute(&mut *tx).await.unwrap();
        assert!(tx.commit().await.is_err(), "after {end}");
    }
    assert_eq!(left(pool).await, (vec![], 1));
}

/// Begins something, and does not wait for its end.
async fn begin_only<T>(something: impl Future<Output = T>) {
    tokio::select! {
        biased;
        _ = something => panic!("it has ended at once"),
        () = std::future::ready(()) => {}
    }
}

/// A service gave up waiting, and commits all the same. The event whose publishing succeeded must not be missing then.
#[tokio::test]
async fn a_transaction_does_not_commit_without_what_was_collected_if_sending_it_was_interrupted() {
    let scope = scope().await;
    let pool = scope.pool();
    for sent_by in ["publish_all", "savepoint", "published"] {
        let mut tx = Tx::open(pool).await.unwrap();
        order(&mut tx).await;
        publish_with_commit(&mut tx, event("promised")).await.unwrap();
        // Something else was interrupted before, so nothing is sent as long as that is under way.
        begin_only(sqlx::raw_sql("select pg_sleep(0.2)").execute(&mut *tx)).await;
        match sent_by {
            "publish_all" => begin_only(publish_all(&mut tx, [event("more")])).await,
            "savepoint" => begin_only(tx.savepoint()).await,
            _ => begin_only(published(&mut tx)).await,
        }
        assert!(tx.commit().await.is_err(), "by {sent_by}");
    }
    assert_eq!(left(pool).await, (vec![], 0));
}

#[tokio::test]
async fn a_transaction_does_not_commit_without_what_was_collected_if_sending_it_failed() {
    let scope = scope().await;
    let mut tx = Tx::open(scope.pool()).await.unwrap();
    sqlx::raw_sql("savepoint by_sql").execute(&mut *tx).await.unwrap();
    order(&mut tx).await;
    let elsewhere = Outbox::new().schema("elsewhere").unwrap();
    elsewhere.publish_with_commit(&mut tx, event("promised")).await.unwrap();
    publish_all(&mut tx, [event("more")]).await.unwrap_err();
    sqlx::raw_sql("rollback to by_sql").execute(&mut *tx).await.unwrap();
    assert!(tx.commit().await.is_err());
    assert_eq!(left(scope.pool()).await, (vec![], 0));
    // A savepoint of the transaction's own undoes what was collected in it, so nothing is missing.
    let mut tx = Tx::open(scope.pool()).await.unwrap();
    let mut savepoint = tx.savepoint().await.unwrap();
    elsewhere.publish_with_commit(&mut savepoint, event("undone")).await.unwrap();
    publish_all(&mut savepoint, [event("more")]).await.unwrap_err();
    savepoint.roll_back().await.unwrap();
    publish_with_commit(&mut tx, event("well")).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(left(scope.pool()).await.0, ["well"]);
}

#[tokio::test]
async fn a_transaction_of_sqlx_takes_the_event_at_once() {
    let scope = scope().await;
    let mut tx = scope.pool().begin().await.unwrap();
    publish_with_commit(&mut tx, event("1")).await.unwrap();
    let there: i64 = sqlx::query_scalar("select count(*) from pillarbox.outbox")
        .fetch_one(&mut *tx)
        .await
        .unwrap();
    assert_eq!(there, 1);
    tx.commit().await.unwrap();
    assert_eq!(left(scope.pool()).await.0, ["1"]);
}

#[tokio::test]
async fn no_more_than_a_bound_is_collected_and_everything_arrives() {
    let scope = scope().await;
    let mut tx = Tx::open(scope.pool()).await.unwrap();
    for number in 0..40 {
        let large = RawEvent::builder("order.placed", "orders.placed").key(number.to_string());
        let large = large.payload(vec![b'x'; 30_000]).build().unwrap();
        publish_with_commit(&mut tx, large).await.unwrap();
        assert!(tx.collected_bytes() <= 1 << 20);
    }
    tx.commit().await.unwrap();
    assert_eq!(left(scope.pool()).await.0, (0..40).map(|n| n.to_string()).collect::<Vec<_>>());
}

/// Many transactions share one connection to the server, and prepare nothing there.
#[tokio::test]
async fn behind_a_pooler_in_transaction_mode_each_event_goes_with_its_own_transaction() {
    let scope = scope().await;
    let options =
        PgBouncer::options().mode(PoolMode::Transaction).setting("default_pool_size", "1");
    let started = options.start(&servers().await.unwrap().postgres).await.unwrap();
    let Some(pgbouncer) = started else {
        println!("NOT TESTED: there is no PgBouncer");
        return;
    };
    let direct: PgConnectOptions = scope.database_url().parse().unwrap();
    let through: PgConnectOptions = pgbouncer.url(direct.get_database().unwrap()).parse().unwrap();
    let through = through.statement_cache_capacity(0);
    let pool = PgPoolOptions::new().max_connections(4).connect_with(through).await.unwrap();
    let mut writers = JoinSet::new();
    for writer in 0..8_i64 {
        let pool = pool.clone();
        writers.spawn(async move {
            for number in 0..5 {
                let mut tx = Tx::open(&pool).await.unwrap();
                sqlx::query("insert into orders values ($1)")
                    .persistent(false)
                    .bind(writer * 5 + number)
                    .execute(&mut *tx)
                    .await
                    .unwrap();
                let sent = event(&format!("{HOSTILE} {writer} {number}"));
                publish_with_commit(&mut tx, sent).await.unwrap();
                match number {
                    4 => tx.roll_back(),
                    _ => tx.commit().await.unwrap(),
                }
            }
        });
    }
    writers.join_all().await;
    let (keys, orders) = left(scope.pool()).await;
    assert_eq!((keys.len(), orders), (32, 32));
    assert!(keys.iter().all(|key| key.starts_with(HOSTILE) && !key.ends_with('4')), "{keys:?}");
}
