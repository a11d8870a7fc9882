//! A database that only consumes, or holds only a trail, needs no outbox, and no command asks for one.

use std::process::Command;

use pillarbox_cli::doctor::{Doctor, Finding, Level};
use pillarbox_relay::RelayConfig;
use pillarbox_testkit::{Scope, servers};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

async fn database() -> Scope {
    servers().await.unwrap().scope().await.unwrap()
}

async fn run(scope: &Scope, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(scope.pool()).await.unwrap();
}

async fn doctor(scope: &Scope) -> Doctor {
    Doctor::new(RelayConfig {
        database_url: scope.database_url().to_owned(),
        nats_url: servers().await.unwrap().nats.url(),
        ..RelayConfig::default()
    })
}

/// What doctor finds beside the server's own settings, which are those of a test.
async fn troubles(scope: &Scope) -> Vec<Finding> {
    let findings = doctor(scope).await.examine().await;
    let about_tables = |finding: &Finding| !finding.check.starts_with("database.");
    assert!(findings.iter().filter(|finding| about_tables(finding)).count() >= 4, "{findings:#?}");
    let troubles = |finding: &Finding| about_tables(finding) && finding.level != Level::Ok;
    findings.into_iter().filter(troubles).collect()
}

/// Runs `pillarbox status`, and returns whether it succeeded and what it said.
fn status(scope: &Scope, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_pillarbox"))
        .arg("status")
        .args(arguments)
        .env("DATABASE_URL", scope.database_url())
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

#[tokio::test]
async fn a_database_that_only_consumes_is_not_told_to_make_an_outbox() {
    let scope = database().await;
    pillarbox_inbox::migrate(scope.pool()).await.unwrap();
    let found = troubles(&scope).await;
    assert!(found.is_empty(), "{found:#?}");
    let (well, said) = status(&scope, &[]);
    assert!(well && said.contains("needs no relay"), "{said}");
    assert!(
        said.contains("No consumer has handled anything yet") && !said.contains("migrate"),
        "{said}"
    );

    run(
        &scope,
        "insert into pillarbox.inbox (consumer, event_id) values ('mails', 'a'), ('mails', 'b'), ('payments', 'a'); \
         insert into pillarbox.inbox_failure (consumer, event_id, attempts, outages, last_error, first_failed_at) \
         values ('payments', 'b', 1, 0, 'e', now() - interval '10 min'), ('payments', 'c', 0, 4, 'e', now()), \
         ('mails', 'c', 0, 0, '', now()); \
         insert into pillarbox.inbox_dead_letter (consumer, event_id, event_type, topic, headers, payload, reason, error, \
         attempts, first_failed_at, state) values ('audit', 'x', 't', 't', '{}', '', 'permanent', 'e', 1, now(), 'dead'), \
         ('audit', 'y', 't', 't', '{}', '', 'permanent', 'e', 1, now(), 'parked'), \
         ('audit', 'z', 't', 't', '{}', '', 'permanent', 'e', 1, now(), 'discarded')",
    )
    .await;
    run(
        &scope,
        "insert into pillarbox.inbox_member (consumer, process, stream, host, state, reason) values \
         ('audit', 'a', 's', 'h', 'paused-by-operator', 'paused by ann'), \
         ('mails', 'a', 's', 'h', 'waiting', 'stream s does not exist'), \
         ('payments', 'a', 's', 'h', 'waiting', 'stream s does not exist'), \
         ('payments', 'b', 's', 'h', 'active', null)",
    )
    .await;
    let (well, said) = status(&scope, &["--json"]);
    assert!(well, "{said}");
    let mut said: Value = serde_json::from_str(&said).unwrap();
    let failing = said["consumers"][2]["oldest_failure_seconds"].take().as_f64().unwrap();
    assert!((600.0..900.0).contains(&failing), "{failing}");
    let of = |consumer: &str, failing: i64, parked: i64, dead: i64| {
        let waits = (consumer == "mails").then_some("stream s does not exist");
        json!({ "consumer": consumer, "waits_for": waits, "failing_events": failing, "oldest_failure_seconds": null,
            "parked_events": parked, "dead_letters": dead })
    };
    let consumers = [of("audit", 0, 1, 1), of("mails", 0, 0, 0), of("payments", 2, 0, 0)];
    assert_eq!(said, json!({ "schema": "pillarbox", "consumers": consumers }));
    let text = status(&scope, &[]).1;
    for line in [
        "handling      nothing: stream s does not exist",
        "failing       2 events, the oldest for 10 min",
        "parked        1 event",
        "dead-letters list --inbox",
    ] {
        assert!(text.contains(line), "{text}");
    }

    let list = Command::new(env!("CARGO_BIN_EXE_pillarbox"))
        .args(["consumers", "list"])
        .env("DATABASE_URL", scope.database_url())
        .output()
        .unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    let waiting: Vec<_> = list.lines().filter(|line| line.contains("handles nothing")).collect();
    assert!(
        matches!(&*waiting, [one] if one.starts_with("mails") && one.ends_with("stream s does not exist")),
        "{list}"
    );

    let found = troubles(&scope).await;
    assert!(
        matches!(&*found, [one] if one.check == "inbox.dead_letters" && one.level == Level::Warn),
        "{found:#?}"
    );
    run(
        &scope,
        "alter table pillarbox.inbox enable row level security; delete from pillarbox.inbox_dead_letter; \
         delete from pillarbox.inbox_migration where version = 1",
    )
    .await;
    let found: Vec<_> =
        troubles(&scope).await.iter().map(|found| (found.check, found.level)).collect();
    assert_eq!(found, [("inbox.row_security", Level::Warn), ("inbox.migrations", Level::Fail)]);
}

#[tokio::test]
async fn a_database_that_holds_only_a_trail_is_not_told_to_make_an_outbox() {
    let scope = database().await;
    pillarbox_trail::migrate(scope.pool()).await.unwrap();
    let only = |found: &[Finding], check: &str, level: Level, words: &str| match found {
        [found]
            if found.check == check && found.level == level && found.message.contains(words) =>
        {
            found.remedy.clone().unwrap()
        }
        found => panic!("{check}: {found:#?}"),
    };
    let said = only(&troubles(&scope).await, "trail.streams", Level::Warn, "read nothing yet");
    assert!(said.contains("pillarbox trail"), "{said}");
    let (well, said) = status(&scope, &[]);
    assert!(well && said.contains("a trail and no outbox") && !said.contains("migrate"), "{said}");
    run(
        &scope,
        "insert into pillarbox.trail_stream (stream, life, last_sequence) values ('S', now(), 7)",
    )
    .await;
    let found = troubles(&scope).await;
    assert!(found.is_empty(), "{found:#?}");
    let (well, said) = status(&scope, &[]);
    assert!(well && said.contains("S is 7 behind"), "{said}");
    let (well, said) = status(&scope, &["--json"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert!(well && said["schema"] == "pillarbox" && said["trail"][0]["stream"] == "S", "{said}");

    // What its role lacks, while nobody reads.
    run(&scope, "update pillarbox.trail_stream set looked_at = now() - interval '1 hour'").await;
    only(&troubles(&scope).await, "trail.streams", Level::Warn, "nobody has looked");
    let role = format!("{}_reader", scope.prefix());
    run(
        &scope,
        &format!(
            "create role {role}; grant usage on schema pillarbox to {role}; \
             grant select, insert on pillarbox.trail, pillarbox.trail_stream to {role}"
        ),
    )
    .await;
    let doctor = Doctor { role: Some(role.clone()), ..doctor(&scope).await };
    let findings = doctor.examine().await;
    let lacks = findings.iter().find(|found| found.check == "trail.privileges").unwrap();
    assert!(lacks.level == Level::Fail && lacks.message.contains("3 of the trail's"), "{lacks:#?}");
    let remedy = lacks.remedy.clone().unwrap();
    for missing in ["update on pillarbox.trail_stream", "trail_days(date[])", "trail_forget("] {
        assert!(remedy.contains(missing), "{remedy}");
    }
    run(&scope, remedy.split(" (`pillarbox").next().unwrap()).await;
    let findings = doctor.examine().await;
    let has = findings.iter().find(|found| found.check == "trail.privileges").unwrap();
    assert!(has.level == Level::Ok, "{has:#?}");

    // Half a trail, and an older one.
    run(&scope, "update pillarbox.trail_stream set looked_at = now()").await;
    run(&scope, "delete from pillarbox.trail_migration").await;
    only(&troubles(&scope).await, "trail.migrations", Level::Fail, "older than this program");
    run(&scope, "drop function pillarbox.trail_forget").await;
    let said = only(&troubles(&scope).await, "trail.tables", Level::Fail, "trail_forget");
    assert!(said.contains("pillarbox migrate trail"), "{said}");
    run(&scope, "drop table pillarbox.trail_stream").await;
    only(&troubles(&scope).await, "trail.tables", Level::Fail, "trail_stream, trail_forget");
}

#[tokio::test]
async fn a_database_with_neither_side_or_half_an_outbox_is_told_what_to_do() {
    let scope = database().await;
    let remedy = |found: &[Finding]| match found {
        [found] if found.check == "outbox.tables" && found.level == Level::Fail => {
            found.remedy.clone().unwrap()
        }
        found => panic!("{found:#?}"),
    };
    let said = remedy(&troubles(&scope).await);
    assert!(said.contains("migrate outbox") && said.contains("migrate inbox"), "{said}");
    let (well, said) = status(&scope, &[]);
    assert!(
        !well && said.contains("neither an outbox nor an inbox") && said.contains("--schema"),
        "{said}"
    );

    // An inbox is no excuse for half an outbox.
    pillarbox_inbox::migrate(scope.pool()).await.unwrap();
    pillarbox_outbox::migrate(scope.pool()).await.unwrap();
    run(&scope, "drop table pillarbox.outbox cascade").await;
    remedy(&troubles(&scope).await);
}
