//! PgQ, with a hand-written publisher.

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use sqlx::{Connection, PgConnection, PgPool, Row};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::contestant::{Contestant, Open, Running, begin};
use crate::event::{Placed, TYPE};
use crate::publisher::Publisher;
use crate::site::Site;

/// How often the ticker is called.
const TICK: Duration = Duration::from_millis(10);
/// The pause when there is no batch.
const IDLE: Duration = Duration::from_millis(5);

pub struct PgQ;

async fn tick(database_url: String, shutdown: CancellationToken) -> Result<()> {
    let mut connection = PgConnection::connect(&database_url).await?;
    while !shutdown.is_cancelled() {
        sqlx::query("select pgq.ticker()").execute(&mut connection).await?;
        sleep(TICK).await;
    }
    Ok(())
}

async fn ship(
    database_url: String,
    publisher: Publisher,
    shutdown: CancellationToken,
) -> Result<()> {
    let mut connection = PgConnection::connect(&database_url).await?;
    while !shutdown.is_cancelled() {
        let Some(batch) = next_batch(&mut connection).await? else {
            sleep(IDLE).await;
            continue;
        };
        let rows = sqlx::query("select ev_extra2, ev_data from pgq.get_batch_events($1)")
            .bind(batch)
            .fetch_all(&mut connection)
            .await?;
        let mut events = Vec::with_capacity(rows.len());
        for row in rows {
            events.push((row.try_get(0)?, row.try_get::<String, _>(1)?.into_bytes()));
        }
        publisher.pipelined(events).await?;
        finish_batch(&mut connection, batch).await?;
    }
    Ok(())
}

async fn next_batch(connection: &mut PgConnection) -> Result<Option<i64>> {
    Ok(sqlx::query_scalar("select pgq.next_batch('events', 'nats')").fetch_one(connection).await?)
}

async fn finish_batch(connection: &mut PgConnection, batch: i64) -> Result<()> {
    sqlx::query("select pgq.finish_batch($1)").bind(batch).execute(connection).await?;
    Ok(())
}

#[async_trait]
impl Contestant for PgQ {
    fn name(&self) -> String {
        "PgQ, batch at once".into()
    }

    fn outbox(&self) -> &'static str {
        "PgQ"
    }

    async fn missing(&self, postgres: &PgPool) -> Result<Option<String>> {
        let sql = "select exists (select from pg_available_extensions where name = 'pgq')";
        let there: bool = sqlx::query_scalar(sql).fetch_one(postgres).await?;
        let hint = "this Postgres has no extension pgq; Debian's is postgresql-15-pgq3";
        Ok((!there).then(|| hint.to_owned()))
    }

    async fn prepare(&self, site: &Site) -> Result<()> {
        sqlx::raw_sql(include_str!("../../sql/pgq.sql")).execute(&site.pool).await?;
        Ok(())
    }

    async fn write(&self, site: &Site, key: i32, due: i64) -> Result<Open> {
        let (mut transaction, n) = begin(site, key).await?;
        sqlx::query("select pgq.insert_event('events', $1, $2, $3, $4, $5, null)")
            .bind(TYPE)
            .bind(String::from_utf8(Placed::new(key, n, due).payload()?)?)
            .bind(site.topic())
            .bind(Uuid::now_v7().to_string())
            .bind(key.to_string())
            .execute(&mut *transaction)
            .await?;
        Ok(transaction.into())
    }

    fn backlog(&self) -> &'static str {
        "select count(pgq.insert_event( \
             'events', 'placed', payload, topic, gen_random_uuid()::text, key::text, null)) \
         from backlog($1, $2, $3, $4)"
    }

    async fn attend(&self, site: &Site) -> Result<()> {
        sqlx::query("select pgq.ticker()").execute(&site.pool).await?;
        Ok(())
    }

    async fn ship(&self, site: &Site) -> Result<Running> {
        let mut running = Running::default();
        running.spawn(tick(site.database_url.clone(), running.shutdown()));
        let publisher = Publisher::connect(site).await?;
        running.spawn(ship(site.database_url.clone(), publisher, running.shutdown()));
        Ok(running)
    }

    async fn pass(&self, site: &Site) -> Result<()> {
        self.attend(site).await?;
        let mut connection = site.pool.acquire().await?;
        while let Some(batch) = next_batch(&mut connection).await? {
            finish_batch(&mut connection, batch).await?;
        }
        Ok(())
    }
}
