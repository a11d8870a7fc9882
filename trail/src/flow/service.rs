//! What the tables of one service tell of a flow.

use std::collections::{BTreeMap, BTreeSet};

use pillarbox_store::limit::limited;
use serde_json::Value;
use sqlx::Row;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;

use super::gather::{ANSWER, Tables};
use super::join::Collected;
use super::{Asked, Bounds, Handled, Outcome, Part, SagaStep, Waits};

/// How many rows of a table without a fitting index are looked at.
const LOOK_AT: i64 = 100_000;

/// One service, as a flow reads it.
pub(super) struct Service<'s, 'c> {
    pub(super) part: &'s mut Part<'c>,
    pub(super) tables: &'s Tables,
    pub(super) bounds: Bounds,
    pub(super) notes: &'s mut BTreeSet<String>,
}

const OUTBOX: &str = "select event_id::text as id, event_type, topic, key, headers->>'ce-correlationid' as correlation, \
    headers->>'ce-causationid' as causation, created_at as since, created_at as written \
    from (select event_id, event_type, topic, key, headers, created_at from pillarbox.outbox order by position desc limit 100000) as newest \
    where event_id::text = any ($1) or headers->>'ce-correlationid' = any ($2) or headers->>'ce-causationid' = any ($1) \
    or key = $3 limit $4";

const SCHEDULED: &str = "select event_id::text as id, event_type, topic, key, headers->>'ce-correlationid' as correlation, \
    headers->>'ce-causationid' as causation, due_at as since, created_at as written, error \
    from (select event_id, event_type, topic, key, headers, due_at, created_at, error from pillarbox.outbox_scheduled order by due_at limit 100000) as next \
    where event_id::text = any ($1) or headers->>'ce-correlationid' = any ($2) or headers->>'ce-causationid' = any ($1) \
    or key = $3 limit $4";

/// The same for a role that may not see the content of scheduled events.
const SCHEDULED_BY_ID: &str = "select event_id::text as id, event_type, topic, null::text as key, \
    null::text as correlation, null::text as causation, due_at as since, created_at as written, error \
    from pillarbox.outbox_scheduled where event_id::text = any ($1) and $2::text[] is not null and ($3::text is null or true) \
    limit $4";

const OUTBOX_LETTERS: &str = "select event_id::text as id, event_type, topic, key, \
    headers->>'ce-correlationid' as correlation, headers->>'ce-causationid' as causation, dead_at as since, \
    created_at as written, relay, state, reason, error \
    from (select event_id, event_type, topic, key, headers, dead_at, created_at, relay, state, reason, error \
    from pillarbox.outbox_dead_letter order by letter desc limit 100000) as newest \
    where event_id::text = any ($1) or headers->>'ce-correlationid' = any ($2) or headers->>'ce-causationid' = any ($1) \
    or key = $3 limit $4";

const CONSUMERS: &str = "with recursive handles (consumer) as ( \
        (select consumer from pillarbox.inbox order by consumer limit 1) \
        union all \
        select (select next.consumer from pillarbox.inbox as next where next.consumer > handles.consumer \
                order by next.consumer limit 1) \
        from handles where handles.consumer is not null \
    ) \
    select consumer from handles where consumer is not null limit 1000";

impl Service<'_, '_> {
    fn has(&self, table: &str) -> bool {
        self.tables.contains(table)
    }

