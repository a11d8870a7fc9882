//! What is the same for all instances of a saga.

use std::sync::Arc;
use std::time::Duration;

use pillarbox_event::{DecodeError, RawEvent};
use pillarbox_outbox::Outbox;
use pillarbox_store::Schema;
use sqlx::SqlStr;

use crate::error::Refused;
use crate::route::Route;
use crate::turn::{TimerMark, instance_id};

const RETENTION: Duration = Duration::from_secs(30 * 86_400);
const HISTORY: u32 = 200;

/// A saga without its handlers.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) name: &'static str,
    pub(crate) formerly: Vec<&'static str>,
    pub(crate) deadline: Option<Duration>,
    pub(crate) retention: Option<Duration>,
    pub(crate) history: u32,
    pub(crate) outbox: Outbox,
    pub(crate) statements: Arc<Statements>,
}

/// The statements for a schema.
pub(crate) struct Statements {
    pub(crate) take_over: SqlStr,
    pub(crate) start: SqlStr,
    pub(crate) find: SqlStr,
    pub(crate) save: SqlStr,
    pub(crate) note: SqlStr,
    pub(crate) remove_old: SqlStr,
}

impl Statements {
    pub(crate) fn new(schema: &Schema) -> Self {
        let sql = |text: &str| schema.statement(text);
        Self {
            take_over: sql(include_str!("sql/take_over.sql")),
            start: sql(include_str!("sql/start.sql")),
            find: sql(include_str!("sql/find.sql")),
            save: sql(include_str!("sql/save.sql")),
            note: sql(include_str!("sql/note.sql")),
            remove_old: sql(include_str!("sql/remove_old.sql")),
        }
    }
}

impl Settings {
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            formerly: Vec::new(),
            deadline: None,
            retention: Some(RETENTION),
            history: HISTORY,
            outbox: Outbox::new(),
            statements: Arc::new(Statements::new(&Schema::default())),
        }
    }

    pub(crate) fn outbox(self, outbox: Outbox) -> Self {
        let statements = Arc::new(Statements::new(outbox.schema_of_tables()));
        Self { outbox, statements, ..self }
    }

    /// The timer that an event is, if it is one of this saga's.
    pub(crate) fn timer_of(&self, event: &RawEvent) -> Option<TimerMark> {
        TimerMark::of(event, std::iter::once(self.name).chain(self.formerly.iter().copied()))
    }

    /// The instance that an event is for.
    pub(crate) fn instance_of<S>(
        &self,
        route: &Route<S>,
        event: &RawEvent,
        timer: Option<&TimerMark>,
    ) -> Result<String, NoInstance> {
        if let Some(mark) = timer {
            return Ok(mark.id.clone());
        }
        let nothing = || Refused::no_instance(self.name, event);
        let id = route.run.instance_id(event)?.ok_or_else(nothing)?;
        Ok(instance_id(id).map_err(|id| Refused::instance_id(self.name, event, id))?)
    }
}

/// Why it is not known for which instance an event is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoInstance {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Refused(#[from] Refused),
}
