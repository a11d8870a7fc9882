//! The schema that the tables live in.
//!
//! The name is put into statements without quotes, so that migrations stay plain SQL in which one word is replaced.
//! That is safe because only names that mean the same with and without quotes are accepted.

use std::sync::Arc;

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

/// The default schema.
pub const DEFAULT: &str = "pillarbox";

/// A schema's name that needs no quotes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Schema(String);

/// A schema's name that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("schema {name:?} is refused: {problem}")]
pub struct SchemaError {
    /// The refused name, cut off after 80 characters.
    pub name: String,
    /// What is wrong with the name, and what it must be.
    pub problem: &'static str,
}

impl Default for Schema {
    fn default() -> Self {
        Self(DEFAULT.to_owned())
    }
}

impl Schema {
    /// Checks a name.
    ///
    /// # Errors
    /// [`SchemaError`] unless the name is a lower-case word of at most 63 bytes. It must not be a reserved word of SQL,
    /// and must not begin with `pg_`, because Postgres keeps such names for itself.
    pub fn parse(name: &str) -> Result<Self, SchemaError> {
        let fail = |problem| Err(SchemaError { name: name.chars().take(80).collect(), problem });
        let mut bytes = name.bytes();
        let word = name.len() <= 63
            && bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_')
            && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if !word {
            return fail(
                "a schema must be a lower-case word, [a-z_][a-z0-9_]*, of at most 63 bytes",
            );
        }
        if name.starts_with("pg_") || name == "information_schema" {
            return fail("Postgres keeps this name for itself; choose another");
        }
        if RESERVED.contains(&name) {
            return fail("this is a reserved word of SQL; choose another name");
        }
        Ok(Self(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The statement for this schema. In `sql`, the tables are named in schema `pillarbox`.
    pub fn statement(&self, sql: &str) -> SqlStr {
        in_schema(sql, &self.0)
    }
}

/// The statement for this schema. In `sql`, the tables are named in schema `pillarbox`. The caller must have checked
/// the name with [`Schema::parse`]. The rest of the text must not come from outside either.
pub fn in_schema(sql: &str, schema: &str) -> SqlStr {
    let sql = sql.replace("pillarbox.", &format!("{schema}."));
    AssertSqlSafe(Arc::<str>::from(sql)).into_sql_str()
}

/// The words that need quotes as the name of a schema: those in the categories R and T of `pg_get_keywords()` in
/// Postgres 13 to 18.
#[rustfmt::skip]
const RESERVED: &[&str] = &[
    "all", "analyse", "analyze", "and", "any", "array", "as", "asc", "asymmetric", "authorization", "binary",
    "both", "case", "cast", "check", "collate", "collation", "column", "concurrently", "constraint", "create",
    "cross", "current_catalog", "current_date", "current_role", "current_schema", "current_time",
    "current_timestamp", "current_user", "default", "deferrable", "desc", "distinct", "do", "else", "end", "except",
    "false", "fetch", "for", "foreign", "freeze", "from", "full", "grant", "group", "having", "ilike", "in",
    "initially", "inner", "intersect", "into", "is", "isnull", "join", "lateral", "leading", "left", "like", "limit",
    "localtime", "localtimestamp", "natural", "not", "notnull", "null", "offset", "on", "only", "or", "order",
    "outer", "overlaps", "placing", "primary", "references", "returning", "right", "select", "session_user",
    "similar", "some", "symmetric", "system_user", "table", "tablesample", "then", "to", "trailing", "true", "union",
    "unique", "user", "using", "variadic", "verbose", "when", "where", "window", "with",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_needs_quotes_is_refused() {
        for name in ["pillarbox", "_a", "shop_events2", "public", "orders", &"x".repeat(63)] {
            assert_eq!(Schema::parse(name).unwrap().as_str(), name);
        }
        for name in ["", "Shop", "a b", "a;drop", "1a", "a\"b", "é", &"x".repeat(64)] {
            assert!(
                Schema::parse(name).unwrap_err().problem.contains("lower-case word"),
                "{name:?}"
            );
        }
        for (name, said) in [
            ("pg_x", "for itself"),
            ("information_schema", "for itself"),
            ("order", "reserved"),
            ("user", "reserved"),
        ] {
            assert!(Schema::parse(name).unwrap_err().problem.contains(said), "{name:?}");
        }
    }
}
