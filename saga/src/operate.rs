//! What operators do with instances: see how far they are, and end one by hand.

use pillarbox_event::EventId;
use pillarbox_outbox::{Outbox, OutboxError};
use pillarbox_store::Operator;
use pillarbox_store::actions::{Deed, record};
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{Connection, PgConnection, Row, SqlStr};

use crate::instance::{Instance, NotRead, PendingTimer, Status, in_history};
use crate::turn::{Settled, Turn};

/// Why an operator's wish was not carried out. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OperateError {
    /// There is no such instance.
    #[error("saga {saga:?} has no instance {id:?}")]
    NotThere {
        /// The saga.
        saga: String,
        /// The instance.
        id: String,
    },
    /// The instance has ended already.
    #[error("instance {id:?} of saga {saga:?} has ended: it is {status}")]
    Ended {
        /// The saga.
        saga: String,
        /// The instance.
        id: String,
        /// How it has ended.
        status: Status,
    },
    /// The instance is compensating already. Only `complete` can end it.
    #[error(
        "instance {id:?} of saga {saga:?} is compensating already; complete it if nothing answers any more"
    )]
    Compensating {
        /// The saga.
        saga: String,
        /// The instance.
        id: String,
    },
    /// The row cannot be read by this program.
    #[error("instance {id:?} of saga {saga:?} cannot be read: {problem}")]
    Unreadable {
        /// The saga.
        saga: String,
        /// The instance.
        id: String,
        /// What is wrong.
        problem: String,
    },
    /// The events could not be written or taken back.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// The database refused a statement, or the connection is lost.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// How an operator ends an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It fails: its compensations are published, the newest first, and it waits for their answers. Without any it has
    /// failed at once.
    Cancel,
    /// It has failed at once, and its compensations are dropped.
    CancelWithoutCompensation,
    /// It is completed, or failed if it was compensating. Compensations that were not published are dropped.
    Complete,
}

/// Which instances are listed.
#[derive(Clone, Debug, Default)]
pub struct Which {
    /// Only those of this saga.
    pub saga: Option<String>,
    /// Only this one.
    pub id: Option<String>,
    /// Only those with this status. `None`: those that have not ended, unless an `id` is given.
    pub status: Option<Status>,
    /// Only those in this step.
    pub step: Option<String>,
    /// Only those whose deadline is past.
    pub overdue: bool,
}

/// An instance, without its state.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
#[allow(missing_docs, reason = "they are the columns of the table")]
pub struct Listed {
    pub saga: String,
    pub id: String,
    pub step: String,
    pub status: String,
    pub version: i64,
    pub started_at: String,
    pub updated_at: String,
    pub ended_at: Option<String>,
    pub deadline_at: Option<String>,
    /// How long ago it was started, in seconds.
    pub age_seconds: f64,
    /// How long its deadline is past, in seconds, if it has not ended.
    pub overdue_seconds: Option<f64>,
    pub failure: Option<String>,
    /// The timers that are set.
    pub timers: Vec<PendingTimer>,
    /// The types of the events that are published if it fails, the newest first.
    pub compensations: Vec<String>,
}

/// One entry of an instance's history.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
#[allow(missing_docs, reason = "they are the columns of the table")]
pub struct Entry {
    pub seq: i64,
    pub at: String,
    pub event_id: String,
    pub event_type: String,
    pub step_before: String,
    pub step_after: String,
    pub status: String,
    pub published: serde_json::Value,
    pub timers_set: serde_json::Value,
    pub timers_cancelled: serde_json::Value,
    pub note: Option<String>,
}

/// The instances in a schema.
#[derive(Clone, Debug)]
pub struct Instances {
    outbox: Outbox,
}

impl Instances {
    /// Those in the outbox's schema.
    pub fn new(outbox: Outbox) -> Self {
        Self { outbox }
    }

    fn sql(&self, text: &str) -> SqlStr {
        self.outbox.schema_of_tables().statement(text)
    }

