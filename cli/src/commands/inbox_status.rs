//! What `pillarbox status` shows of a database that only consumes.

use pillarbox_relay::Relay;
use pillarbox_store::consumers::Overview;
use serde::Serialize;
use sqlx::PgConnection;

use crate::terminal::harmless;

/// Which tables a schema has. One table of an outbox, even if others are missing, makes it an outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tables {
    Outbox,
    Both,
    InboxAlone,
    Neither,
}

impl Tables {
    pub(super) async fn find(
        connection: &mut PgConnection,
        schema: &str,
    ) -> Result<Self, sqlx::Error> {
        // Not with to_regclass, which also fails if the role lacks rights.
        let (outbox, inbox) = sqlx::query_as(
            "select coalesce(bool_or(relname::text = any ($2)), false), coalesce(bool_or(relname = 'inbox'), false) \
             from pg_class where relnamespace = (select oid from pg_namespace where nspname = $1)",
        )
        .bind(schema)
        .bind(&Relay::TABLES[..])
        .fetch_one(connection)
        .await?;
        Ok(match (outbox, inbox) {
            (true, true) => Self::Both,
            (true, false) => Self::Outbox,
            (false, true) => Self::InboxAlone,
            (false, false) => Self::Neither,
        })
    }

    /// The error where neither is there.
    pub(super) fn missing(schema: &str) -> String {
        format!(
            "schema {schema} of this database has neither an outbox nor an inbox: give the right database or --schema, \
             or run `pillarbox migrate`"
        )
    }
}

/// What the consumers of a database have not handled.
#[derive(Debug, Serialize)]
pub(super) struct InboxStatus {
    schema: String,
    consumers: Vec<ConsumerStatus>,
}

#[derive(Debug, Serialize)]
struct ConsumerStatus {
    consumer: String,
    /// Why it handles nothing. `None`: it works, or no process has said anything.
    waits_for: Option<String>,
    failing_events: i64,
    /// `None`: nothing is failing.
    oldest_failure_seconds: Option<f64>,
    parked_events: i64,
    dead_letters: i64,
}

impl InboxStatus {
    pub(super) fn new(schema: &str, consumers: Vec<Overview>) -> Self {
        let consumers = consumers.into_iter().map(|one| ConsumerStatus {
            consumer: one.consumer,
            waits_for: one.waits_for,
            failing_events: one.failing_events,
            oldest_failure_seconds: one.oldest_failure_seconds,
            parked_events: one.parked_events,
            dead_letters: one.dead_letters,
        });
        Self { schema: schema.to_owned(), consumers: consumers.collect() }
    }

    pub(super) fn text(&self) -> String {
        let mut text = format!(
            "Schema {} has an inbox and no outbox: this database only consumes, and needs no relay.\n",
            self.schema
        );
        if self.consumers.is_empty() {
            text += "\nNo consumer has handled anything yet.\n";
        }
        for status in &self.consumers {
            let events = |count: i64| match count {
                1 => "1 event".to_owned(),
                count => format!("{count} events"),
            };
            let failing = match status.oldest_failure_seconds {
                Some(age) => {
                    format!("{}, the oldest for {}", events(status.failing_events), super::age(age))
                }
                None => "nothing".to_owned(),
            };
            let letters = match status.dead_letters {
                0 => "0".to_owned(),
                count => format!("{count} (pillarbox dead-letters list --inbox)"),
            };
            let waits =
                status.waits_for.as_ref().map(|why| ("handling", format!("nothing: {why}")));
            for (name, value) in
                [("consumer", status.consumer.clone())].into_iter().chain(waits).chain([
                    ("failing", failing),
                    ("parked", events(status.parked_events)),
                    ("dead letters", letters),
                ])
            {
                let line = format!("{name:<12}  {}\n", harmless(&value));
                text += &if name == "consumer" { format!("\n{line}") } else { line };
            }
        }
        text + "\nWhat waits in the stream is in each consumer's own status and metrics (docs/guides/seeing.md).\n"
    }
}
