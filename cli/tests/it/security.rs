//! The relay, a service, its consumer and the trail with the rights that are documented, and no others.

use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::{DEADLINE, Process};
use async_nats_public::ConnectOptions;
use async_nats_public::jetstream::stream::Config;
use pillarbox_consumer::{Consumer, ConsumerConfig};
use pillarbox_event::RawEvent;
use pillarbox_inbox::{HandlerError, Router, Tx};
use pillarbox_outbox::{publish, publish_all};
use pillarbox_testkit::{Nats, Scope, eventually, servers};
use sqlx::{AssertSqlSafe, PgPool, Row};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const PERMISSIONS: &str = include_str!("../../../docs/nats-permissions.conf");

/// The relay's inbox prefix.
const INBOX: (&str, &str) = ("NATS_INBOX_PREFIX", "_INBOX_relay");

/// A database with the printed grants, and a broker with the documented permissions.
struct Closed {
    scope: Scope,
    nats: Nats,
}

impl Closed {
    async fn open() -> Self {
        Self::with("").await
    }

    /// With more of the broker's configuration.
    async fn with(more: &str) -> Self {
        let scope = servers().await.unwrap().scope().await.unwrap();
        let passwords = "ADMIN_PASSWORD: \"admin-pw\"\nRELAY_PASSWORD: \"relay-pw\"\nPAYMENTS_PASSWORD: \"payments-pw\"\nTRAIL_PASSWORD: \"trail-pw\"\n";
        let options = Nats::options().closed().config(passwords).config(PERMISSIONS).config(more);
        let closed = Self { scope, nats: options.start().await.unwrap() };
        pillarbox_outbox::migrate(closed.scope.pool()).await.unwrap();
        pillarbox_inbox::migrate(closed.scope.pool()).await.unwrap();
        pillarbox_trail::migrate(closed.scope.pool()).await.unwrap();
        let prefix = closed.scope.prefix();
        closed.owner("create table orders (id bigint); create table charges (event_id text)").await;
        for set in ["all", "trail"] {
            let arguments = ["migrate", set, "--print-grants", "--role-prefix", prefix];
            let printed = closed.pillarbox(&arguments, "writer");
            closed.owner(&printed).await;
            closed.owner(&printed).await;
        }
        for duty in ["writer", "relay", "consumer", "trail", "operator"] {
            closed
                .owner(&format!("create role {prefix}_{duty}_app login password '{duty}-pw' in role {prefix}_{duty}"))
                .await;
        }
        closed
            .owner(&format!(
                "grant insert on orders to {prefix}_writer_app; grant insert on charges to {prefix}_consumer_app"
            ))
            .await;
        let config = Config {
            name: "ORDERS".into(),
            subjects: vec!["orders.>".into()],
            allow_batch_publish: true,
            max_message_size: 4_000,
            ..Config::default()
        };
        async_nats_public::jetstream::new(closed.client("admin").await)
            .create_stream(config)
            .await
            .unwrap();
        closed
    }

    async fn owner(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(self.scope.pool()).await.unwrap();
    }

    /// The database as the account with this duty.
    fn url(&self, duty: &str) -> String {
        let account = format!("//{}_{duty}_app:{duty}-pw@", self.scope.prefix());
        self.scope.database_url().replace("//postgres@", &account)
    }

    async fn pool(&self, duty: &str) -> PgPool {
        PgPool::connect(&self.url(duty)).await.unwrap()
    }

    fn nats_url(&self, user: &str) -> String {
        format!("nats://{user}:{user}-pw@127.0.0.1:{}", self.nats.port())
    }

    async fn client(&self, user: &str) -> async_nats_public::Client {
        let inbox = match user {
            "admin" => "_INBOX".to_owned(),
            user => format!("_INBOX_{user}"),
        };
        ConnectOptions::with_user_and_password(user.into(), format!("{user}-pw"))
            .custom_inbox_prefix(inbox)
            .connect(self.nats.url())
            .await
            .unwrap()
    }

    fn relay(&self, more: &[&str], environment: &[(&str, &str)]) -> Process {
        let (database, nats) = (self.url("relay"), self.nats_url("relay"));
        let mut all = vec![("DATABASE_URL", &*database), ("NATS_URL", &*nats), INBOX];
        all.extend(environment);
        Process::run(&[&["relay", "--lease-ms", "2000"], more].concat(), &all)
    }

    fn trail(&self) -> Process {
        let (database, nats) = (self.url("trail"), self.nats_url("trail"));
        let prefix = (INBOX.0, "_INBOX_trail");
        let environment = [("DATABASE_URL", &*database), ("NATS_URL", &*nats), prefix];
        Process::run(&["trail", "--streams", "ORDERS"], &environment)
    }

