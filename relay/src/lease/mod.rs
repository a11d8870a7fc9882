//! The lease: one relay of a name moves its cursor, any number stand by.
//!
//! ```text
//!              expired, or released, or never held
//!   standby ─────────────────────────────────────────► leader (epoch + 1)
//!      ▲                                                  │ renews every third of the lease
//!      └──────────── lost: expired by the local clock, ◄──┘
//!                    or the epoch is another's
//! ```
//!
//! Every write names the epoch and changes nothing if it is no longer the newest, so a leader that was
//! paused and wakes cannot move the cursor. It stops shipping when the lease has expired by its own monotonic
//! clock, counted from *before* the renewal was sent, which is earlier than the database thinks. What it may
//! have sent just before that, its successor sends too, under the same message ids.

use std::sync::Arc;
use std::time::Duration;

use pillarbox_store::limit::limited;
use serde::Serialize;
use sqlx::postgres::{PgArguments, PgQueryResult, Postgres};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, PgConnection, Row, SqlSafeStr, SqlStr};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout_at};

use crate::cursor::Cursor;
use crate::schema::in_schema;

#[cfg(test)]
mod tests;

const SHORTEST_LIMIT: Duration = Duration::from_secs(2);
const LONGEST_LIMIT: Duration = Duration::from_secs(10);

/// A statement with the relay's name bound first.
pub(crate) type Statement = Query<'static, Postgres, PgArguments>;

/// The connection that the lease and the cursor are written on, and only they.
#[derive(Debug)]
pub(crate) struct Registry {
    connection: PgConnection,
    row: RelayRow,
}

/// The relay's row, and who asks for it.
#[derive(Debug)]
struct RelayRow {
    schema: String,
    relay: String,
    holder: String,
    length: Duration,
}

/// What a process tells each of its outboxes about itself.
#[derive(Debug)]
pub(crate) struct Presence {
    /// How many outboxes it leads.
    pub(crate) leads: i32,
    /// Whether it could ship to the broker of this outbox.
    pub(crate) reaches_broker: bool,
    /// What is wrong with it.
    pub(crate) notice: Option<String>,
}

/// What came of asking for the lease.
#[derive(Debug)]
pub(crate) enum Acquired {
    Leader {
        lease: Arc<Lease>,
        cursor: Box<Cursor>,
    },
    /// `free_in`: when the lease will have expired, unless it is renewed.
    Standby {
        registry: Registry,
        holder: Option<String>,
        free_in: Duration,
    },
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
    #[error(
        "the event at position {position} can never be shipped, and the table outbox_dead_letter did not keep it ({events} \
         such events in this page): a trigger on that table leaves rows out; drop it, and shipping goes on by itself"
    )]
    LeftOut { position: i64, events: usize },
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

    /// Says that this process is there, and what it says of itself. Answers the least number of outboxes that another
    /// process leads which reaches the broker.
    pub(crate) async fn attend(&mut self, presence: Presence) -> Result<Option<i32>, LeaseError> {
        Ok(self.row.attend(&mut self.connection, presence).await?)
    }

    /// Says that this process is not there any more.
    pub(crate) async fn leave(&mut self) -> Result<(), LeaseError> {
        Ok(self.row.leave(&mut self.connection).await?)
    }

    /// Asks for the lease. With it comes the cursor; one of another cluster is rebased first.
    pub(crate) async fn acquire(mut self) -> Result<Acquired, LeaseError> {
        let system_identifier = self.system_identifier().await?;
        if let Some(holder) = self.held_by_another().await? {
            let (holder, free_in) = (Some(holder.0), holder.1);
            return Ok(Acquired::Standby { registry: self, holder, free_in });
        }
        let asked = Instant::now();
        let query = sqlx::query(self.row.sql(include_str!("acquire.sql")))
            .bind(&self.row.relay)
            .bind(&self.row.holder)
            .bind(milliseconds(self.row.length))
            .bind(json(&Cursor::start(&system_identifier), &self.row.relay)?);
        let row = limited(self.row.limit(), query.fetch_optional(&mut self.connection)).await?;
        let Some(row) = row else {
            // Somebody else was faster.
            let free_in = self.row.length;
            return Ok(Acquired::Standby { registry: self, holder: None, free_in });
        };
        let epoch: i64 = row.try_get(0)?;
        let cursor: String = row.try_get(1)?;
        let mut cursor: Cursor = serde_json::from_str(&cursor)
            .map_err(|source| LeaseError::Cursor { relay: self.row.relay.clone(), source })?;
        let (valid_until, _) = watch::channel(asked + self.row.length);
        let Self { connection, row } = self;
        let connection = Mutex::new(connection);
        let lease = Lease { connection, row, epoch, valid_until, system_identifier };
        if cursor.system_identifier != lease.system_identifier {
            cursor = lease.rebase(&cursor).await?;
        }
        Ok(Acquired::Leader { lease: Arc::new(lease), cursor: Box::new(cursor) })
    }

    /// The holder of a lease in force, if it is not this relay, and for how long it still is. Only reads, so that
    /// standbys leave few traces.
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

    /// How long a statement may take: none of them has anything to wait for, except where somebody locks the relay's
    /// tables.
    fn limit(&self) -> Duration {
        self.length.clamp(SHORTEST_LIMIT, LONGEST_LIMIT)
    }

    fn sql(&self, text: &str) -> SqlStr {
        AssertSqlSafe(Arc::<str>::from(in_schema(text, &self.schema))).into_sql_str()
    }
}

