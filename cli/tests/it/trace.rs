//! `pillarbox trace`: an order through three services, where it is stuck, and since when.

use std::process::Command;
use std::time::Duration;

use crate::support::{DEADLINE, Process, Shop, Started};
use crate::trail::{trail, with_trail};
use async_nats::HeaderMap;
use pillarbox_consumer::{Consumer, ConsumerConfig};
use pillarbox_event::RawEvent;
use pillarbox_inbox::{HandlerError, Router, Tx};
use pillarbox_testkit::{Scope, eventually, servers};
use serde_json::Value;
use sqlx::AssertSqlSafe;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The shop with its outbox, payments in the same database, and the ledger in another one.
struct Three {
    shop: Shop,
    ledger: Scope,
    relay: Option<Started>,
    _trail: Process,
    consumers: Vec<(CancellationToken, JoinHandle<()>)>,
}

async fn pay(tx: &mut Tx, placed: RawEvent) -> Result<(), HandlerError> {
    let topic = placed.topic().replace("placed", "paid");
    let paid = RawEvent::builder("payment.taken", topic)
        .key(placed.key().unwrap_or_default())
        .payload(placed.payload().clone())
        .build()
        .map_err(HandlerError::permanent)?;
    pillarbox_outbox::publish(tx, &paid).await?;
    let overdue = RawEvent::builder("payment.overdue", placed.topic().replace("placed", "overdue"));
    let overdue = overdue.key("timer").build().map_err(HandlerError::permanent)?;
    pillarbox_outbox::publish_in(tx, overdue, Duration::from_secs(3_600)).await?;
    Ok(())
}

async fn book(_: &mut Tx, paid: RawEvent) -> Result<(), HandlerError> {
    match &paid.payload()[..] {
        b"stuck" => Err(HandlerError::transient("the ledger is locked \u{1b}[2J\u{202e}hunter")),
        b"poison" => Err(HandlerError::permanent("no such account")),
        _ => Ok(()),
    }
}

impl Three {
    async fn open() -> Self {
        let shop = with_trail().await;
        pillarbox_inbox::migrate(shop.pool()).await.unwrap();
        let ledger = servers().await.unwrap().scope().await.unwrap();
        pillarbox_inbox::migrate(ledger.pool()).await.unwrap();
        let relay = Some(shop.start(shop.config()));
        let trail = trail(&shop, &[], &[]);
        let mut three = Self { shop, ledger, relay, _trail: trail, consumers: Vec::new() };
        let pool = three.shop.pool().clone();
        three.consume("payments", "placed", pool, Router::new().on(pay)).await;
        let pool = three.ledger.pool().clone();
        three.consume("ledger", "paid", pool, Router::new().on(book)).await;
        three
    }

    async fn consume(&mut self, name: &str, topic: &str, pool: sqlx::PgPool, router: Router) {
        let client = async_nats_public::connect(self.shop.scope.nats_url()).await.unwrap();
        let config = ConsumerConfig {
            filter_subjects: vec![format!("{}.{topic}", self.shop.scope.prefix())],
            max_attempts: 1_000,
            ..ConsumerConfig::new(&self.shop.stream, name)
        };
        let consumer = Consumer::with_config(client, pool, config).unwrap().router(router);
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let running = tokio::spawn(async move { consumer.run(stop).await.unwrap() });
        self.consumers.push((shutdown, running));
    }

    async fn stop_consumer(&mut self, number: usize) {
        let (shutdown, running) = self.consumers.remove(number);
        shutdown.cancel();
        running.await.unwrap();
    }

    /// Places an order, and returns its event's id.
    async fn place(&self, key: &str, payload: &str) -> String {
        let event = RawEvent::builder("order.placed", self.shop.topic());
        let event = event.key(key).payload(payload.as_bytes().to_vec()).build().unwrap();
        let mut tx = self.shop.pool().begin().await.unwrap();
        pillarbox_outbox::publish(&mut tx, &event).await.unwrap();
        tx.commit().await.unwrap();
        event.id().as_str().to_owned()
    }

    fn run(&self, arguments: &[&str]) -> (bool, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_pillarbox"))
            .args([&["trace", "--also", self.ledger.database_url()], arguments].concat())
            .env("DATABASE_URL", self.shop.scope.database_url())
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    }

