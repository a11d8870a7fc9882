//! The inbox's statements, for one consumer in one schema.
//!
//! They run on the service's own connections, and some of them in the transaction that a handler gets next. So the
//! `search_path` is the service's, and it may name a schema that other roles may write to: an operator that such a role
//! puts there would run with the service's rights. Setting another path around the inbox's statements would cost round
//! trips, and would reach the service's triggers. So each statement itself says that its operators, functions and types
//! are those of `pg_catalog`:
//!
//! - `a operator(pg_catalog.=) b`. Operators that are written so all bind alike, from left to right, whatever their
//!   name; so brackets say what belongs together.
//! - no `in (…)`, `nullif`, `is distinct from`, `between`, `like`: they look `=` and the like up by the path.
//! - types that are words of the grammar (`bigint`, `integer`, `interval`, `double precision`) are always those of
//!   `pg_catalog`; others (`text`, `jsonb`) are written with it.
//!
//! `tests/search_path/` reads every statement, and lays traps for them.

mod begin_and_claim;
mod begun;
mod claims;
mod dead_letters;
mod kept_connections;
mod lent;
mod letter;
mod outage;
pub(crate) mod session;
mod statements;
mod text;

#[cfg(feature = "http")]
pub(crate) use begun::BEGIN_TIMEOUT;
pub(crate) use begun::{Begun, Fate};
pub(crate) use claims::Claim;
pub use dead_letters::{Burial, ParkedAll, Stored, Taken, Unreadable};
pub(crate) use lent::LONGEST;
pub use lent::Lent;
pub use letter::{DeadLetter, WhichLetter};
pub use outage::ServerRun;
pub use statements::{Marked, Store};
