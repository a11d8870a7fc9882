//! The trail's tables, which are made only where a trail is wanted.
//!
//! The migrations are plain SQL. They are recorded in `<schema>.trail_migration`, a table of their own.

use pillarbox_store::SchemaError;

pillarbox_store::migrations!("trail_migration", [1 "0001_trail.sql"], SchemaError);
