//! The tower layer: once, or not at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::shop::{self, OrderPlaced, Shop, record};
use pillarbox_event::Context;
use pillarbox_inbox::{
    DeadLetters, Delivery, Fault, Handler, HandlerError, Handling, InboxError, InboxLayer, Outcome,
    Received, Router, Tx,
};
use pillarbox_testkit::eventually;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tower::{Service, ServiceBuilder, ServiceExt};
use tracing::Instrument;
use tracing::instrument::WithSubscriber;
use tracing_subscriber::layer::SubscriberExt;

fn layer(shop: &Shop) -> InboxLayer {
    InboxLayer::new(shop.pool().clone(), "payments").unwrap()
}

#[tokio::test]
async fn the_same_event_again_is_skipped() {
    let shop = Shop::open().await;
    let service = ServiceBuilder::new().layer(layer(&shop)).service(Router::new().on(record));
    let delivery = Delivery::from(shop.event(1, 1));
    assert_eq!(service.clone().oneshot(delivery.clone()).await.unwrap(), Outcome::Handled);
    assert_eq!(service.clone().oneshot(delivery).await.unwrap(), Outcome::Duplicate);
    shop.assert_each_once_in_order(1).await;
}

#[tokio::test]
async fn of_many_at_once_one_is_handled_and_the_others_wait_for_it() {
    let shop = Shop::open().await;
    let service = ServiceBuilder::new().layer(layer(&shop)).service(Router::new().on(record));
    let delivery = Delivery::from(shop.event(1, 1));
    let mut deliveries = JoinSet::new();
    for _ in 0..8 {
        deliveries.spawn(service.clone().oneshot(delivery.clone()));
    }
    let outcomes: Vec<_> = deliveries.join_all().await.into_iter().map(Result::unwrap).collect();
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Outcome::Handled).count(), 1);
    shop.assert_each_once_in_order(1).await;
}

#[tokio::test]
async fn another_consumer_handles_it_too() {
    let shop = Shop::open().await;
    let delivery = Delivery::from(shop.event(1, 1));
    for consumer in ["payments", "inventory"] {
        let layer = InboxLayer::new(shop.pool().clone(), consumer).unwrap();
        let service = ServiceBuilder::new().layer(layer).service(Router::new().on(record));
        assert_eq!(service.oneshot(delivery.clone()).await.unwrap(), Outcome::Handled);
    }
    assert_eq!(shop.number("select count(*) from effects").await, 2);
}

/// Writes, and then does what the event's step says: fails, panics or never ends.
struct Trouble {
    written: Arc<Notify>,
}

impl Handler<Received<OrderPlaced>> for Trouble {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        let step = placed.step;
        record(tx, placed).await?;
        self.written.notify_one();
        match step {
            1 => Err(HandlerError::transient("no")),
            2 => panic!("oh"),
            _ => std::future::pending().await,
        }
    }
}

#[tokio::test]
async fn failure_panic_and_a_dropped_future_leave_nothing_behind() {
    let shop = Shop::open().await;
    let written = Arc::new(Notify::new());
    let service = ServiceBuilder::new()
        .layer(layer(&shop))
        .service(Router::new().on(Trouble { written: written.clone() }));
    let error = service.clone().oneshot(shop.event(1, 1).into()).await.unwrap_err();
    assert_eq!(error.fault(), Fault::Transient);
    let error = service.clone().oneshot(shop.event(1, 2).into()).await.unwrap_err();
    assert!(format!("{error:?}").contains("panicked: oh"), "{error:?}");
    written.notified().await;
    tokio::select! {
        _ = service.clone().oneshot(shop.event(1, 3).into()) => unreachable!("it never ends"),
        () = async { written.notified().await; written.notified().await } => {}
        () = tokio::time::sleep(Duration::from_millis(200)) => {}
    }
    shop.until("select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in%'", 0).await;
    assert_eq!(shop.number("select count(*) from effects").await, 0);
    assert_eq!(shop.number("select count(*) from pillarbox.inbox").await, 0);
}

#[tokio::test]
async fn it_composes_with_timeout_limit_buffer_and_load_shed() {
    let shop = Shop::open().await;
    let hang = Trouble { written: Arc::new(Notify::new()) };
    // Inside: a timeout that rolls back. Outside: limits on deliveries.
    let mut service = ServiceBuilder::new()
        .buffer::<Delivery>(16)
        .load_shed()
        .concurrency_limit(4)
        .layer(layer(&shop))
        .timeout(Duration::from_millis(100))
        .service(Router::new().on(hang));
    let error = service.ready().await.unwrap().call(shop.event(1, 9).into()).await.unwrap_err();
    let error = error.downcast::<InboxError>().unwrap();
    assert_eq!(error.fault(), Fault::Transient);
    assert!(format!("{error:?}").contains("Elapsed"), "{error:?}");
    assert_eq!(shop.number("select count(*) from pillarbox.inbox").await, 0);
}

