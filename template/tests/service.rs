//! The handler alone, and the whole way. Each test has servers' accounts of its own, and nothing sleeps.

use std::time::Duration;

use pillarbox::relay::{Relay, RelayConfig};
use pillarbox::testing::{self, Settle};
use pillarbox::{Consumer, Received, service::Service};
use pillarbox_testkit::{Scope, isolated};
use service::events::{OrderConfirmed, OrderPlaced};
use service::{STREAM, handlers, orders, prepare};

async fn prepared() -> anyhow::Result<Scope> {
    let scope = isolated().await?;
    prepare((scope.pool().clone(), scope.nats().clone())).await?;
    Ok(scope)
}

#[tokio::test]
async fn a_confirmed_order_is_announced() -> anyhow::Result<()> {
    let scope = prepared().await?;
    let order = orders::place(scope.pool(), 1999).await?;
    let placed = Received::for_test(OrderPlaced { order, cents: 1999 }).build()?;
    let published = testing::handle(scope.pool(), &handlers(), &placed).await?;
    assert_eq!(published.only::<OrderConfirmed>()?.order, order);
    Ok(())
}

#[tokio::test]
async fn every_placed_order_is_confirmed_once() -> anyhow::Result<()> {
    let scope = prepared().await?;
    let consumer =
        Consumer::new(scope.nats().clone(), scope.pool().clone(), STREAM, "confirmations")?;
    let consumer = consumer.router(handlers());
    let relay = Relay::new(RelayConfig {
        database_url: scope.database_url().into(),
        nats_url: scope.nats_url().into(),
        ..RelayConfig::default()
    })?;
    let running = Service::new().consumer(consumer.clone()).relay(relay);
    tokio::spawn(running.run(Default::default()));
    for cents in 1..=20 {
        orders::place(scope.pool(), cents).await?;
    }
    let settle = Settle::new().outbox(scope.pool()).consumer(&consumer);
    settle.within(Duration::from_secs(60)).await?;
    let confirmed: i64 =
        sqlx::query_scalar("select count(*) from confirmations").fetch_one(scope.pool()).await?;
    assert_eq!(confirmed, 20);
    Ok(())
}