    /// Stores a message whose headers no client can parse.
    async fn publish_unparsable(&self, subject: &str) {
        let address = format!("127.0.0.1:{}", self.nats.port());
        let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
        let headers = b"NATS/1.0\r\nname: Caf\xe9\r\n\r\n";
        let login = "{\"verbose\":false,\"headers\":true,\"user\":\"relay\",\"pass\":\"relay-pw\"}";
        let length = headers.len();
        let mut said =
            format!("CONNECT {login}\r\nHPUB {subject} {length} {length}\r\n").into_bytes();
        said.extend(headers);
        said.extend(b"\r\nPING\r\n");
        client.write_all(&said).await.unwrap();
        let mut answer = Vec::new();
        while !answer.windows(4).any(|bytes| bytes == b"PONG") {
            let read = client.read_buf(&mut answer).await.unwrap();
            assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
        }
    }

    fn pillarbox(&self, arguments: &[&str], duty: &str) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_pillarbox"))
            .args(arguments)
            .env("DATABASE_URL", self.url(duty))
            .env("NATS_URL", self.nats_url("relay"))
            .env(INBOX.0, INBOX.1)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The consumer over this user's client.
    async fn consumer_of(&self, user: &str) -> Consumer {
        let config = ConsumerConfig {
            filter_subjects: vec!["orders.placed".into()],
            max_attempts: 2,
            backoff: Duration::from_millis(5),
            takeover: Duration::from_millis(1_500),
            ..ConsumerConfig::new("ORDERS", "payments")
        };
        let pool = self.pool("consumer").await;
        Consumer::with_config(self.client(user).await, pool, config).unwrap()
    }

    /// The consumer as it runs, on the durable that a deployment has made.
    async fn consumer(&self, router: Router) -> Handling {
        self.consumer_of("admin").await.prepare().await.unwrap();
        let consumer = self.consumer_of("payments").await;
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(consumer.router(router).run(shutdown.clone()));
        Handling { running, shutdown }
    }

    async fn until(&self, sql: &str, wanted: i64) {
        eventually(&format!("{sql} = {wanted}"), DEADLINE, async || {
            let row = sqlx::query(AssertSqlSafe(sql.to_owned())).fetch_one(self.scope.pool()).await;
            match row.map_err(|error| error.to_string())?.get::<i64, _>(0) {
                found if found == wanted => Ok(Some(())),
                found => Err(format!("it is {found}")),
            }
        })
        .await
        .unwrap();
    }

    /// Everything that the broker has logged.
    fn broker_log(&self) -> String {
        std::fs::read_dir(self.nats.folder())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_none_or(|extension| extension != "conf"))
            .filter_map(|path| std::fs::read_to_string(path).ok())
            .collect()
    }
}

struct Handling {
    running: JoinHandle<Result<(), pillarbox_consumer::ConsumerError>>,
    shutdown: CancellationToken,
}

impl Handling {
    async fn stop(self) {
        self.shutdown.cancel();
        self.running.await.unwrap().unwrap();
    }
}

fn event(topic: &str, key: &str, payload: impl Into<bytes::Bytes>) -> RawEvent {
    RawEvent::builder("order.placed", topic).key(key).payload(payload).build().unwrap()
}

/// Fails by what the payload says.
async fn charge(tx: &mut Tx, event: RawEvent) -> Result<(), HandlerError> {
    if event.payload().starts_with(b"poison") {
        return Err(HandlerError::permanent("it is poison"));
    }
    if event.payload().starts_with(b"later") {
        return Err(HandlerError::transient("not yet"));
    }
    sqlx::query("insert into charges (event_id) values ($1)")
        .bind(event.id().as_str())
        .execute(&mut **tx)
        .await?;
    Ok(())
}

