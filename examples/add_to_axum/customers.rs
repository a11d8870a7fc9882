//! The customers. They place orders over HTTP, and ask again if no answer comes.

use std::time::Duration;

use anyhow::Context as _;
use axum::http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use pillarbox_testkit::eventually;
use sqlx::PgPool;

use crate::order::{self, NewOrder, Placed};
use crate::process::{Process, Which, Work};

/// One customer in this many never sees the first answer.
const LOST_ANSWER_EVERY: i64 = 5;

type Http = Client<HttpConnector, Full<axum::body::Bytes>>;

/// Every customer orders once. Returns the order number that each of them was finally told.
pub async fn visit(customers: i64, work: Work) -> anyhow::Result<Vec<(i64, i64)>> {
    let http: Http = Client::builder(TokioExecutor::new()).build_http();
    let mut service = Process::start(&work).await?;
    let mut told = Vec::new();
    for customer in 0..customers {
        if Some(customer) == work.stuck_with {
            tokio::select! {
                answer = ask(&http, service.port, customer) => {
                    anyhow::bail!("the service should be stuck, but it answered {answer:?}");
                }
                stuck = service.stuck() => stuck?,
            }
            service.kill().await?;
            service = Process::start(&Work { stuck_with: None, ..work.clone() }).await?;
        } else if customer % LOST_ANSWER_EVERY == 0 {
            // The answer comes, but the customer never sees it.
            let (status, _) = ask(&http, service.port, customer).await?;
            anyhow::ensure!(
                status == StatusCode::CREATED,
                "customer {customer} was answered {status}"
            );
        }
        told.push((customer, order_of(&http, service.port, customer).await?));
    }
    let pool = PgPool::connect(&work.database).await?;
    // In `before`, events that were under way when the service was killed never arrive.
    let patience = match work.which {
        Which::Before => Duration::from_secs(1),
        Which::After => Duration::from_secs(10),
    };
    let all_mailed = eventually("the mails", patience, async || {
        let (once, again) = order::counts(&pool, "mails").await?;
        anyhow::Ok((once + again >= customers).then_some(()))
    });
    // The books show who got no mail.
    all_mailed.await.ok();
    Ok(told)
}

/// Asks until it is answered, always with the same key: the customer's number. A real client would use a random key.
async fn order_of(http: &Http, port: u16, customer: i64) -> anyhow::Result<i64> {
    let order = eventually("an order", Duration::from_secs(5), async || {
        match ask(http, port, customer).await {
            Ok((StatusCode::CREATED, body)) => {
                let placed: Placed = serde_json::from_slice(&body)?;
                Ok(Some(placed.order))
            }
            Ok((status, _)) => anyhow::bail!("answered {status}"),
            Err(error) => Err(error),
        }
    });
    order.await.context("a customer was not served")
}

async fn ask(
    http: &Http,
    port: u16,
    customer: i64,
) -> anyhow::Result<(StatusCode, axum::body::Bytes)> {
    let order = serde_json::to_vec(&NewOrder { customer, cents: 1_000 + customer })?;
    let request = Request::post(format!("http://127.0.0.1:{port}/orders"))
        .header("content-type", "application/json")
        .header("idempotency-key", format!("\"customer-{customer}\""))
        .body(Full::from(order))?;
    let response = http.request(request).await?;
    let status = response.status();
    Ok((status, response.into_body().collect().await?.to_bytes()))
}
