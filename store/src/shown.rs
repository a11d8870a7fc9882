//! What may be shown of a text that comes from others, on a terminal or on a page; and lengths of time for people.
//!
//! Names, errors, headers and payloads come from others. A control character in them could move a terminal's cursor or
//! change colours. A character that reverses the direction of text could make a line look like a different one. A line
//! separator could split one line in two. A character that shows nothing could make two names look the same.

use std::fmt::Write;

/// The text on one line. Every character that affects the terminal or the layout is shown by its number, as `<U+001B>`.
pub fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match acts(c) {
            true => drop(write!(shown, "<U+{:04X}>", u32::from(c))),
            false => shown.push(c),
        }
    }
    shown
}

/// Harmless JSON, or lines of JSON, with the same meaning. Characters that affect the terminal can only occur within
/// strings, and are escaped there. JSON itself requires that only for characters below U+0020.
pub fn harmless_json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for c in json.chars() {
        if !acts(c) || matches!(c, '\n' | '\t') {
            shown.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(shown, "\\u{unit:04x}");
        }
    }
    shown
}

/// A length of time for people, from seconds, for example `90 s`, `15 min`, `3 h` or `2 d`. Each unit is used up to two
/// of the next one.
pub fn age(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7_200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3_600.0),
        s => format!("{:.0} d", s / 86_400.0),
    }
}

/// Whether this character affects the terminal or the layout of the text instead of showing something.
pub fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c,
            // Soft hyphen, Arabic letter mark, Mongolian vowel separator.
            '\u{ad}' | '\u{61c}' | '\u{180e}'
            // Zero-width characters and direction marks; line and paragraph separators; embeddings and overrides.
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            // Joiners, isolates, deprecated formatting.
            | '\u{2060}'..='\u{206f}'
            // Byte order mark, interlinear annotations, musical beams, tags.
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_of_time_has_one_unit() {
        let shown = [0.4, 119.0, 120.0, 7_199.0, 7_200.0, 172_799.0, 172_800.0].map(age);
        assert_eq!(shown, ["0 s", "119 s", "2 min", "120 min", "2 h", "48 h", "2 d"]);
    }

    #[test]
    fn characters_that_act_are_shown_by_their_number() {
        for (text, shown) in [
            ("Müller, 東京 ✓ 👍", "Müller, 東京 ✓ 👍"),
            ("a\u{1b}[2Jb", "a<U+001B>[2Jb"),
            ("a\u{9b}2Jb", "a<U+009B>2Jb"),
            ("a\nb\tc\r\u{7f}", "a<U+000A>b<U+0009>c<U+000D><U+007F>"),
            ("\u{202e}gpj\u{2066}x", "<U+202E>gpj<U+2066>x"),
            ("a\u{2028}b\u{2029}c\u{85}", "a<U+2028>b<U+2029>c<U+0085>"),
            ("\u{e0041}\u{feff}", "<U+E0041><U+FEFF>"),
        ] {
            assert_eq!(harmless(text), shown);
        }
    }

    #[test]
    fn json_means_the_same() {
        let value = serde_json::json!({ "a\u{9b}": "x\u{1b}\u{202e}\u{2028}\u{e0041}\n\u{7f}ü" });
        for json in [value.to_string(), format!("{value:#}")] {
            let shown = harmless_json(&json);
            assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
            assert!(shown.chars().all(|c| c == '\n' || !acts(c)), "{shown:?}");
        }
    }
}
