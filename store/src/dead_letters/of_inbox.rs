//! The statements about one consumer's dead letters, for the consumer's service and for operators.
//!
//! They also run on a service's own connections, whose `search_path` may be anything. So they name `pg_catalog`
//! everywhere; the inbox's `store.rs` explains the rules.

/// Lists the unresolved letters of a consumer: $1 the consumer, $2 only after this position, $3 at most this many, $4
/// the stream, or null for any.
pub const LIST: &str = "select * from pillarbox.inbox_dead_letter \
     where consumer operator(pg_catalog.=) $1 and position operator(pg_catalog.>) $2 \
     and state operator(pg_catalog.=) any ('{dead,parked}') \
     and ($4::pg_catalog.text is null or stream is null or stream operator(pg_catalog.=) $4) \
     order by position limit $3";

/// Finds letters by an id or a position.
pub const FIND: &str = include_str!("inbox_find.sql");

/// Parks a dead letter, so that the consumer handles it: $1 the consumer, $2 the position, or null for all, $3 the
/// stream, or null for any. A message that is no event stays as it is.
pub const RETRY: &str = "update pillarbox.inbox_dead_letter set state = 'parked' \
     where consumer operator(pg_catalog.=) $1 and ($2::bigint is null or position operator(pg_catalog.=) $2) \
     and ($3::pg_catalog.text is null or stream is null or stream operator(pg_catalog.=) $3) \
     and state operator(pg_catalog.=) 'dead' and event_type is not null";

/// Discards an unresolved letter: $1 the consumer, $2 the position.
pub const DISCARD: &str = "update pillarbox.inbox_dead_letter \
     set state = 'discarded', resolved_at = pg_catalog.clock_timestamp() \
     where consumer operator(pg_catalog.=) $1 and position operator(pg_catalog.=) $2 \
     and state operator(pg_catalog.=) any ('{dead,parked}')";

/// Parks dead letters of any consumer: $1 their positions. Messages that are no events stay as they are.
pub const RETRY_MANY: &str = "update pillarbox.inbox_dead_letter set state = 'parked' \
     where position operator(pg_catalog.=) any ($1) and state operator(pg_catalog.=) 'dead' \
     and event_type is not null returning position";

/// Discards unresolved letters of any consumer: $1 their positions.
pub const DISCARD_MANY: &str = "update pillarbox.inbox_dead_letter \
     set state = 'discarded', resolved_at = pg_catalog.clock_timestamp() \
     where position operator(pg_catalog.=) any ($1) \
     and state operator(pg_catalog.=) any ('{dead,parked}') returning position";

/// Makes discarded letters of any consumer dead again: $1 their positions.
pub const RESTORE_MANY: &str = "update pillarbox.inbox_dead_letter \
     set state = 'dead', resolved_at = null \
     where position operator(pg_catalog.=) any ($1) and state operator(pg_catalog.=) 'discarded' returning position";
