//! Tells a migration that works from one that waits, and from one that nobody hears any more.
//!
//! A migration may take long and be well, so there is no limit for it as such. A second session looks how the first one
//! stands. As long as that works, it is left to it. What is limited is the wait for somebody's lock, of which is said
//! who holds it, and silence: a session that is neither at work nor waiting, or of which nobody tells.

use std::error::Error;
use std::pin::pin;
use std::time::Duration;

use pillarbox_relay::{Database, SessionError};
use pillarbox_store::limit::limited;
use sqlx::{PgConnection, Row};
use tokio::time::{Instant, timeout};

use super::super::limit::{Limit, Unanswered};
use crate::terminal::harmless;

/// How often the session is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long a look may take.
const LOOK: Duration = Duration::from_secs(10);

/// Watches the session of an application name.
pub(super) struct Watch {
    database: Database,
    application: String,
    limit: Limit,
}

/// Somebody held a lock for too long.
#[derive(Debug, thiserror::Error)]
#[error(
    "gave up after {limit:?} of waiting for a lock that {holders} holds: wait for its end, or end it with \
     pg_terminate_backend, and migrate again; --timeout-s waits longer"
)]
struct Locked {
    holders: String,
    limit: Duration,
}

/// How a session stands.
enum Stands {
    Works,
    WaitsFor(String),
    /// Nobody says that it works.
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
            // It may end meanwhile.
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
                        "pillarbox: waits for a lock that {} holds, for {limit:?} at the most",
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
