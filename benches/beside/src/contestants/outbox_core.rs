//! The crates `outbox-core` and `outbox-postgres`, with a transport over async-nats.

use std::sync::Arc;

use anyhow::{Result, anyhow};
use async_trait::async_trait;
use outbox_core::{
    Event, OutboxConfig, OutboxError, OutboxManagerBuilder, OutboxService, Transport,
};
use outbox_postgres::{PostgresOutbox, PostgresWriter};
use sqlx08::postgres::PgPoolOptions;
use tokio::sync::{OnceCell, watch};

use crate::contestant::{Contestant, Open, Running};
use crate::event::{Placed, TYPE};
use crate::publisher::Publisher;
use crate::site::Site;

/// Events that a worker claims at once. The default is 100.
const BATCH: u32 = 500;
/// The default is 10. Between two polls, only NOTIFY wakes the workers.
const POLL_INTERVAL_S: u64 = 1;

pub struct OutboxCore {
    workers: usize,
    /// The pool of a site, by its URL, because the crate uses another version of sqlx than this program.
    pool: tokio::sync::Mutex<Option<(String, sqlx08::PgPool)>>,
    service: OnceCell<Service>,
}

type Service = OutboxService<PostgresWriter, outbox_core::NoIdempotency, Placed>;

struct Nats(Publisher);

#[async_trait]
impl Transport<Placed> for Nats {
    async fn publish(&self, event: Event<Placed>) -> Result<(), OutboxError> {
        let failed = |error: String| OutboxError::BrokerError(error);
        let payload =
            event.payload.as_value().payload().map_err(|error| failed(error.to_string()))?;
        self.0
            .publish(&event.id.as_uuid().to_string(), payload)
            .await
            .map_err(|error| failed(error.to_string()))
    }
}

fn config() -> Arc<OutboxConfig<Placed>> {
    let mut config = OutboxConfig::default();
    config.batch_size = BATCH;
    config.poll_interval_secs = POLL_INTERVAL_S;
    Arc::new(config)
}

impl OutboxCore {
    pub fn all() -> impl Iterator<Item = Self> {
        [1, 4].into_iter().map(|workers| Self {
            workers,
            pool: tokio::sync::Mutex::default(),
            service: OnceCell::new(),
        })
    }

    async fn pool(&self, site: &Site) -> Result<sqlx08::PgPool> {
        let mut kept = self.pool.lock().await;
        if let Some((url, pool)) = &*kept
            && *url == site.database_url
        {
            return Ok(pool.clone());
        }
        let pool = PgPoolOptions::new().max_connections(30).connect(&site.database_url).await?;
        *kept = Some((site.database_url.clone(), pool.clone()));
        Ok(pool)
    }
}

#[async_trait]
impl Contestant for OutboxCore {
    fn name(&self) -> String {
        match self.workers {
            1 => "outbox-core, 1 worker".to_owned(),
            workers => format!("outbox-core, {workers} workers"),
        }
    }

    fn outbox(&self) -> &'static str {
        "outbox-core"
    }

    async fn prepare(&self, site: &Site) -> Result<()> {
        sqlx::raw_sql(include_str!("../../sql/outbox_core.sql")).execute(&site.pool).await?;
        Ok(())
    }

    async fn write(&self, site: &Site, key: i32, due: i64) -> Result<Open> {
        let service = self
            .service
            .get_or_init(async || OutboxService::new(Arc::new(PostgresWriter), config()))
            .await;
        let mut transaction = self.pool(site).await?.begin().await?;
        let n = sqlx08::query_scalar("update account set n = n + 1 where key = $1 returning n")
            .bind(key)
            .fetch_one(&mut *transaction)
            .await?;
        service
            .add_event(TYPE, Placed::new(key, n, due), None, &mut *transaction)
            .await
            .map_err(|error| anyhow!("{error}"))?;
        Ok(transaction.into())
    }

    fn backlog(&self) -> &'static str {
        "insert into outbox_events (event_type, payload, created_at, locked_until) \
         select 'placed', payload::jsonb, clock_timestamp(), 'epoch' from backlog($1, $2, $3, $4)"
    }

    async fn ship(&self, site: &Site) -> Result<Running> {
        let mut running = Running::default();
        for _ in 0..self.workers {
            let (stop, stopped) = watch::channel(false);
            let manager = OutboxManagerBuilder::new()
                .storage(Arc::new(PostgresOutbox::new(self.pool(site).await?, config())))
                .publisher(Arc::new(Nats(Publisher::connect(site).await?)))
                .config(config())
                .shutdown_rx(stopped)
                .build()
                .map_err(|error| anyhow!("{error}"))?;
            let shutdown = running.shutdown();
            running.spawn(async move {
                let mut run = std::pin::pin!(manager.run());
                tokio::select! {
                    ended = &mut run => return ended.map_err(|error| anyhow!("{error}")),
                    () = shutdown.cancelled() => {}
                }
                stop.send(true)?;
                run.await.map_err(|error| anyhow!("{error}"))
            });
        }
        Ok(running)
    }

    async fn pass(&self, site: &Site) -> Result<()> {
        // Skip the trigger, which only wakes the workers; no worker runs.
        sqlx::raw_sql(
            "begin; \
             set local session_replication_role = replica; \
             update outbox_events set status = 'Processing', locked_until = now() + interval '5 minutes' \
                 where status = 'Pending'; \
             update outbox_events set status = 'Sent' where status = 'Processing'; \
             commit",
        )
        .execute(&site.pool)
        .await?;
        Ok(())
    }
}
