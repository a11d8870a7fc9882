//! Texts as they are sent, and as they are kept.

use std::borrow::Cow;

/// How much of an error's text is kept.
const MAX_ERROR_CHARS: usize = 8_000;

/// The text of a statement that is sent unprepared, and so each time.
pub(super) fn without_comments(sql: &str) -> String {
    sql.lines().filter(|line| !line.starts_with("--")).collect::<Vec<_>>().join("\n")
}

/// Postgres text holds no NUL.
pub(super) fn without_nul(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// A text that every encoding of a database has: other characters as `\u{…}`.
pub(super) fn in_ascii(text: &str) -> Cow<'_, str> {
    if text.is_ascii() {
        return text.into();
    }
    let escaped = text.chars().map(|char| match char {
        char if char.is_ascii() => char.to_string(),
        char => char.escape_unicode().to_string(),
    });
    escaped.collect::<String>().into()
}

/// An error's text as it is kept: without NUL, and not without end.
pub(super) fn storable(error: &str) -> String {
    without_nul(&error.chars().take(MAX_ERROR_CHARS).collect::<String>())
}
