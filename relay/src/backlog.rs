//! Measures the backlog and the dead letters now and then, on a connection of its own, off the hot path.
//!
//! Standbys measure too: when nobody leads, the backlog is what counts.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection, Row};
use tokio::time::{Instant, sleep};

use crate::config::RelayConfig;
use crate::error::full_text;
use crate::health::Observer;
use crate::schema::in_schema;
use crate::session::Database;
use crate::sink::Fault;
use crate::status::Status;

/// How often the database is asked.
const INTERVAL: Duration = Duration::from_secs(2);
/// Counting a long backlog takes a while; this many times as long is left in between.
const REST: u32 = 20;

/// Measures for as long as it is polled. Failures are left to the relay to report.
pub(crate) async fn measure(config: RelayConfig, database: Database, observer: Observer) {
    let mut connection = None;
    let mut reasons = Fault::ALL.iter().map(Fault::to_string).collect();
    loop {
        let asked = Instant::now();
        let measured = once(&config, &database, &observer, connection.take(), &mut reasons).await;
        match measured {
            Ok(open) => connection = Some(open),
            Err(error) => {
                let error = full_text(&error);
                tracing::debug!(relay = config.name, error, "the backlog was not measured");
            }
        }
        sleep(INTERVAL.max(asked.elapsed() * REST)).await;
    }
}

async fn once(
    config: &RelayConfig,
    database: &Database,
    observer: &Observer,
    connection: Option<PgConnection>,
    reasons: &mut BTreeSet<String>,
) -> Result<PgConnection, sqlx::Error> {
    let mut connection = match connection {
        Some(connection) => connection,
        None => connect(database).await?,
    };
    let status = Status::read(&mut connection, &config.schema, &config.name).await?;
    observer.meter.backlog(status.backlog_events, status.oldest_age_seconds);
    let sql = in_schema(
        "select reason, count(*) from pillarbox.outbox_dead_letter \
         where relay = $1 and state in ('dead', 'parked') group by reason",
        &config.schema,
    );
    let rows = sqlx::query(AssertSqlSafe(Arc::<str>::from(sql)))
        .bind(&config.name)
        .fetch_all(&mut connection)
        .await?;
    // A reason that is resolved goes to 0, and does not stay at what it was.
    let mut gone = reasons.clone();
    for row in rows {
        let (reason, events): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
        observer.meter.unresolved(&reason, events);
        gone.remove(&reason);
        reasons.insert(reason);
    }
    for reason in gone {
        observer.meter.unresolved(&reason, 0);
    }
    Ok(connection)
}

async fn connect(database: &Database) -> Result<PgConnection, sqlx::Error> {
    let mut connection = database.connect().await?;
    // One core is enough for this, and it ends even if nobody waits for it any more.
    sqlx::raw_sql("set max_parallel_workers_per_gather = 0; set statement_timeout = '60s'")
        .execute(&mut connection)
        .await?;
    Ok(connection)
}
