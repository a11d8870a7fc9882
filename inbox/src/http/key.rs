//! Reading the `Idempotency-Key` header.

use http::HeaderMap;

/// The longest key, in bytes.
pub(crate) const MAX_KEY_BYTES: usize = 255;

const NAME: &str = "idempotency-key";

/// Why a header is not a valid key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    #[error("there is more than one Idempotency-Key header: send one")]
    Several,
    #[error("the key is empty: send a new random value, such as a UUID")]
    Empty,
    #[error("the key is longer than {MAX_KEY_BYTES} bytes: send a shorter one, such as a UUID")]
    Long,
    #[error(
        "the key is neither printable ASCII in quotes nor a single word without quotes: send it in quotes"
    )]
    Form,
}

/// The key of a request. `None`: it has no such header.
///
/// The draft requires a structured-field string (RFC 9651) in quotes: `"8e03978e-40d5"`. Most clients send the word
/// without quotes. Both are accepted, and mean the same key. Parameters after the string are ignored.
pub fn key_of(headers: &HeaderMap) -> Result<Option<String>, BadKey> {
    let mut values = headers.get_all(NAME).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(BadKey::Several);
    }
    let value = value.to_str().map_err(|_| BadKey::Form)?.trim_matches([' ', '\t']);
    let key = match value.strip_prefix('"') {
        Some(rest) => quoted(rest)?,
        None => bare(value)?,
    };
    match key.len() {
        0 => Err(BadKey::Empty),
        1..=MAX_KEY_BYTES => Ok(Some(key)),
        _ => Err(BadKey::Long),
    }
}

/// The key in the text after an opening quote.
fn quoted(text: &str) -> Result<String, BadKey> {
    let mut key = String::new();
    let mut chars = text.chars();
    loop {
        match chars.next() {
            Some('"') => break,
            Some('\\') => match chars.next() {
                Some(escaped @ ('"' | '\\')) => key.push(escaped),
                _ => return Err(BadKey::Form),
            },
            Some(plain @ ' '..='~') => key.push(plain),
            _ => return Err(BadKey::Form),
        }
    }
    let parameters = chars.as_str();
    if parameters.is_empty() || parameters.starts_with(';') { Ok(key) } else { Err(BadKey::Form) }
}

/// A key without quotes. A comma is refused, because a proxy puts one between two headers that it joins.
fn bare(text: &str) -> Result<String, BadKey> {
    let word = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b',');
    if word { Ok(text.to_owned()) } else { Err(BadKey::Form) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http::HeaderValue;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn read(values: &[&str]) -> Result<Option<String>, BadKey> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(NAME, value.parse().unwrap());
        }
        key_of(&headers)
    }

    #[test]
    fn a_quoted_string_and_a_bare_word_are_the_same_key() {
        for value in
            ["8e03978e-40d5", "\"8e03978e-40d5\"", " \"8e03978e-40d5\" ", "\"8e03978e-40d5\";v=1"]
        {
            assert_eq!(read(&[value]), Ok(Some("8e03978e-40d5".into())), "{value}");
        }
        assert_eq!(read(&[]), Ok(None));
    }

    #[test]
    fn quotes_and_backslashes_are_escaped_in_a_string() {
        assert_eq!(read(&[r#""a \"b\" \\ c""#]), Ok(Some(r#"a "b" \ c"#.into())));
        for value in [r#""a\b""#, r#""a\"#, r#""a"#, r#""a"b"#, r#"""b""#, r#"a"b""#] {
            assert_eq!(read(&[value]), Err(BadKey::Form), "{value}");
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        assert_eq!(read(&["a", "a"]), Err(BadKey::Several));
        for value in ["a, a", "\"a\", \"a\"", "a b", "\"a\tb\"", "caf\u{e9}"] {
            assert_eq!(read(&[value]), Err(BadKey::Form), "{value}");
        }
        for value in ["", "\"\"", "  "] {
            assert_eq!(read(&[value]), Err(BadKey::Empty), "{value:?}");
        }
        assert!(read(&["k".repeat(255).as_str()]).is_ok());
        assert_eq!(read(&["k".repeat(256).as_str()]), Err(BadKey::Long));
    }

    fn in_quotes(key: &str) -> String {
        format!("\"{}\"", key.replace('\\', r"\\").replace('"', r#"\""#))
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_printable_text_is_a_key_in_quotes(key in "[ -~]{1,255}") {
            prop_assert_eq!(read(&[&in_quotes(&key)]), Ok(Some(key)));
        }

        #[test]
        fn any_bytes_are_a_key_or_refused(
            values in vec(prop_oneof![vec(any::<u8>(), 0..20), "[ \"\\\\;=a,]{0,12}".prop_map(String::into_bytes)], 0..3)
        ) {
            let mut headers = HeaderMap::new();
            for value in values {
                if let Ok(value) = HeaderValue::from_bytes(&value) {
                    headers.append(NAME, value);
                }
            }
            if let Ok(Some(key)) = key_of(&headers) {
                prop_assert!((1..=MAX_KEY_BYTES).contains(&key.len()));
                prop_assert!(key.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
                // The same key, however it is written.
                prop_assert_eq!(read(&[&in_quotes(&key)]), Ok(Some(key)));
            }
        }
    }
}
