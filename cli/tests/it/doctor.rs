//! `pillarbox doctor` in front of real trouble.

use std::process::Command;
use std::time::Duration;

use crate::support::{DEADLINE, Shop};
use async_nats::jetstream::stream::{Config, DiscardPolicy};
use pillarbox_cli::doctor::{Doctor, Finding, Level};
use pillarbox_relay::RelayConfig;
use pillarbox_testkit::{Nats, Postgres, eventually};
use sqlx::AssertSqlSafe;

async fn examine(config: RelayConfig) -> Vec<Finding> {
    Doctor::new(config).examine().await
}

/// The finding of a check that is not ok; `None` if it is.
fn trouble<'f>(findings: &'f [Finding], check: &str) -> Option<&'f Finding> {
    findings.iter().find(|finding| finding.check == check && finding.level != Level::Ok)
}

/// Checks that there is such a finding, with these words in it, and returns its remedy.
#[track_caller]
fn found(findings: &[Finding], check: &str, level: Level, words: &str) -> String {
    let finding = trouble(findings, check).unwrap_or_else(|| panic!("{check}: {findings:#?}"));
    assert!(finding.level == level && finding.message.contains(words), "{finding:#?}");
    finding.remedy.clone().unwrap()
}

async fn run(shop: &Shop, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(shop.pool()).await.unwrap();
}

#[tokio::test]
async fn a_healthy_outbox_has_no_finding() {
    let servers = pillarbox_testkit::Servers {
        postgres: Postgres::options().durable().start().await.unwrap(),
        nats: Nats::start().await.unwrap(),
    };
    let shop = Shop::on(servers.scope().await.unwrap()).await;
    let relay = shop.start(shop.config());
    shop.insert_many(3).await;
    shop.shipped().await;
    let findings = examine(shop.config()).await;
    let troubles: Vec<_> = findings.iter().filter(|finding| finding.level != Level::Ok).collect();
    assert!(troubles.is_empty() && findings.len() > 15, "{findings:#?}");
    assert!(findings.iter().all(|finding| finding.remedy.is_none()));
    relay.stop().await;
    let remedy = found(&examine(shop.config()).await, "outbox.lease", Level::Fail, "nobody leads");
    assert!(remedy.contains("start `pillarbox relay`"), "{remedy}");
}

#[tokio::test]
async fn what_is_wrong_with_the_tables_is_found() {
    let shop = Shop::open().await;
    // Nothing is there.
    let config = RelayConfig { schema: "elsewhere".into(), ..shop.config() };
    let remedy = found(&examine(config).await, "outbox.tables", Level::Fail, "elsewhere");
    assert!(remedy.contains("pillarbox migrate outbox"), "{remedy}");
    found(&examine(shop.config()).await, "outbox.lease", Level::Fail, "has never run");

    // Logical replication has copied rows, and not the sequence.
    run(
        &shop,
        "insert into pillarbox.outbox (position, event_type, topic, payload) overriding system value \
         values (41, 't', 'unheard.of', ''), (42, 't', 'unheard.of', '')",
    )
    .await;
    let findings = examine(shop.config()).await;
    let remedy = found(&findings, "outbox.sequence", Level::Fail, "42 was given out already");
    run(&shop, &remedy).await;
    assert!(trouble(&examine(shop.config()).await, "outbox.sequence").is_none());
    run(&shop, "alter sequence pillarbox.outbox_position_seq cache 10").await;
    found(&examine(shop.config()).await, "outbox.sequence", Level::Fail, "cache");
    let remedy = found(&findings, "broker.subjects", Level::Fail, "no stream takes unheard.of");
    assert!(remedy.contains("unheard.of"), "{remedy}");
    // A stream takes the topic, and not what partitions make of it.
    let exactly = Config {
        name: format!("{}-EXACTLY", shop.stream),
        subjects: vec!["unheard.of".into()],
        ..Default::default()
    };
    shop.jetstream().await.create_stream(exactly).await.unwrap();
    assert!(trouble(&examine(shop.config()).await, "broker.subjects").is_none());
    let config = RelayConfig { partitions: 8, ..shop.config() };
    let remedy = found(
        &examine(config).await,
        "broker.subjects",
        Level::Fail,
        "no stream takes unheard.0.of, unheard.7.of",
    );
    assert!(remedy.contains("partitions = 8"), "{remedy}");

    // Migrations of another version; vacuum; dead letters; another cluster; a relay that is gone.
    run(
        &shop,
        "insert into pillarbox.outbox_migration select 9000, 'later', now(), true, '', 0; \
         alter table pillarbox.outbox set (autovacuum_enabled = false); \
         insert into pillarbox.outbox_dead_letter (position, relay, event_id, event_type, topic, headers, payload, \
         created_at, reason, error, attempts) values (1, 'default', gen_random_uuid(), 't', 't', '{}', '', now(), 'too_large', 'e', 1); \
         insert into pillarbox.relay (name, cursor, holder, epoch, expires_at, heartbeat) values \
         ('default', '{\"system_identifier\": \"1\", \"snapshot\": \"3:3:\", \"high\": 0, \"floor\": 0, \"in_flight\": {}}', \
          'host/1/x', 3, now() - interval '1 hour', now() - interval '1 hour'), \
         ('retired', '{}', 'host/2/x', 3, now() - interval '1 day', now() - interval '1 day')",
    )
    .await;
    let findings = examine(shop.config()).await;
    found(&findings, "outbox.migrations", Level::Warn, "newer than this program");
    found(&findings, "outbox.vacuum", Level::Warn, "autovacuum is off");
    found(&findings, "outbox.dead_letters", Level::Warn, "1 unresolved: 1 too_large");
    found(&findings, "outbox.cursor", Level::Warn, "another database cluster");
    found(&findings, "outbox.lease", Level::Fail, "host/1/x did not renew");
    let remedy = found(&findings, "outbox.retention", Level::Warn, "\"retired\"");
    run(&shop, remedy.split_once("if it is retired: ").unwrap().1).await;
    run(&shop, "delete from pillarbox.outbox_migration").await;
    let findings = examine(shop.config()).await;
    assert!(trouble(&findings, "outbox.retention").is_none(), "{findings:#?}");
    found(&findings, "outbox.migrations", Level::Fail, "older than this program");
}

