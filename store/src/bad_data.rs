//! Errors that are the fault of data, not of the database.

/// Whether the database, or sqlx, failed over a row that it read: the row is damaged, or cannot be put into UTF-8, or
/// is too large. Other rows can still be read.
pub fn is_of_data(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            // Data exceptions, limits of the program, and damaged or missing pieces.
            ["22", "54", "XX"].iter().any(|class| code.starts_with(class))
        }),
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => true,
        _ => false,
    }
}

/// Whether the database refuses values that a statement writes, for good: its encoding has no such characters, they are
/// too long for an index, or they break a constraint.
pub fn is_refused_value(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Encode(_) => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            // Data exceptions, broken constraints, and limits of the program.
            ["22", "23", "54"].iter().any(|class| code.starts_with(class))
        }),
        _ => false,
    }
}
