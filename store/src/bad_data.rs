//! Errors that are the fault of what was read, not of the database.

/// Whether the database, or sqlx, stumbled over what it read. Anything else is not the fault of a row.
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
