//! Values in the text of a simple query.
//!
//! A simple query takes no parameters, and is used where many statements go in one round trip. Quoting is right only
//! as long as one knows the session's `standard_conforming_strings` and `client_encoding`, and a handler may set both:
//! with `client_encoding = 'SJIS'` the last byte of a UTF-8 character swallows the backslash or the quote behind it.
//! So nothing is quoted. A text travels as hexadecimal digits, which mean the same under every setting.

/// An expression of type text.
pub fn hex_text(text: &str) -> String {
    let mut digits = String::with_capacity(2 * text.len() + 64);
    digits.push_str("pg_catalog.convert_from(");
    push_bytes(&mut digits, text.as_bytes());
    digits.push_str(", 'UTF8')");
    digits
}

/// An expression of type bytea.
pub fn hex_bytes(bytes: &[u8]) -> String {
    let mut digits = String::with_capacity(2 * bytes.len() + 40);
    push_bytes(&mut digits, bytes);
    digits
}

fn push_bytes(to: &mut String, bytes: &[u8]) {
    to.push_str("pg_catalog.decode('");
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            to.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
        }
    }
    to.push_str("', 'hex')");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_digits_whatever_is_in_it() {
        assert_eq!(
            hex_text("o'\\é$"),
            "pg_catalog.convert_from(pg_catalog.decode('6f275cc3a924', 'hex'), 'UTF8')"
        );
        assert!(hex_text("").contains("decode('', 'hex')"));
    }
}