#[tokio::test]
async fn all_parts_run_with_the_documented_rights() {
    let closed = Closed::open().await;
    let writer = closed.pool("writer").await;
    let mut tx = writer.begin().await.unwrap();
    sqlx::query("insert into orders values (1)").execute(&mut *tx).await.unwrap();
    publish(&mut tx, event("orders.placed", "1", "one")).await.unwrap();
    publish_all(&mut tx, (0..300).map(|i| event("orders.placed", &i.to_string(), "many")))
        .await
        .unwrap();
    publish(&mut tx, event("orders.placed", "1", vec![b'x'; 5_000])).await.unwrap();
    publish(&mut tx, event("orders.placed", "1", "poison")).await.unwrap();
    publish(&mut tx, event("orders.placed", "1", "later")).await.unwrap();
    tx.commit().await.unwrap();
    // Another cluster's cursor, so that the relay has to rebase.
    closed
        .owner(
            "insert into pillarbox.relay (name, cursor) values ('default', \
             '{\"system_identifier\": \"1\", \"snapshot\": \"3:3:\", \"high\": 0, \"floor\": 0, \"in_flight\": {}}')",
        )
        .await;

    let relay = closed.relay(&["--retention-s", "1"], &[]);
    let consumer = closed.consumer(Router::new().on(charge)).await;
    relay.until_said("rebased").await;
    closed.until("select count(*) from charges", 301).await;
    closed.until("select count(*) from pillarbox.inbox_dead_letter", 2).await;
    closed.until("select count(*) from pillarbox.outbox_dead_letter", 1).await;
    closed.until("select count(*) from pillarbox.outbox", 0).await;

    // A stop hands over, and a start resets: both ask the broker.
    consumer.stop().await;
    let consumer = closed.consumer(Router::new().on(charge)).await;
    let standby = closed.relay(&[], &[]);
    standby.until_said("standing by").await;
    relay.signal(rustix::process::Signal::TERM);
    standby.until_said("leading").await;
    let mut tx = writer.begin().await.unwrap();
    publish(&mut tx, event("orders.placed", "1", "two")).await.unwrap();
    tx.commit().await.unwrap();
    closed.until("select count(*) from charges", 302).await;

    // What is scheduled leaves when it is due, and not if it is cancelled.
    let mut tx = writer.begin().await.unwrap();
    let later = event("orders.placed", "1", "scheduled");
    pillarbox_outbox::publish_in(&mut tx, later, Duration::from_millis(100)).await.unwrap();
    let cancelled = event("orders.placed", "1", "cancelled");
    let cancelled =
        pillarbox_outbox::publish_in(&mut tx, cancelled, Duration::from_secs(3600)).await.unwrap();
    let left = event("orders.placed", "1", "left");
    let left =
        pillarbox_outbox::publish_in(&mut tx, left, Duration::from_secs(3600)).await.unwrap();
    tx.commit().await.unwrap();
    let mut tx = writer.begin().await.unwrap();
    assert!(pillarbox_outbox::cancel(&mut tx, &cancelled).await.unwrap());
    tx.commit().await.unwrap();
    closed.until("select count(*) from charges", 303).await;
    let listed = closed.pillarbox(&["scheduled", "list"], "operator");
    assert!(listed.contains(left.as_str()) && listed.contains("orders.placed"), "{listed}");
    let shown = closed.pillarbox(&["scheduled", "show", left.as_str()], "operator");
    assert!(shown.contains("may not read the key, headers and payload"), "{shown}");
    assert!(closed.pillarbox(&["status"], "operator").contains("scheduled     1"));
    assert!(closed.pillarbox(&["status"], "relay").contains("scheduled     1"));
    closed.pillarbox(&["scheduled", "cancel", left.as_str()], "operator");
    closed.until("select count(*) from pillarbox.outbox_scheduled", 0).await;

    // Each looks after its own with its own rights; doctor is satisfied with them.
    closed.pillarbox(&["doctor"], "relay");
    let replayed = closed.pillarbox(&["replay", "--from-position", "1", "--yes"], "relay");
    assert!(replayed.contains(" sent\n"), "{replayed}");
    let role = format!("{}_relay", closed.scope.prefix());
    closed.pillarbox(&["doctor", "--role", &role], "operator");
    assert!(closed.pillarbox(&["status"], "operator").contains("dead letters  1"));
    let listed = closed.pillarbox(&["dead-letters", "list", "--outbox"], "operator");
    let summary = closed.pillarbox(&["dead-letters", "summary"], "operator");
    assert!(summary.contains("outbox: 1 unresolved"), "{summary}");
    assert!(listed.contains("too_large"), "{listed}");
    for side in ["--outbox", "--inbox"] {
        closed.pillarbox(&["dead-letters", "retry", side, "--all"], "operator");
    }
    // They fail again.
    let dead = "select count(*) from pillarbox.inbox_dead_letter where state = 'dead'";
    closed.until(dead, 2).await;
    let dead = "select count(*) from pillarbox.outbox_dead_letter where state = 'dead'";
    closed.until(dead, 1).await;
    for side in ["--outbox", "--inbox"] {
        closed.pillarbox(&["dead-letters", "discard", side, "--all"], "operator");
    }
    closed.until(dead, 0).await;
    operates(&closed).await;

    consumer.stop().await;
    for relay in [&relay, &standby] {
        assert_eq!(relay.said("permission denied"), 0, "{:#?}", relay.lines.lock().unwrap());
    }
    assert!(!closed.broker_log().contains("Violation"), "{}", closed.broker_log());
}

