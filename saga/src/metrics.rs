//! The metrics of sagas, through the [`metrics`](https://docs.rs/metrics) facade.
//!
//! All names begin with `pillarbox_saga_`, and every metric has the label `saga`. The counter is about this process.
//! The gauges are about the tables, and are set by [`measure`]; they are the same in every process that measures, so
//! take the maximum of them, not the sum.

use std::collections::BTreeSet;
use std::time::Duration;

use metrics::{counter, gauge};
use pillarbox_outbox::Outbox;
use pillarbox_store::full_text;
pub use pillarbox_store::metric::{Kind, Metric};
use sqlx::{PgPool, Row, SqlStr};

use crate::instance::Status;
use crate::turn::Ignored;

pillarbox_store::metrics! {
    EVENTS = Counter "pillarbox_saga_events_total"
        "Events that a saga got, by step and result: handled, compensating, completed, failed, or why it was not \
        handled: ended, already_started, replaced_timer, not_there. Counted before the commit.";
    OPEN = Gauge "pillarbox_saga_open_instances"
        "Instances that have not ended, by step and status (running, compensating).";
    OVERDUE = Gauge "pillarbox_saga_overdue_instances"
        "Instances that have not ended although their deadline is past, by step.";
    OLDEST_AGE = Gauge "pillarbox_saga_oldest_open_age_seconds"
        "Age of the oldest instance that has not ended, by step.";
    FAILED = Gauge "pillarbox_saga_failed_instances"
        "Instances that have ended as failed and are still kept.";
}

/// What became of an event.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Counted {
    Handled,
    Became(Status),
    Ignored(Ignored),
    NotThere,
}

impl Counted {
    const fn result(self) -> &'static str {
        match self {
            Self::Handled => "handled",
            Self::Became(status) => status.as_str(),
            Self::Ignored(Ignored::Ended) => "ended",
            Self::Ignored(Ignored::AlreadyStarted) => "already_started",
            Self::Ignored(Ignored::ReplacedTimer) => "replaced_timer",
            Self::NotThere => "not_there",
        }
    }
}

/// Counts an event of an instance that was in this step.
pub(crate) fn count(saga: &'static str, step: &str, counted: Counted) {
    let labels =
        [("saga", saga.to_owned()), ("step", step.to_owned()), ("result", counted.result().into())];
    counter!(EVENTS.name, &labels).increment(1);
}

/// How long to wait between two looks at the tables.
const INTERVAL: Duration = Duration::from_secs(15);
/// How long one look may take.
const LONGEST: Duration = Duration::from_secs(10);

/// Sets the gauges of all sagas in the outbox's schema every 15 s, for as long as the future is polled. Spawn it beside
/// the consumer, in one process or in all of them. It takes a connection of the pool for a moment, and logs once when
/// it cannot read the tables; the gauges then are not a number (NaN).
pub async fn measure(pool: PgPool, outbox: Outbox) {
    describe();
    let sql = outbox.schema_of_tables().statement(include_str!("sql/measure.sql"));
    let (mut known, mut is_well) = (BTreeSet::new(), true);
    loop {
        let looked = tokio::time::timeout(LONGEST, look(&pool, &sql)).await;
        let problem = match looked {
            Ok(Ok(found)) => {
                set(&mut known, &found);
                None
            }
            Ok(Err(error)) => Some(full_text(&error)),
            Err(_) => Some("the database did not answer in time".to_owned()),
        };
        if let Some(problem) = &problem {
            for (name, labels) in &known {
                gauge!(*name, labels).set(f64::NAN);
            }
            if is_well {
                tracing::warn!(error = problem, "sagas cannot be measured");
            }
        } else if !is_well {
            tracing::info!("sagas are measured again");
        }
        is_well = problem.is_none();
        tokio::time::sleep(INTERVAL).await;
    }
}

type Labels = Vec<(&'static str, String)>;
type Value = ((&'static str, Labels), f64);

async fn look(pool: &PgPool, sql: &SqlStr) -> Result<Vec<Value>, sqlx::Error> {
    let rows = sqlx::query(sql.clone()).persistent(false).fetch_all(pool).await?;
    let mut found = Vec::new();
    for row in &rows {
        let text = |name: &str| row.try_get::<String, _>(name);
        let (saga, step, status) = (text("saga")?, text("step")?, text("status")?);
        let number = |name: &str| row.try_get::<f64, _>(name);
        let by_step = vec![("saga", saga.clone()), ("step", step.clone())];
        if status == Status::Failed.as_str() {
            found.push(((FAILED.name, vec![("saga", saga)]), number("instances")?));
            continue;
        }
        let open = vec![("saga", saga), ("step", step), ("status", status.clone())];
        found.push(((OPEN.name, open), number("instances")?));
        // These are the same for both statuses of a step.
        found.push(((OVERDUE.name, by_step.clone()), number("overdue")?));
        found.push(((OLDEST_AGE.name, by_step), number("oldest_age")?));
    }
    Ok(found)
}

/// Sets the gauges, and those that have nothing to tell any more to 0.
fn set(known: &mut BTreeSet<(&'static str, Labels)>, found: &[Value]) {
    for (name, labels) in known.iter() {
        if !found.iter().any(|((found, of), _)| found == name && of == labels) {
            gauge!(*name, labels).set(0.0);
        }
    }
    for ((name, labels), value) in found {
        gauge!(*name, labels).set(*value);
        known.insert((*name, labels.clone()));
    }
}
