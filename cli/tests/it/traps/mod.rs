//! What others put into schema `public` runs as nobody but them.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::support::{DEADLINE, Process, Shop};
use pillarbox_event::RawEvent;
use pillarbox_testkit::{eventually, traps};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgPool};

const TEMPORARY: &str = include_str!("temporary.sql");

/// Runs a command as a role, and fails with what it said if it fails.
fn pillarbox(url: &str, shop: &Shop, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_pillarbox"))
        .args(arguments)
        .env("DATABASE_URL", url)
        .env("NATS_URL", shop.scope.nats_url())
        .output()
        .unwrap();
    let (out, said) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // Doctor finds that autovacuum, fsync and the like are off, which is no concern here.
    let fine = output.status.success() || arguments == ["doctor"];
    assert!(fine, "{arguments:?}: {out}{said}");
    out.into_owned()
}

/// A superuser whose search_path is this, and its URL. `postgres` keeps its own.
async fn victim(shop: &Shop, path: &str) -> String {
    static VICTIMS: AtomicU32 = AtomicU32::new(0);
    let number = VICTIMS.fetch_add(1, Ordering::Relaxed);
    let name = format!("victim_{}_{number}", shop.scope.prefix());
    let sql =
        format!("create role {name} login superuser; alter role {name} set search_path = {path};");
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(shop.pool()).await.unwrap();
    shop.scope.database_url().replace("postgres@", &format!("{name}@"))
}

async fn lay_traps(pool: &PgPool) {
    sqlx::raw_sql(AssertSqlSafe(traps::sql("public"))).execute(pool).await.unwrap();
}

async fn assert_none_sprang(shop: &Shop, after: &str) {
    let sprung = shop.number("select is_called::integer::bigint from public.sprung").await;
    assert_eq!(sprung, 0, "a trap in public ran after {after}");
}

/// The paths under which a name in `public` is found: before the same name in pg_catalog, and only where it fits
/// better than that.
const PATHS: [&str; 2] = ["public, pg_catalog", "public"];

#[tokio::test]
async fn no_trap_in_public_runs_as_the_relay_or_as_a_command() {
    for path in PATHS {
        let shop = Shop::open().await;
        pillarbox_inbox::migrate(shop.pool()).await.unwrap();
        shop.insert_one("a", "one").await;
        sqlx::query(
            "insert into pillarbox.outbox (event_type, topic, payload) values ('order.placed', 'not a subject', '')",
        )
        .execute(shop.pool())
        .await
        .unwrap();
        lay_traps(shop.pool()).await;
        let url = victim(&shop, path).await;

        let more = ["--database-url", url.as_str(), "--retention-s", "1"];
        let mut relay = Process::relay(&shop, &more);
        shop.until_messages(1).await;
        eventually("shipped rows to go", DEADLINE, async || {
            let left = shop
                .number("select count(*) from pillarbox.outbox where topic <> 'not a subject'")
                .await;
            Ok::<_, String>((left == 0).then_some(()))
        })
        .await
        .unwrap();
        assert_none_sprang(&shop, "shipping and removing").await;
        let standby = Process::relay(&shop, &more);
        standby.until_said("standing by").await;
        relay.kill();
        standby.until_said("leading").await;
        shop.insert_one("a", "two").await;
        shop.until_messages(2).await;
        assert_none_sprang(&shop, "a takeover").await;

        let listed = pillarbox(&url, &shop, &["dead-letters", "list", "--outbox", "--json"]);
        let letter: serde_json::Value = serde_json::from_str(listed.trim()).unwrap();
        let id = letter["event_id"].as_str().unwrap();
        for arguments in [
            &["status"][..],
            &["status", "--name", "other"],
            &["doctor"],
            &["migrate"],
            &["dead-letters", "list", "--inbox"],
            &["dead-letters", "list", "--outbox", "--older-than", "0", "--topic", "not a subject"],
            &["dead-letters", "show", "--outbox", id],
            &["dead-letters", "retry", "--outbox", id, "--dry-run"],
            &["dead-letters", "discard", "--outbox", id],
            &["replay", "--since", "1h", "--dry-run"],
            &["replay", "--from-position", "1", "--dry-run"],
        ] {
            pillarbox(&url, &shop, arguments);
            assert_none_sprang(&shop, &format!("{arguments:?} with search_path = {path}")).await;
        }
    }
}

#[tokio::test]
async fn no_trap_runs_where_migrate_finds_them_before_the_tables() {
    let shop = Shop::open().await;
    lay_traps(shop.pool()).await;
    for (number, path) in PATHS.iter().enumerate() {
        sqlx::raw_sql("drop schema pillarbox cascade").execute(shop.pool()).await.unwrap();
        let url = victim(&shop, path).await;
        pillarbox(&url, &shop, &["migrate"]);
        assert_none_sprang(&shop, "migrate").await;
        // What the tables do by themselves has been resolved then, for all who write.
        shop.insert_one("a", "one").await;
        assert_none_sprang(&shop, "an insert").await;
        let prefix = format!("{}_{number}", shop.scope.prefix());
        let grants =
            pillarbox(&url, &shop, &["migrate", "--print-grants", "--role-prefix", &prefix]);
        sqlx::raw_sql(AssertSqlSafe(grants)).execute(shop.pool()).await.unwrap();
        assert_none_sprang(&shop, "the grants").await;
    }
}