/// Newer servers name the domain and the account in the subject of an acknowledgement.
/// What an operator changes beside that, all of it recorded.
async fn operates(closed: &Closed) {
    let operator = |arguments: &[&str]| closed.pillarbox(arguments, "operator");
    let file = std::env::temp_dir().join(format!("{}-headers.json", closed.scope.prefix()));
    std::fs::write(&file, r#"{"tenant": "acme"}"#).unwrap();
    for side in ["--outbox", "--inbox"] {
        let restored = operator(&["dead-letters", "restore", side, "--all", "--note", "a mistake"]);
        assert!(restored.ends_with(" restored\n"), "{restored}");
    }
    let edit = ["dead-letters", "edit", "--outbox", "--all", "--headers", file.to_str().unwrap()];
    assert_eq!(operator(&edit), "1 edited\n");
    for side in ["--outbox", "--inbox"] {
        operator(&["dead-letters", "discard", side, "--all"]);
    }
    operator(&["consumers", "pause", "payments", "--note", "the bank is down"]);
    let listed = operator(&["consumers", "list"]);
    assert!(listed.contains("paused by") && listed.contains("the bank is down"), "{listed}");
    let shown = operator(&["consumers", "show", "payments"]);
    assert!(shown.contains("process "), "{shown}");
    operator(&["consumers", "resume", "payments"]);
    operator(&["consumers", "pause", "payments", "--type", "order.placed"]);
    operator(&["consumers", "resume", "payments", "--type", "order.placed"]);
    operator(&["consumers", "limit", "payments", "--rate", "1000"]);
    operator(&["consumers", "limit", "payments", "--none"]);
    assert!(operator(&["status"]).contains("\nconsumer "));
    assert!(closed.pillarbox(&["status"], "relay").contains("this role may not see them"));
    let actions = operator(&["actions", "list", "--limit", "100"]);
    for what in [
        "outbox-letters.edit",
        "inbox-letters.restore",
        "consumers.pause",
        "consumers.limit",
        "scheduled.cancel",
        "replay",
    ] {
        assert!(actions.contains(what), "{what}: {actions}");
    }
    let role = format!("{}_operator_app", closed.scope.prefix());
    assert!(actions.contains(&role) && actions.contains("a mistake"), "{actions}");
}

#[tokio::test]
async fn acknowledgements_that_name_domain_and_account_are_within_the_documented_rights() {
    let closed = Closed::with("feature_flags { js_ack_fc_v2: true }\n").await;
    let relay = closed.client("relay").await;
    let send = async |key: &str| {
        let event = event("orders.placed", key, "one");
        let headers: async_nats_public::HeaderMap = event
            .wire_headers()
            .map(|(name, value)| (name.to_owned(), value.into_owned()))
            .fold(async_nats_public::HeaderMap::new(), |mut headers, (name, value)| {
                headers.insert(name, value);
                headers
            });
        relay.publish_with_headers("orders.placed", headers, "one".into()).await.unwrap();
        relay.flush().await.unwrap();
    };
    send("1").await;
    let consumer = closed.consumer(Router::new().on(charge)).await;
    closed.until("select count(*) from charges", 1).await;
    let admin = async_nats_public::jetstream::new(closed.client("admin").await);
    let stream = admin.get_stream("ORDERS").await.unwrap();
    let acknowledged = eventually("the acknowledgement", DEADLINE, async || {
        let info = stream.consumer_info("payments").await.map_err(|error| error.to_string())?;
        match (info.num_ack_pending, info.ack_floor.stream_sequence) {
            (0, 1) => Ok(Some(())),
            other => Err(format!("{other:?}")),
        }
    });
    acknowledged.await.unwrap();
    consumer.stop().await;
    // The form is the one that this is about.
    send("2").await;
    let payments = closed.client("payments").await;
    let mut pulled = payments.subscribe("_INBOX_payments.pulled").await.unwrap();
    let next = "$JS.API.CONSUMER.MSG.NEXT.ORDERS.payments";
    let pull = r#"{"batch": 1, "expires": 5000000000, "group": "pillarbox"}"#;
    payments.publish_with_reply(next, "_INBOX_payments.pulled", pull.into()).await.unwrap();
    let message = tokio::time::timeout(DEADLINE, futures::StreamExt::next(&mut pulled)).await;
    let reply = message.unwrap().unwrap().reply.unwrap();
    let words: Vec<&str> = reply.split('.').collect();
    assert_eq!(
        (words[..2].join("."), &words[4..6]),
        ("$JS.ACK".into(), &["ORDERS", "payments"][..]),
        "{reply}"
    );
    assert!(!closed.broker_log().contains("Violation"), "{}", closed.broker_log());
}

#[tokio::test]
async fn the_trail_runs_with_the_documented_rights() {
    let closed = Closed::open().await;
    let writer = closed.pool("writer").await;
    let publish_one = async |payload: &'static str| {
        let mut tx = writer.begin().await.unwrap();
        publish(&mut tx, event("orders.placed", "1", payload)).await.unwrap();
        tx.commit().await.unwrap();
    };
    let relay = closed.relay(&[], &[]);
    publish_one("one").await;
    let trail = closed.trail();
    let recorded = "select count(*) from pillarbox.trail";
    closed.until(recorded, 1).await;
    // To read past this one, it asks the stream itself.
    closed.publish_unparsable("orders.odd").await;
    closed
        .until("select count(*) from pillarbox.trail where problem like '%cannot be parsed%'", 1)
        .await;
    publish_one("two").await;
    closed.until(recorded, 3).await;
    // It goes on where it stopped, which it proves first.
    drop(trail);
    publish_one("three").await;
    let trail = closed.trail();
    closed.until(recorded, 4).await;
    for process in [&relay, &trail] {
        assert_eq!(process.said("permission denied"), 0, "{:#?}", process.lines.lock().unwrap());
    }
    assert!(!closed.broker_log().contains("Violation"), "{}", closed.broker_log());
}

