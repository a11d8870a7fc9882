//! What the outbox and the inbox share in Postgres.
//!
//! Services do not use this crate by itself: `pillarbox-outbox` and `pillarbox-inbox` offer what they need of it.
//!
//! | module | concept |
//! |---|---|
//! | [`schema`] | the schema that the tables live in, and its name in statements |
//! | [`backoff`] | how long to wait before the next try |
//! | [`bad_data`] | errors that are the fault of what was read |
//! | [`dead_letters`] | what was given up, on either side: the states, and an operator's view |
//! | [`error`] | an error with its sources, for logs and tables |
//! | [`limit`] | how long an answer is waited for |
//! | [`literal`] | values in the text of a simple query |
//! | [`migrations`] | creating and updating the tables |
//! | [`row_security`] | tables whose rows a policy may hide |

pub mod backoff;
pub mod bad_data;
pub mod dead_letters;
pub mod error;
pub mod limit;
pub mod literal;
pub mod migrations;
pub mod row_security;
pub mod schema;

pub use backoff::Backoff;
pub use error::full_text;
pub use migrations::{Migrated, Migrations};
pub use row_security::HiddenRows;
pub use schema::{Schema, SchemaError};
