//! What makes two requests the same.

use http::request::Parts;
use sha2::{Digest, Sha256};

/// SHA-256 of method, path with query, and body. Each with its length, so that what moves from one into the
/// next makes a difference.
pub(crate) fn of_request(parts: &Parts, body: &[u8]) -> [u8; 32] {
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    digest(&[parts.method.as_str().as_bytes(), path.as_bytes(), body])
}

/// The advisory lock of a key: 64 bits of the SHA-256 of all that it belongs to. That two keys share a lock is
/// next to impossible, and would cost one of them a 409.
pub(crate) fn lock_of(schema: &str, scope: &str, key: &str) -> i64 {
    let parts = ["pillarbox.inbox_request", schema, scope, key];
    let [a, b, c, d, e, f, g, h, ..] = digest(&parts.map(str::as_bytes));
    i64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// SHA-256 in hexadecimal.
pub(crate) fn hex(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn of(method: &str, path: &str, body: &str) -> [u8; 32] {
        let request = http::Request::builder().method(method).uri(path).body(()).unwrap();
        of_request(&request.into_parts().0, body.as_bytes())
    }

    #[test]
    fn method_path_query_and_body_each_make_a_difference() {
        let one = of("POST", "/orders?a=1", "tea");
        assert_eq!(one, of("POST", "http://shop/orders?a=1", "tea"), "the host is none of them");
        for other in [
            of("PATCH", "/orders?a=1", "tea"),
            of("POST", "/order?a=1", "tea"),
            of("POST", "/orders?a=2", "tea"),
            of("POST", "/orders?a=1", "tee"),
            of("POST", "/orders?a=1t", "ea"),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn a_lock_is_of_one_schema_scope_and_key() {
        let one = lock_of("pillarbox", "a", "bc");
        assert_eq!(one, lock_of("pillarbox", "a", "bc"));
        assert_ne!(one, lock_of("pillarbox", "ab", "c"));
        assert_ne!(one, lock_of("other", "a", "bc"));
    }
}
