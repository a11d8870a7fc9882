//! The fingerprint that tells whether two requests are the same.

use http::request::Parts;
use sha2::{Digest, Sha256};

use crate::http::multipart;

/// SHA-256 of method, path with query, and body, each with its length, so that moving text from one to the next changes
/// it. They are taken as they were sent: different white space in a JSON body, or a different order of the query, makes
/// a different request. Headers do not matter, except the [boundary](multipart::parts) of a multipart body. Clients
/// choose a new boundary for each attempt, so such a body is compared by its parts.
pub(crate) fn of_request(parts: &Parts, body: &[u8]) -> [u8; 32] {
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut all = vec![parts.method.as_str().as_bytes(), path.as_bytes()];
    let body_parts = multipart::boundary(&parts.headers)
        .and_then(|boundary| multipart::parts(body, boundary.as_bytes()))
        .filter(|parts| !parts.is_empty());
    match body_parts {
        Some(body_parts) => {
            all.push(b"multipart");
            all.extend(body_parts);
        }
        None => all.push(body),
    }
    digest(&all)
}

/// The advisory lock of a key: 64 bits of the SHA-256 of schema, scope and key. It is extremely
/// unlikely that two keys share a lock; one of them would then get a 409.
pub(crate) fn lock_of(schema: &str, scope: &str, key: &str) -> i64 {
    let parts = ["pillarbox.inbox_request", schema, scope, key];
    let [a, b, c, d, e, f, g, h, ..] = digest(&parts.map(str::as_bytes));
    i64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// SHA-256 in hexadecimal.
pub(crate) fn hex(data: &[u8]) -> String {
    in_hex(&Sha256::digest(data))
}

pub(crate) fn in_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
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
        assert_eq!(
            one,
            of("POST", "http://shop/orders?a=1", "tea"),
            "the host makes no difference"
        );
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

    #[test]
    fn a_multipart_body_is_its_parts_whatever_their_boundary() {
        let of = |boundary: &str, file: &str| {
            let body = format!("--{boundary}\r\n\r\n{file}\r\n--{boundary}--\r\n");
            let content_type = format!("multipart/form-data; boundary={boundary}");
            let request = http::Request::post("/upload").header("content-type", content_type);
            of_request(&request.body(()).unwrap().into_parts().0, body.as_bytes())
        };
        assert_eq!(of("one", "tea"), of("other", "tea"));
        assert_ne!(of("one", "tea"), of("one", "tee"));
    }
}
