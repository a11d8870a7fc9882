//! Handlers whose events travel with the commit of the inbox.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::shop::{OrderPlaced, Shop, record};
use crate::turns::count_turns;
use pillarbox_event::{IntoEvent, RawEvent};
use pillarbox_inbox::testing::handle_then;
use pillarbox_inbox::{
    Delivery, Handler, HandlerError, InboxError, InboxLayer, Outcome, Received, Router, Tx,
};
use pillarbox_outbox::publish_with_commit;
use pillarbox_outbox::testing::published;
use pillarbox_testkit::servers;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::net::TcpListener;
use tower::{ServiceBuilder, ServiceExt};

fn paid(step: i64) -> impl IntoEvent {
    RawEvent::builder("order.paid", "orders.paid")
        .key(step.to_string())
        .payload("{}")
        .build()
        .unwrap()
}

/// Publishes at every step but the first, and fails at the third.
async fn pays(tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
    let step = placed.step;
    if step > 1 {
        publish_with_commit(tx, paid(step)).await?;
    }
    record(tx, placed).await?;
    match step {
        3 => Err(HandlerError::transient("no")),
        _ => Ok(()),
    }
}

async fn shop() -> Shop {
    let shop = Shop::open().await;
    pillarbox_outbox::migrate(shop.pool()).await.unwrap();
    shop
}

const PAID: &str = "select count(*) from pillarbox.outbox";
const RECORDED: &str = "select count(*) from pillarbox.inbox";

#[tokio::test]
async fn the_event_is_there_if_and_only_if_the_handler_succeeds() {
    let shop = shop().await;
    let layer = InboxLayer::new(shop.pool().clone(), "payments").unwrap();
    let service = ServiceBuilder::new().layer(layer).service(Router::new().on(pays));
    let handle = async |step| service.clone().oneshot(Delivery::from(shop.event(1, step))).await;
    assert_eq!(handle(2).await.unwrap(), Outcome::Handled);
    assert!(matches!(handle(3).await, Err(InboxError::Handler(_))));
    assert_eq!((shop.number(PAID).await, shop.number(RECORDED).await), (1, 1));
    // What the database refuses fails the commit, and nothing is left of the event.
    let refuse = "alter table pillarbox.outbox add constraint refused check (key <> '4')";
    sqlx::raw_sql(refuse).execute(shop.pool()).await.unwrap();
    assert!(matches!(handle(4).await, Err(InboxError::Commit(_))));
    assert_eq!(handle(5).await.unwrap(), Outcome::Handled);
    assert_eq!((shop.number(PAID).await, shop.number(RECORDED).await), (2, 2));
    shop.assert_each_once_in_order(2).await;
}

#[tokio::test]
async fn a_test_of_a_handler_sees_what_it_has_published() {
    let shop = shop().await;
    let received = OrderPlaced { order: 1, step: 2 };
    let received = Received::for_test(received).build().unwrap();
    let router = Router::new().on(pays);
    let seen = handle_then(shop.pool(), &router, &received, async |tx: &mut Tx| {
        published(tx).await.unwrap().events().len()
    });
    assert_eq!(seen.await.unwrap(), 1);
    assert_eq!(shop.number(PAID).await, 0);
}

struct ThenEnds;

impl Handler<Received<OrderPlaced>> for ThenEnds {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        publish_with_commit(tx, paid(placed.step)).await?;
        let end = if placed.step == 1 { "rollback" } else { "rollback; begin" };
        sqlx::raw_sql(end).execute(&mut **tx).await?;
        Ok(())
    }
}

#[tokio::test]
async fn a_handler_that_ends_its_transaction_publishes_nothing() {
    let shop = shop().await;
    let layer = InboxLayer::new(shop.pool().clone(), "payments").unwrap();
    let service = ServiceBuilder::new().layer(layer).service(Router::new().on(ThenEnds));
    for step in [1, 2] {
        let handled = service.clone().oneshot(Delivery::from(shop.event(1, step))).await;
        assert!(matches!(handled, Err(InboxError::Ended { committed: false })), "{handled:?}");
    }
    assert_eq!((shop.number(PAID).await, shop.number(RECORDED).await), (0, 0));
}

#[tokio::test]
async fn a_handler_that_publishes_takes_no_round_trip_more() {
    let shop = shop().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options: PgConnectOptions = shop.scope.database_url().parse().unwrap();
    let through_here = options.port(listener.local_addr().unwrap().port());
    let turns = Arc::new(AtomicU64::new(0));
    let port = servers().await.unwrap().postgres.port();
    let counting = tokio::spawn(count_turns(listener, port, turns.clone()));
    let pool = PgPoolOptions::new().max_connections(1).connect_with(through_here).await.unwrap();
    let layer = InboxLayer::new(pool, "payments").unwrap();
    let service = ServiceBuilder::new().layer(layer).service(Router::new().on(pays));
    let taken = async |step| {
        // The return to the pool goes on behind the answer.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        let before = turns.load(Ordering::SeqCst);
        let handled = service.clone().oneshot(Delivery::from(shop.event(1, step))).await;
        assert_eq!(handled.unwrap(), Outcome::Handled);
        turns.load(Ordering::SeqCst) - before
    };
    // The first ones prepare statements and learn of the session.
    for step in [1, 1, 2] {
        taken(step).await;
    }
    let (without, with) = (taken(1).await, taken(4).await);
    assert_eq!(with, without);
    assert_eq!(shop.number(PAID).await, 2);
    counting.abort();
}
