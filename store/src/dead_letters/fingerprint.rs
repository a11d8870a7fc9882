//! What the errors of one kind have in common.
//!
//! A bad deploy leaves thousands of dead letters with a few kinds of errors, and each error names its own order, amount
//! and time. The fingerprint is the error without these, so that letters of one kind can be counted and retried
//! together:
//!
//! | in the error | in the fingerprint |
//! |---|---|
//! | a word with a digit: a number, a time, an id such as `order-17` or a UUID | `#` |
//! | a value in quotes, with the quotes | `#` |
//! | several of them in a list | `#` |
//! | white space, and line breaks | one space |
//!
//! A word with a digit goes as a whole, because the letters of an id change as well as its digits. So `HTTP 404` and
//! `HTTP 503` have one fingerprint. What must be told apart in spite of that has another reason, or another text.

use std::iter::Peekable;
use std::str::CharIndices;

/// How many characters of an error are looked at. Errors may quote a whole payload.
pub const READ_CHARS: usize = 4_000;

/// The longest fingerprint, in characters.
pub const MAX_CHARS: usize = 300;

/// Stands for what differs from letter to letter.
const VALUE: char = '#';

/// The fingerprint of an error: see the [module](self). It has no digits, and at most [`MAX_CHARS`] characters.
pub fn fingerprint(error: &str) -> String {
    let end = error.char_indices().nth(READ_CHARS).map(|(at, _)| at);
    let text = &error[..end.unwrap_or(error.len())];
    let mut found = Fingerprint::default();
    let mut chars = text.char_indices().peekable();
    let mut before = None;
    while let Some((at, c)) = chars.next() {
        if c.is_alphanumeric() {
            word(&mut chars);
            let end = chars.peek().map_or(text.len(), |&(end, _)| end);
            found.word(&text[at..end]);
        } else if let Some(close) =
            closing(c).filter(|_| !before.is_some_and(char::is_alphanumeric))
        {
            match quoted(&text[at + c.len_utf8()..], close) {
                Some(bytes) => {
                    found.value();
                    let behind = at + c.len_utf8() + bytes;
                    while chars.next_if(|&(at, _)| at < behind).is_some() {}
                }
                // The end of the value was cut off with the rest of the error.
                None if end.is_some() => {
                    found.value();
                    break;
                }
                None => found.text.push(c),
            }
        } else if c.is_whitespace() || c.is_control() {
            found.space();
        } else {
            found.text.push(c);
        }
        before = text[..chars.peek().map_or(text.len(), |&(at, _)| at)].chars().next_back();
    }
    found.text.trim().chars().take(MAX_CHARS).collect()
}

/// Passes the rest of a word. Signs between letters or digits belong to it, as in `2026-11-27T17:00:00.5`, `127.0.0.1`
/// and `1,234`.
fn word(chars: &mut Peekable<CharIndices<'_>>) {
    loop {
        while chars.next_if(|&(_, c)| c.is_alphanumeric() || c == '_' || c == '-').is_some() {}
        let mut ahead = chars.clone();
        let joins = ahead.next().is_some_and(|(_, c)| matches!(c, '.' | ':' | ','))
            && ahead.next().is_some_and(|(_, c)| c.is_numeric());
        if !joins {
            return;
        }
        chars.next();
    }
}

/// The quote that ends what this one begins.
fn closing(c: char) -> Option<char> {
    match c {
        '"' | '\'' | '`' => Some(c),
        '“' | '„' => Some('”'),
        '«' => Some('»'),
        _ => None,
    }
}

/// How many bytes the rest of a quoted value has, with its closing quote. A quote within a word is an apostrophe, and
/// one behind a backslash belongs to the value.
fn quoted(rest: &str, close: char) -> Option<usize> {
    let mut chars = rest.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if c == '\\' {
            chars.next();
        } else if c == close && !chars.peek().is_some_and(|(_, next)| next.is_alphanumeric()) {
            return Some(at + c.len_utf8());
        }
    }
    None
}

/// What is left of the error so far.
#[derive(Default)]
struct Fingerprint {
    text: String,
}

impl Fingerprint {
    fn word(&mut self, word: &str) {
        match word.contains(char::is_numeric) {
            true => self.value(),
            false => self.text.push_str(word),
        }
    }

    /// A value that differs from letter to letter. The second one of a list leaves no trace, nor does its sign.
    fn value(&mut self) {
        let before = self.text.trim_end_matches(['+', '-', ',', ' ', ';']);
        if before.ends_with(VALUE) {
            self.text.truncate(before.len());
            return;
        }
        if self.text.ends_with(['+', '-']) {
            self.text.pop();
        }
        self.text.push(VALUE);
    }

    fn space(&mut self) {
        if !self.text.ends_with(' ') {
            self.text.push(' ');
        }
    }
}
