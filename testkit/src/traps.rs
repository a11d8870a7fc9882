//! Traps for statements that look a name up in a schema that others may write to.
//!
//! A role that may create something in a schema of another role's `search_path` can put an operator, a function, a type or
//! a view there under a name that the other one's statements use. Whatever of it runs, runs with the other's rights. A
//! test lays traps in such a schema, has the statements run, and then asks whether one has sprung.

/// SQL that lays traps in this schema, which must exist: operators, functions, aggregates, views and types under the names
/// that `pg_catalog` has.
///
/// They fit in the signatures that `pg_catalog` has, and in others that fit better. Whatever of it runs draws from the
/// sequence `sprung` of that schema, which a rollback does not undo, and raises a warning with its name. The name of
/// the schema must be a plain one, which needs no quotes.
pub fn sql(schema: &str) -> String {
    include_str!("traps.sql").replace("trapped", schema)
}
