//! Traps for statements that look names up in a schema that others may write to.
//!
//! Suppose that a role may create objects in a schema of another role's `search_path`. It can put an operator, a
//! function, a type or a view there, with a name that the other role's statements use. These statements then run it
//! with the other role's rights. A test lays traps in such a schema, runs the statements, and then checks whether a
//! trap has sprung.

/// SQL that lays traps in this schema, which must exist: operators, functions, aggregates, views and types with the
/// names that `pg_catalog` has.
///
/// They have the signatures that `pg_catalog` has, and others that match a call better. A trap that runs draws from the
/// sequence `sprung` of that schema, which a rollback does not undo, and raises a warning with its name. The name of
/// the schema must need no quotes.
pub fn sql(schema: &str) -> String {
    include_str!("traps.sql").replace("trapped", schema)
}