#[tokio::test]
async fn no_trap_runs_in_a_service_that_publishes_or_migrates() {
    let shop = Shop::open().await;
    lay_traps(shop.pool()).await;
    for (number, path) in (1..).zip(PATHS) {
        let url = victim(&shop, path).await;
        let victim = PgPool::connect(&url).await.unwrap();
        pillarbox_outbox::migrate(&victim).await.unwrap();
        pillarbox_inbox::migrate(&victim).await.unwrap();
        let event = |topic: String| {
            RawEvent::builder("order.placed", topic).key("a").payload("{}").build().unwrap()
        };
        let mut tx = victim.begin().await.unwrap();
        pillarbox_outbox::publish(&mut tx, &event(shop.topic())).await.unwrap();
        let events = [event(shop.topic()), event(shop.topic())];
        pillarbox_outbox::publish_all(&mut tx, &events).await.unwrap();
        tx.commit().await.unwrap();
        assert_none_sprang(&shop, "publishing").await;
        assert_eq!(shop.number("select count(*) from pillarbox.outbox").await, 3 * number);
        let own: PgConnectOptions = url.parse().unwrap();
        let mut own = own.connect().await.unwrap();
        pillarbox_relay::RelayStatus::read(&mut own, "pillarbox", "default").await.unwrap();
        assert_none_sprang(&shop, "reading the status").await;
        let kept: String =
            sqlx::query_scalar("show search_path").fetch_one(&mut own).await.unwrap();
        assert_eq!(kept, path, "the session's own path stays");
        own.close().await.unwrap();
    }
}

/// A trigger of the service runs in the relay's session, and can leave something in that session's temporary schema,
/// where names of types and tables are looked up first unless a path says otherwise.
#[tokio::test]
async fn no_trap_in_the_temporary_schema_of_its_own_session_runs() {
    let shop = Shop::open().await;
    sqlx::raw_sql(TEMPORARY).execute(shop.pool()).await.unwrap();
    for path in ["pg_temp, public", "\"$user\", public"] {
        let url = victim(&shop, path).await;
        sqlx::query(
            "insert into pillarbox.outbox (event_type, topic, payload) values ('order.placed', 'not a subject', '')",
        )
        .execute(shop.pool())
        .await
        .unwrap();
        let more = ["--database-url", url.as_str(), "--retention-s", "1"];
        let mut relay = Process::relay(&shop, &more);
        shop.insert_one("a", "one").await;
        let sessions = "select count(distinct session) from public.laid";
        eventually("traps in the sessions of the lease and of retention", DEADLINE, async || {
            match shop.number(sessions).await {
                found if found >= 2 => Ok(Some(())),
                found => Err(format!("in {found} sessions: {:#?}", relay.lines.lock().unwrap())),
            }
        })
        .await
        .unwrap();
        shop.insert_one("a", "two").await;
        let left = "select count(*) from pillarbox.outbox where topic <> 'not a subject'";
        eventually("shipped rows to go", DEADLINE, async || {
            Ok::<_, String>((shop.number(left).await == 0).then_some(()))
        })
        .await
        .unwrap();
        assert_none_sprang(&shop, &format!("a relay with search_path = {path}")).await;
        assert_eq!(relay.said("WARN"), 0, "{:#?}", relay.lines.lock().unwrap());
        relay.kill();
        for arguments in [
            &["dead-letters", "retry", "--outbox", "--all"][..],
            &["dead-letters", "discard", "--outbox", "--all"],
            &["status"],
        ] {
            pillarbox(&url, &shop, arguments);
            assert_none_sprang(&shop, &format!("{arguments:?} with search_path = {path}")).await;
        }
        sqlx::raw_sql("truncate public.laid").execute(shop.pool()).await.unwrap();
    }
    // They are good traps: whoever looks there first steps on them.
    let look = "update pillarbox.relay set heartbeat = heartbeat; select 'a'::text, '1'::xid8";
    sqlx::raw_sql(look).execute(shop.pool()).await.unwrap();
    assert_eq!(shop.number("select is_called::integer::bigint from public.sprung").await, 1);
}

#[tokio::test]
async fn the_grants_take_create_on_public_away_and_doctor_says_where_everybody_has_it() {
    let shop = Shop::open().await;
    sqlx::raw_sql("grant create on schema public to public").execute(shop.pool()).await.unwrap();
    let said = |shop: &Shop| pillarbox(shop.scope.database_url(), shop, &["doctor"]);
    let before = said(&shop);
    let warned = |text: &str| {
        let line = text.lines().find(|line| line.contains("database.public_schema")).unwrap();
        line.starts_with("warn")
    };
    assert!(warned(&before), "{before}");
    let prefix = shop.scope.prefix().to_owned();
    let grants = pillarbox(
        shop.scope.database_url(),
        &shop,
        &["migrate", "outbox", "--print-grants", "--role-prefix", &prefix],
    );
    sqlx::raw_sql(AssertSqlSafe(grants)).execute(shop.pool()).await.unwrap();
    for duty in ["writer", "relay", "operator"] {
        let asked = format!(
            "select has_schema_privilege('{prefix}_{duty}', 'public', 'create')::integer::bigint"
        );
        assert_eq!(shop.number(&asked).await, 0, "{duty}");
    }
    let after = said(&shop);
    assert!(!warned(&after), "{after}");
}