    /// Lists instances, the oldest first, at most `limit`.
    ///
    /// # Errors
    /// The error of sqlx.
    pub async fn list(
        &self,
        connection: &mut PgConnection,
        which: &Which,
        limit: i64,
    ) -> Result<Vec<Listed>, sqlx::Error> {
        let rows = sqlx::query(self.sql(include_str!("sql/list.sql")))
            .persistent(false)
            .bind(which.saga.as_deref())
            .bind(which.id.as_deref())
            .bind(which.status.map(Status::as_str))
            .bind(which.step.as_deref())
            .bind(which.overdue)
            .bind(limit)
            .fetch_all(connection)
            .await?;
        rows.iter().map(listed).collect()
    }

    /// The history of an instance, in its order. Beside the first entry, only the newest ones are kept.
    ///
    /// # Errors
    /// The error of sqlx.
    pub async fn history(
        &self,
        connection: &mut PgConnection,
        saga: &str,
        id: &str,
    ) -> Result<Vec<Entry>, sqlx::Error> {
        let rows = sqlx::query(self.sql(include_str!("sql/history.sql")))
            .persistent(false)
            .bind(saga)
            .bind(id)
            .fetch_all(connection)
            .await?;
        rows.iter().map(entry).collect()
    }

    /// The state of an instance as JSON. `None`: there is no such instance.
    ///
    /// # Errors
    /// The error of sqlx, for example if the role may not read the state.
    pub async fn state(
        &self,
        connection: &mut PgConnection,
        saga: &str,
        id: &str,
    ) -> Result<Option<String>, sqlx::Error> {
        sqlx::query_scalar(self.sql(
            "select state::pg_catalog.text from pillarbox.saga where saga operator(pg_catalog.=) $1 \
             and id operator(pg_catalog.=) $2",
        ))
        .persistent(false)
        .bind(saga)
        .bind(id)
        .fetch_optional(connection)
        .await
    }

    /// Ends an instance in one transaction, and returns its new status. The history says who did it, by the database
    /// role, and why; the record of operators' actions says it too. If an event of the instance is being handled, it
    /// waits for that.
    ///
    /// Dropping the future before its end rolls everything back when the connection is used again or closed.
    ///
    /// # Errors
    /// [`OperateError`].
    pub async fn end(
        &self,
        connection: &mut PgConnection,
        saga: &str,
        id: &str,
        end: End,
        operator: &Operator,
    ) -> Result<Status, OperateError> {
        let mut tx = connection.begin().await?;
        let found = sqlx::query(self.sql(include_str!("sql/lock.sql")))
            .persistent(false)
            .bind(saga)
            .bind(id)
            .fetch_optional(&mut *tx)
            .await?;
        let (saga, id) = (saga.to_owned(), id.to_owned());
        let Some(row) = found else {
            return Err(OperateError::NotThere { saga, id });
        };
        let instance = Instance::of_row(&row, &saga, &id);
        let instance = instance.map_err(|error| error.for_operator(&saga, &id))?;
        match instance.status {
            status if status.is_ended() => return Err(OperateError::Ended { saga, id, status }),
            Status::Compensating if end != End::Complete => {
                return Err(OperateError::Compensating { saga, id });
            }
            _ => {}
        }
        let role: String = row.try_get("role")?;
        let why = operator.note().unwrap_or("no reason was given");
        let target = format!("{saga} {id}");
        let settled = decide(instance, end, &format!("by {role}: {why}"));
        let settled = settled.map_err(|problem| OperateError::Unreadable { saga, id, problem })?;
        self.outbox.publish_all(&mut tx, settled.published.iter()).await?;
        for timer in &settled.cancelled {
            let id = EventId::parse(&*timer.event_id).map_err(OutboxError::from)?;
            self.outbox.cancel(&mut tx, &id).await?;
        }
        self.save(&mut tx, &settled, end).await?;
        let what = match end {
            End::Cancel | End::CancelWithoutCompensation => "sagas.cancel",
            End::Complete => "sagas.complete",
        };
        let deed = Deed { what, target: &target, count: 1, letters: &[] };
        record(&mut tx, self.outbox.schema_of_tables(), operator, &deed).await?;
        tx.commit().await?;
        Ok(settled.instance.status)
    }

