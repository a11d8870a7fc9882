//! Prepares texts for sending and for storing.

use std::borrow::Cow;

/// At most this much of an error's text is stored, in bytes.
const MAX_ERROR_CHARS: usize = 8_000;

/// The statement without comments. For statements that are not prepared, whose text is sent each time.
pub(super) fn without_comments(sql: &str) -> String {
    sql.lines().filter(|line| !line.starts_with("--")).collect::<Vec<_>>().join("\n")
}

/// The text without NUL, which Postgres cannot store in a text.
pub(super) fn without_nul(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// The text in ASCII, which every database encoding has. Other characters become `\u{…}`.
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

/// An error's text as it is stored: without NUL, and cut off at the limit.
pub(super) fn storable(error: &str) -> String {
    without_nul(&error.chars().take(MAX_ERROR_CHARS).collect::<String>())
}
