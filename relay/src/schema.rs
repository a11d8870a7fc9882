//! The schema that the tables live in.

/// The statement for another schema: the word `pillarbox` in front of a dot is the schema's name, and only
/// that. The name has been checked to be a plain identifier by [`crate::RelayConfig::validate`].
pub(crate) fn in_schema(sql: &str, schema: &str) -> String {
    sql.replace("pillarbox.", &format!("{schema}."))
}
