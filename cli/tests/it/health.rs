//! `/healthz`, `/readyz`, and what the log says, of the real program and through the library.

use std::time::{Duration, Instant};

use crate::support::http::Endpoint;
use crate::support::{self, DEADLINE, Process, Shop, large};
use pillarbox_relay::Role;
use pillarbox_testkit::{Nats, Postgres, Servers, eventually};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const FREE: &[&str] = &["--http", "127.0.0.1:0"];

#[tokio::test]
async fn an_outage_is_told_by_readyz_and_in_one_line() {
    let servers =
        Servers { postgres: Postgres::start().await.unwrap(), nats: Nats::start().await.unwrap() };
    let shop = Shop::on(servers.scope().await.unwrap()).await;
    let Servers { mut postgres, mut nats } = servers;
    let relay = Process::relay(&shop, FREE);
    let http = Endpoint::of(&relay).await;
    let well = http.until_ready(200).await;
    assert_eq!(well["outboxes"][0]["role"], "leading", "{well}");
    shop.insert_many(10).await;
    shop.shipped().await;

    nats.kill().unwrap();
    let lost = http.until_ready(503).await;
    assert!(lost["reason"].as_str().unwrap().contains("/pillarbox: the connection"), "{lost}");
    assert_eq!(http.get("/healthz").await.status, 200);
    shop.insert_one("1", "the payload").await;
    http.until(r#"pillarbox_held{relay="default"}"#, 1.0).await;
    http.until(r#"pillarbox_backlog_events{relay="default"}"#, 1.0).await;
    nats.restart().await.unwrap();
    assert!(http.until_ready(200).await["outboxes"][0].get("held").is_none());
    http.until(r#"pillarbox_held{relay="default"}"#, 0.0).await;

    postgres.kill().unwrap();
    let lost = http.until_ready(503).await;
    assert_eq!(lost["outboxes"][0]["role"], "connecting", "{lost}");
    assert_eq!(http.scrape().await.get(r#"pillarbox_database_up{relay="default"}"#), 0.0);
    assert_eq!(http.scrape().await.get(r#"pillarbox_leader{relay="default"}"#), 0.0);
    // Long enough for many tries.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    postgres.restart().await.unwrap();
    http.until_ready(200).await;

    let lines = relay.lines.lock().unwrap().clone();
    let said = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    for (text, times) in [
        ("the connection to the broker is lost", 1),
        ("the broker stores messages again", 1),
        ("the trouble is over", 1),
        ("leading", 2),
    ] {
        assert_eq!(said(text), times, "{text}: {lines:#?}");
    }
    // Reasons may change while a server goes down and comes up; they do not repeat with every try.
    assert!((1..=2).contains(&said("holding")), "{lines:#?}");
    assert!((1..=4).contains(&said("waiting")), "{lines:#?}");
    assert!(lines.len() <= 16, "{lines:#?}");
    for secret in ["the payload", "order.placed"] {
        assert_eq!(said(secret), 0, "{lines:#?}");
    }
}

#[tokio::test]
async fn an_outage_in_which_nothing_happens_ends_by_itself() {
    let servers =
        Servers { postgres: Postgres::start().await.unwrap(), nats: Nats::start().await.unwrap() };
    let shop = Shop::on(servers.scope().await.unwrap()).await;
    let Servers { postgres: _postgres, mut nats } = servers;
    // Checkpoints come often with a short retention.
    let relay = Process::relay(&shop, &["--http", "127.0.0.1:0", "--retention-s", "2"]);
    let http = Endpoint::of(&relay).await;
    shop.insert_many(10).await;
    shop.shipped().await;
    nats.kill().unwrap();
    // Only the look at the streams meets the outage.
    http.until(r#"pillarbox_held{relay="default"}"#, 1.0).await;
    nats.restart().await.unwrap();
    assert!(http.until_ready(200).await["outboxes"][0].get("held").is_none());
    assert_eq!(http.scrape().await.get(r#"pillarbox_held{relay="default"}"#), 0.0);
}

#[tokio::test]
async fn a_relay_that_stops_is_alive_and_not_ready() {
    let servers =
        Servers { postgres: Postgres::start().await.unwrap(), nats: Nats::start().await.unwrap() };
    let shop = Shop::on(servers.scope().await.unwrap()).await;
    let Servers { postgres: _postgres, nats } = servers;
    let mut relay = Process::relay(&shop, FREE);
    let http = Endpoint::of(&relay).await;
    http.until_ready(200).await;
    nats.pause().unwrap();
    shop.insert_many(100).await;
    // Given to the broker, which does not answer.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    relay.signal(Signal::TERM);
    let stopping = http.until_ready(503).await;
    assert!(stopping["reason"].as_str().unwrap().ends_with("it is stopping"), "{stopping}");
    assert_eq!(http.get("/healthz").await.status, 200);
    nats.resume().unwrap();
    assert_eq!(relay.ended().await, 0);
    assert!(http.ask("GET", "/healthz").await.is_err(), "the endpoints end with the process");
}

/// What `pillarbox status` prints.
async fn status(shop: &Shop) -> String {
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_pillarbox"))
        .arg("status")
        .env("DATABASE_URL", shop.scope.database_url())
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn a_relay_whose_address_is_taken_ships_says_so_and_takes_the_address_when_it_is_free() {
    let shop = Shop::open().await;
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    shop.insert_many(100).await;
    let relay = Process::relay(&shop, &["--http", &address]);
    shop.shipped().await;
    const LINE: &str = "no endpoints: this address cannot be listened on";
    relay.until_said(LINE).await;
    until_status_tells(&shop, &address, "Address already in use").await;
    let findings = pillarbox_cli::doctor::Doctor::new(shop.config()).examine().await;
    let finding = findings.iter().find(|finding| finding.check == "outbox.processes").unwrap();
    assert!(finding.message.contains(&address), "{finding:?}");
    assert_eq!(relay.said(LINE), 1, "one line for many tries");
    drop(taken);
    let http = Endpoint::of(&relay).await;
    assert_eq!(http.0, address);
    http.until_ready(200).await;
    // What was counted before is there.
    http.until(r#"pillarbox_shipped_events_total{relay="default"}"#, 100.0).await;
    eventually("the status to forget it", DEADLINE, async || {
        let said = status(&shop).await;
        if said.contains("notice") { Err(said) } else { Ok(Some(())) }
    })
    .await
    .unwrap();
}

/// Waits until the status tells that this address cannot be listened on, and why.
async fn until_status_tells(shop: &Shop, address: &str, why: &str) {
    let wanted = format!("http = {address:?} cannot be listened on: {why}");
    eventually("the status to tell", DEADLINE, async || {
        let said = status(shop).await;
        if said.contains(&wanted) { Ok(Some(())) } else { Err(said) }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn addresses_that_this_machine_lacks_or_does_not_know_stop_no_shipping_either() {
    let shop = Shop::open().await;
    for (number, (address, why)) in (1..).zip([
        // Of a network for documents, which no machine has.
        ("192.0.2.1:9464", "Cannot assign requested address"),
        ("[2001:db8::1]:9464", ""),
        // As while no name server answers: a name that is not found now may be found later.
        ("no-such-host.invalid:9464", "failed to lookup address information"),
    ]) {
        shop.insert_many(100).await;
        let mut relay = Process::relay(&shop, &["--http", address]);
        relay.until_said("no endpoints").await;
        shop.until_messages(100 * number).await;
        until_status_tells(&shop, address, why).await;
        relay.signal(Signal::TERM);
        assert_eq!(relay.ended().await, 0);
    }
}

#[tokio::test]
async fn a_port_that_the_system_does_not_allow_stops_no_shipping_either() {
    let from = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    if from.is_ok_and(|from| from.trim().parse::<u16>().is_ok_and(|from| from <= 80)) {
        eprintln!("NOT TESTED: every account may listen on port 80 here");
        return;
    }
    let shop = Shop::open().await;
    // Without what lets root listen on every port.
    let without = ["setpriv", "--inh-caps=-net_bind_service", "--bounding-set=-net_bind_service"];
    let launcher = if rustix::process::getuid().is_root() { &without[..] } else { &[] };
    let mut relay = Process::run_through(
        launcher,
        &["relay", "--lease-ms", "2000", "--http", "127.0.0.1:80"],
        &[("DATABASE_URL", shop.scope.database_url()), ("NATS_URL", shop.scope.nats_url())],
    );
    relay.until_said("no endpoints").await;
    shop.insert_many(100).await;
    shop.until_messages(100).await;
    until_status_tells(&shop, "127.0.0.1:80", "Permission denied").await;
    assert_eq!(relay.said("no endpoints"), 1, "one line for many tries");
    relay.signal(Signal::TERM);
    assert_eq!(relay.ended().await, 0);
}

#[tokio::test]
async fn an_address_that_can_never_be_one_ends_the_start_and_is_named() {
    let shop = Shop::open().await;
    for address in ["no..host:9464", "127.0.0.1", "127.0.0.1:99999"] {
        let mut relay = Process::relay(&shop, &["--http", address]);
        assert_eq!(relay.ended().await, 1);
        relay.until_said(&format!("http = \"{address}\" cannot be used")).await;
    }
}

#[tokio::test]
async fn other_questions_are_answered_with_what_there_is() {
    let shop = Shop::open().await;
    let relay = Process::relay(&shop, FREE);
    let http = Endpoint::of(&relay).await;
    assert!(http.get("/metrics").await.kind.starts_with("text/plain; version=0.0.4"));
    assert_eq!(http.until_ready(200).await["ready"], true);
    assert_eq!(http.get("/readyz").await.kind, "application/json");
    let lost = http.get("/").await;
    assert_eq!((lost.status, lost.body.contains("/metrics")), (404, true));
    assert_eq!(http.ask("POST", "/metrics").await.unwrap().status, 405);
    let head = http.ask("HEAD", "/metrics").await.unwrap();
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

#[tokio::test]
async fn a_log_in_json_is_json_on_every_line() {
    let shop = Shop::open().await;
    let relay = Process::relay(&shop, &["--log-format", "json"]);
    relay.until_said("leading").await;
    for line in &*relay.lines.lock().unwrap() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["level"].is_string() && line["fields"]["message"].is_string(), "{line}");
    }
}

#[tokio::test]
async fn whoever_embeds_a_relay_can_watch_its_state() {
    let shop = Shop::open().await;
    let relay = pillarbox_relay::Relay::new(shop.config()).unwrap();
    let mut state = relay.state();
    assert_eq!(state.borrow().role, Role::Connecting);
    let shutdown = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(relay.run(shutdown.clone()));
    let ready = tokio::time::timeout(DEADLINE, state.wait_for(|state| state.is_ready()));
    assert_eq!(ready.await.unwrap().unwrap().epoch, Some(1));
    shutdown.cancel();
    running.await.unwrap().unwrap();
    assert_eq!(state.borrow().role, Role::Stopped);
}

/// What somebody does who wants to hold the endpoints.
#[derive(Clone, Copy, Debug)]
enum Holds {
    NeverSends,
    SendsHalfAHead,
    PipelinesAndNeverReads,
    SendsAByteASecond,
}

impl Holds {
    /// Until the connection is closed.
    async fn hold(self, address: String) -> std::io::Result<()> {
        let mut stream = TcpStream::connect(&address).await?;
        match self {
            Self::NeverSends => {}
            Self::SendsHalfAHead => stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: h").await?,
            Self::PipelinesAndNeverReads => loop {
                stream.write_all(&b"GET /metrics HTTP/1.1\r\nhost: h\r\n\r\n".repeat(100)).await?;
            },
            Self::SendsAByteASecond => {
                for byte in b"GET /healthz HTTP/1.1\r\nhost: a-host-whose-name-does-not-end" {
                    stream.write_all(&[*byte]).await?;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
        stream.read_to_end(&mut Vec::new()).await?;
        Ok(())
    }
}

/// The most memory that a process has taken, in kB.
fn peak(relay: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", relay.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_keeps_healthz_from_answering() {
    let _large = large().await;
    let shop = Shop::open().await;
    let relay = Process::relay(&shop, FREE);
    let http = Endpoint::of(&relay).await;
    http.until_ready(200).await;
    http.scrape().await;
    let before = peak(&relay);
    for holds in [
        Holds::NeverSends,
        Holds::SendsHalfAHead,
        Holds::PipelinesAndNeverReads,
        Holds::SendsAByteASecond,
    ] {
        let mut holding = JoinSet::new();
        // More than may be open at a time.
        for _ in 0..400 {
            let address = http.0.clone();
            // Whoever is shut out comes again.
            holding.spawn(async move {
                loop {
                    let _ = holds.hold(address.clone()).await;
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            });
        }
        for _ in 0..20 {
            let answer = tokio::time::timeout(Duration::from_secs(1), http.ask("GET", "/healthz"));
            let answer = answer.await.unwrap_or_else(|_| panic!("{holds:?}: no answer in 1 s"));
            assert_eq!(answer.unwrap().status, 200, "{holds:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // Metrics are not kept from anybody either.
        assert_eq!(http.get("/metrics").await.status, 200, "{holds:?}");
    }
    let grown = peak(&relay).saturating_sub(before);
    assert!(grown < 32 * 1024, "{grown} kB more");
    shop.insert_many(10).await;
    shop.shipped().await;
}

#[tokio::test]
async fn a_connection_ends_after_its_time_and_the_oldest_when_there_are_too_many() {
    let shop = Shop::open().await;
    let relay = Process::relay(&shop, FREE);
    let http = Endpoint::of(&relay).await;
    let closed = async |mut stream: TcpStream| {
        // Closed, or reset.
        let _ = stream.read_to_end(&mut Vec::new()).await;
        Instant::now()
    };
    let started = Instant::now();
    let mut alone = TcpStream::connect(&http.0).await.unwrap();
    alone.write_all(b"GET /healthz HTTP/1.1\r\nhost").await.unwrap();
    let ended = tokio::time::timeout(DEADLINE, closed(alone)).await.unwrap();
    let lasted = ended - started;
    assert!((Duration::from_secs(4)..Duration::from_secs(12)).contains(&lasted), "{lasted:?}");

    let started = Instant::now();
    let oldest = TcpStream::connect(&http.0).await.unwrap();
    let mut others = Vec::new();
    for _ in 0..256 {
        others.push(TcpStream::connect(&http.0).await.unwrap());
    }
    let lasted = tokio::time::timeout(DEADLINE, closed(oldest)).await.unwrap() - started;
    assert!(lasted < Duration::from_secs(4), "closed when its time was over: {lasted:?}");
    assert_eq!(http.get("/healthz").await.status, 200);
}

/// What can never be sent holds nobody up: readiness stays, and the number that the alert for dead letters reads tells
/// of it.
#[tokio::test]
async fn what_is_set_aside_is_told_by_the_alerting_number_and_the_relay_stays_ready() {
    let shop = Shop::open().await;
    // Tables without the checks, as another tool may have made them.
    sqlx::raw_sql(
        "do $$ declare name text; begin \
           for name in select conname from pg_constraint where conrelid = 'pillarbox.outbox'::regclass and contype = 'c' loop \
             execute format('alter table pillarbox.outbox drop constraint %I', name); \
           end loop; end $$; \
         alter table pillarbox.outbox alter column headers set storage extended",
    )
    .execute(shop.pool())
    .await
    .unwrap();
    let insert = async |topic: &str, headers: &str, created_at: &str| {
        let sql = format!(
            "insert into pillarbox.outbox (event_type, topic, headers, payload, created_at) \
             values ('t', '{topic}', {headers}, 'bad', {created_at})"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(shop.pool()).await.unwrap();
    };
    let topic = shop.topic();
    // Ten legal headers that are too many together; a time that is none; more than memory has; no subject.
    let ten =
        "(select jsonb_object_agg('h' || i, repeat('x', 8000)) from generate_series(1, 10) i)";
    insert(&topic, ten, "now()").await;
    insert(&topic, "'{}'", "'infinity'").await;
    insert(&topic, "jsonb_build_object('x', repeat('x', 190000000))", "now()").await;
    insert("no subject", "'{}'", "now()").await;
    shop.insert_one("1", "good").await;
    let relay = Process::relay(&shop, FREE);
    let http = Endpoint::of(&relay).await;
    shop.until_messages(1).await;
    let unresolved = |scrape: &support::http::Scrape| -> f64 {
        let of = scrape.samples.iter();
        of.filter(|(series, _)| series.starts_with("pillarbox_dead_letters_unresolved"))
            .map(|(_, value)| value)
            .sum()
    };
    http.until_is("four dead letters", |scrape| unresolved(scrape) >= 4.0).await;
    let scrape = http.scrape().await;
    for reason in ["unreadable", "invalid"] {
        let series =
            format!("pillarbox_dead_letters_unresolved{{relay=\"default\",reason=\"{reason}\"}}");
        assert!(scrape.get(&series) >= 1.0, "{reason}: {}", scrape.text);
    }
    http.until_ready(200).await;
}

#[tokio::test]
async fn names_that_others_wrote_do_not_act_on_whoever_reads_the_log_or_the_readiness() {
    let shop = Shop::open().await;
    let hostile = "x\u{1b}[2J\u{9b}2J\u{202e}\u{2028}y\r\u{7}";
    sqlx::query(
        "insert into pillarbox.relay (name, cursor, holder, epoch, expires_at, heartbeat) \
         values ('default', '{}', $1, 1, now() + interval '1 hour', now())",
    )
    .bind(hostile)
    .execute(shop.pool())
    .await
    .unwrap();
    let acts = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{202e}');
    for format in ["text", "json"] {
        let relay = Process::relay(&shop, &["--http", "127.0.0.1:0", "--log-format", format]);
        relay.until_said("standing by").await;
        let lines = relay.lines.lock().unwrap().clone();
        let line = lines.iter().find(|line| line.contains("standing by")).unwrap();
        assert!(line.to_lowercase().contains("202e"), "{line}");
        for line in &lines {
            assert!(!line.contains(acts), "{format}: {line:?}");
        }
        if format == "text" {
            let body = Endpoint::of(&relay).await.get("/readyz").await.body;
            assert!(body.contains("\\u202e") && !body.trim_end().contains(acts), "{body:?}");
        }
    }
}
