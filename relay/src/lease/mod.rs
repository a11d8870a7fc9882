//! The lease: of the relays with one name, one moves the cursor, and any number stand by.
//!
//! ```text
//!              expired, or released, or never held
//!   standby ─────────────────────────────────────────► leader (epoch + 1)
//!      ▲                                                  │ renews every third of the lease
//!      └──────────── lost: expired by the local clock, ◄──┘
//!                    or the epoch is another's
//! ```
//!
//! Every write names the epoch, and changes nothing if the epoch is not the newest. So a leader that was paused and
//! wakes up cannot move the cursor. It stops shipping when the lease has expired by its own monotonic clock. That clock
//! counts from *before* the renewal was sent, which is earlier than the database's time. What the leader sent just
//! before that, its successor sends again, under the same message ids.

use std::sync::Arc;
use std::time::Duration;

use pillarbox_store::limit::{limited, milliseconds};
use serde::Serialize;
use sqlx::postgres::{PgArguments, PgQueryResult, Postgres};
use sqlx::query::Query;
use sqlx::{PgConnection, Row, SqlStr};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout_at};

use crate::cursor::{Cursor, Snapshot};
use crate::table;
use pillarbox_store::schema::in_schema;

#[cfg(test)]
mod tests;

const SHORTEST_LIMIT: Duration = Duration::from_secs(2);
const LONGEST_LIMIT: Duration = Duration::from_secs(10);

/// A statement whose first parameter, the relay's name, is bound.
pub(crate) type Statement = Query<'static, Postgres, PgArguments>;

/// A process that stands by, with the connection on which it will write the lease and the cursor.
#[derive(Debug)]
pub(crate) struct Registry {
    connection: PgConnection,
    row: RelayRow,
}

/// The relay's row, and the process that uses it.
#[derive(Debug)]
struct RelayRow {
    schema: String,
    relay: String,
    holder: String,
    length: Duration,
}

/// What a process reports to each of its outboxes about itself.
#[derive(Debug)]
pub(crate) struct Presence {
    /// How many outboxes the process leads.
    pub(crate) leads: i32,
    /// Whether it reaches the broker of this outbox.
    pub(crate) reaches_broker: bool,
    /// What is wrong with the process. `None`: nothing.
    pub(crate) notice: Option<String>,
}

/// The lease, as the database granted it to [`Registry::ask`].
#[derive(Debug)]
pub(crate) struct Grant {
    epoch: i64,
    cursor: Cursor,
    valid_until: Instant,
    system_identifier: String,
}

/// A held lease.
#[derive(Debug)]
pub(crate) struct Lease {
    /// One statement at a time.
    connection: Mutex<PgConnection>,
    row: RelayRow,
    epoch: i64,
    valid_until: watch::Sender<Instant>,
    system_identifier: String,
}

/// Why the lease or the cursor could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaseError {
    #[error("another relay has taken the lease over")]
    Lost,
    #[error("the lease expired before the database answered")]
    Expired,
    #[error(
        "the cursor of relay {relay:?} cannot be read; mend its column `cursor` or delete the row to ship everything again"
    )]
    Cursor {
        relay: String,
        #[source]
        source: serde_json::Error,
    },
    /// The table of the dead letters takes no more, and why.
    #[error("{0}")]
    Refusing(String),
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

impl Registry {
    pub(crate) fn new(
        connection: PgConnection,
        schema: &str,
        relay: &str,
        holder: &str,
        length: Duration,
    ) -> Self {
        let row = RelayRow {
            schema: schema.to_owned(),
            relay: relay.to_owned(),
            holder: holder.to_owned(),
            length,
        };
        Self { connection, row }
    }

    /// Reports this process. Returns the fewest outboxes that any other process leads that reaches the broker. `None`:
    /// there is no such process.
    pub(crate) async fn attend(&mut self, presence: Presence) -> Result<Option<i32>, LeaseError> {
        Ok(self.row.attend(&mut self.connection, presence).await?)
    }

    /// Removes this process from the outbox's list of processes.
    pub(crate) async fn leave(&mut self) -> Result<(), LeaseError> {
        Ok(self.row.leave(&mut self.connection).await?)
    }

    /// Asks for the lease. `None`: another relay holds it.
    pub(crate) async fn ask(&mut self) -> Result<Option<Grant>, LeaseError> {
        let system_identifier = self.system_identifier().await?;
        let asked = Instant::now();
        let query = sqlx::query(self.row.sql(include_str!("acquire.sql")))
            .bind(&self.row.relay)
            .bind(&self.row.holder)
            .bind(milliseconds(self.row.length))
            .bind(json(&Cursor::start(&system_identifier), &self.row.relay)?);
        let row = limited(self.row.limit(), query.fetch_optional(&mut self.connection)).await?;
        let Some(row) = row else {
            return Ok(None);
        };
        let cursor: String = row.try_get(1)?;
        let cursor = serde_json::from_str(&cursor)
            .map_err(|source| LeaseError::Cursor { relay: self.row.relay.clone(), source })?;
        let (epoch, valid_until) = (row.try_get(0)?, asked + self.row.length);
        Ok(Some(Grant { epoch, cursor, valid_until, system_identifier }))
    }