#[tokio::test]
async fn no_part_may_do_another_s_work_in_the_database() {
    let closed = Closed::open().await;
    for (duty, statements) in [
        (
            "writer",
            &[
                "select from pillarbox.outbox",
                "delete from pillarbox.outbox",
                "update pillarbox.outbox set topic = 'x'",
                "insert into pillarbox.outbox (txid, event_type, topic, payload) values ('3', 't', 't', '')",
                "insert into pillarbox.outbox (created_at, event_type, topic, payload) values (now(), 't', 't', '')",
                "insert into pillarbox.outbox (synchronous, event_type, topic, payload) values (true, 't', 't', '')",
                "select from pillarbox.relay",
                "select from pillarbox.inbox",
                "select from pillarbox.outbox_dead_letter",
                "select from pillarbox.trail",
                "select payload from pillarbox.outbox_scheduled",
                "update pillarbox.outbox_scheduled set due_at = now()",
                "insert into pillarbox.outbox_scheduled (due_at, created_at, event_type, topic, payload) values (now(), now(), 't', 't', '')",
                "select pillarbox.release_scheduled('default', 1, 1, false, null)",
                "create table pillarbox.mine ()",
            ][..],
        ),
        (
            "relay",
            &[
                "insert into orders values (1)",
                "select from orders",
                "insert into pillarbox.outbox (event_type, topic, payload) values ('t', 't', '')",
                "update pillarbox.outbox set payload = ''",
                "truncate pillarbox.outbox",
                "delete from pillarbox.relay",
                "update pillarbox.outbox_dead_letter set payload = ''",
                "select from pillarbox.outbox_scheduled",
                "insert into pillarbox.outbox_scheduled (due_at, event_type, topic, payload) values (now(), 't', 't', '')",
                "update pillarbox.outbox_scheduled set due_at = now()",
                "delete from pillarbox.outbox_scheduled",
                "select from pillarbox.inbox",
                "create table pillarbox.mine ()",
            ],
        ),
        (
            "consumer",
            &[
                "select from pillarbox.outbox",
                "insert into pillarbox.outbox (event_type, topic, payload) values ('t', 't', '')",
                "select from pillarbox.relay",
                "update pillarbox.inbox set event_id = 'x'",
                "delete from pillarbox.inbox_pause",
                "update pillarbox.inbox_rate set per_second = 1",
                "update pillarbox.operator_action set note = 'x'",
                "select note from pillarbox.operator_action",
                "create table pillarbox.mine ()",
            ],
        ),
        (
            "trail",
            &[
                "select from pillarbox.outbox",
                "select from pillarbox.relay",
                "select from pillarbox.inbox",
                "select from pillarbox.outbox_dead_letter",
                "select from orders",
                "update pillarbox.trail set topic = 'x'",
                "delete from pillarbox.trail",
                "truncate pillarbox.trail",
                "delete from pillarbox.trail_stream",
                "create table pillarbox.mine ()",
            ],
        ),
        (
            "operator",
            &[
                "insert into pillarbox.trail (stored_at, stream, stream_life, sequence, topic, size) values (now(), 's', now(), 1, 't', 0)",
                "update pillarbox.trail set topic = 'x'",
                "delete from pillarbox.trail",
                "update pillarbox.trail_stream set sequence = 0",
                "select pillarbox.trail_forget(3600, 1048576)",
                "select pillarbox.trail_days(array[current_date])",
                "select payload from pillarbox.outbox",
                "select payload from pillarbox.outbox_scheduled",
                "select key, headers from pillarbox.outbox_scheduled",
                "update pillarbox.outbox_scheduled set due_at = now()",
                "insert into pillarbox.outbox_scheduled (due_at, event_type, topic, payload) values (now(), 't', 't', '')",
                "select pillarbox.release_scheduled('default', 1, 1, false, null)",
                "select headers from pillarbox.outbox",
                "insert into pillarbox.outbox (event_type, topic, payload) values ('t', 't', '')",
                "delete from pillarbox.outbox",
                "update pillarbox.outbox set topic = 'x'",
                "update pillarbox.relay set epoch = 0",
                "delete from pillarbox.relay",
                "delete from pillarbox.outbox_dead_letter",
                "update pillarbox.outbox_dead_letter set event_id = gen_random_uuid()",
                "update pillarbox.inbox_dead_letter set identity = 'x'",
                "update pillarbox.inbox_dead_letter set event_type = 'x'",
                "update pillarbox.operator_action set note = 'x'",
                "delete from pillarbox.operator_action",
                "insert into pillarbox.operator_action (role, who, what, target, count, run) values ('x', 'x', 'x', 'x', 1, 'x')",
                "insert into pillarbox.operator_action (at, who, what, target, count, run) values (now(), 'x', 'x', 'x', 1, 'x')",
                "delete from pillarbox.inbox_member",
                "delete from pillarbox.relay_checkpoint",
                "insert into pillarbox.inbox values ('c', 'e')",
                "delete from pillarbox.inbox",
                "delete from pillarbox.inbox_dead_letter",
                "select body from pillarbox.inbox_request",
                "select scope from pillarbox.inbox_request",
                "select header_values from pillarbox.inbox_request",
                "select fingerprint from pillarbox.inbox_request",
                "delete from pillarbox.inbox_request",
                "update pillarbox.inbox_request set answered_at = now()",
                "select from orders",
            ],
        ),
    ] {
        let pool = closed.pool(duty).await;
        for statement in statements {
            let done = sqlx::query(*statement).execute(&pool).await;
            let code = done.err().and_then(|error| {
                error
                    .as_database_error()
                    .and_then(|error| error.code().map(|code| code.into_owned()))
            });
            assert_eq!(code.as_deref(), Some("42501"), "{duty}: {statement}");
        }
    }
    // The service removes its old answers itself, and the operator sees how many there are.
    for (duty, allowed) in [
        ("consumer", include_str!("../../../inbox/src/http/remove.sql")),
        (
            "operator",
            "select status, count(*), min(answered_at) from pillarbox.inbox_request group by status",
        ),
    ] {
        let statement = allowed.replace("$1", "0::float8").replace("$2", "1::bigint");
        let done = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&closed.pool(duty).await).await;
        assert!(done.is_ok(), "{duty}: {done:?}");
    }
    // Whoever adds a table says who may use it.
    let forgotten: Vec<String> = sqlx::query_scalar(
        "select relname::text from pg_class where relnamespace = 'pillarbox'::regnamespace and relkind = 'r' \
         and not exists (select from aclexplode(relacl) where grantee <> relowner) \
         and not exists (select from pg_attribute, aclexplode(attacl) where attrelid = pg_class.oid)",
    )
    .fetch_all(closed.scope.pool())
    .await
    .unwrap();
    assert_eq!(forgotten, [""; 0], "tables without a grant");
}

