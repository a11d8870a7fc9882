//! Commands in front of a database or a broker that says nothing: each ends within its limit, with an error that is
//! true, and Ctrl-C ends it at once.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::{DEADLINE, Process, Shop};
use pillarbox_testkit::{Proxy, eventually, servers};
use rustix::process::Signal;
use sqlx::{Connection, PgConnection};

/// How much longer than its limit a command may take, on a machine that is busy with other tests.
const SLACK: Duration = Duration::from_secs(15);

async fn proxy(port: u16) -> Proxy {
    Proxy::to_port(port).await.unwrap()
}

fn through(shop: &Shop, proxy: &Proxy) -> String {
    let (_, database) = shop.scope.database_url().rsplit_once('/').unwrap();
    format!("postgres://postgres@127.0.0.1:{}/{database}", proxy.port())
}

/// Runs a command, and returns its exit code, how long it took, and what it said on both outputs.
async fn run(arguments: &[&str], database: &str, broker: &str) -> (i32, Duration, String) {
    let began = Instant::now();
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_pillarbox"))
        .args(arguments)
        .args(["--database-url", database])
        .env("NATS_URL", broker)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(60), output).await;
    let output = output.unwrap_or_else(|_| panic!("{arguments:?} does not end")).unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (output.status.code().unwrap_or(-1), began.elapsed(), said)
}

/// What each command asks first, behind the settings of its session, and what it says if there is no answer.
const COMMANDS: [(&[&str], &str, &str); 6] = [
    (&["status"], "oldest_age", "asked to count the backlog"),
    (&["doctor"], "clock_timestamp", "so this check and the database checks after it"),
    (&["dead-letters", "list", "--outbox"], "payload_bytes", "asked to list the dead letters"),
    (&["dead-letters", "retry", "--inbox", "--all"], "inbox_dead_letter", "asked to list the dead"),
    (&["replay", "--since", "1h", "--dry-run"], "snapshot", "asked to find what there is"),
    (&["migrate"], "pg_advisory_xact_lock", "asked to migrate"),
];

#[tokio::test]
async fn a_command_ends_within_its_limit_where_the_database_swallows_what_it_asks() {
    let shop = Shop::open().await;
    pillarbox_inbox::migrate(shop.pool()).await.unwrap();
    let port = servers().await.unwrap().postgres.port();
    for (arguments, question, wanted) in COMMANDS {
        let proxy = proxy(port).await;
        proxy.swallow_where_said(question);
        let arguments = [arguments, &["--timeout-s", "3"]].concat();
        let (code, took, said) =
            run(&arguments, &through(&shop, &proxy), shop.scope.nats_url()).await;
        assert_eq!(code, 1, "{arguments:?}: {said}");
        assert!(said.contains("the database did not answer within 5s"), "{arguments:?}: {said}");
        assert!(said.contains(wanted), "{arguments:?}: {said}");
        assert!(
            took >= Duration::from_secs(3) && took < Duration::from_secs(5) + SLACK,
            "{took:?}"
        );
    }
}

#[tokio::test]
async fn a_command_ends_within_its_limit_where_the_database_lets_nobody_in() {
    let shop = Shop::open().await;
    let proxy = proxy(servers().await.unwrap().postgres.port()).await;
    proxy.stall();
    for (arguments, ..) in COMMANDS {
        let arguments = [arguments, &["--timeout-s", "3"]].concat();
        let (code, took, said) =
            run(&arguments, &through(&shop, &proxy), shop.scope.nats_url()).await;
        assert_eq!(code, 1, "{arguments:?}: {said}");
        assert!(said.contains("the database did not answer within"), "{arguments:?}: {said}");
        assert!(took < Duration::from_secs(10) + SLACK, "{arguments:?}: {took:?}");
    }
}

#[tokio::test]
async fn a_command_ends_within_its_limit_where_the_broker_swallows_what_it_asks() {
    let shop = Shop::open().await;
    let relay = shop.start(shop.config());
    shop.insert_many(3).await;
    shop.shipped().await;
    relay.stop().await;
    let port = servers().await.unwrap().nats.port();
    let replay: &[&str] = &["replay", "--since", "1h", "--yes"];
    for (arguments, question, wanted) in [
        (replay, "HPUB", "the broker did not take an event"),
        (replay, "CONNECT", "did not answer within 3s, asked to let this command in"),
        (&["doctor"], "STREAM.NAMES", "JetStream does not answer"),
        (&["doctor"], "CONNECT", "no connection to the broker"),
    ] {
        let proxy = proxy(port).await;
        proxy.swallow_where_said(question);
        let arguments = [arguments, &["--timeout-s", "3"]].concat();
        let broker = format!("127.0.0.1:{}", proxy.port());
        let (code, took, said) = run(&arguments, shop.scope.database_url(), &broker).await;
        assert_eq!(code, 1, "{arguments:?}: {said}");
        assert!(said.contains(wanted), "{arguments:?} {question}: {said}");
        assert!(took < Duration::from_secs(20) + SLACK, "{arguments:?} {question}: {took:?}");
    }
}

#[tokio::test]
async fn ctrl_c_ends_a_command_that_waits_at_once() {
    let shop = Shop::open().await;
    let port = servers().await.unwrap().postgres.port();
    for signal in [Signal::INT, Signal::TERM] {
        for (arguments, question, _) in COMMANDS {
            let proxy = proxy(port).await;
            proxy.swallow_where_said(question);
            let before = proxy.connections();
            let url = through(&shop, &proxy);
            let mut command = Process::run(
                arguments,
                &[("DATABASE_URL", &url), ("NATS_URL", shop.scope.nats_url())],
            );
            eventually("the command to ask", DEADLINE, async || {
                Ok::<_, String>((proxy.connections() > before).then_some(()))
            })
            .await
            .unwrap();
            // With its connection it has its handler.
            let began = Instant::now();
            command.signal(signal);
            assert_eq!(command.ended().await, 130, "{arguments:?}");
            assert!(
                began.elapsed() < Duration::from_secs(5),
                "{arguments:?}: {:?}",
                began.elapsed()
            );
        }
    }
}

#[tokio::test]
async fn migrate_says_whose_lock_it_waits_for_and_gives_up_in_time() {
    let shop = Shop::open().await;
    let mut holding = PgConnection::connect(shop.scope.database_url()).await.unwrap();
    let lock = "set application_name = 'the other deployment'; \
                begin; select pg_advisory_xact_lock(hashtextextended('pillarbox migrate', 0))";
    sqlx::raw_sql(lock).execute(&mut holding).await.unwrap();
    let arguments = ["migrate", "--timeout-s", "6"];
    let (code, took, said) =
        run(&arguments, shop.scope.database_url(), shop.scope.nats_url()).await;
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("waiting for a lock that session") && said.contains("for at most 8s"),
        "{said}"
    );
    assert!(said.contains("'the other deployment', idle in transaction"), "{said}");
    assert!(said.contains("gave up after waiting 8s") && said.contains("--timeout-s"), "{said}");
    assert!(took < Duration::from_secs(10) + SLACK, "{took:?}");

    // Let go of in time, it is taken.
    let mut migrate = Process::run(&["migrate"], &[("DATABASE_URL", shop.scope.database_url())]);
    migrate.until_said("waiting for a lock").await;
    sqlx::raw_sql("rollback").execute(&mut holding).await.unwrap();
    assert_eq!(migrate.ended().await, 0, "{:#?}", migrate.lines.lock().unwrap());
}
