//! What the outbox and the inbox share in Postgres.
//!
//! Services do not use this crate directly. `pillarbox-outbox` and `pillarbox-inbox` export what services need of it.
//!
//! | module | concept |
//! |---|---|
//! | [`schema`] | the schema that the tables are in, and its name in statements |
//! | [`actions`] | what operators have done: recording it and listing it |
//! | [`backoff`] | how long to wait before the next try |
//! | [`bad_data`] | errors that are the fault of data |
//! | [`consumers`] | what operators do with consumers: see them, pause them, limit them, remove them |
//! | [`dead_letters`] | events that were given up, on either side: their states, and what operators do with them |
//! | [`duration`] | durations in settings |
//! | [`error`] | an error with its sources, for logs and tables |
//! | [`grants`] | the minimum rights that each part needs in the database |
//! | [`limit`] | how long to wait for an answer |
//! | [`literal`] | values in the text of a simple query |
//! | [`metric`] | what a metric is, and how a crate declares its metrics |
//! | [`migrations`](mod@migrations) | creating and updating the tables |
//! | [`retention`] | removing old rows in the background |
//! | [`row_security`] | tables whose rows a policy may hide |
//! | [`scheduled`] | what an operator sees and does of scheduled events |
//! | [`shown`] | what may be shown of a text that comes from others |
//! | [`tx`] | the transaction of a handler |

pub mod actions;
pub mod backoff;
pub mod bad_data;
pub mod consumers;
pub mod dead_letters;
pub mod duration;
pub mod error;
pub mod grants;
pub mod limit;
pub mod literal;
pub mod metric;
pub mod migrations;
pub mod retention;
pub mod row_security;
pub mod scheduled;
pub mod schema;
pub mod shown;
pub mod tx;

pub use actions::Operator;
pub use backoff::Backoff;
pub use error::full_text;
pub use migrations::{Migrated, Migrations};
pub use row_security::HiddenRows;
pub use schema::{Schema, SchemaError};
pub use tx::{InTransaction, Savepoint, Tx};
