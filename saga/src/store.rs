//! The rows of instances, read and written in a handler's transaction.

use std::time::Duration;

use pillarbox_event::RawEvent;
use pillarbox_inbox::HandlerError;
use pillarbox_store::bad_data::is_refused_value;
use pillarbox_store::full_text;
use pillarbox_store::literal::keeps_statements;
use serde_json::json;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{PgConnection, Postgres, Row, SqlStr};

use crate::error::Refused;
use crate::instance::{Instance, NotRead, in_history};
use crate::settings::Settings;
use crate::turn::Settled;

/// An instance, locked.
pub(crate) struct Locked {
    pub(crate) instance: Instance,
    /// The state as JSON. `None` if this event has started the instance.
    pub(crate) state: Option<String>,
}

/// See `docs/poolers.md`.
fn query(connection: &PgConnection, sql: &SqlStr) -> Query<'static, Postgres, PgArguments> {
    sqlx::query(sql.clone()).persistent(keeps_statements(connection))
}

impl Settings {
    /// Finds the instance and locks it, or starts it if `starts`.
    pub(crate) async fn lock(
        &self,
        connection: &mut PgConnection,
        id: &str,
        starts: bool,
    ) -> Result<Option<Locked>, HandlerError> {
        if !self.formerly.is_empty() {
            query(connection, &self.statements.take_over)
                .bind(self.name)
                .bind(&*self.formerly)
                .bind(id)
                .execute(&mut *connection)
                .await?;
        }
        if starts && self.start(connection, id).await? {
            return Ok(Some(Locked { instance: Instance::new(self.name, id), state: None }));
        }
        let found = query(connection, &self.statements.find)
            .bind(self.name)
            .bind(id)
            .fetch_optional(&mut *connection)
            .await?;
        match found {
            Some(row) => Ok(Some(self.read(&row, id)?)),
            None if starts => {
                let hidden = Refused::Hidden { saga: self.name, id: id.to_owned() };
                Err(HandlerError::transient(hidden))
            }
            None => Ok(None),
        }
    }

    async fn start(&self, connection: &mut PgConnection, id: &str) -> Result<bool, HandlerError> {
        let started = query(connection, &self.statements.start)
            .bind(self.name)
            .bind(id)
            .bind(self.deadline.map(|deadline| deadline.as_secs_f64()))
            .fetch_optional(&mut *connection)
            .await;
        Ok(started.map_err(|error| self.not_written(id, error))?.is_some())
    }

    fn read(&self, row: &PgRow, id: &str) -> Result<Locked, HandlerError> {
        let instance = Instance::of_row(row, self.name, id).map_err(|error| match error {
            NotRead::Database(error) => error.into(),
            NotRead::Unreadable(problem) => {
                let (saga, id) = (self.name, id.to_owned());
                HandlerError::permanent(Refused::Row { saga, id, what: "read", problem })
            }
        })?;
        Ok(Locked { instance, state: Some(row.try_get("state")?) })
    }

    /// Writes what a step has changed.
    pub(crate) async fn save(
        &self,
        connection: &mut PgConnection,
        settled: &Settled,
        state: &str,
        event: &RawEvent,
    ) -> Result<(), HandlerError> {
        let Settled { instance, step_before, published, timers, cancelled, note } = settled;
        let published: Vec<_> = published.iter().map(in_history).collect();
        let set: Vec<_> = timers
            .iter()
            .map(|timer| json!({"name": timer.name, "event_id": timer.event.id().as_str()}))
            .collect();
        let saved = query(connection, &self.statements.save)
            .bind(self.name)
            .bind(&*instance.id)
            .bind(instance.version)
            .bind(state)
            .bind(&*instance.step)
            .bind(instance.status.as_str())
            .bind(instance.status.is_ended())
            .bind(serde_json::to_string(&instance.timers)?)
            .bind(serde_json::to_string(&instance.compensations)?)
            .bind(instance.failure.as_deref())
            .bind(event.id().as_str())
            .bind(event.event_type())
            .bind(&**step_before)
            .bind(serde_json::to_string(&published)?)
            .bind(serde_json::to_string(&set)?)
            .bind(serde_json::to_string(cancelled)?)
            .bind(note.as_deref())
            .bind(i64::from(self.history))
            .fetch_optional(&mut *connection)
            .await;
        self.is_written(&instance.id, saved)?;
        if let (true, Some(retention)) = (instance.status.is_ended(), self.retention) {
            self.remove_old(connection, retention).await?;
        }
        Ok(())
    }

    /// Adds an event to the history that the instance does not handle.
    pub(crate) async fn note(
        &self,
        connection: &mut PgConnection,
        instance: &Instance,
        event: &RawEvent,
        note: &str,
    ) -> Result<(), HandlerError> {
        let noted = query(connection, &self.statements.note)
            .bind(self.name)
            .bind(&*instance.id)
            .bind(instance.version)
            .bind(event.id().as_str())
            .bind(event.event_type())
            .bind(note)
            .bind(i64::from(self.history))
            .fetch_optional(&mut *connection)
            .await;
        self.is_written(&instance.id, noted)
    }

    async fn remove_old(
        &self,
        connection: &mut PgConnection,
        retention: Duration,
    ) -> Result<(), HandlerError> {
        query(connection, &self.statements.remove_old)
            .bind(self.name)
            .bind(retention.as_secs_f64())
            .execute(&mut *connection)
            .await?;
        Ok(())
    }

    /// Only a row that came back proves that something was written.
    fn is_written(
        &self,
        id: &str,
        written: Result<Option<PgRow>, sqlx::Error>,
    ) -> Result<(), HandlerError> {
        match written {
            Ok(Some(_)) => Ok(()),
            Ok(None) => {
                let hidden = Refused::Hidden { saga: self.name, id: id.to_owned() };
                Err(HandlerError::transient(hidden))
            }
            Err(error) => Err(self.not_written(id, error)),
        }
    }

    fn not_written(&self, id: &str, error: sqlx::Error) -> HandlerError {
        if !is_refused_value(&error) {
            return error.into();
        }
        let (saga, id, problem) = (self.name, id.to_owned(), full_text(&error));
        HandlerError::permanent(Refused::Row { saga, id, what: "written", problem })
    }
}