    /// Begins to lead: gives the connection to the lease, and returns the cursor. If the cursor is another cluster's,
    /// it is rebased first.
    pub(crate) async fn lead(self, grant: Grant) -> Result<(Arc<Lease>, Cursor), LeaseError> {
        let Grant { epoch, mut cursor, valid_until, system_identifier } = grant;
        let Self { connection, row } = self;
        let connection = Mutex::new(connection);
        let (valid_until, _) = watch::channel(valid_until);
        let lease = Lease { connection, row, epoch, valid_until, system_identifier };
        if cursor.system_identifier != lease.system_identifier {
            cursor = lease.rebase(&cursor).await?;
        }
        Ok((Arc::new(lease), cursor))
    }

    /// The other process that holds the lease, and how long the lease is still valid. `None`: no other process holds
    /// it. This only reads, so that standbys leave few traces in the database.
    pub(crate) async fn held_by_another(
        &mut self,
    ) -> Result<Option<(String, Duration)>, sqlx::Error> {
        let text = "select holder, extract(epoch from expires_at - clock_timestamp())::float8 \
                    from pillarbox.relay \
                    where name = $1 and holder <> $2 and expires_at >= clock_timestamp()";
        let query = sqlx::query(self.row.sql(text)).bind(&self.row.relay).bind(&self.row.holder);
        let row = limited(self.row.limit(), query.fetch_optional(&mut self.connection)).await?;
        row.map(|row| {
            let left = Duration::try_from_secs_f64(row.try_get(1)?).unwrap_or_default();
            Ok((row.try_get(0)?, left))
        })
        .transpose()
    }

    async fn system_identifier(&mut self) -> Result<String, sqlx::Error> {
        let query = sqlx::query("select system_identifier::text from pg_control_system()");
        limited(self.row.limit(), query.fetch_one(&mut self.connection)).await?.try_get(0)
    }
}

impl RelayRow {
    /// See [`Registry::attend`].
    async fn attend(
        &self,
        connection: &mut PgConnection,
        presence: Presence,
    ) -> Result<Option<i32>, sqlx::Error> {
        let query = sqlx::query(self.sql(include_str!("attend.sql")))
            .bind(&self.relay)
            .bind(&self.holder)
            .bind(presence.leads)
            .bind(milliseconds(self.length))
            .bind(presence.notice)
            .bind(presence.reaches_broker);
        limited(self.limit(), query.fetch_one(connection)).await?.try_get("least")
    }

    /// See [`Registry::leave`].
    async fn leave(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let text = "delete from pillarbox.relay_member where relay = $1 and holder = $2";
        let query = sqlx::query(self.sql(text)).bind(&self.relay).bind(&self.holder);
        limited(self.limit(), query.execute(connection)).await.map(drop)
    }

    /// The time limit for a statement. No statement waits for anything, unless somebody locks the relay's tables.
    fn limit(&self) -> Duration {
        self.length.clamp(SHORTEST_LIMIT, LONGEST_LIMIT)
    }

    fn sql(&self, text: &str) -> SqlStr {
        in_schema(text, &self.schema)
    }
}

impl Lease {
    /// Until when this leader may ship.
    pub(crate) fn valid_until(&self) -> Instant {
        *self.valid_until.borrow()
    }

    /// The schema of the outbox.
    pub(crate) fn schema(&self) -> &str {
        &self.row.schema
    }

    pub(crate) fn epoch(&self) -> i64 {
        self.epoch
    }

    pub(crate) fn length(&self) -> Duration {
        self.row.length
    }

    /// Extends the lease.
    pub(crate) async fn renew(&self) -> Result<(), LeaseError> {
        let asked = Instant::now();
        let text = "update pillarbox.relay set heartbeat = clock_timestamp(), \
                    expires_at = clock_timestamp() + $3::float8 * interval '1 millisecond' where name = $1 and epoch = $2";
        let query = self.query(text).bind(milliseconds(self.row.length));
        self.write(query).await?;
        self.valid_until.send_replace(asked + self.row.length);
        Ok(())
    }

    /// See [`Registry::attend`].
    pub(crate) async fn attend(&self, presence: Presence) -> Result<Option<i32>, LeaseError> {
        self.within(async |c: &mut PgConnection| self.row.attend(c, presence).await).await
    }

