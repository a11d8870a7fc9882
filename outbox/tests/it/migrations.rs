//! The tables are created once, whoever creates them, and other tables are left alone.

use pillarbox_event::RawEvent;
use pillarbox_outbox::{Migrated, Outbox, OutboxError, migrate, migrations};
use pillarbox_testkit::servers;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor, PgConnection, PgPool, Row, SqlSafeStr};
use tokio::task::JoinSet;

#[tokio::test]
async fn eight_processes_may_migrate_at_once_and_again() {
    let scope = servers().await.unwrap().scope().await.unwrap();
    let mut migrating = JoinSet::new();
    for _ in 0..8 {
        let url = scope.database_url().to_owned();
        migrating.spawn(async move {
            let pool = PgPoolOptions::new().max_connections(1).connect(&url).await.unwrap();
            migrate(&pool).await
        });
    }
    while let Some(migrated) = migrating.join_next().await {
        migrated.unwrap().unwrap();
    }
    migrate(scope.pool()).await.unwrap();
    let applied: i64 = sqlx::query("select count(*) from pillarbox.outbox_migration")
        .fetch_one(scope.pool())
        .await
        .unwrap()
        .get(0);
    assert_eq!(applied, i64::try_from(migrations("pillarbox").unwrap().len()).unwrap());
}

#[tokio::test]
async fn a_services_own_migrations_are_not_disturbed() {
    let own = || {
        let sql = "create table orders (id bigint primary key)".into_sql_str();
        Migrator::with_migrations(vec![Migration::new(
            1,
            "orders".into(),
            MigrationType::Simple,
            sql,
            false,
        )])
    };
    for ours_first in [true, false] {
        let scope = servers().await.unwrap().scope().await.unwrap();
        if ours_first {
            migrate(scope.pool()).await.unwrap();
        }
        own().run(scope.pool()).await.unwrap();
        migrate(scope.pool()).await.unwrap();
        own().run(scope.pool()).await.unwrap();
        let applied: i64 = sqlx::query("select count(*) from _sqlx_migrations")
            .fetch_one(scope.pool())
            .await
            .unwrap()
            .get(0);
        assert_eq!(applied, 1);
    }
}

#[tokio::test]
async fn another_schema_has_tables_of_its_own() {
    let scope = servers().await.unwrap().scope().await.unwrap();
    let outbox = Outbox::new().schema("shop_events").unwrap();
    outbox.migrate(scope.pool()).await.unwrap();
    let mut tx = scope.pool().begin().await.unwrap();
    outbox.publish(&mut tx, RawEvent::builder("t", "a").build().unwrap()).await.unwrap();
    outbox.publish_all(&mut tx, [RawEvent::builder("t", "a").build().unwrap()]).await.unwrap();
    tx.commit().await.unwrap();
    let row = sqlx::query(
        "select (select count(*) from shop_events.outbox), to_regnamespace('pillarbox') is null",
    )
    .fetch_one(scope.pool())
    .await
    .unwrap();
    assert_eq!((row.get::<i64, _>(0), row.get::<bool, _>(1)), (2, true));
}

#[tokio::test]
async fn the_printed_sql_does_the_same_with_any_tool() {
    let scope = servers().await.unwrap().scope().await.unwrap();
    for (_, sql) in migrations("elsewhere").unwrap() {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(scope.pool()).await.unwrap();
    }
    sqlx::query("select position from elsewhere.outbox").fetch_all(scope.pool()).await.unwrap();
}

#[test]
fn a_schema_name_that_is_more_than_a_word_is_refused() {
    for name in ["", "Shop", "a b", "a;drop", "1a", "a\"b", "order", "pg_shop", &"x".repeat(64)] {
        assert!(matches!(Outbox::new().schema(name), Err(OutboxError::Schema(_))), "{name:?}");
        assert!(migrations(name).is_err(), "{name:?}");
    }
}

#[tokio::test]
async fn where_nothing_is_missing_no_right_to_create_is_needed() {
    let scope = servers().await.unwrap().scope().await.unwrap();
    let role = format!("{}_service", scope.prefix());
    let grants = format!(
        "create role {role} login password 'pw'; create schema shop_events authorization {role}"
    );
    sqlx::raw_sql(AssertSqlSafe(grants)).execute(scope.pool()).await.unwrap();
    let options: PgConnectOptions = scope.database_url().parse().unwrap();
    let pool = PgPool::connect_with(options.username(&role).password("pw")).await.unwrap();
    let denied = sqlx::query("create schema other").execute(&pool).await.unwrap_err();
    assert!(denied.to_string().contains("permission denied for database"), "{denied}");

    // The schema exists, and its owner may not create another one.
    let outbox = Outbox::new().schema("shop_events").unwrap();
    let migrated = outbox.migrate(&pool).await.unwrap();
    assert_eq!(migrated.applied, ["0001_outbox.sql"]);
    for (_, sql) in migrations("shop_events").unwrap() {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&pool).await.unwrap();
    }
    assert_eq!(outbox.migrate(&pool).await.unwrap(), Migrated::default());

    // The tables belong to somebody else, and the service may only read which migrations were applied.
    outbox_of_owner(&scope, &role).await;
    let outbox = Outbox::new().schema("owned").unwrap();
    assert_eq!(outbox.migrate(&pool).await.unwrap(), Migrated::default());
}

async fn outbox_of_owner(scope: &pillarbox_testkit::Scope, reader: &str) {
    let outbox = Outbox::new().schema("owned").unwrap();
    outbox.migrate(scope.pool()).await.unwrap();
    let grants = format!(
        "grant usage on schema owned to {reader}; grant select on owned.outbox_migration to {reader}"
    );
    sqlx::raw_sql(AssertSqlSafe(grants)).execute(scope.pool()).await.unwrap();
}

