//! Connections that swallow everything, locks that do not come, and leaders that cannot lead: each is noticed, said,
//! and got over.

use std::time::{Duration, Instant};

use crate::support::http::{Endpoint, Scrape};
use crate::support::{DEADLINE, Process, Shop};
use pillarbox_cli::doctor::Doctor;
use pillarbox_relay::RelayConfig;
use pillarbox_testkit::{Proxy, Scope, eventually, servers};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

/// How soon readiness must say it.
const NOTICED: Duration = Duration::from_secs(30);

/// A relay whose way to the database leads through a proxy.
async fn through(shop: &Shop, proxy: &Proxy, more: &[&str]) -> (Process, Endpoint) {
    let (_, database) = shop.scope.database_url().rsplit_once('/').unwrap();
    let url = format!("postgres://postgres@127.0.0.1:{}/{database}", proxy.port());
    let mut arguments = vec!["--http", "127.0.0.1:0", "--database-url", &url];
    arguments.extend(more);
    let relay = Process::relay(shop, &arguments);
    let endpoint = Endpoint::of(&relay).await;
    (relay, endpoint)
}

async fn proxy() -> Proxy {
    Proxy::to_port(servers().await.unwrap().postgres.port()).await.unwrap()
}

async fn until_unready(endpoint: &Endpoint) -> String {
    eventually("readiness to say it", NOTICED, async || {
        let answer = endpoint.ask("GET", "/readyz").await.map_err(|error| error.to_string())?;
        Ok::<_, String>((answer.status == 503).then_some(answer.body))
    })
    .await
    .unwrap()
}

/// The same, when it says this word.
async fn until_unready_with(endpoint: &Endpoint, word: &str) -> String {
    eventually("readiness to say why", NOTICED, async || {
        let answer = endpoint.ask("GET", "/readyz").await.map_err(|error| error.to_string())?;
        match answer.status == 503 && answer.body.contains(word) {
            true => Ok(Some(answer.body)),
            false => Err(answer.body),
        }
    })
    .await
    .unwrap()
}

/// Waits until the numbers say it that the alerts for the database and for a missing leader read.
async fn until_alerting(endpoint: &Endpoint) {
    let is = |scrape: &Scrape, series: &str, value: f64| {
        (scrape.get(&format!("{series}{{relay=\"default\"}}")) - value).abs() < 0.5
    };
    let what = "the numbers that alerts read";
    endpoint
        .until_is(what, |scrape| {
            is(scrape, "pillarbox_database_up", 0.0) && is(scrape, "pillarbox_leader", 0.0)
        })
        .await;
}

#[tokio::test]
async fn a_standby_whose_connection_hangs_says_so_and_takes_over() {
    let shop = Shop::open().await;
    let mut leader = Process::relay(&shop, &[]);
    leader.until_said("leading").await;
    let proxy = proxy().await;
    let (standby, endpoint) = through(&shop, &proxy, &[]).await;
    standby.until_said("standing by").await;
    endpoint.until_ready(200).await;
    proxy.swallow();
    leader.kill();
    let began = Instant::now();
    shop.insert_one("a", "one").await;
    shop.until_messages(1).await;
    assert!(began.elapsed() < Duration::from_secs(45), "{:?}", began.elapsed());
    endpoint.until_ready(200).await;

    // All of it hangs, new connections too, and comes back.
    proxy.stall();
    until_unready(&endpoint).await;
    // It was the only process, so nobody reaches the database, and nobody leads.
    until_alerting(&endpoint).await;
    proxy.flow();
    shop.insert_one("a", "two").await;
    shop.until_messages(2).await;
    endpoint.until("pillarbox_database_up{relay=\"default\"}", 1.0).await;
}

#[tokio::test]
async fn a_leader_whose_reading_connection_hangs_says_so_and_ships_on() {
    let shop = Shop::open().await;
    let proxy = proxy().await;
    let (relay, endpoint) = through(&shop, &proxy, &[]).await;
    shop.insert_one("a", "one").await;
    shop.until_messages(1).await;
    // Only the reading connection asks for it.
    proxy.swallow_where_said("pg_current_wal_insert_lsn");
    shop.insert_one("a", "two").await;
    until_unready(&endpoint).await;
    shop.until_messages(2).await;
    endpoint.until_ready(200).await;
    assert_eq!(relay.said("the trouble is over"), 1, "{:#?}", relay.lines.lock().unwrap());

    // All of it hangs.
    proxy.stall();
    until_unready(&endpoint).await;
    until_alerting(&endpoint).await;
    proxy.flow();
    shop.insert_one("a", "three").await;
    shop.until_messages(3).await;
    endpoint.until_ready(200).await;
    shop.assert_each_once_in_order().await;
}

