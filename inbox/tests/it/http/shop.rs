//! A shop under axum on a loopback port, and its customers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::body::Body;
use axum::extract::State;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use pillarbox_event::RawEvent;
use pillarbox_inbox::http::{Command, IdempotencyLayer};
use pillarbox_testkit::{Scope, servers};
use sqlx::{AssertSqlSafe, PgPool, Row};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// What the handler of a test and the test tell each other.
#[derive(Default)]
pub struct Signals {
    pub calls: AtomicU32,
    pub entered: Notify,
    pub go_on: Notify,
    pub dropped: Notify,
}

pub struct Shop {
    pub scope: Scope,
    pub signals: Arc<Signals>,
    port: u16,
    client: Client<HttpConnector, Full<bytes::Bytes>>,
    server: JoinHandle<()>,
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    pub fn replayed(&self) -> bool {
        self.headers.get("idempotent-replayed").is_some_and(|value| value == "true")
    }

    pub fn header(&self, name: impl header::AsHeaderName) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// Whose request it is.
pub fn tenant(request: &Parts) -> Option<String> {
    Some(request.headers.get("x-tenant").map_or("one", |name| name.to_str().unwrap()).to_owned())
}

impl Shop {
    pub async fn open() -> Self {
        Self::with(|layer| layer).await
    }

    pub async fn with(set: impl FnOnce(IdempotencyLayer) -> IdempotencyLayer) -> Self {
        let scope = servers().await.unwrap().scope().await.unwrap();
        pillarbox_inbox::migrate(scope.pool()).await.unwrap();
        let layer = set(IdempotencyLayer::new(scope.pool().clone(), tenant));
        Self::of(scope, layer).await
    }

    pub async fn of(scope: Scope, layer: IdempotencyLayer) -> Self {
        pillarbox_outbox::migrate(scope.pool()).await.unwrap();
        sqlx::raw_sql("create table orders (id bigint generated always as identity, text text)")
            .execute(scope.pool())
            .await
            .unwrap();
        Self::serve(scope, layer).await
    }

    /// The same service started anew.
    pub async fn again(self, layer: impl FnOnce(PgPool) -> IdempotencyLayer) -> Self {
        self.server.abort();
        let layer = layer(self.pool().clone());
        Self::serve(self.scope, layer).await
    }

    async fn serve(scope: Scope, layer: IdempotencyLayer) -> Self {
        let signals = Arc::new(Signals::default());
        let app = Router::new()
            .route("/orders", post(order).patch(order).put(order).get(count))
            .route("/echo", post(async |body: String| body))
            .layer(layer)
            .route("/count", get(count))
            .with_state((scope.pool().clone(), signals.clone()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { scope, signals, port, client, server }
    }

    pub fn pool(&self) -> &PgPool {
        self.scope.pool()
    }

    pub fn calls(&self) -> u32 {
        self.signals.calls.load(Ordering::SeqCst)
    }

    pub async fn number(&self, sql: &str) -> i64 {
        let sql = AssertSqlSafe(sql.to_owned());
        sqlx::query(sql).fetch_one(self.pool()).await.unwrap().get(0)
    }

    pub async fn orders(&self) -> i64 {
        self.number("select count(*) from orders").await
    }

    pub async fn stored(&self) -> i64 {
        self.number("select count(*) from pillarbox.inbox_request").await
    }

    /// Orders `what` under `key`.
    pub async fn post(&self, key: &str, what: &str) -> Answer {
        self.send(Method::POST, "/orders", &[("idempotency-key", key)], what).await.unwrap()
    }

    /// `None` if the connection broke.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Option<Answer> {
        let mut request =
            Request::builder().method(method).uri(format!("http://127.0.0.1:{}{path}", self.port));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::from(body.to_owned())).unwrap();
        let (parts, body) = self.client.request(request).await.ok()?.into_parts();
        let body = body.collect().await.ok()?.to_bytes();
        let body = String::from_utf8(body.to_vec()).unwrap();
        Some(Answer { status: parts.status, headers: parts.headers, body })
    }
}

struct TellDropped(Arc<Signals>);

impl Drop for TellDropped {
    fn drop(&mut self) {
        self.0.dropped.notify_one();
    }
}

async fn count(State((pool, _)): State<(PgPool, Arc<Signals>)>) -> String {
    let count: i64 =
        sqlx::query_scalar("select count(*) from orders").fetch_one(&pool).await.unwrap();
    count.to_string()
}

/// Writes an order and its event; then the order's text says what else.
async fn order(
    State((_, signals)): State<(PgPool, Arc<Signals>)>,
    Extension(command): Extension<Command>,
    text: String,
) -> Result<Response, StatusCode> {
    let _dropped = TellDropped(signals.clone());
    let call = signals.calls.fetch_add(1, Ordering::SeqCst) + 1;
    let mut tx = command.transaction().await.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    let id: i64 = sqlx::query_scalar("insert into orders (text) values ($1) returning id")
        .bind(&text)
        .fetch_one(&mut **tx)
        .await
        .unwrap();
    let placed = RawEvent::builder("order.placed", "orders.placed").build().unwrap();
    pillarbox_outbox::publish(&mut tx, placed).await.unwrap();
    let mut status = StatusCode::CREATED;
    match text.split(' ').next().unwrap() {
        "fail-once" if call == 1 => status = StatusCode::INTERNAL_SERVER_ERROR,
        "busy-once" if call == 1 => status = StatusCode::TOO_MANY_REQUESTS,
        "conflict-once" if call == 1 => status = StatusCode::CONFLICT,
        "panic-once" if call == 1 => panic!("as the test wants"),
        "wait-once" if call == 1 => {
            signals.entered.notify_one();
            signals.go_on.notified().await;
        }
        "refuse-after-an-error" => {
            let wrong =
                sqlx::query("insert into no_such_table values (1)").execute(&mut **tx).await;
            assert!(wrong.is_err());
            status = StatusCode::PAYMENT_REQUIRED;
        }
        "refuse" => status = StatusCode::PAYMENT_REQUIRED,
        "ends" | "ends-and-fails" => {
            // Behind the word stands how.
            let sql = text.split_once(' ').unwrap().1.to_owned();
            sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut **tx).await.unwrap();
            if text.starts_with("ends-and-fails") {
                status = StatusCode::INTERNAL_SERVER_ERROR;
            }
        }
        "pass-over-an-error" => {
            let wrong =
                sqlx::query("insert into no_such_table values (1)").execute(&mut **tx).await;
            assert!(wrong.is_err());
        }
        "keep" => {
            // Another task keeps the transaction beyond the response.
            let command = command.clone();
            drop(tx);
            let (held, is_held) = tokio::sync::oneshot::channel();
            tokio::spawn(async move {
                let _tx = command.transaction().await.unwrap();
                held.send(()).unwrap();
                signals.go_on.notified().await;
            });
            is_held.await.unwrap();
        }
        _ => {}
    }
    let headers = [
        ("location", format!("/orders/{id}")),
        ("content-type", "text/order".to_owned()),
        ("x-extra", "extra".to_owned()),
        ("cache-control", "no-store".to_owned()),
        ("content-disposition", "attachment; filename=\"order.txt\"".to_owned()),
        ("connection", "x-hop".to_owned()),
        ("x-hop", "only here".to_owned()),
        ("set-cookie", "session=secret".to_owned()),
    ];
    Ok((status, headers, Body::from(format!("order {id}, call {call}"))).into_response())
}
