//! The usual hand-written poller: it claims a page with `FOR UPDATE SKIP LOCKED`, publishes it, and marks it.

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::contestant::{Contestant, Open, Running, begin};
use crate::event::Placed;
use crate::publisher::Publisher;
use crate::site::Site;

/// Rows in a page.
const PAGE: i64 = 500;
/// The pause after an empty page.
const IDLE: Duration = Duration::from_millis(10);

#[derive(Clone, Copy)]
pub struct Poller {
    workers: usize,
    publishing: Publishing,
    afterwards: Afterwards,
}

/// How a page is published.
#[derive(Clone, Copy, PartialEq)]
enum Publishing {
    /// Each event after the acknowledgement of the previous one.
    OneByOne,
    /// The whole page, and then its acknowledgements.
    Pipelined,
}

/// What becomes of a published row.
#[derive(Clone, Copy, PartialEq)]
enum Afterwards {
    Update,
    Delete,
}

impl Poller {
    pub fn all() -> impl Iterator<Item = Self> {
        use {Afterwards::*, Publishing::*};
        [
            Self { workers: 1, publishing: OneByOne, afterwards: Update },
            Self { workers: 1, publishing: Pipelined, afterwards: Update },
            Self { workers: 4, publishing: Pipelined, afterwards: Update },
            Self { workers: 1, publishing: Pipelined, afterwards: Delete },
        ]
        .into_iter()
    }

    fn claim(self) -> &'static str {
        match self.afterwards {
            Afterwards::Update => {
                "select id, event_id, payload from outbox where published_at is null \
                 order by id limit $1 for update skip locked"
            }
            Afterwards::Delete => {
                "select id, event_id, payload from outbox order by id limit $1 for update skip locked"
            }
        }
    }

    fn mark(self) -> &'static str {
        match self.afterwards {
            Afterwards::Update => "update outbox set published_at = now()",
            Afterwards::Delete => "delete from outbox",
        }
    }

    async fn work(
        self,
        database_url: String,
        publisher: Publisher,
        shutdown: CancellationToken,
    ) -> Result<()> {
        let mut connection = PgConnection::connect(&database_url).await?;
        while !shutdown.is_cancelled() {
            if !self.page(&mut connection, &publisher).await? {
                sleep(IDLE).await;
            }
        }
        Ok(())
    }

    /// Ships a page. Returns `false` if there was none.
    async fn page(self, connection: &mut PgConnection, publisher: &Publisher) -> Result<bool> {
        let mut transaction = connection.begin().await?;
        let rows = sqlx::query(self.claim()).bind(PAGE).fetch_all(&mut *transaction).await?;
        if rows.is_empty() {
            transaction.commit().await?;
            return Ok(false);
        }
        let mut ids = Vec::with_capacity(rows.len());
        let mut events = Vec::with_capacity(rows.len());
        for row in rows {
            ids.push(row.try_get::<i64, _>(0)?);
            events.push((row.try_get::<Uuid, _>(1)?.to_string(), row.try_get(2)?));
        }
        match self.publishing {
            Publishing::OneByOne => publisher.one_by_one(events).await?,
            Publishing::Pipelined => publisher.pipelined(events).await?,
        }
        let mark = format!("{} where id = any($1)", self.mark());
        sqlx::query(AssertSqlSafe(mark)).bind(ids).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(true)
    }
}

#[async_trait]
impl Contestant for Poller {
    fn name(&self) -> String {
        let publishing = match self.publishing {
            Publishing::OneByOne => "one by one",
            Publishing::Pipelined => "page at once",
        };
        let workers = match self.workers {
            1 => "1 worker".to_owned(),
            workers => format!("{workers} workers"),
        };
        format!("{}, {publishing}, {workers}", self.outbox())
    }

    fn outbox(&self) -> &'static str {
        match self.afterwards {
            Afterwards::Update => "poller with update",
            Afterwards::Delete => "poller with delete",
        }
    }

    async fn prepare(&self, site: &Site) -> Result<()> {
        sqlx::raw_sql(include_str!("../../sql/poller.sql")).execute(&site.pool).await?;
        if self.afterwards == Afterwards::Delete {
            sqlx::raw_sql("drop index outbox_pending").execute(&site.pool).await?;
        }
        Ok(())
    }

    async fn write(&self, site: &Site, key: i32, due: i64) -> Result<Open> {
        let (mut transaction, n) = begin(site, key).await?;
        sqlx::query("insert into outbox (event_id, topic, key, payload) values ($1, $2, $3, $4)")
            .bind(Uuid::now_v7())
            .bind(site.topic())
            .bind(key.to_string())
            .bind(Placed::new(key, n, due).payload()?)
            .execute(&mut *transaction)
            .await?;
        Ok(transaction.into())
    }

    fn backlog(&self) -> &'static str {
        "insert into outbox (topic, key, payload) \
         select topic, key::text, convert_to(payload, 'utf8') from backlog($1, $2, $3, $4)"
    }

    async fn ship(&self, site: &Site) -> Result<Running> {
        let mut running = Running::default();
        for _ in 0..self.workers {
            let publisher = Publisher::connect(site).await?;
            running.spawn(self.work(site.database_url.clone(), publisher, running.shutdown()));
        }
        Ok(running)
    }

    async fn pass(&self, site: &Site) -> Result<()> {
        let pass = match self.afterwards {
            Afterwards::Update => format!("{} where published_at is null", self.mark()),
            Afterwards::Delete => self.mark().to_owned(),
        };
        sqlx::raw_sql(AssertSqlSafe(pass)).execute(&site.pool).await?;
        Ok(())
    }
}
