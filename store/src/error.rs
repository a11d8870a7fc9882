//! An error's text, for logs and for tables.

/// At most this many sources of an error are read. An error of a service may be its own source.
const DEEPEST: usize = 64;

/// An error with all its sources, on one line. Sources whose text is already part of it are left out.
pub fn full_text(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let sources = std::iter::successors(error.source(), |error| std::error::Error::source(*error));
    for error in sources.take(DEEPEST) {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
    }
    text
}
