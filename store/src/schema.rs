//! The schema that the tables live in.
//!
//! The name goes into statements as it is, without quotes, so that migrations stay plain SQL in which one word is
//! replaced. That is safe because only names are accepted that mean the same with quotes and without.

/// The schema where no other is named.
pub const DEFAULT: &str = "pillarbox";

/// A name that Postgres takes for a schema without quotes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Schema(String);

/// A name that cannot be the schema's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("schema {name:?} is refused: {problem}")]
pub struct SchemaError {
    /// The refused name, cut off after 80 characters.
    pub name: String,
    /// What is wrong with it, and what it must be.
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
    /// [`SchemaError`] unless it is a lower-case word of at most 63 bytes that Postgres neither reserves as a
    /// word of SQL nor, by the beginning `pg_`, for itself.
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

    /// A statement whose tables are named in schema `pillarbox`, for this schema.
    pub fn statement(&self, sql: &str) -> String {
        sql.replace("pillarbox.", &format!("{}.", self.0))
    }
}

/// The words that Postgres does not take for the name of a schema without quotes: those of `pg_get_keywords()` in
/// the categories R and T, of the versions 13 to 18.
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
