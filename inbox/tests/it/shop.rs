//! A shop that is handed its events by the tests. The tests of `consumer/` have it too, with a stream.

use std::sync::Once;
use std::time::Duration;

use pillarbox_event::{Event, RawEvent};
use pillarbox_inbox::{HandlerError, Received, Tx};
use pillarbox_testkit::{Scope, eventually, servers};
use sqlx::{AssertSqlSafe, PgPool, Row};

pub const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Event, Clone, Debug, serde::Serialize, serde::Deserialize)]
#[event(type = "order.placed", topic = "orders.placed", key = order)]
pub struct OrderPlaced {
    pub order: i64,
    pub step: i64,
}

pub fn log() {
    static LOG: Once = Once::new();
    LOG.call_once(|| {
        let filter =
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
        tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().init();
    });
}

pub struct Shop {
    pub scope: Scope,
}

impl Shop {
    #[allow(dead_code, reason = "the consumer's shop has one of its own")]
    pub async fn open() -> Self {
        Self::on(servers().await.unwrap().scope().await.unwrap()).await
    }

    pub async fn on(scope: Scope) -> Self {
        log();
        pillarbox_inbox::migrate(scope.pool()).await.unwrap();
        sqlx::raw_sql(
            "create table effects (position bigint generated always as identity, event_id text, order_id bigint, step bigint)",
        )
        .execute(scope.pool())
        .await
        .unwrap();
        Self { scope }
    }

    pub fn pool(&self) -> &PgPool {
        self.scope.pool()
    }

    pub fn event(&self, order: i64, step: i64) -> RawEvent {
        let event = OrderPlaced { order, step };
        RawEvent::builder(OrderPlaced::TYPE, format!("{}.placed", self.scope.prefix()))
            .key(order.to_string())
            .payload(serde_json::to_vec(&event).unwrap())
            .build()
            .unwrap()
    }

    pub async fn number(&self, sql: &str) -> i64 {
        number(self.pool(), sql).await
    }

    /// Waits until a count is what it should be.
    pub async fn until(&self, sql: &str, wanted: i64) {
        let what = format!("{sql} = {wanted}");
        let found = eventually(&what, DEADLINE, async || {
            let row = sqlx::query(AssertSqlSafe(sql.to_owned()))
                .fetch_one(self.pool())
                .await
                .map_err(|e| e.to_string())?;
            match row.get::<i64, _>(0) {
                found if found == wanted => Ok(Some(())),
                found => Err(format!("it is {found}")),
            }
        });
        found.await.unwrap();
    }

    /// Every event's effect is there once, and each order's steps are in order.
    pub async fn assert_each_once_in_order(&self, events: i64) {
        assert_eq!(self.number("select count(*) from effects").await, events);
        assert_eq!(self.number("select count(distinct event_id) from effects").await, events);
        let inversions = "select count(*) from (select step, lag(step) over (partition by order_id order by position) \
                          as before from effects) as steps where before >= step";
        assert_eq!(self.number(inversions).await, 0, "steps out of order");
    }
}

pub async fn number(pool: &PgPool, sql: &str) -> i64 {
    sqlx::query(AssertSqlSafe(sql.to_owned())).fetch_one(pool).await.unwrap().get(0)
}

pub async fn record(tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
    sqlx::query("insert into effects (event_id, order_id, step) values ($1, $2, $3)")
        .bind(placed.id().as_str())
        .bind(placed.order)
        .bind(placed.step)
        .execute(&mut **tx)
        .await?;
    Ok(())
}
