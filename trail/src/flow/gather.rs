//! Which rows are asked for, step by step, until nothing new belongs to the flow or a bound is reached.

use std::collections::BTreeSet;
use std::time::Duration;

use pillarbox_store::limit::limited;
use sqlx::{PgConnection, Row};
use time::OffsetDateTime;

use super::join::Collected;
use super::service::Service;
use super::{Asked, Bounds, Flow, FlowError, FlowEvent, Part, Stored};

/// How long one statement may take.
pub(super) const ANSWER: Duration = Duration::from_secs(30);

/// Which tables a schema has that a flow is told from.
pub(super) type Tables = BTreeSet<String>;

/// Tells a flow. It reads and writes nothing else. All parts are asked one after the other.
///
/// What a role may not see, and what is not there, is named in the flow's notes, and the rest is told.
///
/// # Errors
/// [`FlowError`].
pub async fn read(parts: &mut [Part<'_>], asked: Asked, bounds: Bounds) -> Result<Flow, FlowError> {
    let mut tables = Vec::with_capacity(parts.len());
    for part in &mut *parts {
        let found = tables_of(part).await;
        tables.push(found.map_err(|source| failed(part, source))?);
    }
    let trail = tables.iter().position(|tables| tables.contains("trail"));
    let trail = trail.ok_or(FlowError::NoTrail)?;
    let mut collected = Collected::default();
    let mut notes = BTreeSet::new();
    let (mut ids, mut keys, mut shared) = (Vec::new(), Vec::new(), Vec::new());
    match &asked {
        Asked::Event(id) => ids.push(id.clone()),
        Asked::Key(key) => keys.push(key.clone()),
        Asked::Correlation(id) => {
            ids.push(id.clone());
            shared.push(id.clone());
        }
    }
    let mut now = OffsetDateTime::UNIX_EPOCH;
    let mut asked_for = BTreeSet::new();
    // The services know of events that the trail does not know yet, so both are asked again when there is news.
    for round in 0..4 {
        for _ in 0..bounds.depth.max(1) {
            let part = parts.get_mut(trail).ok_or(FlowError::NoTrail)?;
            let causes: Vec<String> = ids.clone();
            let found = of_trail(part, [&ids, &keys, &shared, &causes], bounds, &mut collected);
            now = found.await.map_err(|source| failed(part, source))?;
            keys.clear();
            let wanted = collected.ids().into_iter().chain(collected.correlations());
            let wanted = wanted.chain(collected.missing_causes());
            ids = wanted.filter(|id| asked_for.insert(id.clone())).collect();
            shared = collected.correlations();
            if ids.is_empty() || collected.truncated {
                break;
            }
        }
        let before = collected.len();
        for (part, tables) in parts.iter_mut().zip(&tables) {
            let mut service = Service { part, tables, bounds, notes: &mut notes };
            let waiting = service.waiting(&asked, &mut collected).await;
            waiting.map_err(|source| failed(part, source))?;
        }
        if collected.len() == before || collected.truncated || round == 3 {
            break;
        }
        ids = collected.ids().into_iter().chain(collected.missing_causes()).collect();
        shared = collected.correlations();
    }
    let part = parts.get_mut(trail).ok_or(FlowError::NoTrail)?;
    let usual = of_types(part, &collected.types()).await.map_err(|source| failed(part, source))?;
    for (part, tables) in parts.iter_mut().zip(&tables) {
        let mut service = Service { part, tables, bounds, notes: &mut notes };
        let handled = service.handled(&usual, &mut collected).await;
        handled.map_err(|source| failed(part, source))?;
    }
    let (events, truncated) = collected.finish(bounds.depth);
    Ok(Flow { asked, events, truncated, notes: notes.into_iter().collect(), now })
}

fn failed(part: &Part<'_>, source: sqlx::Error) -> FlowError {
    FlowError::Database { part: part.name.clone(), source }
}

async fn tables_of(part: &mut Part<'_>) -> Result<Tables, sqlx::Error> {
    // Not with to_regclass, which fails if the role lacks rights.
    let named = sqlx::query_scalar::<_, String>(
        "select relname::text from pg_catalog.pg_class where relkind in ('r', 'p') and relnamespace = \
         (select oid from pg_catalog.pg_namespace where nspname = $1) and relname::text not like 'trail\\_2%' limit 1000",
    )
    .bind(part.schema.as_str());
    Ok(limited(ANSWER, named.fetch_all(&mut *part.connection)).await?.into_iter().collect())
}

/// Adds what the trail has. `wanted`: event ids, keys, correlation ids, ids of causes.
async fn of_trail(
    part: &mut Part<'_>,
    [ids, keys, shared, causes]: [&Vec<String>; 4],
    bounds: Bounds,
    collected: &mut Collected,
) -> Result<OffsetDateTime, sqlx::Error> {
    let most = i64::try_from(bounds.events).unwrap_or(i64::MAX).saturating_add(1);
    let found = sqlx::query(part.schema.statement(include_str!("trail.sql")))
        .bind(ids)
        .bind(keys)
        .bind(shared)
        .bind(causes)
        .bind(most);
    let rows = limited(ANSWER, found.fetch_all(&mut *part.connection)).await?;
    for row in &rows {
        let id: String = row.try_get("event_id")?;
        let identity: Option<String> = row.try_get("identity")?;
        let identity = identity.unwrap_or_else(|| id.clone());
        let said = FlowEvent {
            event_type: row.try_get("event_type")?,
            source: row.try_get("source")?,
            topic: row.try_get("topic")?,
            key: row.try_get("key")?,
            correlation: row.try_get("correlation_id")?,
            causation: row.try_get("causation_id")?,
            written: row.try_get("event_time")?,
            ..FlowEvent::named(&id)
        };
        let stored = Stored {
            stream: row.try_get("stream")?,
            life: row.try_get("stream_life")?,
            sequence: row.try_get::<i64, _>("sequence")?.cast_unsigned(),
            at: row.try_get("stored_at")?,
            size: row.try_get::<i64, _>("size")?.cast_unsigned(),
        };
        collected.stored(&identity, bounds, said, stored);
    }
    clock(part.connection).await
}

async fn clock(connection: &mut PgConnection) -> Result<OffsetDateTime, sqlx::Error> {
    let asked = sqlx::query_scalar("select pg_catalog.clock_timestamp()");
    limited(ANSWER, asked.fetch_one(connection)).await
}

/// The identities of some events of each type that went through the streams lately.
async fn of_types(
    part: &mut Part<'_>,
    types: &[String],
) -> Result<Vec<(String, Vec<String>)>, sqlx::Error> {
    let mut usual = Vec::with_capacity(types.len());
    for name in types {
        let sql = part.schema.statement(
            "select coalesce(identity, event_id) from pillarbox.trail where event_type = $1 and event_id is not null \
             order by stored_at desc limit 200",
        );
        let found = sqlx::query_scalar::<_, String>(sql).bind(name);
        let found = limited(ANSWER, found.fetch_all(&mut *part.connection)).await?;
        usual.push((name.clone(), found));
    }
    Ok(usual)
}
