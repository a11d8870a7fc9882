//! Settings that a connection inherits change nothing.

use std::process::Command;

use crate::support::http::Endpoint;
use crate::support::{DEADLINE, Process, Shop, large};
use pillarbox_relay::Database;
use pillarbox_testkit::eventually;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

/// Settings of a role that stop, mislead or slow down whoever trusts what a connection comes with.
const HOSTILE: [(&str, &str); 24] = [
    ("statement_timeout", "'200ms'"),
    ("lock_timeout", "'10ms'"),
    ("idle_in_transaction_session_timeout", "'1ms'"),
    ("idle_session_timeout", "'300ms'"),
    ("row_security", "on"),
    ("default_transaction_read_only", "on"),
    ("default_transaction_isolation", "serializable"),
    ("default_transaction_deferrable", "on"),
    ("search_path", "nowhere"),
    ("\"DateStyle\"", "'SQL, DMY'"),
    ("\"IntervalStyle\"", "'sql_standard'"),
    ("\"TimeZone\"", "'Asia/Kathmandu'"),
    ("bytea_output", "escape"),
    ("extra_float_digits", "-15"),
    ("standard_conforming_strings", "off"),
    ("client_encoding", "latin1"),
    ("enable_indexscan", "off"),
    ("enable_nestloop", "off"),
    ("synchronous_commit", "off"),
    ("session_replication_role", "replica"),
    ("transform_null_equals", "on"),
    ("jit_above_cost", "0"),
    ("exit_on_error", "on"),
    ("array_nulls", "off"),
];

async fn hostile(shop: &Shop) -> String {
    let name = format!("hostile_{}", shop.scope.prefix());
    let mut sql = format!("create role {name} login superuser;");
    for (setting, value) in HOSTILE {
        sql += &format!("alter role {name} set {setting} = {value};");
    }
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(shop.pool()).await.unwrap();
    shop.scope.database_url().replace("postgres@", &format!("{name}@"))
}

#[tokio::test]
async fn a_connection_has_the_relays_settings_whatever_its_role_has() {
    let shop = Shop::open().await;
    let url = hostile(&shop).await;
    let mut connection = Database::new(&url, "test").unwrap().connect().await.unwrap();
    let usual = Database::new(shop.scope.database_url(), "test").unwrap();
    let mut usual = usual.connect().await.unwrap();
    for (setting, _) in HOSTILE {
        // A threshold of what is off.
        if setting == "jit_above_cost" {
            continue;
        }
        let sql = format!("show {setting}");
        let show = async |connection: &mut PgConnection| -> String {
            let row = sqlx::query(AssertSqlSafe(sql.clone())).fetch_one(connection).await.unwrap();
            row.get(0)
        };
        assert_eq!(show(&mut connection).await, show(&mut usual).await, "{setting}");
    }
    for (setting, wanted) in [
        ("search_path", "pg_catalog, pg_temp"),
        ("row_security", "off"),
        ("statement_timeout", "0"),
        ("lock_timeout", "0"),
        ("default_transaction_read_only", "off"),
        ("default_transaction_isolation", "read committed"),
        ("synchronous_commit", "on"),
        ("session_replication_role", "origin"),
        ("enable_indexscan", "on"),
        ("jit", "off"),
    ] {
        let row = sqlx::query(AssertSqlSafe(format!("show {setting}")))
            .fetch_one(&mut connection)
            .await
            .unwrap();
        assert_eq!(row.get::<String, _>(0), wanted, "{setting}");
    }
    connection.close().await.unwrap();
}

#[tokio::test]
async fn a_relay_and_the_commands_do_not_mind_what_their_role_is_set_to() {
    let _large = large().await;
    let shop = Shop::open().await;
    let url = hostile(&shop).await;
    // A late commit behind many rows, which takes longer to find than the role's statements may take.
    let mut late = shop.pool().begin().await.unwrap();
    shop.insert(&mut late, "a", "late").await;
    sqlx::query(
        "insert into pillarbox.outbox (event_type, topic, payload) \
         select 'order.placed', $1, '' from generate_series(1, 300000)",
    )
    .bind(shop.topic())
    .execute(shop.pool())
    .await
    .unwrap();
    let relay = Process::relay(&shop, &["--database-url", &url, "--http", "127.0.0.1:0"]);
    let http = Endpoint::of(&relay).await;
    shop.until_messages(300_000).await;
    late.commit().await.unwrap();
    shop.until_messages(300_001).await;
    http.until(r#"pillarbox_backlog_events{relay="default"}"#, 0.0).await;
    http.until_ready(200).await;
    assert_eq!(relay.said("WARN"), 0, "{:#?}", relay.lines.lock().unwrap());
    for arguments in [
        &["status"][..],
        &["dead-letters", "list", "--outbox"],
        &["replay", "--since", "1d", "--dry-run"],
        &["migrate"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_pillarbox"))
            .args(arguments)
            .env("DATABASE_URL", &url)
            .env("NATS_URL", shop.scope.nats_url())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
    }
}

#[tokio::test]
async fn a_setting_that_the_role_may_not_change_back_is_told() {
    let shop = Shop::open().await;
    let name = format!("kept_{}", shop.scope.prefix());
    let sql = format!(
        "create role {name} login; alter role {name} set session_replication_role = replica"
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(shop.pool()).await.unwrap();
    let url = shop.scope.database_url().replace("postgres@", &format!("{name}@"));
    let relay = Process::relay(&shop, &["--database-url", &url, "--http", "127.0.0.1:0"]);
    let http = Endpoint::of(&relay).await;
    eventually("readiness to name the setting", DEADLINE, async || {
        let said = http.until_ready(503).await["reason"].to_string();
        if said.contains("session_replication_role") { Ok(Some(())) } else { Err(said) }
    })
    .await
    .unwrap();
    http.until(r#"pillarbox_database_up{relay="default"}"#, 0.0).await;
}

#[tokio::test]
async fn of_several_servers_the_first_primary_is_taken() {
    let shop = Shop::open().await;
    let own = shop.scope.database_url();
    let place = own.split_once('@').unwrap().1.split_once('/').unwrap().0;
    let several = own.replace(place, &format!("127.0.0.1:1,{place}"));
    let (mut one, mut other) = Database::new(&several, "test").unwrap().direct().await.unwrap();
    for connection in [&mut one, &mut other] {
        sqlx::query("select count(*) from pillarbox.outbox").fetch_one(connection).await.unwrap();
    }
}