    async fn save(
        &self,
        connection: &mut PgConnection,
        settled: &Settled,
        end: End,
    ) -> Result<(), sqlx::Error> {
        let Settled { instance, step_before, published, cancelled, note, .. } = settled;
        let action = match end {
            End::Cancel | End::CancelWithoutCompensation => "operator.cancel",
            End::Complete => "operator.complete",
        };
        let published: Vec<_> = published.iter().map(in_history).collect();
        let json = |value: serde_json::Result<String>| {
            value.map_err(|error| sqlx::Error::Encode(Box::new(error)))
        };
        let saved: Option<i64> = sqlx::query_scalar(self.sql(include_str!("sql/end.sql")))
            .persistent(false)
            .bind(&*instance.saga)
            .bind(&*instance.id)
            .bind(instance.version)
            .bind(instance.status.as_str())
            .bind(instance.status.is_ended())
            .bind(json(serde_json::to_string(&instance.timers))?)
            .bind(json(serde_json::to_string(&instance.compensations))?)
            .bind(instance.failure.as_deref())
            .bind(action)
            .bind(&**step_before)
            .bind(json(serde_json::to_string(&published))?)
            .bind(json(serde_json::to_string(cancelled))?)
            .bind(note.as_deref())
            .fetch_optional(connection)
            .await?;
        saved.map(|_| ()).ok_or(sqlx::Error::RowNotFound)
    }
}

/// What an end by hand does, without I/O.
fn decide(instance: Instance, end: End, note: &str) -> Result<Settled, String> {
    let mut turn = Turn::new(instance, None);
    match end {
        End::Cancel => turn.fail(&format!("cancelled {note}")),
        End::CancelWithoutCompensation => {
            turn.forget_compensations();
            turn.fail(&format!("cancelled without compensation {note}"));
        }
        End::Complete => {
            turn.note(&format!("completed {note}"));
            turn.complete();
        }
    }
    turn.settle().map_err(|error| format!("a compensation cannot be published: {error}"))
}

impl NotRead {
    fn for_operator(self, saga: &str, id: &str) -> OperateError {
        match self {
            Self::Database(error) => error.into(),
            Self::Unreadable(problem) => {
                OperateError::Unreadable { saga: saga.to_owned(), id: id.to_owned(), problem }
            }
        }
    }
}

fn listed(row: &PgRow) -> Result<Listed, sqlx::Error> {
    let json = |name: &str| row.try_get::<String, _>(name);
    Ok(Listed {
        saga: row.try_get("saga")?,
        id: row.try_get("id")?,
        step: row.try_get("step")?,
        status: row.try_get("status")?,
        version: row.try_get("version")?,
        started_at: row.try_get("started_at")?,
        updated_at: row.try_get("updated_at")?,
        ended_at: row.try_get("ended_at")?,
        deadline_at: row.try_get("deadline_at")?,
        age_seconds: row.try_get("age_seconds")?,
        overdue_seconds: row.try_get("overdue_seconds")?,
        failure: row.try_get("failure")?,
        // What another hand wrote there is not shown.
        timers: serde_json::from_str(&json("timers")?).unwrap_or_default(),
        compensations: row.try_get("compensations")?,
    })
}

fn entry(row: &PgRow) -> Result<Entry, sqlx::Error> {
    let json = |name: &str| {
        let text = row.try_get::<String, _>(name)?;
        serde_json::from_str(&text).map_err(|error| sqlx::Error::Decode(Box::new(error)))
    };
    Ok(Entry {
        seq: row.try_get("seq")?,
        at: row.try_get("at")?,
        event_id: row.try_get("event_id")?,
        event_type: row.try_get("event_type")?,
        step_before: row.try_get("step_before")?,
        step_after: row.try_get("step_after")?,
        status: row.try_get("status")?,
        published: json("published")?,
        timers_set: json("timers_set")?,
        timers_cancelled: json("timers_cancelled")?,
        note: row.try_get("note")?,
    })
}