    /// The text of the trace, once it contains all of these.
    async fn until(&self, arguments: &[&str], wanted: &[&str]) -> String {
        eventually(&format!("{wanted:?}"), DEADLINE, async || {
            let (well, said) = self.run(arguments);
            match well && wanted.iter().all(|wanted| said.contains(wanted)) {
                true => Ok(Some(said)),
                false => Err(said),
            }
        })
        .await
        .unwrap()
    }
}

async fn run(scope: &Scope, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(scope.pool()).await.unwrap();
}

#[tokio::test]
async fn an_order_is_followed_through_three_services() {
    let mut three = Three::open().await;
    let id = three.place("42", "fine").await;
    let said = three.until(&[&id], &["handled by ledger", "handled by payments"]).await;
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with(&format!("order.placed  {id}  key 42  ")), "{said}");
    assert!(lines[1].starts_with("├─ handled by payments ("), "{said}");
    let paid = lines.iter().position(|line| line.contains("─ payment.taken  ")).unwrap();
    assert!(lines[paid].contains(" later)"), "{said}");
    assert!(lines[paid + 1].starts_with("│  └─ handled by ledger ("), "{said}");
    assert!(said.contains("payment.overdue  ") && said.contains("scheduled in "), "{said}");
    assert!(said.contains("3 events in ") && said.contains("1 open:"), "{said}");
    assert!(!said.contains("fine"), "no payload: {said}");

    // The same from the middle, by key and by correlation id, and as JSON.
    let (_, json) = three.run(&["--correlation", &id, "--json"]);
    let flow: Value = serde_json::from_str(&json).unwrap();
    let of = |name: &str| {
        let events = flow["events"].as_array().unwrap();
        events.iter().find(|event| event["event_type"] == name).unwrap().clone()
    };
    let paid = of("payment.taken");
    assert_eq!(paid["causation"], Value::from(id.as_str()));
    assert_eq!(paid["parent"], 0);
    assert_eq!(paid["handled"][0]["consumer"], "ledger");
    assert_eq!(paid["handled"][0]["outcome"], "done");
    assert_eq!(of("payment.overdue")["waits"]["in"], "scheduled");
    for arguments in [vec![paid["id"].as_str().unwrap()], vec!["--key", "42"]] {
        let (_, again) = three.run(&arguments);
        let line = again.lines().next().unwrap();
        assert!(line.starts_with(&format!("order.placed  {id}")), "{again}");
        assert!(again.contains("3 events in "), "{again}");
    }

    // It is sent again.
    let mut headers = HeaderMap::new();
    for (name, value) in [("ce-id", id.as_str()), ("ce-type", "order.placed")] {
        headers.insert(name, value);
    }
    headers.insert("ce-partitionkey", "42");
    let jetstream = three.shop.jetstream().await;
    let sent = jetstream.publish_with_headers(three.shop.topic(), headers, "fine".into()).await;
    sent.unwrap().await.unwrap();
    three.until(&[&id], &["─ sent again ", "3 events in "]).await;

    // A consumer that usually handles these is away.
    three.stop_consumer(1).await;
    let next = three.place("43", "fine").await;
    let missing = "not handled by ledger (";
    let said = three.until(&[&next], &[missing, "handled others of this type"]).await;
    assert!(said.contains("2 open:"), "{said}");

    // The relay is away.
    three.relay.take().unwrap().stop().await;
    let waits = three.place("44", "fine").await;
    let said = three.until(&[&waits], &["waits in the outbox of "]).await;
    assert!(said.contains("1 open:") && said.contains("key 44"), "{said}");
    let (_, by_key) = three.run(&["--key", "44"]);
    assert!(by_key.contains(&waits), "{by_key}");

    let (well, said) = three.run(&["gone"]);
    assert!(!well && said.contains("nothing is known of event \"gone\""), "{said}");
}