#[tokio::test]
async fn missing_rights_come_with_the_statements_that_grant_them() {
    let shop = Shop::open().await;
    let role = format!("{}_relay", shop.scope.prefix());
    run(
        &shop,
        &format!(
            "create role {role} login; grant usage on schema pillarbox to {role}; \
             grant select, insert, update on pillarbox.relay to {role}"
        ),
    )
    .await;
    let config = RelayConfig {
        database_url: shop.scope.database_url().replace("//postgres@", &format!("//{role}@")),
        ..shop.config()
    };
    let findings = examine(config.clone()).await;
    let remedy = found(&findings, "outbox.privileges", Level::Fail, "lacks");
    assert!(
        remedy.contains("grant select on pillarbox.outbox to")
            && !remedy.contains("pillarbox.relay to"),
        "{remedy}"
    );
    found(&findings, "outbox.lease", Level::Warn, "permission denied");
    run(
        &shop,
        remedy.split_once(" (").map_or("", |_| remedy.split(" (`pillarbox").next().unwrap()),
    )
    .await;
    run(&shop, &format!("grant select on pillarbox.outbox_migration to {role}")).await;
    let findings = examine(config).await;
    assert!(trouble(&findings, "outbox.privileges").is_none(), "{findings:#?}");
    // Another's rights can be asked for.
    let doctor = Doctor { role: Some("pg_monitor".into()), ..Doctor::new(shop.config()) };
    found(&doctor.examine().await, "outbox.privileges", Level::Fail, "role pg_monitor lacks");
    // No right to look at all.
    let stranger = format!("{}_stranger", shop.scope.prefix());
    run(&shop, &format!("create role {stranger} login")).await;
    let config = RelayConfig {
        database_url: shop.scope.database_url().replace("//postgres@", &format!("//{stranger}@")),
        ..shop.config()
    };
    let remedy = found(&examine(config).await, "outbox.privileges", Level::Fail, "lacks");
    assert!(remedy.contains("grant usage on schema pillarbox"), "{remedy}");
}

