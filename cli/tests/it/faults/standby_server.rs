//! A Postgres in recovery, where snapshots are not what the cursor needs.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::process::Command;

use pillarbox_testkit::{Postgres, Scope, eventually, servers};

use crate::support::{DEADLINE, Process, Shop};

/// Serves the same data read-only, as a standby does.
async fn read_only(postgres: &mut Postgres) {
    postgres.stop().await.unwrap();
    let data = postgres.data_dir();
    let signal = data.join("standby.signal");
    fs::write(&signal, "").unwrap();
    let owner = fs::metadata(&data).unwrap();
    chown(&signal, Some(owner.uid()), Some(owner.gid())).unwrap();
    postgres.restart().await.unwrap();
}

#[tokio::test]
async fn of_several_hosts_the_first_primary_is_taken() {
    let servers = servers().await.unwrap();
    let shop = Shop::on(servers.scope().await.unwrap()).await;
    let mut standby = Postgres::start().await.unwrap();
    read_only(&mut standby).await;
    let own = format!("127.0.0.1:{}", servers.postgres.port());
    let several = format!("127.0.0.1:1,127.0.0.1:{},{own}", standby.port());
    let url = shop.scope.database_url().replace(&own, &several);
    assert!(url.contains(&several), "{url}");
    let environment = [("DATABASE_URL", &*url), ("NATS_URL", shop.scope.nats_url())];
    let relay = Process::run(&["relay"], &environment);
    shop.insert_many(50).await;
    shop.until_messages(50).await;
    let status = Command::new(env!("CARGO_BIN_EXE_pillarbox"))
        .arg("status")
        .envs(environment)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&status.stdout);
    assert!(status.status.success() && said.contains("backlog"), "{said}");
    drop(relay);
}

#[tokio::test]
async fn a_hot_standby_is_refused_with_the_reason_until_it_is_promoted() {
    let mut postgres = Postgres::start().await.unwrap();
    let nats = &servers().await.unwrap().nats;
    let shop = Shop::on(Scope::on(&postgres, &nats.url()).await.unwrap()).await;
    shop.insert_many(500).await;
    read_only(&mut postgres).await;
    let environment =
        [("DATABASE_URL", shop.scope.database_url()), ("NATS_URL", shop.scope.nats_url())];
    let reason = "is a hot standby";

    let mut strict = Process::run(&["relay", "--fail-fast"], &environment);
    assert_ne!(strict.ended().await, 0);
    strict.until_said(reason).await;
    let relay = Process::run(&["relay"], &environment);
    relay.until_said(reason).await;
    assert_eq!(shop.messages().await, 0);

    eventually("the promotion", DEADLINE, async || {
        sqlx::query("select pg_promote()").execute(shop.pool()).await.map(|_| Some(()))
    })
    .await
    .unwrap();
    shop.until_messages(500).await;
    assert_eq!(relay.said(reason), 1, "said once: {:#?}", relay.lines.lock().unwrap());
    shop.shipped().await;
    shop.assert_each_once_in_order().await;
}
