//! Values in the text of a simple query.
//!
//! A simple query sends many statements in one round trip, but takes no parameters. Quoted values are safe only if the
//! session's `standard_conforming_strings` and `client_encoding` are known, and a handler may change both: with
//! `client_encoding = 'SJIS'`, the last byte of a UTF-8 character can take the backslash or the quote after it with it.
//! So values are not quoted. They are sent as hexadecimal digits, which mean the same under every setting.

use sqlx::{Connection, PgConnection};

/// Whether this connection has prepared statements in its cache. A connection without a cache
/// (`statement_cache_capacity(0)`) is meant for a pooler in transaction mode, where several clients share the names of
/// statements: it must not prepare any under a name. A connection that has prepared nothing yet looks the same.
pub fn keeps_statements(connection: &PgConnection) -> bool {
    connection.cached_statements_size() > 0
}

/// An expression of type text with this value.
pub fn hex_text(text: &str) -> String {
    let mut digits = String::with_capacity(2 * text.len() + 64);
    digits.push_str("pg_catalog.convert_from(");
    push_bytes(&mut digits, text.as_bytes());
    digits.push_str(", 'UTF8')");
    digits
}

/// An expression of type bytea with this value.
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