#[tokio::test]
async fn a_backlog_that_cannot_be_measured_is_unknown_and_not_zero() {
    let shop = Shop::open().await;
    let proxy = proxy().await;
    let (_relay, endpoint) = through(&shop, &proxy, &[]).await;
    endpoint.until("pillarbox_backlog_events{relay=\"default\"}", 0.0).await;
    endpoint.until("pillarbox_backlog_known{relay=\"default\"}", 1.0).await;
    proxy.swallow_where_said("oldest_age");
    let said = until_unready(&endpoint).await;
    assert!(said.contains("not known how many events wait"), "{said}");
    let scrape = endpoint.scrape().await;
    assert!(scrape.get("pillarbox_backlog_events{relay=\"default\"}").is_nan(), "{}", scrape.text);
    assert!(scrape.get("pillarbox_backlog_known{relay=\"default\"}").abs() < 0.5);
    // It ships meanwhile, and measures again on another connection.
    shop.insert_one("a", "one").await;
    shop.until_messages(1).await;
    endpoint.until_ready(200).await;
    endpoint.until("pillarbox_backlog_events{relay=\"default\"}", 0.0).await;
}

#[tokio::test]
async fn sigterm_ends_a_relay_while_somebody_locks_its_tables() {
    let scope: Scope = servers().await.unwrap().scope().await.unwrap();
    let shop = Shop::on(scope).await;
    let mut leader = Process::relay(&shop, &["--shutdown-timeout-ms", "3000"]);
    leader.until_said("leading").await;
    let mut standby = Process::relay(&shop, &["--shutdown-timeout-ms", "3000"]);
    standby.until_said("standing by").await;
    let mut locking = PgConnection::connect(shop.scope.database_url()).await.unwrap();
    let lock = "begin; lock table pillarbox.relay, pillarbox.relay_member in access exclusive mode";
    sqlx::raw_sql(lock).execute(&mut locking).await.unwrap();
    let mut starting = Process::relay(&shop, &["--shutdown-timeout-ms", "3000"]);
    eventually("three relays to wait for the lock", DEADLINE, async || {
        let waiting = sqlx::query(
            "select count(distinct pid) from pg_locks where not granted \
             and database = (select oid from pg_database where datname = current_database())",
        )
        .fetch_one(shop.pool())
        .await
        .map_err(|error| error.to_string())?
        .get::<i64, _>(0);
        if waiting >= 3 { Ok(Some(())) } else { Err(format!("{waiting} wait")) }
    })
    .await
    .unwrap();
    for (what, relay) in
        [("starting", &mut starting), ("standing by", &mut standby), ("leading", &mut leader)]
    {
        let began = Instant::now();
        relay.signal(rustix::process::Signal::TERM);
        assert_eq!(relay.ended().await, 0, "{what}");
        assert!(began.elapsed() < Duration::from_secs(15), "{what}: {:?}", began.elapsed());
    }
}

/// Log lines and epochs of a relay within `while_for`.
async fn churn(shop: &Shop, relay: &Process, while_for: Duration) -> (usize, i64) {
    let epoch = async || shop.number("select coalesce(max(epoch), 0) from pillarbox.relay").await;
    let lines = relay.lines.lock().unwrap().len();
    let before = epoch().await;
    tokio::time::sleep(while_for).await;
    let lines = relay.lines.lock().unwrap().len() - lines;
    (lines, epoch().await - before)
}