#[tokio::test]
async fn a_flow_that_is_stuck_says_where_and_since_when() {
    let three = Three::open().await;
    let stuck = three.place("\u{202e}7", "stuck").await;
    let said = three
        .until(&[&stuck], &["not handled by ledger (", "in retry since ", "the ledger is locked"])
        .await;
    assert!(said.contains(" failed, the last one "), "{said}");
    assert!(said.contains("2 open:\n  payment.taken "), "{said}");
    assert!(said.contains("<U+001B>[2J<U+202E>") && said.contains("key <U+202E>7"), "{said}");
    let acts = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
    assert!(!said.contains(acts), "{said:?}");
    let (_, json) = three.run(&[&stuck, "--json"]);
    assert!(!json.contains(acts), "{json:?}");
    serde_json::from_str::<Value>(&json).unwrap();

    let dead = three.place("8", "poison").await;
    let wanted = ["not handled by ledger (", "it is a dead letter since ", "no such account"];
    three.until(&[&dead], &wanted).await;
    run(&three.ledger, "update pillarbox.inbox_dead_letter set state = 'discarded'").await;
    let said = three.until(&[&dead], &["it was discarded since "]).await;
    assert!(said.contains("1 open:"), "only the scheduled one: {said}");
}

#[tokio::test]
async fn circles_and_large_flows_end_and_say_that_there_is_more() {
    let shop = with_trail().await;
    run(&shop.scope, "select pillarbox.trail_days(array[(now() at time zone 'UTC')::date])").await;
    let insert = |values: &str| {
        format!(
            "insert into pillarbox.trail (stored_at, stream, stream_life, sequence, event_id, event_type, topic, size, \
             correlation_id, causation_id, key) {values}"
        )
    };
    let chain = "select now(), 'S', 'epoch', i, 'deep-' || i, 't', 't', 0, 'deep-1', \
                 case when i > 1 then 'deep-' || i - 1 end, 'deep' from generate_series(1, 300) i";
    run(&shop.scope, &insert(chain)).await;
    let circle = "values (now(), 'S', 'epoch', 1001, 'a', 't', 't', 0, null, 'b', null), \
                  (now(), 'S', 'epoch', 1002, 'b', 't', 't', 0, null, 'c', null), \
                  (now(), 'S', 'epoch', 1003, 'c', 't', 't', 0, 'c', 'a', null), \
                  (now(), 'S', 'epoch', 1004, 'self', 't', 't', 0, 'self', 'self', null), \
                  (now(), 'S', 'epoch', 1005, '''; drop table pillarbox.trail; --', 't', 't', 0, null, null, null)";
    run(&shop.scope, &insert(circle)).await;
    let trace = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_pillarbox"))
            .args([&["trace"], arguments].concat())
            .env("DATABASE_URL", shop.scope.database_url())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for id in ["a", "b", "c"] {
        let said = trace(&[id]);
        assert!(said.contains("3 events in ") && said.contains("nothing is open"), "{said}");
    }
    assert!(trace(&["self"]).contains("1 event in "));
    assert!(trace(&["'; drop table pillarbox.trail; --"]).contains("1 event in "));
    let said = trace(&["deep-150"]);
    assert!(said.contains("300 events in ") && said.contains("There is more"), "{said}");
    let said = trace(&["--key", "deep", "--limit", "20"]);
    assert!(said.contains("20 events in ") && said.contains("There is more"), "{said}");
}

#[tokio::test]
async fn an_operator_sees_what_its_role_may_see_and_is_told_what_it_may_not() {
    let three = Three::open().await;
    let id = three.place("42", "fine").await;
    three.until(&[&id], &["handled by ledger"]).await;
    let prefix = three.shop.scope.prefix().to_owned();
    for set in ["all", "trail"] {
        let printed = Command::new(env!("CARGO_BIN_EXE_pillarbox"))
            .args(["migrate", set, "--print-grants", "--role-prefix", &prefix])
            .output()
            .unwrap();
        run(&three.shop.scope, &String::from_utf8(printed.stdout).unwrap()).await;
    }
    let app = format!("create role {prefix}_app login password 'pw' in role {prefix}_operator");
    run(&three.shop.scope, &app).await;
    let url =
        three.shop.scope.database_url().replace("//postgres@", &format!("//{prefix}_app:pw@"));
    let output = Command::new(env!("CARGO_BIN_EXE_pillarbox"))
        .args(["trace", &id])
        .env("DATABASE_URL", &url)
        .output()
        .unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(said.contains("handled by payments"), "{said}");
    assert!(said.contains("Note: ") && said.contains("wait in the outbox"), "{said}");
}

#[tokio::test]
async fn without_a_trail_it_says_what_to_do() {
    let shop = Shop::open().await;
    let output = Command::new(env!("CARGO_BIN_EXE_pillarbox"))
        .args(["trace", "x"])
        .env("DATABASE_URL", shop.scope.database_url())
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("pillarbox migrate trail"), "{said}");
}