    /// Writes the newest cursor that the relay has reached.
    ///
    /// It reads the cursor only when it is this statement's turn. A cursor that was read earlier might be written after
    /// the cursor was moved [back](crate::checkpoint).
    pub(crate) async fn save(
        &self,
        reached: &mut watch::Receiver<Cursor>,
    ) -> Result<(), LeaseError> {
        let text =
            "update pillarbox.relay set cursor = $3::text::jsonb where name = $1 and epoch = $2";
        let write = async |c: &mut PgConnection| {
            let cursor = serde_json::to_string(&*reached.borrow_and_update());
            let cursor = cursor.map_err(|error| sqlx::Error::Encode(error.into()))?;
            self.query(text).bind(cursor).execute(c).await
        };
        self.written(self.within(write).await?)
    }

    /// Releases the lease, so that a standby need not wait until it expires. `for_good`: this process ends, so it is
    /// also removed from the list of processes.
    pub(crate) async fn release(&self, for_good: bool) -> Result<(), LeaseError> {
        if for_good {
            self.within(async |c: &mut PgConnection| self.row.leave(c).await).await?;
        }
        let query = self.query("update pillarbox.relay set holder = null, expires_at = null, heartbeat = clock_timestamp() where name = $1 and epoch = $2");
        self.write(query).await
    }

    /// Rebases a cursor of another cluster, as [`cursor`](crate::cursor) explains. It changes no row of the outbox, so
    /// it is fast whatever the outbox's size, and does not disturb other relays.
    async fn rebase(&self, old: &Cursor) -> Result<Cursor, LeaseError> {
        let here = async |c: &mut PgConnection| table::find(c, &self.row.schema).await;
        let here = self.within(here).await?;
        let found = self.snapshot().await?;
        let mut cursor = old.moved_to(&self.system_identifier, found);
        if here.reached.is_none_or(|reached| reached < old.high) {
            // New rows may get positions that the old cluster has used, so those positions say nothing about a row.
            cursor.before = None;
        }
        let query = self.query(include_str!("rebase.sql")).bind(json(&cursor, &self.row.relay)?);
        self.fenced(query).await?;
        tracing::warn!(
            relay = self.row.relay,
            from = old.system_identifier,
            to = self.system_identifier,
            ships_everything = cursor.before.is_none(),
            "this is another database cluster than the cursor's; rebased the cursor: it starts without what had been shipped"
        );
        Ok(cursor)
    }

    /// What is committed now.
    pub(crate) async fn snapshot(&self) -> Result<Snapshot, LeaseError> {
        let query = sqlx::query("select pg_current_snapshot()::text");
        let row = self.within(async |c: &mut PgConnection| query.fetch_one(c).await).await?;
        let now: String = row.try_get(0)?;
        now.parse().map_err(|error| LeaseError::Database(sqlx::Error::Decode(Box::new(error))))
    }

    /// A statement with this relay's name as `$1` and the epoch as `$2`.
    pub(crate) fn query(&self, text: &str) -> Statement {
        self.read(text).bind(self.epoch)
    }

    /// A statement with this relay's name as `$1`.
    pub(crate) fn read(&self, text: &str) -> Statement {
        sqlx::query(self.row.sql(text)).bind(self.row.relay.clone())
    }

    /// Runs an update that names the epoch. Fails if it changed nothing.
    pub(crate) async fn write(&self, query: Statement) -> Result<(), LeaseError> {
        self.written(self.within(async |c: &mut PgConnection| query.execute(c).await).await?)
    }

    fn written(&self, done: PgQueryResult) -> Result<(), LeaseError> {
        if done.rows_affected() == 1 { Ok(()) } else { Err(LeaseError::Lost) }
    }

    /// Runs a statement that returns 1 if this leader holds the lease, and does nothing otherwise.
    pub(crate) async fn fenced(&self, query: Statement) -> Result<(), LeaseError> {
        let row = self.within(async |c: &mut PgConnection| query.fetch_one(c).await).await?;
        if row.try_get::<i64, _>(0)? == 1 { Ok(()) } else { Err(LeaseError::Lost) }
    }

    /// Runs a statement on the lease's connection once it is its turn. Ends when the lease expires.
    pub(crate) async fn within<T>(
        &self,
        run: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, LeaseError> {
        let work = async {
            let mut connection = self.connection.lock().await;
            run(&mut connection).await
        };
        match timeout_at(self.valid_until(), work).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(LeaseError::Expired),
        }
    }

    pub(crate) fn json(&self, value: &impl Serialize) -> Result<String, LeaseError> {
        json(value, &self.row.relay)
    }
}

fn json(value: &impl Serialize, relay: &str) -> Result<String, LeaseError> {
    serde_json::to_string(value)
        .map_err(|source| LeaseError::Cursor { relay: relay.to_owned(), source })
}