#[tokio::test]
async fn tables_of_a_newer_program_are_told_from_those_of_this_one() {
    let scope = servers().await.unwrap().scope().await.unwrap();
    migrate(scope.pool()).await.unwrap();
    sqlx::query(
        "insert into pillarbox.outbox_migration (version, description, success, checksum, execution_time) \
         values (97, 'later', true, '', 0)",
    )
    .execute(scope.pool())
    .await
    .unwrap();
    let migrated = migrate(scope.pool()).await.unwrap();
    assert_eq!(migrated, Migrated { applied: Vec::new(), newer: vec![97] });
}

#[tokio::test]
async fn what_can_never_be_shipped_is_refused_where_it_is_written() {
    let scope = servers().await.unwrap().scope().await.unwrap();
    migrate(scope.pool()).await.unwrap();
    let insert = async |columns: &str, values: &str| {
        let sql = format!(
            "insert into pillarbox.outbox (event_type, topic, {columns}) overriding system value \
             values ('t', 'a', {values})"
        );
        sqlx::query(AssertSqlSafe(sql)).execute(scope.pool()).await.map(|_| ())
    };
    for (columns, refused, taken) in [
        ("payload, position", "'', 0", "'', 1"),
        ("payload, position", "'', -9223372036854775808", "'', 9223372036854775807"),
        ("payload, key", "'', repeat('k', 65537)", "'', repeat('k', 65536)"),
        ("payload, headers", "'', '[]'", "'', '{}'"),
        (
            "payload, headers",
            "'', jsonb_build_object('a', repeat('x', 1048576))",
            "'', jsonb_build_object('a', repeat('x', 1000000))",
        ),
        (
            "payload",
            "decode(repeat('00', 67108865), 'hex')",
            "decode(repeat('00', 67108864), 'hex')",
        ),
    ] {
        let error = insert(columns, refused).await.unwrap_err();
        assert!(error.to_string().contains("violates check constraint"), "{columns}: {error}");
        insert(columns, taken).await.unwrap();
    }
}

/// What a subscription does to a row that it brings: its session replicates.
async fn replicate(connection: &mut PgConnection, positions: &str) -> Result<(), sqlx::Error> {
    let sql = format!(
        "begin; set local session_replication_role = replica; \
         insert into pillarbox.outbox (txid, position, event_type, topic, payload) overriding system value \
         select '5', position, 't', 'a', position::text::bytea from {positions} as position; \
         commit"
    );
    connection.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.map(drop)
}

/// Writes an event as a service does, and returns its position.
async fn write(connection: &mut PgConnection) -> i64 {
    sqlx::query_scalar(
        "insert into pillarbox.outbox (event_type, topic, payload) values ('t', 'a', '') returning position",
    )
    .fetch_one(connection)
    .await
    .unwrap()
}

#[tokio::test]
async fn a_service_can_write_where_a_subscription_has_brought_rows_before_it() {
    let scope = servers().await.unwrap().scope().await.unwrap();
    migrate(scope.pool()).await.unwrap();
    let mut replicating = scope.pool().acquire().await.unwrap();
    let mut writing = scope.pool().acquire().await.unwrap();
    let kept = async |from: i64, to: i64| -> i64 {
        sqlx::query_scalar(
            "select count(*) from pillarbox.outbox where position between $1 and $2 and payload = position::text::bytea \
             and txid::xid = xmin",
        )
        .bind(from)
        .bind(to)
        .fetch_one(scope.pool())
        .await
        .unwrap()
    };
    // The first copy, as it may lie on disk, into an outbox that nobody has written to.
    let backwards = "(select generate_series(1, 50) as position order by 1 desc)";
    replicate(&mut replicating, backwards).await.unwrap();
    assert_eq!(kept(1, 50).await, 50, "each under its own position and a local transaction id");
    assert_eq!(write(&mut writing).await, 51);
    // Later rows: the next one, one after a small gap and one after a large one.
    for position in [52, 100, 1_000_000] {
        replicate(&mut replicating, &format!("generate_series({position}, {position})"))
            .await
            .unwrap();
        assert_eq!(kept(position, position).await, 1);
        assert_eq!(write(&mut writing).await, position + 1);
    }
    // A position that is taken, one that is behind, and one that would leave no positions for writers.
    for position in [1_000_000, 70, i64::MAX] {
        replicate(&mut replicating, &format!("generate_series({position}, {position})"))
            .await
            .unwrap();
    }
    assert_eq!(write(&mut writing).await, 1_000_005);
}

#[tokio::test]
async fn rows_behind_a_sequence_that_was_restarted_get_the_next_positions() {
    let scope = servers().await.unwrap().scope().await.unwrap();
    migrate(scope.pool()).await.unwrap();
    let mut connection = scope.pool().acquire().await.unwrap();
    // As if the outbox had been used before: positions below were shipped, and the scan does not look at them.
    sqlx::raw_sql("alter sequence pillarbox.outbox_position_seq restart with 500")
        .execute(&mut *connection)
        .await
        .unwrap();
    replicate(&mut connection, "generate_series(10, 12)").await.unwrap();
    let positions: Vec<i64> =
        sqlx::query_scalar("select position from pillarbox.outbox order by 1")
            .fetch_all(scope.pool())
            .await
            .unwrap();
    assert_eq!(positions, [500, 501, 502]);
    assert_eq!(write(&mut connection).await, 503);
}
