//! The one escape of everything that a page shows.
//!
//! `askama.toml` puts it between each template and each value, so no page can forget it. Names, errors, headers and
//! payloads come from others: their markup is text, and a character that acts instead of showing something is shown by
//! its number, as on a terminal.

use std::fmt::{Result, Write};

use askama::filters::Escaper;
use pillarbox_store::shown::acts;

/// Writes text into HTML, between tags or into an attribute in quotes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Shown;

impl Escaper for Shown {
    fn write_escaped_str<W: Write>(&self, mut page: W, text: &str) -> Result {
        for c in text.chars() {
            match c {
                '&' => page.write_str("&amp;")?,
                '<' => page.write_str("&lt;")?,
                '>' => page.write_str("&gt;")?,
                '"' => page.write_str("&quot;")?,
                '\'' => page.write_str("&#39;")?,
                c if acts(c) => write!(page, "&lt;U+{:04X}&gt;", u32::from(c))?,
                c => page.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_is_text_and_characters_that_act_are_shown_by_their_number() {
        for (text, page) in [
            ("<script>alert('x')</script>", "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"),
            ("\" onfocus=\"x", "&quot; onfocus=&quot;x"),
            ("a&lt;b", "a&amp;lt;b"),
            ("\u{202e}gpj.\u{2066}exe", "&lt;U+202E&gt;gpj.&lt;U+2066&gt;exe"),
            ("a\u{0}\nb\u{200b}", "a&lt;U+0000&gt;&lt;U+000A&gt;b&lt;U+200B&gt;"),
            ("東京 ✓ Müller", "東京 ✓ Müller"),
        ] {
            let mut shown = String::new();
            Shown.write_escaped_str(&mut shown, text).unwrap();
            assert_eq!(shown, page);
        }
    }
}
