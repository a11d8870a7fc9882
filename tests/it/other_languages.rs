//! The contract with other languages: what a row holds, and what comes out on the wire. The page that describes it has
//! Python code, which is run here.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use async_nats::jetstream::{consumer, stream};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures::StreamExt;
use pillarbox_relay::{Relay, RelayConfig};
use pillarbox_testkit::{Nats, Scope, servers};
use serde::Deserialize;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

const PAGE: &str = include_str!("../../docs/guides/other-languages.md");
const VECTORS: &str = include_str!("../../docs/vectors.json");
const DEADLINE: Duration = Duration::from_secs(30);
const SOURCE: &str = "/shop";

/// A row, and the message that comes of it.
#[derive(Debug, Deserialize)]
struct Vector {
    name: String,
    event: Value,
    handled: Option<BTreeMap<String, String>>,
    subject: String,
    /// Without those that differ each time.
    headers: BTreeMap<String, String>,
    body: String,
}

fn vectors() -> Vec<Vector> {
    serde_json::from_str(VECTORS).unwrap()
}

/// A message as the vectors have it.
#[derive(Debug, PartialEq)]
struct Came {
    subject: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

/// Ships what the outbox holds, and returns the messages in their order.
async fn shipped(scope: &Scope, count: usize) -> Vec<Came> {
    let jetstream = scope.jetstream();
    let config = stream::Config {
        name: "ALL".into(),
        subjects: ["orders.>", "photos.>", "payments.>", "receipts.>"].map(str::to_owned).to_vec(),
        ..Default::default()
    };
    let stream = jetstream.create_stream(config).await.unwrap();
    let config = RelayConfig {
        database_url: scope.database_url().to_owned(),
        nats_url: scope.nats_url().to_owned(),
        source: SOURCE.into(),
        ..RelayConfig::default()
    };
    let shutdown = CancellationToken::new();
    let relay = tokio::spawn(Relay::new(config).unwrap().run(shutdown.clone()));
    let consumer = stream.create_consumer(consumer::pull::OrderedConfig::default()).await.unwrap();
    let messages = consumer.messages().await.unwrap().take(count);
    let came = messages.map(|message| {
        let message = message.unwrap();
        let headers = message.headers.clone().unwrap_or_default();
        let text = |values: &[async_nats::HeaderValue]| match values {
            [one] => one.as_str().to_owned(),
            several => panic!("{several:?}"),
        };
        Came {
            subject: message.subject.to_string(),
            headers: headers.iter().map(|(name, all)| (name.to_string(), text(all))).collect(),
            body: message.payload.to_vec(),
        }
    });
    let came = tokio::time::timeout(DEADLINE, came.collect()).await.unwrap();
    shutdown.cancel();
    relay.await.unwrap().unwrap();
    came
}

/// Checks what came of each vector.
async fn check(scope: &Scope) {
    let vectors = vectors();
    let rows: Vec<(String, String)> = sqlx::query_as(
        "select event_id::text, to_char(created_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI') \
         from pillarbox.outbox order by position",
    )
    .fetch_all(scope.pool())
    .await
    .unwrap();
    assert_eq!(rows.len(), vectors.len());
    let came = shipped(scope, vectors.len()).await;
    for ((vector, (id, minute)), mut came) in vectors.into_iter().zip(rows).zip(came) {
        let mut headers = vector.headers;
        let mut say = |name: &str, value: &str| {
            headers.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        };
        say("ce-specversion", "1.0");
        say("ce-id", &id);
        say("Nats-Msg-Id", &id);
        say("pillarbox-outbox", "1");
        say("ce-source", SOURCE);
        if !headers.contains_key("ce-time") {
            let time = came.headers.remove("ce-time").unwrap();
            assert!(time.starts_with(&minute) && time.ends_with('Z'), "{time}");
        }
        let expected = Came {
            subject: vector.subject,
            headers,
            body: BASE64_STANDARD.decode(vector.body).unwrap(),
        };
        assert_eq!(came, expected, "{}", vector.name);
    }
}

/// A database and a broker whose subjects no other test uses.
async fn surroundings() -> (Nats, Scope) {
    let nats = Nats::start().await.unwrap();
    let scope = Scope::on(&servers().await.unwrap().postgres, &nats.url()).await.unwrap();
    pillarbox::outbox::migrate(scope.pool()).await.unwrap();
    (nats, scope)
}

#[tokio::test]
async fn rows_of_plain_sql_come_out_as_the_vectors_say() {
    let (_nats, scope) = surroundings().await;
    // The statement of the page, where what is left out is left to the defaults.
    for Vector { event, handled, .. } in vectors() {
        let text = |name: &str| event[name].as_str();
        let mut headers = event["headers"].as_object().cloned().unwrap_or_default();
        if let Some(handled) = handled {
            let correlation = handled.get("ce-correlationid").unwrap_or(&handled["ce-id"]);
            headers.insert("ce-causationid".into(), handled["ce-id"].as_str().into());
            headers.insert("ce-correlationid".into(), correlation.as_str().into());
            for name in ["traceparent", "ce-tracestate"] {
                if let Some(value) = handled.get(name) {
                    headers.insert(name.into(), value.as_str().into());
                }
            }
        }
        let payload = match text("payload_base64") {
            Some(bytes) => BASE64_STANDARD.decode(bytes).unwrap(),
            None => event["payload"].to_string().into_bytes(),
        };
        sqlx::query(
            "insert into pillarbox.outbox (event_type, topic, key, headers, payload) values ($1, $2, $3, $4, $5)",
        )
        .bind(text("event_type"))
        .bind(text("topic"))
        .bind(text("key"))
        .bind(Value::Object(headers))
        .bind(payload)
        .execute(scope.pool())
        .await
        .unwrap();
    }
    check(&scope).await;
}

/// Runs the page's code over psql, as nobody needs to install a client for it: each statement of the cursor becomes a
/// statement with literals, in one transaction with a row of the service.
const DRIVER: &str = r#"
import base64, subprocess, sys


class Cursor:
    def __init__(self):
        self.statements = []

