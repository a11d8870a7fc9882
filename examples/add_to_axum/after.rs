//! The service with Pillarbox. The comments with a number mark what was added.

use std::time::Duration;

use async_nats::jetstream::{self, stream};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Extension, Json, Router};
use pillarbox::inbox::http::{Command, IdempotencyLayer, scope};
use pillarbox::outbox;
use pillarbox::relay::{Relay, RelayConfig};
use pillarbox::service::Service;
use pillarbox::{Consumer, ConsumerConfig, HandlerError, Tx, inbox};
use sqlx::PgPool;

use crate::order::{NewOrder, OrderPlaced, Placed};
use crate::process::{Trouble, Work};

const STREAM: &str = "ORDERS";

async fn place(
    Extension(command): Extension<Command>,
    Extension(trouble): Extension<Trouble>,
    Json(new): Json<NewOrder>,
) -> Result<(StatusCode, Json<Placed>), StatusCode> {
    let placed = write_down(&command, &trouble, &new).await;
    Ok((StatusCode::CREATED, Json(placed.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?)))
}

async fn write_down(
    command: &Command,
    trouble: &Trouble,
    new: &NewOrder,
) -> anyhow::Result<Placed> {
    // 2. It uses the layer's transaction instead of one of its own.
    let mut tx = command.transaction().await?;
    let order: i64 =
        sqlx::query_scalar("insert into orders (customer, cents) values ($1, $2) returning id")
            .bind(new.customer)
            .bind(new.cents)
            .fetch_one(&mut **tx)
            .await?;
    // 3. The event goes into the same transaction, and the relay ships it.
    outbox::publish(&mut tx, OrderPlaced { order, customer: new.customer }).await?;
    trouble.strike(new).await;
    Ok(Placed { order })
}

/// 4. The loop over a subscription became a handler. Its writes take effect once per event.
async fn mail(tx: &mut Tx, placed: OrderPlaced) -> Result<(), HandlerError> {
    sqlx::query("insert into mails (customer) values ($1)")
        .bind(placed.customer)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// The service: its routes, and in the same process its consumer and its relay.
pub async fn start(work: &Work) -> anyhow::Result<(Service, Router)> {
    let pool = PgPool::connect(&work.database).await?;
    let broker = async_nats::connect(&work.nats).await?;
    // 5. The tables of outbox and inbox, and a stream.
    outbox::migrate(&pool).await?;
    inbox::migrate(&pool).await?;
    let stream = stream::Config {
        name: STREAM.into(),
        subjects: vec!["orders.>".into()],
        // Shorter than the inbox remembers, so that the inbox knows every event that the stream can repeat.
        max_age: Duration::from_secs(24 * 60 * 60),
        allow_batch_publish: true,
        ..stream::Config::default()
    };
    jetstream::new(broker.clone()).get_or_create_stream(stream).await?;

    // 6. One process has all of it, started and stopped in order. `pillarbox relay` is the same relay as a program.
    // These short takeover times are for a service that is killed often; others should keep the defaults.
    let config =
        ConsumerConfig { takeover: Duration::from_secs(1), ..ConsumerConfig::new(STREAM, "mails") };
    let relay = RelayConfig {
        database_url: work.database.clone(),
        nats_url: work.nats.clone(),
        source: "/shop/orders".into(),
        lease: Duration::from_secs(1),
        ..RelayConfig::default()
    };
    let service = Service::new()
        .consumer(Consumer::with_config(broker, pool.clone(), config)?.on(mail))
        .relay(Relay::new(relay)?);

    // 1. A request with an Idempotency-Key takes effect once.
    let once = IdempotencyLayer::new(pool, scope::everybody);
    let trouble = Trouble::of(work);
    let app = Router::new().route("/orders", post(place)).layer(once).layer(Extension(trouble));
    Ok((service, app))
}
