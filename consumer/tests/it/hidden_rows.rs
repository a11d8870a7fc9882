//! Row-level security on the inbox's tables: what may be hidden is never taken for what is not there.

use crate::support::{Shop, record};
use pillarbox_consumer::{Consumer, ConsumerError};
use pillarbox_inbox::{InboxError, InboxLayer, Outcome, Router};
use sqlx::{AssertSqlSafe, PgPool};
use tokio_util::sync::CancellationToken;
use tower::{ServiceBuilder, ServiceExt};

async fn run(shop: &Shop, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(shop.pool()).await.unwrap();
}

#[tokio::test]
async fn a_consumer_and_a_layer_refuse_tables_whose_rows_may_be_hidden() {
    let shop = Shop::open().await;
    let role = format!("{}_app", shop.scope.prefix());
    run(
        &shop,
        &format!(
            "create role {role} login password 'pw'; grant usage on schema pillarbox, public to {role}; \
             grant all on all tables in schema pillarbox, public to {role}; \
             grant all on all sequences in schema pillarbox, public to {role}"
        ),
    )
    .await;
    let url = shop.scope.database_url().replace("//postgres@", &format!("//{role}:pw@"));
    let pool = PgPool::connect(&url).await.unwrap();
    shop.send(&shop.event(1, 1)).await;
    for table in ["inbox", "inbox_failure", "inbox_dead_letter", "inbox_forgotten"] {
        run(&shop, &format!("alter table pillarbox.{table} enable row level security")).await;
        run(&shop, &format!("create policy all_rows on pillarbox.{table} using (true)")).await;
        let consumer =
            Consumer::with_config(shop.scope.nats().clone(), pool.clone(), shop.config());
        let router = Router::new().on(record);
        let error =
            consumer.unwrap().router(router).run(CancellationToken::new()).await.unwrap_err();
        assert!(matches!(error, ConsumerError::Inbox(InboxError::Hidden(_))), "{table}: {error}");
        let said = error.to_string();
        for word in [format!("pillarbox.{table}"), role.clone(), "bypassrls".into()] {
            assert!(said.contains(&word), "{word}: {said}");
        }

        let layer = InboxLayer::new(pool.clone(), "payments").unwrap();
        let router = Router::new().on(record);
        let service = ServiceBuilder::new().layer(layer).service(router);
        let error = service.clone().oneshot(shop.event(2, 1).into()).await.unwrap_err();
        assert!(matches!(error, InboxError::Hidden(_)), "{table}: {error}");
        assert_eq!(shop.number("select count(*) from effects").await, 0);
        // The same service goes on when it is mended.
        run(&shop, &format!("alter table pillarbox.{table} disable row level security")).await;
        let handled = service.oneshot(shop.event(2, 1).into()).await.unwrap();
        assert_eq!(handled, Outcome::Handled);
        run(&shop, "delete from effects; delete from pillarbox.inbox").await;
    }
    let (started, _) = shop.start_on(&pool, shop.config(), Router::new().on(record));
    shop.until("select count(*) from effects", 1).await;
    started.stop().await;
}