    def execute(self, statement, parameters):
        literals = {name: literal(value) for name, value in parameters.items()}
        self.statements.append(statement % literals)


def literal(value):
    if value is None:
        return "null"
    if isinstance(value, bytes):
        return "'\\x" + value.hex() + "'"
    return "'" + value.replace("'", "''") + "'"


def main(psql, database, vectors):
    cursor = Cursor()
    for vector in vectors:
        event = dict(vector["event"])
        if "payload_base64" in event:
            event["payload"] = base64.b64decode(event.pop("payload_base64"))
        publish(cursor, handled=vector.get("handled"), **event)
    statements = ["begin", "insert into orders values (1)", *cursor.statements, "commit"]
    command = [psql, "--no-psqlrc", "--set", "ON_ERROR_STOP=1", "--quiet", "--dbname", database]
    subprocess.run(command, input=";\n".join(statements).encode() + b";\n", check=True, timeout=60)


main(sys.argv[1], sys.argv[2], json.load(sys.stdin))
"#;

#[tokio::test]
async fn rows_of_the_pages_python_come_out_as_the_vectors_say() {
    let (_nats, scope) = surroundings().await;
    sqlx::raw_sql("create table orders (id bigint)").execute(scope.pool()).await.unwrap();
    let psql = servers().await.unwrap().postgres.programs().join("psql");
    let python = Command::new("python3").arg("--version").output();
    if !psql.exists() || python.is_err() {
        println!("NOT TESTED: there is no python3, or no psql beside the server");
        return;
    }
    let code = PAGE.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
    let mut running = Command::new("python3")
        .args(["-c", &format!("{code}{DRIVER}")])
        .arg(psql)
        .arg(scope.database_url())
        .env("PGCLIENTENCODING", "UTF8")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    running.stdin.take().unwrap().write_all(VECTORS.as_bytes()).unwrap();
    let ended = running.wait_with_output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let orders: i64 =
        sqlx::query_scalar("select count(*) from orders").fetch_one(scope.pool()).await.unwrap();
    assert_eq!(orders, 1);
    check(&scope).await;
}

/// What the page says of headers and columns is what there is.
#[test]
fn the_page_names_every_column_that_a_writer_fills_and_every_header_of_the_vectors() {
    for column in ["event_id", "event_type", "topic", "key", "headers", "payload"] {
        assert!(PAGE.contains(&format!("| `{column}` |")), "{column}");
    }
    for vector in vectors() {
        for name in vector.headers.keys().filter(|name| *name != "shop") {
            assert!(PAGE.contains(&format!("`{name}`")), "{name}");
        }
    }
}
