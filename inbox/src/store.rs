//! The inbox's statements, for one consumer in one schema.
//!
//! They run on the service's own connections, and some of them in the transaction that a handler gets next. So the
//! `search_path` is the service's. It may name a schema that other roles may write to, and an operator that such a role
//! creates there would run with the service's rights. Setting another path around the inbox's statements would cost
//! round trips, and would affect the service's triggers. So each statement itself takes its operators, functions and
//! types from `pg_catalog`:
//!
//! - It writes `a operator(pg_catalog.=) b`. All operators in this form have the same precedence, from left to right,
//!   so brackets group them.
//! - It avoids `in (…)`, `nullif`, `is distinct from`, `between` and `like`, which look up `=` and the like by the
//!   path.
//! - Types that are keywords of the grammar (`bigint`, `integer`, `interval`, `double precision`) are always those of
//!   `pg_catalog`. Others (`text`, `jsonb`) are written with the schema.
//!
//! A test of `pillarbox-consumer`, `search_path`, reads every statement and sets traps for them.

mod begin_and_claim;
mod begun;
mod claims;
mod control;
mod dead_letters;
mod kept_connections;
mod lent;
mod letter;
mod outage;
pub(crate) mod session;
mod statements;
mod text;
mod unhandled;

#[cfg(feature = "http")]
pub(crate) use begun::BEGIN_TIMEOUT;
pub(crate) use begun::{Begun, Fate};
pub(crate) use claims::Claim;
pub use control::{Beat, BeatLag, PausedBy, Told};
pub use dead_letters::{Burial, LetterStored, ParkedAll, Taken, Unreadable};
pub(crate) use lent::LONGEST;
pub use lent::Lent;
pub use letter::{DeadLetter, WhichLetter};
pub use outage::ServerRun;
pub use statements::{Marked, Store};
pub use unhandled::Unhandled;
