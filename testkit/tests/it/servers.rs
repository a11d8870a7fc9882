//! The servers start, do what they are told, and end with their owner.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use pillarbox_testkit::isolated::account;
use pillarbox_testkit::nats::connect_options;
use pillarbox_testkit::{Nats, NatsCluster, Postgres, TestkitError, eventually, isolated, servers};
use sqlx::Row;

const DEADLINE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn each_scope_has_its_own_database_and_prefix() {
    let servers = servers().await.unwrap();
    let (one, two) = (servers.scope().await.unwrap(), servers.scope().await.unwrap());
    assert_ne!(one.prefix(), two.prefix());
    sqlx::raw_sql("create table orders (id bigint)").execute(one.pool()).await.unwrap();
    assert!(sqlx::raw_sql("select * from orders").execute(two.pool()).await.is_err());
    assert!(one.jetstream().query_account().await.is_ok());
}

#[tokio::test]
async fn isolated_tests_use_the_same_stream_and_topics_and_do_not_meet() {
    let (one, two) = (isolated().await.unwrap(), isolated().await.unwrap());
    for scope in [&one, &two] {
        let config = async_nats::jetstream::stream::Config {
            name: "ORDERS".into(),
            subjects: vec!["orders.>".into()],
            ..Default::default()
        };
        scope.jetstream().create_stream(config).await.unwrap();
    }
    one.jetstream().publish("orders.placed", "1".into()).await.unwrap().await.unwrap();
    let stored = async |scope: &pillarbox_testkit::Scope| {
        scope.jetstream().get_stream("ORDERS").await.unwrap().cached_info().state.messages
    };
    assert_eq!((stored(&one).await, stored(&two).await), (1, 0));
}

#[tokio::test]
async fn there_is_an_account_for_every_test_however_many_there_are() {
    let mut urls = std::collections::BTreeSet::new();
    for _ in 0..130 {
        let url = account().await.unwrap();
        assert!(urls.insert(url.clone()), "{url} was given before");
    }
    for url in urls.iter().step_by(40) {
        let client = connect_options(url).connect(url).await.unwrap();
        let account = async_nats::jetstream::new(client).query_account().await.unwrap();
        assert_eq!(account.streams, 0);
    }
}

#[tokio::test]
async fn a_killed_postgres_comes_back_with_what_was_committed() {
    let mut postgres = Postgres::start().await.unwrap();
    let database = postgres.create_database("shop").await.unwrap();
    sqlx::raw_sql("create table orders (id bigint); insert into orders values (42)")
        .execute(&database.pool)
        .await
        .unwrap();
    let before = postgres.pid().unwrap();
    postgres.kill().unwrap();
    eventually("the pool to notice", DEADLINE, async || {
        let gone = sqlx::query("select 1").execute(&database.pool).await.is_err();
        Ok::<_, TestkitError>(gone.then_some(()))
    })
    .await
    .unwrap();
    postgres.restart().await.unwrap();
    assert_ne!(postgres.pid().unwrap(), before);
    let id: i64 =
        sqlx::query("select id from orders").fetch_one(&database.pool).await.unwrap().get(0);
    assert_eq!(id, 42);
    postgres.stop().await.unwrap();
    assert!(matches!(postgres.kill(), Err(TestkitError::NotRunning { .. })));
    postgres.restart().await.unwrap();
}

#[tokio::test]
async fn a_killed_nats_server_comes_back_with_its_streams_and_a_paused_one_answers_later() {
    let mut nats = Nats::start().await.unwrap();
    let jetstream = async_nats::jetstream::new(nats.connect().await.unwrap());
    jetstream
        .create_stream(async_nats::jetstream::stream::Config {
            name: "ORDERS".into(),
            subjects: vec!["orders.>".into()],
            ..Default::default()
        })
        .await
        .unwrap();
    jetstream.publish("orders.placed", "42".into()).await.unwrap().await.unwrap();
    nats.kill().unwrap();
    nats.restart().await.unwrap();
    let messages = eventually("the client to reconnect", DEADLINE, async || {
        let info = jetstream.get_stream("ORDERS").await.map_err(|error| error.to_string())?;
        Ok::<_, String>(Some(info.cached_info().state.messages))
    })
    .await
    .unwrap();
    assert_eq!(messages, 1);

    nats.pause().unwrap();
    let asked =
        tokio::time::timeout(Duration::from_millis(300), jetstream.get_stream("ORDERS")).await;
    assert!(asked.is_err(), "a paused server answers nothing");
    nats.resume().unwrap();
    jetstream.get_stream("ORDERS").await.unwrap();
}

#[tokio::test]
async fn a_failed_start_shows_the_servers_own_words() {
    let error =
        Postgres::options().setting("no_such_setting", "1").start().await.unwrap_err().to_string();
    assert!(
        error.contains("no_such_setting") && error.contains("unrecognized configuration parameter"),
        "{error}"
    );
    let error =
        Nats::options().config("no_such_block { a: }").start().await.unwrap_err().to_string();
    assert!(error.contains("server.conf"), "{error}");
}

/// Not a test: what `servers_die_with_a_killed_owner` runs and kills.
#[tokio::test]
#[ignore = "started by another test"]
async fn hold_servers_until_killed() {
    let postgres = Postgres::start().await.unwrap();
    let nats = Nats::start().await.unwrap();
    println!(
        "\nheld {} {} {}",
        postgres.pid().unwrap(),
        nats.pid().unwrap(),
        nats.folder().display()
    );
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn servers_die_with_a_killed_owner() {
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "servers::hold_servers_until_killed", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let line = BufReader::new(owner.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap)
        .find(|line| line.starts_with("held "))
        .expect("the owner starts its servers");
    let words: Vec<&str> = line.split(' ').collect();
    let (postgres, nats, folder) = (words[1], words[2], Path::new(words[3]));
    let runs = |pid: &str| {
        Command::new("kill").args(["-0", pid]).stderr(Stdio::null()).status().unwrap().success()
    };
    assert!(runs(postgres) && runs(nats) && folder.exists());

    owner.kill().unwrap();
    owner.wait().unwrap();
    eventually("the servers and their folder to be gone", DEADLINE, async || {
        Ok::<_, TestkitError>((!runs(postgres) && !runs(nats) && !folder.exists()).then_some(()))
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_dropped_server_is_gone_with_its_folder() {
    let nats = Nats::start().await.unwrap();
    let (folder, port) = (PathBuf::from(nats.folder()), nats.port());
    assert!(folder.exists());
    drop(nats);
    assert!(!folder.exists());
    assert!(tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err());
}

#[tokio::test]
async fn a_cluster_elects_another_leader_when_one_is_killed_and_takes_the_killed_one_back() {
    let mut cluster = NatsCluster::start().await.unwrap();
    let urls: Vec<String> = cluster.nodes().iter().map(Nats::url).collect();
    let jetstream = async_nats::jetstream::new(async_nats::connect(&*urls).await.unwrap());
    let config = async_nats::jetstream::stream::Config {
        name: "S".into(),
        subjects: vec!["s".into()],
        num_replicas: 3,
        ..Default::default()
    };
    jetstream.create_stream(config).await.unwrap();
    let leader = cluster.leader("S").await.unwrap().unwrap();
    cluster.nodes()[leader].kill().unwrap();
    eventually("another leader", DEADLINE, async || {
        cluster.leader("S").await.map(|now| now.filter(|now| *now != leader))
    })
    .await
    .unwrap();
    cluster.restart(leader).await.unwrap();
    cluster.until_current("S", DEADLINE).await.unwrap();
}