#[tokio::test]
async fn an_old_transaction_is_named_with_its_session() {
    let shop = Shop::open().await;
    let mut open = shop.pool().begin().await.unwrap();
    shop.insert(&mut open, "1", "waits").await;
    let pid: i32 =
        sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *open).await.unwrap();
    let doctor = Doctor { old_transaction: Duration::ZERO, ..Doctor::new(shop.config()) };
    let remedy = found(
        &doctor.examine().await,
        "database.transactions",
        Level::Warn,
        &format!("session {pid} (role postgres"),
    );
    assert!(remedy.contains(&format!("pg_terminate_backend({pid})")), "{remedy}");
    assert!(trouble(&examine(shop.config()).await, "database.transactions").is_none());
    open.rollback().await.unwrap();
    eventually("no transaction", DEADLINE, async || {
        Ok::<_, String>(
            trouble(&doctor.examine().await, "database.transactions").is_none().then_some(()),
        )
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn streams_that_lose_or_slow_events_are_found() {
    let shop = Shop::open().await;
    shop.insert_one("1", "one").await;
    shop.create_stream(|config| Config {
        allow_batch_publish: false,
        discard: DiscardPolicy::Old,
        max_messages: 10,
        max_age: Duration::from_secs(60),
        duplicate_window: Duration::from_secs(5),
        ..config
    })
    .await;
    let findings = examine(shop.config()).await;
    for words in [
        "drops its oldest events",
        "does not take fast-ingest batches",
        "forgets message ids after 5 s",
        "drops events after 60 s, sooner than the outbox (60 min)",
    ] {
        let finding = findings.iter().find(|finding| finding.message.contains(words));
        assert!(
            finding.is_some_and(|finding| finding.level == Level::Warn),
            "{words}: {findings:#?}"
        );
    }
    shop.create_stream(|config| Config { no_ack: true, ..config }).await;
    found(&examine(shop.config()).await, "broker.stream", Level::Fail, "acknowledges nothing");
    let nobody = RelayConfig { nats_url: "nats://127.0.0.1:1".into(), ..shop.config() };
    found(&examine(nobody).await, "broker.reachable", Level::Fail, "nats://127.0.0.1:1");
}

#[tokio::test]
async fn a_standby_is_refused_with_the_primary_as_remedy() {
    let mut postgres = Postgres::start().await.unwrap();
    let database = postgres.create_database("shop").await.unwrap();
    let data: String =
        sqlx::query_scalar("show data_directory").fetch_one(&database.pool).await.unwrap();
    postgres.stop().await.unwrap();
    std::fs::write(std::path::Path::new(&data).join("standby.signal"), "").unwrap();
    postgres.restart().await.unwrap();
    let config = RelayConfig { database_url: database.url, ..RelayConfig::default() };
    let findings = examine(config).await;
    let remedy = found(&findings, "database.primary", Level::Fail, "hot standby");
    assert!(remedy.contains("the primary's address"), "{remedy}");
    assert!(!findings.iter().any(|finding| finding.check.starts_with("outbox")), "{findings:#?}");
}

#[tokio::test]
async fn the_command_ends_with_1_if_something_failed_and_prints_json() {
    let shop = Shop::open().await;
    let doctor = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_pillarbox"))
            .arg("doctor")
            .args(arguments)
            .env("DATABASE_URL", shop.scope.database_url())
            .env("NATS_URL", shop.scope.nats_url())
            .output()
            .unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = doctor(&[]);
    assert_eq!(code, 1, "{text}");
    assert!(
        text.contains("FAIL  outbox.lease") && text.contains("→ start `pillarbox relay`"),
        "{text}"
    );
    let relay = shop.start(shop.config());
    shop.insert_one("1", "one").await;
    shop.shipped().await;
    let (code, text) = doctor(&["--json"]);
    let found: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(code, 0, "warnings do not fail: {text}");
    let durability = found["findings"]
        .as_array()
        .unwrap()
        .iter()
        .find(|finding| finding["check"] == "database.durability")
        .unwrap();
    assert_eq!(durability["level"], "warn", "the test's server runs without fsync");
    assert!(durability["remedy"].is_string());
    relay.stop().await;
}

#[tokio::test]
async fn a_copy_of_the_table_lacks_triggers_and_grants_and_the_old_one_is_named() {
    let shop = Shop::open().await;
    let relay = shop.start(shop.config());
    shop.insert_one("a", "one").await;
    shop.until_messages(1).await;
    shop.shipped().await;
    for check in ["outbox.triggers", "outbox.table", "outbox.sequence"] {
        assert!(trouble(&examine(shop.config()).await, check).is_none(), "{check}");
    }
    run(
        &shop,
        "alter table pillarbox.outbox rename to outbox_old; \
         create table pillarbox.outbox (like pillarbox.outbox_old including all)",
    )
    .await;
    shop.insert_one("a", "two").await;
    shop.until_messages(2).await;
    shop.shipped().await;
    relay.stop().await;
    let findings = examine(shop.config()).await;
    let remedy =
        found(&findings, "outbox.triggers", Level::Warn, "outbox_replicated and outbox_kept");
    run(&shop, &remedy).await;
    assert!(trouble(&examine(shop.config()).await, "outbox.triggers").is_none());
    found(&findings, "outbox.table", Level::Warn, "pillarbox.outbox_old was the outbox");
    // The new sequence is the one that is looked at.
    assert!(trouble(&findings, "outbox.sequence").is_none(), "{findings:#?}");
    run(&shop, "alter sequence pillarbox.outbox_position_seq1 cache 10").await;
    let findings = examine(shop.config()).await;
    let remedy = found(&findings, "outbox.sequence", Level::Fail, "cache");
    assert!(remedy.contains("alter sequence pillarbox.outbox_position_seq1 "), "{remedy}");
    let role = format!("reader_{}", shop.scope.prefix());
    run(&shop, &format!("create role {role}; grant usage on schema pillarbox to {role}")).await;
    let doctor = Doctor { role: Some(role), ..Doctor::new(shop.config()) };
    let remedy = found(&doctor.examine().await, "outbox.privileges", Level::Fail, "lacks");
    assert!(remedy.contains("grant select on pillarbox.outbox_position_seq1 to"), "{remedy}");
    // What a subscription brings draws from the new sequence, too.
    run(
        &shop,
        "alter sequence pillarbox.outbox_position_seq1 cache 1; set session_replication_role = replica; \
         insert into pillarbox.outbox (position, event_type, topic, payload) overriding system value \
         values (1, 't', 't', ''); set session_replication_role = origin",
    )
    .await;
    let highest = shop.number("select max(position) from pillarbox.outbox").await;
    assert_eq!(highest, 2, "the next one of the new sequence");
    run(&shop, "drop table pillarbox.outbox_old").await;
    assert!(trouble(&examine(shop.config()).await, "outbox.table").is_none());
}
