//! Row-level security on the relay's tables: what may be hidden is never taken for what is not there.

use std::process::Command;
use std::time::Duration;

use crate::support::http::Endpoint;
use crate::support::{self, Process, Shop};
use pillarbox_cli::doctor::{Doctor, Level};
use pillarbox_relay::RelayConfig;
use pillarbox_relay::RelayState;
use pillarbox_store::grants;
use pillarbox_testkit::eventually;
use sqlx::AssertSqlSafe;
use tokio::sync::watch;

/// How soon trouble must show.
const SOON: Duration = Duration::from_secs(30);

async fn run(shop: &Shop, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(shop.pool()).await.unwrap();
}

/// A shop, and its relay's settings under a role that has the documented grants and nothing else.
async fn granted() -> (Shop, String, RelayConfig) {
    let shop = Shop::open().await;
    let role = format!("{}_relay", shop.scope.prefix());
    let roles = grants::Roles::with_prefix(shop.scope.prefix()).unwrap();
    run(&shop, &grants::sql("pillarbox", &roles, &[grants::Tables::Outbox])).await;
    run(&shop, &format!("alter role {role} login password 'pw'")).await;
    let url = shop.scope.database_url().replace("//postgres@", &format!("//{role}:pw@"));
    assert!(url.contains(&role), "{url}");
    let config = RelayConfig { database_url: url, ..shop.config() };
    (shop, role, config)
}

fn hide(table: &str) -> String {
    format!("alter table pillarbox.{table} enable row level security")
}

fn show(table: &str) -> String {
    format!("alter table pillarbox.{table} disable row level security")
}

/// Waits until the relay is not ready, for a reason that names row-level security and what to do.
async fn until_told(state: &watch::Receiver<RelayState>, table: &str) {
    let told = eventually("a reason that names the remedy", SOON, async || {
        let said = state.borrow().not_ready().unwrap_or_else(|| "ready".to_owned());
        let named =
            ["row-level security", "bypassrls", table].iter().all(|word| said.contains(word));
        if named { Ok(Some(())) } else { Err(said) }
    });
    told.await.unwrap();
}

async fn until_ready(state: &watch::Receiver<RelayState>) {
    let ready =
        eventually("the relay to be ready", SOON, async || match state.borrow().not_ready() {
            None => Ok(Some(())),
            Some(said) => Err(said),
        });
    ready.await.unwrap();
}

#[tokio::test]
async fn an_outbox_whose_rows_may_be_hidden_is_not_taken_for_an_empty_one() {
    let (shop, role, config) = granted().await;
    run(&shop, &hide("outbox")).await;
    shop.insert_many(5).await;
    let (state, relay) = start(&shop, &config);
    until_told(&state, "pillarbox.outbox").await;
    assert_eq!(shop.messages().await, 0);

    // Both commands say it, too, with what to do.
    let output = Command::new(env!("CARGO_BIN_EXE_pillarbox"))
        .args(["status", "--database-url", &config.database_url])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("bypassrls"), "{said}");
    let findings = Doctor::new(config.clone()).examine().await;
    let found = findings.iter().find(|finding| finding.check == "outbox.row_security").unwrap();
    let remedy = found.remedy.clone().unwrap();
    assert!(found.level == Level::Fail && remedy.contains(&role), "{found:#?}");
    // Asked as somebody else, about that role.
    let doctor = Doctor { role: Some(role.clone()), ..Doctor::new(shop.config()) };
    let findings = doctor.examine().await;
    let other = findings.iter().find(|finding| finding.check == "outbox.row_security").unwrap();
    assert_eq!((other.level, &other.remedy), (Level::Fail, &found.remedy));

    // A policy that lets everything through does not help: nobody can tell. What the remedy says does.
    run(&shop, "create policy all_rows on pillarbox.outbox using (true)").await;
    until_told(&state, "pillarbox.outbox").await;
    run(&shop, &format!("alter role \"{role}\" bypassrls")).await;
    shop.until_messages(5).await;
    until_ready(&state).await;
    relay.stop().await;
    let findings = Doctor::new(config).examine().await;
    let found = findings.iter().find(|finding| finding.check == "outbox.row_security").unwrap();
    assert_eq!(found.level, Level::Ok, "{found:#?}");
}

#[tokio::test]
async fn a_policy_that_comes_while_the_relay_leads_is_told() {
    let (shop, _, config) = granted().await;
    let (state, relay) = start(&shop, &config);
    shop.insert_many(5).await;
    shop.until_messages(5).await;
    until_ready(&state).await;
    // A standby says it as the leader does, and so do the numbers that alerts read.
    let more = ["--database-url", config.database_url.as_str(), "--http", "127.0.0.1:0"];
    let standby = Process::relay(&shop, &more);
    let http = Endpoint::of(&standby).await;
    http.until_ready(200).await;
    run(&shop, &hide("outbox")).await;
    let said = http.until_ready(503).await["reason"].to_string();
    assert!(said.contains("row-level security"), "{said}");
    http.until(r#"pillarbox_backlog_known{relay="default"}"#, 0.0).await;
    run(&shop, &show("outbox")).await;
    http.until_ready(200).await;
    drop(standby);
    for table in ["outbox", "outbox_dead_letter", "relay"] {
        run(&shop, &hide(table)).await;
        until_told(&state, table).await;
        run(&shop, &show(table)).await;
        until_ready(&state).await;
    }
    shop.insert_many(5).await;
    shop.until_messages(10).await;
    relay.stop().await;
}

fn start(shop: &Shop, config: &RelayConfig) -> (watch::Receiver<RelayState>, support::Started) {
    let relay = pillarbox_relay::Relay::new(config.clone()).unwrap();
    let state = relay.state();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(relay.run(shutdown.clone()));
    let _ = shop;
    (state, support::Started { running, shutdown })
}