#[tokio::test]
async fn no_part_may_do_another_s_work_on_the_broker() {
    let closed = Closed::open().await;
    let forbidden = [
        ("relay", "invoices.made"),
        ("relay", "$JS.API.STREAM.DELETE.ORDERS"),
        ("relay", "$JS.API.STREAM.PURGE.ORDERS"),
        ("relay", "$JS.API.DIRECT.GET.ORDERS"),
        ("relay", "$JS.API.CONSUMER.CREATE.ORDERS"),
        ("relay", "$JS.API.CONSUMER.MSG.NEXT.ORDERS.payments"),
        ("payments", "orders.placed"),
        ("payments", "$JS.API.STREAM.DELETE.ORDERS"),
        ("payments", "$JS.API.STREAM.MSG.GET.INVOICES"),
        ("payments", "$JS.API.CONSUMER.MSG.NEXT.ORDERS.shipping"),
        ("payments", "$JS.API.CONSUMER.DELETE.ORDERS.payments"),
        // Each of them could name another user's inbox as the place to deliver to.
        ("payments", "$JS.API.CONSUMER.CREATE.ORDERS.payments"),
        ("payments", "$JS.API.CONSUMER.CREATE.ORDERS.payments.orders.placed"),
        ("payments", "$JS.API.CONSUMER.DURABLE.CREATE.ORDERS.payments"),
        ("payments", "$JS.API.CONSUMER.CREATE.ORDERS"),
        ("trail", "orders.placed"),
        ("trail", "$JS.API.STREAM.NAMES"),
        ("trail", "$JS.API.STREAM.DELETE.ORDERS"),
        ("trail", "$JS.API.STREAM.INFO.INVOICES"),
        ("trail", "$JS.API.STREAM.MSG.GET.INVOICES"),
        ("trail", "$JS.API.STREAM.MSG.DELETE.ORDERS"),
        ("trail", "$JS.API.CONSUMER.CREATE.INVOICES"),
        ("trail", "$JS.API.CONSUMER.CREATE.ORDERS.payments"),
        ("trail", "$JS.API.CONSUMER.DURABLE.CREATE.ORDERS.payments"),
        ("trail", "$JS.API.CONSUMER.DELETE.ORDERS.payments"),
        ("trail", "$JS.API.CONSUMER.RESET.ORDERS.payments"),
        ("trail", "$JS.ACK.ORDERS.payments.1.1.1.1.1"),
    ];
    for (user, subject) in forbidden {
        let client = closed.client(user).await;
        client.publish(subject, "{}".into()).await.unwrap();
        client.flush().await.unwrap();
    }
    for (user, subject) in [
        ("relay", "orders.>"),
        ("relay", "_INBOX.>"),
        ("payments", "orders.>"),
        ("payments", "_INBOX.>"),
        ("payments", "_INBOX_relay.>"),
        ("trail", "orders.>"),
        ("trail", "_INBOX.>"),
        ("trail", "_INBOX_payments.>"),
    ] {
        let client = closed.client(user).await;
        let _subscriber = client.subscribe(subject).await.unwrap();
        client.flush().await.unwrap();
    }
    eventually("a violation for each", Duration::from_secs(10), async || {
        let log = closed.broker_log();
        for (user, subject) in forbidden {
            let said = log.lines().any(|line| {
                line.contains("Publish Violation")
                    && line.contains(&format!("user:{user}"))
                    && line.contains(&format!("\"{subject}\""))
            });
            if !said {
                return Err(format!("{user} may publish to {subject}:\n{log}"));
            }
        }
        match log.matches("Subscription Violation").count() {
            8 => Ok(Some(())),
            found => Err(format!("{found} subscriptions refused:\n{log}")),
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_consumer_that_may_not_make_its_durable_says_so_and_reads_once_it_is_made() {
    let closed = Closed::open().await;
    let writer = closed.pool("writer").await;
    let mut tx = writer.begin().await.unwrap();
    publish(&mut tx, event("orders.placed", "1", "one")).await.unwrap();
    tx.commit().await.unwrap();
    let _relay = closed.relay(&[], &[]);

    let consumer = closed.consumer_of("payments").await;
    let refused = consumer.prepare().await.unwrap_err().to_string();
    assert!(refused.contains("$JS.API.CONSUMER.CREATE.ORDERS.payments"), "{refused}");
    let status = consumer.status();
    let shutdown = CancellationToken::new();
    let router = Router::new().on(charge);
    let running = tokio::spawn(consumer.router(router).run(shutdown.clone()));
    let handling = Handling { running, shutdown };
    eventually("the status to name the right that is missing", DEADLINE, async || {
        let said = serde_json::to_string(&status.get()).unwrap();
        let named = said.contains("CONSUMER.CREATE.ORDERS.payments");
        if named { Ok(Some(())) } else { Err(said) }
    })
    .await
    .unwrap();

    // A deployment makes it, twice without harm; the consumer goes on by itself.
    let deployment = closed.consumer_of("admin").await;
    deployment.prepare().await.unwrap();
    deployment.prepare().await.unwrap();
    closed.until("select count(*) from charges", 1).await;
    handling.stop().await;
}

/// Collects what is logged in this process.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Takes an event apart, whose text and number are marked.
#[derive(Debug, pillarbox_event::Event, serde::Serialize, serde::Deserialize)]
#[event(type = "order.typed", topic = "orders.placed")]
struct Placed {
    order: i64,
}

async fn take(_: &mut Tx, _: Placed) -> Result<(), HandlerError> {
    Ok(())
}

#[tokio::test]
async fn payloads_header_values_and_secrets_reach_no_log() {
    const EVERYTHING: &str = "warn,pillarbox=trace,pillarbox_cli=trace,pillarbox_relay=trace,pillarbox_inbox=trace,pillarbox_consumer=trace,pillarbox_event=trace,pillarbox_outbox=trace";
    let closed = Closed::open().await;
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EVERYTHING)
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .finish();
    // Until the end of the test, on the one thread that it runs on.
    let _guard = tracing::subscriber::set_default(subscriber);

    let pool = closed.pool("writer").await;
    let marked = |payload: &str| {
        RawEvent::builder("order.placed", "orders.placed")
            .key("k")
            .header("x-tenant", "marked-header")
            .payload(payload.as_bytes().to_vec())
    };
    let typed = |payload: &str| {
        RawEvent::builder("order.typed", "orders.placed").payload(payload.as_bytes().to_vec())
    };
    let mut tx = pool.begin().await.unwrap();
    for event in [
        marked("marked-payload"),
        marked("poison marked-payload"),
        marked("later marked-payload"),
        marked(&"marked-payload".repeat(500)),
        // What serde_json says of these quotes them.
        typed("{\"order\": \"marked-payload\"}"),
        typed("{\"order\": 777123777.5}"),
        typed("marked-payload"),
    ] {
        publish(&mut tx, event.build().unwrap()).await.unwrap();
    }
    // Written by other means.
    for headers in [
        r#"{"x-tenant": "marked-header\nline"}"#,
        r#"{"x-tenant": 777123777}"#,
        r#"{"ce-subject": "marked-header\u0007"}"#,
        r#"{"ce-time": "marked-header"}"#,
        r#"{"marked name": "marked-header"}"#,
    ] {
        sqlx::query(
            "insert into pillarbox.outbox (event_type, topic, headers, payload) \
             values ('t', 'orders.placed', $1::jsonb, 'marked-payload')",
        )
        .bind(headers)
        .execute(&mut *tx)
        .await
        .unwrap();
    }
    tx.commit().await.unwrap();
    let foreign = closed.client("relay").await;
    let mut headers = async_nats_public::HeaderMap::new();
    headers.insert("ce-id", "1");
    headers.insert("ce-specversion", "marked-header");
    foreign.publish_with_headers("orders.placed", headers, "marked-payload".into()).await.unwrap();
    foreign.publish("orders.placed", "marked-payload".into()).await.unwrap();
    foreign.flush().await.unwrap();

    let relay = closed.relay(&[], &[("RUST_LOG", EVERYTHING)]);
    let router = Router::new().on(charge).on(take);
    let consumer = closed.consumer(router).await;
    // Too large, four with headers that cannot be sent; of those that can, two by the handler's word, three
    // that are not of their type, and the two messages that are no events.
    closed.until("select count(*) from pillarbox.outbox_dead_letter", 5).await;
    closed.until("select count(*) from pillarbox.inbox_dead_letter", 7).await;
    closed.until("select count(*) from charges", 2).await;
    consumer.stop().await;

    let (database, nats) = (
        closed.url("relay").replace("relay-pw", "marked-password"),
        closed.nats_url("relay").replace("relay-pw", "marked-password"),
    );
    let everything = ("RUST_LOG", EVERYTHING);
    let shut_out = [
        closed.relay(&[], &[("NATS_URL", &nats), everything]),
        closed.relay(
            &[],
            &[("DATABASE_URL", &database.replace("127.0.0.1", "127.0.0.2")), everything],
        ),
    ];
    shut_out[0].until_said("authorization").await;
    shut_out[1].until_said("no connection to the database").await;

    let mut said = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(said.contains("a dead letter"), "{said}");
    for process in [&relay, &shut_out[0], &shut_out[1]] {
        said.extend(process.lines.lock().unwrap().iter().map(|line| format!("{line}\n")));
    }
    assert!(said.contains("can never be shipped") && said.contains("an attempt failed"), "{said}");
    for secret in ["marked-payload", "marked-header", "777123777", "marked-password", "-pw"] {
        let lines: Vec<_> = said.lines().filter(|line| line.contains(secret)).collect();
        assert!(lines.is_empty(), "{secret}: {lines:#?}");
    }
}
