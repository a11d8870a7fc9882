//! The parts of a multipart body, RFC 2046.

use http::HeaderMap;
use http::header::CONTENT_TYPE;

/// The boundary of a multipart body. `None`: the headers are not those of a multipart body.
pub(crate) fn boundary(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let (media_type, mut rest) = value.split_once(';')?;
    if !media_type.trim().get(..10)?.eq_ignore_ascii_case("multipart/") {
        return None;
    }
    loop {
        let (name, behind) = rest.split_once('=')?;
        let (value, behind) = parameter(behind.trim_start())?;
        if name.trim_matches([' ', '\t', ';']).eq_ignore_ascii_case("boundary") {
            return (1..=70).contains(&value.len()).then_some(value);
        }
        rest = behind;
    }
}

/// The value that a text begins with, and the text after it.
fn parameter(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(';').unwrap_or(text.len());
        return Some((text[..end].trim_end().to_owned(), &text[end..]));
    };
    let (mut value, mut chars) = (String::new(), quoted.chars());
    loop {
        match chars.next()? {
            '"' => return Some((value, chars.as_str())),
            '\\' => value.push(chars.next()?),
            char => value.push(char),
        }
    }
}

/// The parts of a body, each with its headers. `None`: the body is not well-formed, and is compared as it is.
///
/// Text before the first delimiter and after the last one is not part of the content, and is ignored.
pub(crate) fn parts<'a>(body: &'a [u8], boundary: &[u8]) -> Option<Vec<&'a [u8]>> {
    let delimiter = [b"--", boundary].concat();
    let mut parts = Vec::new();
    // Where the current part begins. `None` before the first part.
    let mut begin = None;
    let mut from = 0;
    loop {
        let at = from + find(&body[from..], &delimiter)?;
        from = at + 1;
        // A delimiter is at the beginning of a line.
        let line = match at {
            0 => 0,
            _ if body[..at].ends_with(b"\r\n") => at - 2,
            _ => continue,
        };
        let behind = &body[at + delimiter.len()..];
        let closes = behind.starts_with(b"--");
        let padding = behind.iter().skip(if closes { 2 } else { 0 });
        let padding = padding.take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        let end = at + delimiter.len() + padding + if closes { 2 } else { 0 };
        let line_ends = body[end..].starts_with(b"\r\n") || (closes && end == body.len());
        if !line_ends {
            // It is a line of the content that begins like a delimiter, and is longer.
            continue;
        }
        if let Some(begin) = begin {
            parts.push(body.get(begin..line).unwrap_or_default());
        }
        if closes {
            return Some(parts);
        }
        begin = Some(end + 2);
        // The line break after this delimiter may also be the one before the next delimiter.
        from = end;
    }
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn boundary_of(content_type: &str) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, content_type.parse().unwrap());
        boundary(&headers)
    }

    #[test]
    fn a_boundary_is_found_among_the_parameters_of_a_multipart_type() {
        for (content_type, expected) in [
            ("multipart/form-data; boundary=abc", Some("abc")),
            ("Multipart/Mixed;Boundary=\"a b\"", Some("a b")),
            ("multipart/related; type=\"a;boundary=x\"; boundary=abc ; start=1", Some("abc")),
            ("multipart/form-data", None),
            ("multipart/form-data; boundary=", None),
            ("multipart/form-data; boundary=\"abc", None),
            ("application/json; boundary=abc", None),
            ("text", None),
        ] {
            assert_eq!(boundary_of(content_type).as_deref(), expected, "{content_type}");
        }
    }

    #[test]
    fn a_body_that_is_not_well_formed_has_no_parts() {
        for body in ["", "--b", "--b\r\nx", "--b\r\nx\r\n--b", "x--b--", "--bc\r\nx\r\n--bc--"] {
            assert_eq!(parts(body.as_bytes(), b"b"), None, "{body:?}");
        }
        let found = parts(b"before\r\n--b \r\nx\r\n--bc\r\n\r\n--b\r\n\r\n--b--\r\nbehind", b"b");
        assert_eq!(found, Some(vec![&b"x\r\n--bc\r\n"[..], b""]));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_was_put_together_comes_apart_the_same(
            content in vec(vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'-'), Just(b'b'), any::<u8>()], 0..30), 0..5)
        ) {
            let boundary = b"=boundary=";
            let mut body = Vec::new();
            for part in &content {
                body.extend([b"--", &boundary[..], b"\r\n", part, b"\r\n"].concat());
            }
            body.extend([b"--", &boundary[..], b"--"].concat());
            let expected: Vec<&[u8]> = content.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(parts(&body, boundary), Some(expected));
        }

        #[test]
        fn any_bytes_have_parts_or_none(body in vec(any::<u8>(), 0..60), header in "[ -~]{0,40}") {
            parts(&body, b"b");
            boundary_of(&header);
            boundary_of(&format!("multipart/{header}"));
        }
    }
}