    /// The rows of a statement whose first three values are ids, correlation ids and a key. `None`: this role may not
    /// read them.
    async fn rows(
        &mut self,
        sql: &'static str,
        what: (&[String], &[String], Option<&str>),
    ) -> Result<Option<Vec<PgRow>>, sqlx::Error> {
        let most = i64::try_from(self.bounds.events).unwrap_or(i64::MAX);
        let asked = sqlx::query(self.part.schema.statement(sql))
            .bind(what.0)
            .bind(what.1)
            .bind(what.2)
            .bind(most);
        match limited(ANSWER, asked.fetch_all(&mut *self.part.connection)).await {
            Ok(rows) => Ok(Some(rows)),
            Err(error) if lacks_a_right(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn note(&mut self, text: &str) {
        self.notes.insert(format!("{}: {text}", self.part.name));
    }

    /// Adds the events that are in no stream: in the outbox, scheduled, or given up by the relay.
    pub(super) async fn waiting(
        &mut self,
        asked: &Asked,
        collected: &mut Collected,
    ) -> Result<(), sqlx::Error> {
        let mut ids = collected.ids();
        let timers: Vec<_> = collected
            .each()
            .flat_map(|(_, event)| &event.sagas)
            .flat_map(|step| &step.timers_set)
            .map(|(_, id)| id.clone())
            .collect();
        ids.extend(timers);
        ids.extend(collected.missing_causes());
        let mut shared = collected.correlations();
        let key = match asked {
            Asked::Key(key) => Some(key.as_str()),
            Asked::Event(id) => {
                ids.push(id.clone());
                None
            }
            Asked::Correlation(id) => {
                ids.push(id.clone());
                shared.push(id.clone());
                None
            }
        };
        let what = (&ids[..], &shared[..], key);
        if self.has("outbox") {
            match self.rows(OUTBOX, what).await? {
                Some(rows) => self.add(&rows, collected, |part, row| {
                    Ok(Waits::Outbox { part, since: row.try_get("since")? })
                })?,
                None => self.note(
                    "this role may not see which events wait in the outbox (see docs/guides/finding-one-order.md)",
                ),
            }
        }
        if self.has("outbox_scheduled") {
            let rows = match self.rows(SCHEDULED, what).await? {
                Some(rows) => rows,
                None => {
                    self.note(
                        "this role sees only those scheduled events that a saga set as timers",
                    );
                    self.rows(SCHEDULED_BY_ID, what).await?.unwrap_or_default()
                }
            };
            self.add(&rows, collected, |part, row| {
                let (due, error) = (row.try_get("since")?, row.try_get("error")?);
                Ok(Waits::Scheduled { part, due, error })
            })?;
        }
        if self.has("outbox_dead_letter") {
            match self.rows(OUTBOX_LETTERS, what).await? {
                Some(rows) => self.add(&rows, collected, |part, row| {
                    Ok(Waits::DeadLetter {
                        part,
                        relay: row.try_get("relay")?,
                        state: row.try_get("state")?,
                        since: row.try_get("since")?,
                        reason: row.try_get("reason")?,
                        error: row.try_get("error")?,
                    })
                })?,
                None => self.note("this role may not see the relay's dead letters"),
            }
        }
        if self.has("saga_history") {
            self.sagas(asked, collected).await?;
        }
        Ok(())
    }

    fn add(
        &self,
        rows: &[PgRow],
        collected: &mut Collected,
        waits: impl Fn(String, &PgRow) -> Result<Waits, sqlx::Error>,
    ) -> Result<(), sqlx::Error> {
        for row in rows {
            let id: String = row.try_get("id")?;
            let Some(event) = collected.event(&id, &id, self.bounds) else { break };
            // What is in a stream waits no longer.
            if !event.stored.is_empty() {
                continue;
            }
            let waiting = waits(self.part.name.clone(), row)?;
            // A dead letter says more than the row that lies in the outbox until its retention is over.
            if matches!(event.waits, Some(Waits::DeadLetter { .. }))
                && matches!(waiting, Waits::Outbox { .. })
            {
                continue;
            }
            event.event_type = row.try_get("event_type")?;
            event.topic = row.try_get("topic")?;
            event.key = row.try_get("key")?;
            event.correlation = row.try_get("correlation")?;
            event.causation = row.try_get("causation")?;
            event.written = row.try_get("written")?;
            event.waits = Some(waiting);
        }
        Ok(())
    }

    /// Adds the steps of the sagas whose instances have the keys of the events, and the events that they name.
    async fn sagas(&mut self, asked: &Asked, collected: &mut Collected) -> Result<(), sqlx::Error> {
        let mut instances = collected.keys();
        if let Asked::Key(key) = asked {
            instances.push(key.clone());
        }
        let ids: BTreeSet<String> = collected.ids().into_iter().collect();
        let sql = self.part.schema.statement(
            "select saga, id, at, event_id, step_before, step_after, status, published, timers_set, timers_cancelled, note \
             from pillarbox.saga_history where id = any ($1) and saga = any (array(select distinct saga from pillarbox.saga \
             where id = any ($1) limit 1000)) order by saga, id, seq limit $2",
        );
        let most = i64::try_from(self.bounds.events).unwrap_or(i64::MAX);
        let found = sqlx::query(sql).bind(&instances).bind(most);
        let rows = match limited(ANSWER, found.fetch_all(&mut *self.part.connection)).await {
            Ok(rows) => rows,
            Err(error) if lacks_a_right(&error) => {
                self.note("this role may not see the history of sagas");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for row in &rows {
            let event_id: String = row.try_get("event_id")?;
            // An action of an operator has no event.
            if !ids.contains(&event_id) {
                continue;
            }
            let step = self.step(row)?;
            let Some(event) = collected.known(&event_id) else { continue };
            if !event.sagas.contains(&step) {
                event.sagas.push(step);
            }
        }
        Ok(())
    }

    fn step(&self, row: &PgRow) -> Result<SagaStep, sqlx::Error> {
        let json = |column: &str| row.try_get::<Value, _>(column);
        let texts = |list: &Value, name: &str| -> Vec<String> {
            let items = list.as_array().map(Vec::as_slice).unwrap_or_default();
            let text = |item: &Value| item[name].as_str().or(item.as_str()).map(str::to_owned);
            items.iter().filter_map(text).collect()
        };
        let set = json("timers_set")?;
        Ok(SagaStep {
            part: self.part.name.clone(),
            saga: row.try_get("saga")?,
            id: row.try_get("id")?,
            at: row.try_get("at")?,
            before: row.try_get("step_before")?,
            after: row.try_get("step_after")?,
            status: row.try_get("status")?,
            published: texts(&json("published")?, "id"),
            timers_set: texts(&set, "name").into_iter().zip(texts(&set, "event_id")).collect(),
            timers_cancelled: texts(&json("timers_cancelled")?, "name"),
            note: row.try_get("note")?,
        })
    }

    /// Adds what the consumers did with the events, and which of those that usually handle an event have not.
    pub(super) async fn handled(
        &mut self,
        usual: &[(String, Vec<String>)],
        collected: &mut Collected,
    ) -> Result<(), sqlx::Error> {
        if !self.has("inbox") {
            return Ok(());
        }
        let asked = sqlx::query_scalar::<_, String>(self.part.schema.statement(CONSUMERS));
        let consumers = limited(ANSWER, asked.fetch_all(&mut *self.part.connection)).await?;
        let identities = collected.identities();
        let mut settled: BTreeSet<(String, String)> = BTreeSet::new();
        // An event that was given up is in the inbox too, so that its repeats are dropped.
        self.letters(&identities, collected, &mut settled).await?;
        for (consumer, event, at) in self.inbox(&consumers, &identities).await? {
            if settled.insert((consumer.clone(), event.clone())) {
                self.outcome(collected, &event, consumer, Outcome::Done { at });
            }
        }
        self.failures(&identities, collected, &mut settled).await?;
        let recent: Vec<String> = usual.iter().flat_map(|(_, ids)| ids).cloned().collect();
        let mut handles: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (consumer, event, _) in self.inbox(&consumers, &recent).await? {
            let of = usual.iter().filter(|(_, ids)| ids.contains(&event));
            handles.entry(consumer).or_default().extend(of.map(|(name, _)| name.clone()));
        }
        let mut missing = Vec::new();
        for (identity, event) in collected.each() {
            let (Some(first), Some(name)) = (event.stored.first(), &event.event_type) else {
                continue;
            };
            let who = handles.iter().filter(|(_, types)| types.contains(name));
            let open =
                who.filter(|(who, _)| !settled.contains(&((*who).clone(), identity.clone())));
            missing.extend(open.map(|(who, _)| (identity.clone(), who.clone(), first.at)));
        }
        for (identity, consumer, since) in missing {
            self.outcome(collected, &identity, consumer, Outcome::Missing { since });
        }
        Ok(())
    }

    async fn inbox(
        &mut self,
        consumers: &[String],
        events: &[String],
    ) -> Result<Vec<(String, String, OffsetDateTime)>, sqlx::Error> {
        let sql = self.part.schema.statement(
            "select consumer, event_id, processed_at from pillarbox.inbox \
             where consumer = any ($1) and event_id = any ($2)",
        );
        let found = sqlx::query_as(sql).bind(consumers).bind(events);
        limited(ANSWER, found.fetch_all(&mut *self.part.connection)).await
    }

    fn outcome(
        &self,
        collected: &mut Collected,
        identity: &str,
        consumer: String,
        outcome: Outcome,
    ) {
        if let Some(event) = collected.known(identity) {
            let part = self.part.name.clone();
            event.handled.push(Handled { part, consumer, outcome });
        }
    }

    async fn failures(
        &mut self,
        identities: &[String],
        collected: &mut Collected,
        settled: &mut BTreeSet<(String, String)>,
    ) -> Result<(), sqlx::Error> {
        if !self.has("inbox_failure") {
            return Ok(());
        }
        let sql = self.part.schema.statement(
            "select consumer, event_id, attempts, outages, last_error, first_failed_at, last_failed_at \
             from pillarbox.inbox_failure where event_id = any ($1) and (attempts > 0 or outages > 0 or uncounted > 0) \
             limit $2",
        );
        let found = sqlx::query(sql).bind(identities).bind(LOOK_AT);
        let rows = match limited(ANSWER, found.fetch_all(&mut *self.part.connection)).await {
            Ok(rows) => rows,
            Err(error) if lacks_a_right(&error) => {
                self.note("this role may not see which events are being retried");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for row in &rows {
            let (consumer, identity): (String, String) =
                (row.try_get("consumer")?, row.try_get("event_id")?);
            if !settled.insert((consumer.clone(), identity.clone())) {
                continue;
            }
            let outcome = Outcome::Retrying {
                since: row.try_get("first_failed_at")?,
                last: row.try_get("last_failed_at")?,
                attempts: row.try_get("attempts")?,
                outages: row.try_get("outages")?,
                error: row.try_get("last_error")?,
            };
            self.outcome(collected, &identity, consumer, outcome);
        }
        Ok(())
    }

    async fn letters(
        &mut self,
        identities: &[String],
        collected: &mut Collected,
        settled: &mut BTreeSet<(String, String)>,
    ) -> Result<(), sqlx::Error> {
        if !self.has("inbox_dead_letter") {
            return Ok(());
        }
        let sql = self.part.schema.statement(
            "select consumer, coalesce(identity, event_id) as event, state, dead_at, reason, error \
             from pillarbox.inbox_dead_letter \
             where coalesce(identity, event_id) = any ($1) and event_type is not null and state <> 'retried' limit $2",
        );
        let found = sqlx::query(sql).bind(identities).bind(LOOK_AT);
        let rows = match limited(ANSWER, found.fetch_all(&mut *self.part.connection)).await {
            Ok(rows) => rows,
            Err(error) if lacks_a_right(&error) => {
                self.note("this role may not see the dead letters of consumers");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for row in &rows {
            let (consumer, identity): (String, String) =
                (row.try_get("consumer")?, row.try_get("event")?);
            if !settled.insert((consumer.clone(), identity.clone())) {
                continue;
            }
            let outcome = Outcome::Dead {
                state: row.try_get("state")?,
                since: row.try_get("dead_at")?,
                reason: row.try_get("reason")?,
                error: row.try_get("error")?,
            };
            self.outcome(collected, &identity, consumer, outcome);
        }
        Ok(())
    }
}

fn lacks_a_right(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).as_deref() == Some("42501")
}