/// The URL of a role of its own with these attributes, which may do what a relay does.
async fn role(shop: &Shop, attributes: &str) -> (String, String) {
    let name = format!("relay_{}", shop.scope.prefix());
    let sql = format!(
        "create role {name} login {attributes}; grant all on schema pillarbox to {name}; \
         grant all on all tables in schema pillarbox to {name}; \
         grant all on all sequences in schema pillarbox to {name}; \
         grant execute on all functions in schema pillarbox to {name}; \
         grant pg_read_all_settings to {name}; grant execute on function pg_control_system() to {name}"
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(shop.pool()).await.unwrap();
    (shop.scope.database_url().replace("postgres@", &format!("{name}@")), name)
}

#[tokio::test]
async fn a_role_limited_to_two_connections_ships_or_says_why_not_without_a_storm() {
    let shop = Shop::open().await;
    let (url, name) = role(&shop, "connection limit 1").await;
    let relay = Process::relay(&shop, &["--http", "127.0.0.1:0", "--database-url", &url]);
    let endpoint = Endpoint::of(&relay).await;
    relay.until_said("waiting: events stay in the outbox").await;
    let said = until_unready(&endpoint).await;
    assert!(said.contains("too many connections"), "{said}");
    until_alerting(&endpoint).await;
    let (lines, epochs) = churn(&shop, &relay, Duration::from_secs(10)).await;
    assert!(lines <= 4 && epochs == 0, "{lines} lines, {epochs} epochs");

    let more = format!("alter role {name} connection limit 2");
    sqlx::raw_sql(AssertSqlSafe(more)).execute(shop.pool()).await.unwrap();
    shop.insert_one("a", "one").await;
    shop.until_messages(1).await;
    let (lines, epochs) = churn(&shop, &relay, Duration::from_secs(10)).await;
    assert!(lines <= 4 && epochs == 0, "{lines} lines, {epochs} epochs");
    let said = until_unready(&endpoint).await;
    assert!(said.contains("not known how many events wait"), "{said}");
    endpoint.until("pillarbox_backlog_known{relay=\"default\"}", 0.0).await;

    let more = format!("alter role {name} connection limit 5");
    sqlx::raw_sql(AssertSqlSafe(more)).execute(shop.pool()).await.unwrap();
    endpoint.until_ready(200).await;
}

#[tokio::test]
async fn a_leader_that_fails_at_each_page_says_so_once_and_tries_at_a_decent_pace() {
    let shop = Shop::open().await;
    let (url, name) = role(&shop, "").await;
    shop.insert_one("a", "one").await;
    sqlx::raw_sql(AssertSqlSafe(format!("revoke select on pillarbox.outbox from {name}")))
        .execute(shop.pool())
        .await
        .unwrap();
    let relay = Process::relay(&shop, &["--http", "127.0.0.1:0", "--database-url", &url]);
    let endpoint = Endpoint::of(&relay).await;
    relay.until_said("waiting: events stay in the outbox").await;
    let mut ready = 0;
    for _ in 0..100 {
        ready += u32::from(endpoint.get("/readyz").await.status == 200);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(ready, 0, "of 100 looks");
    endpoint.until("pillarbox_database_up{relay=\"default\"}", 0.0).await;
    let (lines, epochs) = churn(&shop, &relay, Duration::from_secs(10)).await;
    assert!(lines <= 2 && epochs <= 10, "{lines} lines, {epochs} epochs");
    sqlx::raw_sql(AssertSqlSafe(format!("grant select on pillarbox.outbox to {name}")))
        .execute(shop.pool())
        .await
        .unwrap();
    shop.until_messages(1).await;
    endpoint.until_ready(200).await;
    assert_eq!(relay.said("the trouble is over"), 1);
}

/// A right on all columns but one is no right on the table.
#[tokio::test]
async fn a_right_that_is_missing_on_one_column_is_said_and_waited_for() {
    for column in ["payload", "headers", "created_at"] {
        let shop = Shop::open().await;
        let (url, name) = role(&shop, "").await;
        let columns = [
            "txid",
            "position",
            "event_id",
            "synchronous",
            "event_type",
            "topic",
            "key",
            "headers",
            "payload",
            "created_at",
        ];
        let others: Vec<_> = columns.into_iter().filter(|other| *other != column).collect();
        let revoke = format!(
            "revoke select on pillarbox.outbox from {name}; grant select ({}) on pillarbox.outbox to {name}",
            others.join(", ")
        );
        sqlx::raw_sql(AssertSqlSafe(revoke)).execute(shop.pool()).await.unwrap();
        shop.insert_one("a", "one").await;
        let relay = Process::relay(&shop, &["--http", "127.0.0.1:0", "--database-url", &url]);
        let endpoint = Endpoint::of(&relay).await;
        let said = until_unready_with(&endpoint, "permission denied").await;
        assert!(said.contains("outbox"), "{said}");
        until_alerting(&endpoint).await;
        let doctor = Doctor::new(RelayConfig { database_url: url.clone(), ..shop.config() });
        let findings = doctor.examine().await;
        let finding = findings.iter().find(|finding| finding.check == "outbox.privileges").unwrap();
        let remedy = finding.remedy.clone().unwrap();
        assert!(
            remedy.contains(&format!("grant select on pillarbox.outbox to \"{name}\"")),
            "{remedy}"
        );
        let mend = format!("grant select on pillarbox.outbox to {name}");
        sqlx::raw_sql(AssertSqlSafe(mend)).execute(shop.pool()).await.unwrap();
        shop.until_messages(1).await;
        endpoint.until_ready(200).await;
    }
}