impl Lease {
    /// Until when this relay may ship.
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
    /// It is looked up once it is this statement's turn. One that was looked up before might be written after somebody
    /// else has moved the cursor [back](crate::checkpoint).
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

    /// Gives the lease up, so that a standby need not wait for it to expire. `for_good`: this process is not there
    /// for it any more.
    pub(crate) async fn release(&self, for_good: bool) -> Result<(), LeaseError> {
        if for_good {
            self.within(async |c: &mut PgConnection| self.row.leave(c).await).await?;
        }
        let query = self.query("update pillarbox.relay set holder = null, expires_at = null, heartbeat = clock_timestamp() where name = $1 and epoch = $2");
        self.write(query).await
    }

    /// Starts again in this cluster, which is not the cursor's: see [`cursor`](crate::cursor). Touches no row of the
    /// outbox, so it takes a moment however large that is, and disturbs no other relay of it.
    async fn rebase(&self, old: &Cursor) -> Result<Cursor, LeaseError> {
        let query = self.read(include_str!("found.sql"));
        let row = self.within(async |c: &mut PgConnection| query.fetch_one(c).await).await?;
        let found: String = row.try_get(0)?;
        let found = found
            .parse()
            .map_err(|error| LeaseError::Database(sqlx::Error::Decode(Box::new(error))))?;
        let sequence: i64 = row.try_get(1)?;
        let mut cursor = old.moved_to(&self.system_identifier, found);
        if sequence < old.high {
            // What is written here may lie among the old cluster's positions, so these say nothing of a row.
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

    /// A statement about this relay, `$1`, under this epoch, `$2`.
    pub(crate) fn query(&self, text: &str) -> Statement {
        self.read(text).bind(self.epoch)
    }

    /// A statement about this relay, `$1`.
    pub(crate) fn read(&self, text: &str) -> Statement {
        sqlx::query(self.row.sql(text)).bind(self.row.relay.clone())
    }

    /// Runs an update that names the epoch.
    async fn write(&self, query: Statement) -> Result<(), LeaseError> {
        self.written(self.within(async |c: &mut PgConnection| query.execute(c).await).await?)
    }

    fn written(&self, done: PgQueryResult) -> Result<(), LeaseError> {
        if done.rows_affected() == 1 { Ok(()) } else { Err(LeaseError::Lost) }
    }

    /// Runs a statement that answers 1 if the lease was this leader's, and does nothing otherwise.
    pub(crate) async fn fenced(&self, query: Statement) -> Result<(), LeaseError> {
        let row = self.within(async |c: &mut PgConnection| query.fetch_one(c).await).await?;
        if row.try_get::<i64, _>(0)? == 1 { Ok(()) } else { Err(LeaseError::Lost) }
    }

    /// Runs a statement on the lease's connection when it is its turn, for as long as the lease is valid.
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

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
