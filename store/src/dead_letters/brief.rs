//! The useful part of an error, for one line of a list.

/// The least that is left of an error's end. Less than this is a value rather than a cause.
const LEAST: usize = 20;

/// The useful part of an error, on one line of at most `width` characters.
///
/// An error with its sources reads `outermost: …: cause`. If all of it is too long, the end is the useful part: as many
/// of the innermost sources as there is room for. If not even the cause has room, this is the beginning. `…` stands for
/// what is left out.
pub fn brief(error: &str, width: usize) -> String {
    let line: Vec<&str> = error.split_whitespace().collect();
    let line = line.join(" ");
    let chars = line.chars().count();
    if chars <= width {
        return line;
    }
    let sources = line.match_indices(": ").filter(|(at, _)| {
        // A colon behind a quote or a bracket belongs to a value, such as a piece of JSON.
        line[..*at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == ')')
    });
    for (at, colon) in sources {
        let rest = &line[at + colon.len()..];
        let length = rest.chars().count();
        if length + 2 <= width && length >= LEAST {
            return format!("… {rest}");
        }
    }
    let beginning: String = line.chars().take(width.saturating_sub(1)).collect();
    format!("{}…", beginning.trim_end())
}
