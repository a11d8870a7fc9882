//! Tells a migration that is working from one that waits for a lock, and from one that no longer answers.
//!
//! A migration may take long although nothing is wrong, so it has no overall limit. A second session watches the first.
//! As long as the first one works, it may go on. Two things have a limit: waiting for another session's lock, where the
//! command says which session holds it, and silence, where the session neither works nor waits or cannot be seen.

use std::error::Error;
use std::pin::pin;
use std::time::Duration;

use pillarbox_relay::{Database, SessionError};
use pillarbox_store::limit::limited;
use sqlx::{PgConnection, Row};
use tokio::time::{Instant, timeout};

use super::super::limit::{Limit, Unanswered};
use crate::terminal::harmless;

/// How often to look at the session.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long a look may take.
const LOOK: Duration = Duration::from_secs(10);

/// Watches the session that has a given application name.
pub(super) struct Watch {
    database: Database,
    application: String,
    limit: Limit,
}

/// Another session held a lock for too long.
#[derive(Debug, thiserror::Error)]
#[error(
    "gave up after waiting {limit:?} for a lock that {holders} holds: wait until that session ends, or end it with \
     pg_terminate_backend, and migrate again; --timeout-s makes the command wait longer"
)]
struct Locked {
    holders: String,
    limit: Duration,
}

/// What a session is doing.
enum Stands {
    Works,
    WaitsFor(String),
    /// There is no sign that it works.
    Silent,
}

impl Watch {
    pub(super) fn new(url: &str, application: &str, limit: Limit) -> Result<Self, SessionError> {
        let database = Database::new(url, "pillarbox migrate's watch")?.statement_timeout(LOOK);
        Ok(Self { database, application: application.to_owned(), limit })
    }

    /// Waits for the migration.
    pub(super) async fn over<T, E: Into<Box<dyn Error>>>(
        &self,
        migrating: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Box<dyn Error>> {
        let mut migrating = pin!(migrating);
        let limit = self.limit.of_database();
        let (mut works_at, mut said, mut eye) = (Instant::now(), String::new(), None);
        loop {
            if let Ok(done) = timeout(LOOK_EVERY, &mut migrating).await {
                return done.map_err(Into::into);
            }
            // The migration may end during the look.
            let stands = tokio::select! {
                done = &mut migrating => return done.map_err(Into::into),
                stands = self.look(&mut eye) => stands,
            };
            let over = works_at.elapsed() >= limit;
            match stands {
                Stands::Works => works_at = Instant::now(),
                Stands::WaitsFor(holders) if over => return Err(Locked { holders, limit }.into()),
                Stands::WaitsFor(holders) if said != holders => {
                    eprintln!(
                        "pillarbox: waiting for a lock that {} holds, for at most {limit:?}",
                        harmless(&holders)
                    );
                    said = holders;
                }
                Stands::Silent if over => return Err(Unanswered::database("migrate", limit).into()),
                Stands::WaitsFor(_) | Stands::Silent => {}
            }
        }
    }

    async fn look(&self, eye: &mut Option<PgConnection>) -> Stands {
        let looked = limited(LOOK, async {
            let mut connection = match eye.take() {
                Some(connection) => connection,
                None => self.database.connect().await?,
            };
            let asked = sqlx::query(include_str!("watch.sql")).bind(&self.application);
            let row = asked.fetch_optional(&mut connection).await?;
            *eye = Some(connection);
            let Some(row) = row else { return Ok(Stands::Silent) };
            let (works, holders): (Option<bool>, Option<String>) =
                (row.try_get(0)?, row.try_get(1)?);
            Ok(match (holders, works) {
                (Some(holders), _) => Stands::WaitsFor(holders),
                (None, Some(true)) => Stands::Works,
                (None, _) => Stands::Silent,
            })
        });
        looked.await.unwrap_or(Stands::Silent)
    }
}
