//! The service as it was. It writes to two places, and nothing ties the two writes together.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use futures::StreamExt;
use sqlx::PgPool;

use crate::order::{NewOrder, OrderPlaced, Placed};
use crate::process::{Trouble, Work};

#[derive(Clone)]
struct Shop {
    pool: PgPool,
    broker: async_nats::Client,
    trouble: Trouble,
}

async fn place(
    State(shop): State<Shop>,
    Json(new): Json<NewOrder>,
) -> Result<(StatusCode, Json<Placed>), StatusCode> {
    let placed = write_down(&shop, &new).await.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok((StatusCode::CREATED, Json(placed)))
}

async fn write_down(shop: &Shop, new: &NewOrder) -> anyhow::Result<Placed> {
    let mut tx = shop.pool.begin().await?;
    let order: i64 =
        sqlx::query_scalar("insert into orders (customer, cents) values ($1, $2) returning id")
            .bind(new.customer)
            .bind(new.cents)
            .fetch_one(&mut *tx)
            .await?;
    tx.commit().await?;
    // If the service dies here, nobody hears of the order, and the customer asks again.
    shop.trouble.strike(new).await;
    let event = serde_json::to_vec(&OrderPlaced { order, customer: new.customer })?;
    shop.broker.publish("before.placed", event.into()).await?;
    Ok(Placed { order })
}

async fn mail(pool: PgPool, mut events: async_nats::Subscriber) -> anyhow::Result<()> {
    while let Some(event) = events.next().await {
        let placed: OrderPlaced = serde_json::from_slice(&event.payload)?;
        sqlx::query("insert into mails (customer) values ($1)")
            .bind(placed.customer)
            .execute(&pool)
            .await?;
    }
    Ok(())
}

/// The service: its routes, with its mailing in the background.
pub async fn start(work: &Work) -> anyhow::Result<Router> {
    let pool = PgPool::connect(&work.database).await?;
    let broker = async_nats::connect(&work.nats).await?;
    let events = broker.subscribe("before.placed").await?;
    broker.flush().await?;
    tokio::spawn(mail(pool.clone(), events));
    let shop = Shop { pool, broker, trouble: Trouble::of(work) };
    Ok(Router::new().route("/orders", post(place)).with_state(shop))
}
