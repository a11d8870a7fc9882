//! Topics are NATS subjects. They are checked when an event is built, not only when it is shipped.

use crate::error::{EventError, excerpt};

/// The longest topic, in bytes.
pub const MAX_BYTES: usize = 255;

/// Checks that a topic can be published to.
///
/// # Errors
/// [`EventError::Topic`] for an empty topic or word, white space, control characters, the wildcards `*`
/// and `>`, a leading `$` (the server's own subjects), or more than 255 bytes.
pub fn validate(topic: &str) -> Result<(), EventError> {
    let problem = if topic.is_empty() {
        "it is empty"
    } else if topic.len() > MAX_BYTES {
        "it is longer than 255 bytes"
    } else if topic.chars().any(|c| c.is_whitespace() || c.is_control()) {
        "it holds white space or a control character"
    } else if topic.contains(['*', '>']) {
        "it holds a wildcard"
    } else if topic.starts_with('$') {
        "subjects that start with \"$\" belong to the server"
    } else if topic.split('.').any(str::is_empty) {
        "it has an empty word"
    } else {
        return Ok(());
    };
    Err(EventError::Topic { topic: excerpt(topic), problem })
}

/// Whether a pattern takes every subject that another pattern takes, or this one subject. Words are separated by dots;
/// `*` takes any one word, and `>` takes the rest, at least one word.
pub fn covers(pattern: &str, other: &str) -> bool {
    let (mut pattern, mut other) = (pattern.split('.'), other.split('.'));
    loop {
        match (pattern.next(), other.next()) {
            (None, None) => return true,
            (Some(">"), Some(_)) => return true,
            (Some("*"), Some(word)) if word != ">" => {}
            (Some(a), Some(b)) if a == b => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_covers_another_if_it_takes_all_that_the_other_does() {
        for (pattern, other, all) in [
            (">", "orders.>", true),
            ("orders.>", "orders.>", true),
            ("orders.>", "orders.placed", true),
            ("orders.*", "orders.placed", true),
            ("orders.*", "orders.*", true),
            ("orders.*", "orders.>", false),
            ("orders.placed", "orders.*", false),
            ("orders.placed", "orders.>", false),
            ("orders.>", "orders", false),
            ("orders.>", ">", false),
            ("orders.*", "orders.placed.eu", false),
        ] {
            assert_eq!(covers(pattern, other), all, "{pattern} {other}");
        }
    }

    #[test]
    fn ordinary_subjects_are_topics() {
        for topic in ["orders", "orders.placed", "shop-1.orders_v2.placed", "größe.neu"] {
            validate(topic).unwrap();
        }
    }

    #[test]
    fn what_cannot_be_published_to_is_refused_with_its_reason() {
        for (topic, problem) in [
            ("", "it is empty"),
            (".orders", "it has an empty word"),
            ("orders.", "it has an empty word"),
            ("orders..placed", "it has an empty word"),
            ("orders placed", "it holds white space or a control character"),
            ("orders\r\nPUB", "it holds white space or a control character"),
            ("orders.*", "it holds a wildcard"),
            ("orders.>", "it holds a wildcard"),
            ("$JS.API.STREAM.DELETE.X", "subjects that start with \"$\" belong to the server"),
        ] {
            let error = validate(topic).unwrap_err();
            assert!(
                matches!(&error, EventError::Topic { problem: p, .. } if *p == problem),
                "{topic:?}: {error}"
            );
        }
        assert!(validate(&"x".repeat(256)).is_err());
    }
}
