//! Orders over HTTP.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use pillarbox::outbox;
use sqlx::PgPool;

use crate::events::OrderPlaced;

#[derive(serde::Deserialize)]
struct NewOrder {
    cents: i64,
}

#[derive(serde::Serialize)]
struct Placed {
    order: i64,
}

/// The routes for orders.
pub fn routes(pool: PgPool) -> Router {
    Router::new().route("/orders", post(order)).with_state(pool)
}

async fn order(
    State(pool): State<PgPool>,
    Json(new): Json<NewOrder>,
) -> Result<(StatusCode, Json<Placed>), StatusCode> {
    match place(&pool, new.cents).await {
        Ok(order) => Ok((StatusCode::CREATED, Json(Placed { order }))),
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the order could not be placed");
            Err(StatusCode::INTERNAL_SERVER_ERROR)
        }
    }
}

/// Writes an order and its event: both, or neither.
pub async fn place(pool: &PgPool, cents: i64) -> anyhow::Result<i64> {
    let mut tx = pool.begin().await?;
    let order = sqlx::query_scalar("insert into orders (cents) values ($1) returning id")
        .bind(cents)
        .fetch_one(&mut *tx)
        .await?;
    outbox::publish(&mut tx, OrderPlaced { order, cents }).await?;
    tx.commit().await?;
    Ok(order)
}
