//! The statements about one consumer's dead letters, for the consumer's service and for operators.
//!
//! They also run on a service's own connections, with its `search_path`, and so name `pg_catalog` themselves: the head of
//! the inbox's `store.rs` has the rules.

/// The unresolved letters of a consumer: $1 the consumer, $2 behind this position, $3 at most so many, $4 the stream, or
/// null for any.
pub const LIST: &str = "select * from pillarbox.inbox_dead_letter \
     where consumer operator(pg_catalog.=) $1 and position operator(pg_catalog.>) $2 \
     and state operator(pg_catalog.=) any ('{dead,parked}') \
     and ($4::pg_catalog.text is null or stream is null or stream operator(pg_catalog.=) $4) \
     order by position limit $3";

/// Those that an operator may mean.
pub const FIND: &str = include_str!("inbox_find.sql");

/// Parks a dead letter, for the consumer to handle: $1 the consumer, $2 the position, or null for all, $3 the stream, or
/// null for any. What never was an event stays as it is.
pub const RETRY: &str = "update pillarbox.inbox_dead_letter set state = 'parked' \
     where consumer operator(pg_catalog.=) $1 and ($2::bigint is null or position operator(pg_catalog.=) $2) \
     and ($3::pg_catalog.text is null or stream is null or stream operator(pg_catalog.=) $3) \
     and state operator(pg_catalog.=) 'dead' and event_type is not null";

/// Marks an unresolved letter as not to be handled: $1 the consumer, $2 the position.
pub const DISCARD: &str = "update pillarbox.inbox_dead_letter \
     set state = 'discarded', resolved_at = pg_catalog.clock_timestamp() \
     where consumer operator(pg_catalog.=) $1 and position operator(pg_catalog.=) $2 \
     and state operator(pg_catalog.=) any ('{dead,parked}')";
