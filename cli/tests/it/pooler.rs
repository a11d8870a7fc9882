//! Behind a connection pooler: refused in transaction mode, with the reason, and nothing is left behind there.

use std::process::Command;

use crate::support::http::Endpoint;
use crate::support::{DEADLINE, Process, Shop};
use pillarbox_testkit::{PgBouncer, PoolMode, Proxy, eventually, servers};
use sqlx::{Connection, PgConnection, Row};

/// A PgBouncer in front of the shop's database, and its URL; `None` where there is none.
async fn behind(shop: &Shop, mode: PoolMode, more: &[(&str, &str)]) -> Option<(PgBouncer, String)> {
    let options = more.iter().fold(PgBouncer::options().mode(mode), |options, (name, value)| {
        options.setting(name, value)
    });
    let Some(pooler) = options.start(&servers().await.unwrap().postgres).await.unwrap() else {
        eprintln!("NOT TESTED: there is no PgBouncer here");
        return None;
    };
    let (_, database) = shop.scope.database_url().rsplit_once('/').unwrap();
    let url = pooler.url(database);
    Some((pooler, url))
}

fn run(shop: &Shop, url: &str, arguments: &[&str]) -> (bool, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_pillarbox"))
        .args(arguments)
        .env("DATABASE_URL", url)
        .env("NATS_URL", shop.scope.nats_url())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

/// What the pooler's server connections are set to.
async fn settings(url: &str) -> Vec<(String, String)> {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let asked = "select name, setting from pg_settings where name in \
                 ('search_path', 'row_security', 'statement_timeout', 'jit', 'enable_seqscan', 'lock_timeout') order by 1";
    let rows = sqlx::raw_sql(asked).fetch_all(&mut connection).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[tokio::test]
async fn transaction_mode_is_refused_in_one_line_and_left_as_it_was() {
    for more in [
        &[("default_pool_size", "1")][..],
        &[("default_pool_size", "2")],
        &[("default_pool_size", "20"), ("server_round_robin", "1"), ("min_pool_size", "5")],
    ] {
        let shop = Shop::open().await;
        let Some((_pooler, url)) = behind(&shop, PoolMode::Transaction, more).await else { return };
        let before = settings(&url).await;
        shop.insert_one("a", "one").await;
        let mut relay = Process::relay(&shop, &["--database-url", &url]);
        assert_eq!(relay.ended().await, 1, "{more:?}");
        let lines = relay.lines.lock().unwrap().clone();
        let said: Vec<_> = lines.iter().filter(|line| line.contains("transaction mode")).collect();
        assert!(said.len() == 1 && said[0].contains("direct connection"), "{more:?} {lines:#?}");
        let taken = shop.number("select count(*) from pillarbox.relay").await;
        assert_eq!(taken, 0, "the lease was taken");
        for arguments in [
            &["status"][..],
            &["migrate"],
            &["dead-letters", "list", "--outbox"],
            &["replay", "--since", "1h", "--dry-run"],
        ] {
            for _ in 0..2 {
                let (well, _, said) = run(&shop, &url, arguments);
                assert!(
                    !well && said.contains("transaction mode"),
                    "{arguments:?} {more:?}: {said}"
                );
            }
        }
        let (well, said, _) = run(&shop, &url, &["doctor"]);
        let line = said.lines().find(|line| line.contains("database.pooler")).unwrap();
        assert!(!well && line.starts_with("FAIL"), "{said}");
        assert_eq!(settings(&url).await, before);
    }
}

#[tokio::test]
async fn statement_mode_is_refused_too() {
    let shop = Shop::open().await;
    let Some((_pooler, url)) = behind(&shop, PoolMode::Statement, &[]).await else { return };
    let mut relay = Process::relay(&shop, &["--database-url", &url]);
    assert_eq!(relay.ended().await, 1);
    assert_eq!(relay.said("transaction mode"), 1, "{:#?}", relay.lines.lock().unwrap());
}

#[tokio::test]
async fn session_mode_works() {
    let shop = Shop::open().await;
    let more = [("default_pool_size", "20")];
    let Some((_pooler, url)) = behind(&shop, PoolMode::Session, &more).await else { return };
    let relay = Process::relay(&shop, &["--database-url", &url]);
    shop.insert_many(100).await;
    shop.until_messages(100).await;
    assert_eq!(relay.said("WARN"), 0, "{:#?}", relay.lines.lock().unwrap());
    for arguments in [&["status"][..], &["dead-letters", "list", "--outbox"], &["migrate"]] {
        let (well, _, said) = run(&shop, &url, arguments);
        assert!(well, "{arguments:?}: {said}");
    }
    let said = run(&shop, &url, &["doctor"]).1;
    let line = said.lines().find(|line| line.contains("database.pooler")).unwrap();
    assert!(line.starts_with("ok"), "{said}");
}

/// As when a name moves, or the second host of several is a pooler: the relay has run, so it waits, and says why.
#[tokio::test]
async fn a_pooler_that_comes_in_between_later_is_told_and_waited_out() {
    let shop = Shop::open().await;
    let Some((_pooler, pooled)) = behind(&shop, PoolMode::Transaction, &[]).await else { return };
    let port = servers().await.unwrap().postgres.port();
    let direct = Proxy::to_port(port).await.unwrap();
    let url = pooled.replace("127.0.0.1:", &format!("127.0.0.1:{},127.0.0.1:", direct.port()));
    let relay = Process::relay(&shop, &["--database-url", &url, "--http", "127.0.0.1:0"]);
    let http = Endpoint::of(&relay).await;
    shop.insert_one("a", "one").await;
    shop.until_messages(1).await;
    http.until_ready(200).await;

    direct.refuse();
    direct.cut();
    shop.insert_one("a", "two").await;
    eventually("readiness to name the pooler", DEADLINE, async || {
        let said = http.until_ready(503).await["reason"].to_string();
        if said.contains("transaction mode") { Ok(Some(())) } else { Err(said) }
    })
    .await
    .unwrap();
    http.until(r#"pillarbox_database_up{relay="default"}"#, 0.0).await;
    http.until(r#"pillarbox_leader{relay="default"}"#, 0.0).await;
    assert_eq!(shop.messages().await, 1);
    direct.accept();
    shop.until_messages(2).await;
    http.until_ready(200).await;
    assert_eq!(relay.said("transaction mode"), 1, "{:#?}", relay.lines.lock().unwrap());
}
