//! A restore into another Postgres, whose transaction ids start anew.

use crate::support::{Process, Shop};
use pillarbox_relay::RelayConfig;
use pillarbox_testkit::{Database, Postgres, servers};
use sqlx::{PgPool, Row};

/// What a dump and a restore carry over: rows, the cursor, and the sequence.
async fn restore(from: &PgPool, to: &Database) {
    pillarbox_outbox::migrate(&to.pool).await.unwrap();
    let columns = "txid, position, event_id, synchronous, event_type, topic, key, headers, payload, created_at";
    let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
        "select jsonb_agg(outbox)::text from (select {columns} from pillarbox.outbox) as outbox"
    )));
    let rows: String = rows.fetch_one(from).await.unwrap().get(0);
    sqlx::query(sqlx::AssertSqlSafe(format!(
        "insert into pillarbox.outbox ({columns}) overriding system value \
         select {columns} from jsonb_populate_recordset(null::pillarbox.outbox, $1::jsonb)"
    )))
    .bind(rows)
    .execute(&to.pool)
    .await
    .unwrap();
    let row = sqlx::query("select name, cursor::text, epoch from pillarbox.relay")
        .fetch_one(from)
        .await
        .unwrap();
    sqlx::query("insert into pillarbox.relay (name, cursor, epoch) values ($1, $2::jsonb, $3)")
        .bind(row.get::<String, _>(0))
        .bind(row.get::<String, _>(1))
        .bind(row.get::<i64, _>(2))
        .execute(&to.pool)
        .await
        .unwrap();
    let last: i64 = sqlx::query("select max(position) from pillarbox.outbox")
        .fetch_one(from)
        .await
        .unwrap()
        .get(0);
    sqlx::query("select setval(pg_get_serial_sequence('pillarbox.outbox', 'position'), $1)")
        .bind(last)
        .execute(&to.pool)
        .await
        .unwrap();
}

async fn next_xid(pool: &PgPool) -> i64 {
    sqlx::query("select pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
        .fetch_one(pool)
        .await
        .unwrap()
        .get(0)
}

#[tokio::test]
async fn a_restored_outbox_ships_exactly_what_had_not_been_shipped() {
    let old = Postgres::options().own_identity().start().await.unwrap();
    let database = old.create_database("shop").await.unwrap();
    sqlx::raw_sql(
        "do $$ begin for i in 1..20000 loop perform pg_current_xact_id(); commit; end loop; end $$",
    )
    .execute(&database.pool)
    .await
    .unwrap();
    let scope = servers().await.unwrap().scope().await.unwrap();
    let shop = Shop::on(scope).await;
    pillarbox_outbox::migrate(&database.pool).await.unwrap();
    let insert = async |pool: &PgPool, from: i64, to: i64| {
        sqlx::query(
            "insert into pillarbox.outbox (event_type, topic, key, payload) \
             select 'order.placed', $1, '1', convert_to(i::text, 'utf8') from generate_series($2, $3) i",
        )
        .bind(shop.topic())
        .bind(from)
        .bind(to)
        .execute(pool)
        .await
        .unwrap();
    };
    let config = |url: &str| RelayConfig { database_url: url.to_owned(), ..shop.config() };
    insert(&database.pool, 1, 100).await;
    let relay = shop.start(config(&database.url));
    shop.until_messages(100).await;
    // A transaction that is open while these are shipped, and commits before the dump: not shipped, though its
    // position is lower than that of what was.
    let mut open = database.pool.begin().await.unwrap();
    sqlx::query("insert into pillarbox.outbox (event_type, topic, key, payload) values ('t', $1, '1', 'open')")
        .bind(shop.topic())
        .execute(&mut *open)
        .await
        .unwrap();
    insert(&database.pool, 101, 110).await;
    shop.until_messages(110).await;
    relay.stop().await;
    open.commit().await.unwrap();
    insert(&database.pool, 111, 130).await;

    let new = Postgres::options().own_identity().start().await.unwrap();
    let restored = new.create_database("shop").await.unwrap();
    restore(&database.pool, &restored).await;
    // The service writes before the relay is up again, under ids that the old cluster had long used.
    insert(&restored.pool, 131, 135).await;
    assert!(next_xid(&restored.pool).await < next_xid(&database.pool).await - 10_000);
    let process = Process::run(
        &["relay"],
        &[("DATABASE_URL", &restored.url), ("NATS_URL", shop.scope.nats_url())],
    );
    process.until_said("another database cluster").await;
    shop.until_messages(136).await;
    insert(&restored.pool, 136, 140).await;
    shop.until_messages(141).await;
    let stored: Vec<String> =
        shop.stored().await.into_iter().map(|stored| stored.payload).collect();
    let mut wanted: Vec<String> = (1..=110).map(|number| number.to_string()).collect();
    wanted.push("open".into());
    wanted.extend((111..=140).map(|number| number.to_string()));
    assert_eq!(stored, wanted);
}
