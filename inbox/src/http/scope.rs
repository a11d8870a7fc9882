//! To whom a key belongs.
//!
//! A key is unique for its client, not for the world. Under the same scope, the same key is the same request,
//! and whoever sends it again reads the stored answer: two tenants must never share a scope. The scope is
//! stored as it is, so it should be a name and not a credential. A good one is the principal that the service's
//! own authentication has found (a layer outside of this one puts it into the request's extensions), with the
//! route in front where routes that look alike from inside (`/v1/orders` and `/v2/orders`, both nested) are to
//! have keys of their own.

use http::header::AUTHORIZATION;
use http::request::Parts;

use crate::http::fingerprint;

/// Longer scopes are kept as their digest.
const MAX_SCOPE_BYTES: usize = 255;

/// One scope for everybody: for a service with one client, or whose clients may read each other's answers.
pub fn everybody(_: &Parts) -> Option<String> {
    Some(String::new())
}

/// The digest of the `Authorization` header; no scope without one. For credentials that stay the same: a
/// client that repeats a request with a renewed token is somebody else, and its request runs again.
pub fn authorization(request: &Parts) -> Option<String> {
    let value = request.headers.get(AUTHORIZATION)?;
    Some(format!("authorization:{}", fingerprint::hex(value.as_bytes())))
}

/// As it is stored: of bounded length, and without NUL, which Postgres text does not hold.
pub(crate) fn storable(scope: String) -> String {
    if scope.len() <= MAX_SCOPE_BYTES && !scope.contains('\0') {
        return scope;
    }
    format!("sha256:{}", fingerprint::hex(scope.as_bytes()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_not_stored_as_it_is() {
        let request = |token: &str| {
            let request = http::Request::builder().header("authorization", token).body(()).unwrap();
            authorization(&request.into_parts().0).unwrap()
        };
        assert_eq!(request("Bearer one"), request("Bearer one"));
        assert_ne!(request("Bearer one"), request("Bearer two"));
        assert!(!request("Bearer one").contains("one"));
        let (without, ()) = http::Request::new(()).into_parts();
        assert_eq!(authorization(&without), None);
    }

    #[test]
    fn a_scope_is_bounded() {
        assert_eq!(storable("tenant".into()), "tenant");
        let (one, other) = (storable("x".repeat(10_000)), storable("x".repeat(10_001)));
        assert!(one.len() < 100 && one != other);
        assert!(!storable("a\0b".into()).contains('\0'));
    }
}
