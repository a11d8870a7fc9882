//! A place with something in every table, and a console that serves it.

use std::net::SocketAddr;

use pillarbox_console::{Access, Console, Place, Tokens};
use pillarbox_testkit::{Scope, servers};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use sqlx::PgPool;
use tokio::task::JoinHandle;

/// The token of an operator.
pub const ANNA: &str = "anna-0123456789-0123456789-abc";
/// The token of a viewer.
pub const BEN: &str = "ben-00123456789-0123456789-abc";

/// Logs in, and returns the cookie.
pub async fn log_in(served: &Served, token: &str) -> String {
    served.post("", "/login", &[("token", token)]).await.cookie().unwrap()
}

/// What the forms of a page contain.
pub fn form_token(page: &str) -> String {
    let from = page.split("name=\"form_token\" value=\"").nth(1).unwrap();
    from.split('"').next().unwrap().to_owned()
}

/// A console on a free port, and a client that follows no redirects.
pub struct Served {
    pub address: SocketAddr,
    pub client: Client,
    serving: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// What came back.
pub struct Answer {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The value of the cookie that is set.
    pub fn cookie(&self) -> Option<String> {
        let cookie = self.headers.get("set-cookie")?.to_str().unwrap();
        Some(cookie.split(';').next().unwrap().to_owned())
    }
}

impl Served {
    pub async fn new(console: Console) -> Self {
        Self::router(console.router()).await
    }

    pub async fn router(router: axum::Router) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        let serving = tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
        let client = Client::builder().redirect(Policy::none()).build().unwrap();
        Self { address, client, serving }
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("http://{}{path}", self.address))
    }

    pub async fn send(&self, request: RequestBuilder) -> Answer {
        let answer = request.send().await.unwrap();
        let (status, headers) = (answer.status(), answer.headers().clone());
        Answer { status, headers, text: answer.text().await.unwrap() }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path)).await
    }

    /// As `get`, with this cookie.
    pub async fn get_as(&self, cookie: &str, path: &str) -> Answer {
        self.send(self.request(Method::GET, path).header("cookie", cookie)).await
    }

    /// Sends a form.
    pub async fn post(&self, cookie: &str, path: &str, form: &[(&str, &str)]) -> Answer {
        let body: Vec<String> = form
            .iter()
            .map(|(name, value)| {
                let value = percent_encoding::utf8_percent_encode(
                    value,
                    percent_encoding::NON_ALPHANUMERIC,
                );
                format!("{name}={value}")
            })
            .collect();
        let request = self
            .request(Method::POST, path)
            .header("content-type", "application/x-www-form-urlencoded")
            .header("cookie", cookie)
            .body(body.join("&"));
        self.send(request).await
    }
}

/// A database with both sides' tables.
pub struct Shop {
    pub scope: Scope,
}

impl Shop {
    pub async fn open() -> Self {
        let scope = servers().await.unwrap().scope().await.unwrap();
        pillarbox_outbox::migrate(scope.pool()).await.unwrap();
        pillarbox_inbox::migrate(scope.pool()).await.unwrap();
        Self { scope }
    }

    pub fn pool(&self) -> &PgPool {
        self.scope.pool()
    }

    pub fn place(&self) -> Place {
        Place::new("shop", self.scope.database_url(), "pillarbox").unwrap()
    }

    /// A console without accounts.
    pub async fn served(&self) -> Served {
        Served::new(Console::new(vec![self.place()], Access::Loopback)).await
    }

    /// A console with an operator and a viewer.
    pub async fn with_accounts(&self, show_payloads: bool) -> Served {
        let file = format!("operator anna {ANNA}\nviewer ben {BEN}\n");
        let access = Access::Tokens(Tokens::parse(&file).unwrap());
        let console = Console::new(vec![self.place()], access);
        Served::new(console.show_payloads(show_payloads)).await
    }

    /// What operators have done: what, to what, who, why; the newest last.
    pub async fn actions(&self) -> Vec<(String, String, String, Option<String>)> {
        sqlx::query_as("select what, target, who, note from pillarbox.operator_action order by id")
            .fetch_all(self.pool())
            .await
            .unwrap()
    }

    pub async fn run(&self, sql: &str) {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(self.pool()).await.unwrap();
    }

    /// Events that a consumer gave up.
    pub async fn give_up(&self, consumer: &str, event_type: &str, error: &str, count: i64) {
        sqlx::query(
            "insert into pillarbox.inbox_dead_letter (consumer, event_id, event_type, topic, key, headers, payload, \
             reason, error, attempts, first_failed_at) \
             select $1, gen_random_uuid()::text, $2, 'orders.placed', 'order-' || i, \
             '{\"ce-source\": \"/shop\", \"x-secret\": \"hunter2\"}', convert_to('{\"order\": ' || i || '}', 'utf8'), \
             'exhausted', $3, 5, now() - interval '1 hour' from generate_series(1, $4) i",
        )
        .bind(consumer)
        .bind(event_type)
        .bind(error)
        .bind(count)
        .execute(self.pool())
        .await
        .unwrap();
    }
}