/// Counts how many run at a time, and takes its time.
#[derive(Clone, Default)]
struct Counting {
    now: Arc<AtomicU32>,
    most: Arc<AtomicU32>,
    go_on: Arc<Notify>,
}

impl Handler<Received<OrderPlaced>> for Counting {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        self.go_on.notified().await;
        record(tx, placed).await?;
        self.now.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }
}

async fn until_running(counting: &Counting, wanted: u32) {
    eventually("handlers to run", shop::DEADLINE, async || {
        Ok::<_, String>((counting.now.load(Ordering::SeqCst) == wanted).then_some(()))
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_concurrency_limit_around_it_bounds_the_transactions_and_a_buffer_keeps_the_rest() {
    let shop = Shop::open().await;
    let counting = Counting::default();
    let service = ServiceBuilder::new()
        .buffer::<Delivery>(16)
        .concurrency_limit(2)
        .layer(layer(&shop))
        .service(Router::new().on(counting.clone()));
    let mut deliveries = JoinSet::new();
    for order in 0..8 {
        deliveries.spawn(service.clone().oneshot(shop.event(order, 1).into()));
    }
    until_running(&counting, 2).await;
    let open = "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in%'";
    shop.until(open, 2).await;
    while !deliveries.is_empty() {
        counting.go_on.notify_one();
        if let Ok(Some(done)) =
            tokio::time::timeout(Duration::from_millis(20), deliveries.join_next()).await
        {
            assert_eq!(done.unwrap().unwrap(), Outcome::Handled);
        }
    }
    assert_eq!(counting.most.load(Ordering::SeqCst), 2);
    shop.assert_each_once_in_order(8).await;
}

#[tokio::test]
async fn what_a_load_shed_around_it_refuses_was_never_begun_and_can_come_again() {
    let shop = Shop::open().await;
    let counting = Counting::default();
    let service = ServiceBuilder::new()
        .load_shed()
        .concurrency_limit(1)
        .layer(layer(&shop))
        .service(Router::new().on(counting.clone()));
    let first = tokio::spawn(service.clone().oneshot(shop.event(1, 1).into()));
    until_running(&counting, 1).await;
    let second = shop.event(2, 1);
    let error = service.clone().oneshot(second.clone().into()).await.unwrap_err();
    assert!(error.is::<tower::load_shed::error::Overloaded>(), "{error:?}");
    counting.go_on.notify_one();
    assert_eq!(first.await.unwrap().unwrap(), Outcome::Handled);
    counting.go_on.notify_one();
    assert_eq!(service.oneshot(second.into()).await.unwrap(), Outcome::Handled);
    shop.assert_each_once_in_order(2).await;
}

/// A span's name, and that of the one around it.
type SpanIn = (&'static str, Option<&'static str>);

#[derive(Clone, Default)]
struct Spans(Arc<std::sync::Mutex<Vec<SpanIn>>>);

impl<S> tracing_subscriber::Layer<S> for Spans
where
    S: tracing::Subscriber + for<'s> tracing_subscriber::registry::LookupSpan<'s>,
{
    fn on_new_span(
        &self,
        _: &tracing::span::Attributes<'_>,
        id: &tracing::span::Id,
        context: tracing_subscriber::layer::Context<'_, S>,
    ) {
        let span = context.span(id).unwrap();
        let around = span.parent().map(|parent| parent.name());
        self.0.lock().unwrap().push((span.name(), around));
    }
}

#[tokio::test]
async fn a_layer_that_traces_each_delivery_has_the_handlers_span_inside_of_its_own() {
    let shop = Shop::open().await;
    let spans = Spans::default();
    let subscriber = tracing_subscriber::registry().with(spans.clone());
    // As tower-http's TraceLayer does for requests.
    let service = ServiceBuilder::new()
        .layer_fn(|inner| {
            tower::service_fn(move |delivery: Delivery| {
                let span = tracing::info_span!("delivery", event_id = %delivery.event.id());
                ServiceExt::oneshot(Clone::clone(&inner), delivery).instrument(span)
            })
        })
        .layer(layer(&shop))
        .service(Router::new().on(record));
    let handled = service.oneshot(shop.event(1, 1).into()).with_subscriber(subscriber).await;
    assert_eq!(handled.unwrap(), Outcome::Handled);
    assert_eq!(*spans.0.lock().unwrap(), [("delivery", None), ("handle", Some("delivery"))]);
}

#[tokio::test]
async fn a_handler_sees_the_context_of_its_event() {
    struct Check(Arc<AtomicU32>);
    impl Handler<Received<OrderPlaced>> for Check {
        async fn handle(
            &self,
            _: &mut Tx,
            placed: Received<OrderPlaced>,
        ) -> Result<(), HandlerError> {
            let context =
                Context::current().ok_or_else(|| HandlerError::permanent("no context"))?;
            assert_eq!(&context.event_id, placed.id());
            assert_eq!(placed.attempt(), 1);
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    }
    let shop = Shop::open().await;
    let calls = Arc::new(AtomicU32::new(0));
    let service =
        ServiceBuilder::new().layer(layer(&shop)).service(Router::new().on(Check(calls.clone())));
    service.oneshot(shop.event(1, 1).into()).await.unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_service_that_hands_its_transaction_on_cannot_commit() {
    let shop = Shop::open().await;
    let kept: Arc<std::sync::Mutex<Vec<Handling>>> = Arc::default();
    let keep = kept.clone();
    let service = ServiceBuilder::new().layer(layer(&shop)).service(tower::service_fn(
        move |handling: Handling| {
            keep.lock().unwrap().push(handling);
            async { Ok::<_, InboxError>(()) }
        },
    ));
    service.oneshot(shop.event(1, 1).into()).await.unwrap();
    let handling = kept.lock().unwrap().pop().unwrap();
    assert!(handling.transaction().await.get().is_none(), "the handling is over");
}

#[tokio::test]
async fn an_unknown_type_is_a_permanent_failure_unless_it_is_ignored() {
    let shop = Shop::open().await;
    let refused = ServiceBuilder::new().layer(layer(&shop)).service(Router::new());
    let error = refused.oneshot(shop.event(1, 1).into()).await.unwrap_err();
    assert_eq!(error.fault(), Fault::Permanent);
    let ignored = ServiceBuilder::new().layer(layer(&shop)).service(Router::new().ignore_others());
    assert_eq!(ignored.oneshot(shop.event(1, 1).into()).await.unwrap(), Outcome::Handled);
}

#[tokio::test]
async fn another_schema_serves_as_well() {
    let shop = Shop::open().await;
    pillarbox_inbox::migrate_schema(shop.pool(), "shop_inbox").await.unwrap();
    let layer = InboxLayer::in_schema(shop.pool().clone(), "payments", "shop_inbox").unwrap();
    let service = ServiceBuilder::new().layer(layer).service(Router::new().on(record));
    service.oneshot(shop.event(1, 1).into()).await.unwrap();
    assert_eq!(shop.number("select count(*) from shop_inbox.inbox").await, 1);
    assert!(InboxLayer::in_schema(shop.pool().clone(), "payments", "a b").is_err());
}

async fn passes_over(tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
    record(tx, placed).await?;
    let _ = sqlx::query("insert into no_such_table values (1)").execute(&mut **tx).await;
    Ok(())
}

#[tokio::test]
async fn a_handler_that_passes_over_a_failed_statement_has_not_succeeded() {
    let shop = Shop::open().await;
    let service = ServiceBuilder::new().layer(layer(&shop)).service(Router::new().on(passes_over));
    let error = service.oneshot(shop.event(1, 1).into()).await.unwrap_err();
    assert!(matches!(error, InboxError::Aborted), "{error:?}");
    assert_eq!(error.fault(), Fault::Transient);
    assert_eq!(shop.number("select count(*) from pillarbox.inbox").await, 0);
}

#[tokio::test]
async fn a_constraint_that_fails_at_the_commit_is_the_events_fault() {
    let shop = Shop::open().await;
    let deferred =
        "alter table effects add constraint once unique (event_id) deferrable initially deferred";
    sqlx::raw_sql(deferred).execute(shop.pool()).await.unwrap();
    async fn twice(tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        record(tx, placed.clone()).await?;
        record(tx, placed).await
    }
    let service = ServiceBuilder::new().layer(layer(&shop)).service(Router::new().on(twice));
    let error = service.oneshot(shop.event(1, 1).into()).await.unwrap_err();
    assert!(matches!(error, InboxError::Commit(_)), "{error:?}");
    assert_eq!(error.fault(), Fault::Transient);
    assert_eq!(shop.number("select count(*) from effects").await, 0);
}

#[tokio::test]
async fn connections_go_back_to_the_pool_clean() {
    let shop = Shop::open().await;
    let pool = sqlx::postgres::PgPoolOptions::new()
        .max_connections(1)
        .connect(shop.scope.database_url())
        .await
        .unwrap();
    let layer = InboxLayer::new(pool.clone(), "payments").unwrap();
    let service = ServiceBuilder::new().layer(layer).service(Router::new().on(record));
    for order in 0..5 {
        service.clone().oneshot(shop.event(order, 1).into()).await.unwrap();
        let alone = "select count(*) from pg_locks where locktype = 'transactionid' and pid = pg_backend_pid()";
        assert_eq!(shop::number(&pool, alone).await, 0, "no transaction is left open");
        sqlx::query("insert into effects (event_id, order_id, step) values ('outside', 99, $1)")
            .bind(order)
            .execute(&pool)
            .await
            .unwrap();
    }
    assert_eq!(shop.number("select count(*) from effects").await, 10);
}

#[tokio::test]
async fn a_transaction_that_another_task_holds_is_rolled_back() {
    let shop = Shop::open().await;
    let release = Arc::new(Notify::new());
    let released = release.clone();
    let service = ServiceBuilder::new().layer(layer(&shop)).service(tower::service_fn(
        move |handling: Handling| {
            let released = released.clone();
            async move {
                let (held, holds) = tokio::sync::oneshot::channel();
                tokio::spawn(async move {
                    let mut transaction = handling.transaction().await;
                    let tx = transaction.get().unwrap();
                    sqlx::query("insert into effects (order_id) values (1)")
                        .execute(&mut **tx)
                        .await
                        .unwrap();
                    held.send(()).unwrap();
                    released.notified().await;
                    assert!(transaction.get().is_none(), "the handling is over");
                    drop(transaction);
                    // It keeps the handling, and the transaction ends all the same.
                    std::future::pending::<()>().await;
                    drop(handling);
                });
                holds.await.unwrap();
                Ok::<_, InboxError>(())
            }
        },
    ));
    let error = service.oneshot(shop.event(1, 1).into()).await.unwrap_err();
    assert!(matches!(error, InboxError::InUse), "{error:?}");
    release.notify_one();
    let open = "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in%'";
    shop.until(open, 0).await;
    assert_eq!(shop.number("select count(*) from effects").await, 0);
    assert_eq!(shop.number("select count(*) from pillarbox.inbox").await, 0);
}

#[tokio::test]
async fn a_dropped_future_ends_the_transaction_though_the_handling_is_kept() {
    let shop = Shop::open().await;
    let (keep, mut kept) = tokio::sync::mpsc::unbounded_channel::<Handling>();
    let service = ServiceBuilder::new().layer(layer(&shop)).service(tower::service_fn(
        move |handling: Handling| {
            keep.send(handling).unwrap();
            std::future::pending::<Result<(), InboxError>>()
        },
    ));
    let call = tokio::spawn(service.oneshot(shop.event(1, 1).into()));
    let handling = kept.recv().await.unwrap();
    call.abort();
    let open = "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in%'";
    shop.until(open, 0).await;
    assert!(handling.transaction().await.get().is_none());
}

#[tokio::test]
async fn a_dead_letter_is_handled_after_all_or_stays_what_it_is() {
    let shop = Shop::open().await;
    let event = shop.event(1, 1);
    sqlx::query(
        "insert into pillarbox.inbox_dead_letter (consumer, event_id, event_type, topic, key, headers, payload, reason, error, attempts, first_failed_at) \
         values ('payments', $1, $2, $3, $4, '{}', $5, 'attempts', 'no', 3, now())",
    )
    .bind(event.id().as_str())
    .bind(event.event_type())
    .bind(event.topic())
    .bind(event.key())
    .bind(&event.payload()[..])
    .execute(shop.pool())
    .await
    .unwrap();
    sqlx::query("insert into pillarbox.inbox values ('payments', $1)")
        .bind(event.id().as_str())
        .execute(shop.pool())
        .await
        .unwrap();
    let letters = DeadLetters::new(shop.pool().clone(), "payments").unwrap();
    let letter = letters.list(10).await.unwrap().pop().unwrap();

    let fails = Trouble { written: Arc::new(Notify::new()) };
    let service = ServiceBuilder::new().layer(layer(&shop)).service(Router::new().on(fails));
    service.oneshot(letter.delivery().unwrap()).await.unwrap_err();
    assert_eq!(letters.list(10).await.unwrap().len(), 1);

    let service = ServiceBuilder::new().layer(layer(&shop)).service(Router::new().on(record));
    let again = Delivery::from(event);
    assert_eq!(service.clone().oneshot(again).await.unwrap(), Outcome::Duplicate);
    let delivery = letter.delivery().unwrap();
    assert_eq!(service.clone().oneshot(delivery.clone()).await.unwrap(), Outcome::Handled);
    assert_eq!(service.clone().oneshot(delivery).await.unwrap(), Outcome::Duplicate);
    assert!(letters.list(10).await.unwrap().is_empty());
    shop.assert_each_once_in_order(1).await;
}
