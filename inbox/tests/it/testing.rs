//! Handlers run for a test: what they write can be read, and is rolled back.

use pillarbox_event::{Context, RawEvent};
use pillarbox_inbox::testing::handle_then;
use pillarbox_inbox::{HandlerError, InboxError, Received, Router, Tx};
use sqlx::Row;

use crate::shop::{OrderPlaced, Shop, record};

async fn effects(tx: &mut Tx) -> i64 {
    sqlx::query("select count(*) from effects").fetch_one(&mut **tx).await.unwrap().get(0)
}

fn placed() -> Received<OrderPlaced> {
    Received::for_test(OrderPlaced { order: 7, step: 1 }).attempt(3).build().unwrap()
}

#[tokio::test]
async fn a_handler_runs_as_for_a_consumer_and_leaves_nothing_behind() {
    let shop = Shop::open().await;
    async fn look_around(tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        let cause = Context::current().map(|context| context.event_id);
        assert_eq!((cause.as_ref(), placed.attempt()), (Some(placed.id()), 3));
        record(tx, placed).await
    }
    let (placed, router) = (placed(), Router::new().on(look_around));
    for _ in 0..2 {
        let seen = handle_then(shop.pool(), &router, &placed, effects).await.unwrap();
        assert_eq!(seen, 1, "the same event is handled again, because nothing was kept");
    }
    assert_eq!(shop.number("select count(*) from effects").await, 0);
    assert_eq!(shop.number("select count(*) from pillarbox.inbox").await, 0);
}

#[tokio::test]
async fn a_handler_that_fails_or_misuses_its_transaction_is_an_error() {
    let shop = Shop::open().await;
    async fn fails(_: &mut Tx, _: OrderPlaced) -> Result<(), HandlerError> {
        Err(HandlerError::permanent("no such order"))
    }
    async fn ignores(tx: &mut Tx, _: OrderPlaced) -> Result<(), HandlerError> {
        let _ = sqlx::raw_sql("select no_such_column").execute(&mut **tx).await;
        Ok(())
    }
    async fn commits(tx: &mut Tx, _: OrderPlaced) -> Result<(), HandlerError> {
        sqlx::raw_sql("commit").execute(&mut **tx).await?;
        Ok(())
    }
    async fn rolls_back(tx: &mut Tx, _: OrderPlaced) -> Result<(), HandlerError> {
        sqlx::raw_sql("rollback").execute(&mut **tx).await?;
        Err(HandlerError::transient("for some reason"))
    }
    let run = async |router: Router| {
        handle_then(shop.pool(), &router, &placed(), effects).await.unwrap_err()
    };
    let said = run(Router::new().on(fails)).await;
    assert!(matches!(&said, InboxError::Handler(cause) if cause.to_string() == "no such order"));
    assert!(matches!(run(Router::new().on(ignores)).await, InboxError::Aborted));
    assert!(matches!(run(Router::new().on(commits)).await, InboxError::Ended { committed: true }));
    let said = run(Router::new().on(rolls_back)).await;
    assert!(matches!(said, InboxError::Ended { committed: false }), "{said:?}");
    let said = run(Router::new()).await;
    assert!(
        matches!(&said, InboxError::Handler(cause) if cause.to_string().contains("order.placed"))
    );
    assert_eq!(shop.number("select count(*) from effects").await, 0);
}

#[tokio::test]
async fn raw_events_and_batch_handlers_are_tested_in_the_same_way() {
    let shop = Shop::open().await;
    async fn batch(tx: &mut Tx, events: &[Received<RawEvent>]) -> Result<(), HandlerError> {
        for event in events {
            sqlx::query("insert into effects (event_id) values ($1)")
                .bind(event.id().as_str())
                .execute(&mut **tx)
                .await?;
        }
        Ok(())
    }
    let raw = Received::for_test(RawEvent::builder("any", "a.b").build().unwrap()).build().unwrap();
    let router = Router::new().on_batch(batch);
    assert_eq!(handle_then(shop.pool(), &router, &raw, effects).await.unwrap(), 1);
    assert_eq!(shop.number("select count(*) from effects").await, 0);
}
