//! To whom a key belongs.
//!
//! A key is unique for its client, not for the world. Under the same scope, the same key is the same request,
//! and whoever sends it again reads the stored answer: two tenants must never share a scope. The scope is
//! stored as it is, so it should be a name and not a credential. A good one is the principal that the service's
//! own authentication has found (a layer outside of this one puts it into the request's extensions), with the
//! route in front where routes that look alike from inside (`/v1/orders` and `/v2/orders`, both nested) are to
//! have keys of their own.

use hmac::{Hmac, KeyInit, Mac};
use http::header::AUTHORIZATION;
use http::request::Parts;
use sha2::Sha256;

use crate::http::fingerprint;

/// Longer scopes are kept as their digest.
const MAX_SCOPE_BYTES: usize = 255;

/// One scope for everybody: for a service with one client, or whose clients may read each other's answers.
pub fn everybody(_: &Parts) -> Option<String> {
    Some(String::new())
}

/// The SHA-256 of the `Authorization` header; no scope without one. For credentials that stay the same: a
/// client that repeats a request with a renewed token is somebody else, and its request runs again.
///
/// There is no secret in it, because several processes and later versions of a service must find the same scope. So
/// it is only for random tokens: who reads the table can try out passwords against the digest. `Basic` credentials
/// have no scope here, and their requests are answered with 403: use [`keyed_authorization`] for them.
pub fn authorization(request: &Parts) -> Option<String> {
    let value = request.headers.get(AUTHORIZATION)?.as_bytes();
    let is_basic = value.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"basic"));
    (!is_basic).then(|| format!("authorization:{}", fingerprint::hex(value)))
}

/// The HMAC-SHA-256 of the `Authorization` header under a secret of the service; no scope without one. Good for
/// passwords too: who reads the table, and does not have the secret, learns nothing of the credentials.
///
/// The secret is the same in all processes of the service, and stays: under another one every key is new. At least 16
/// random bytes are wanted.
///
/// ```no_run
/// # use pillarbox_inbox::http::{IdempotencyLayer, scope};
/// # fn example(pool: sqlx::PgPool, secret: Vec<u8>) -> IdempotencyLayer {
/// IdempotencyLayer::new(pool, scope::keyed_authorization(secret))
/// # }
/// ```
pub fn keyed_authorization(
    secret: impl AsRef<[u8]>,
) -> impl Fn(&Parts) -> Option<String> + Send + Sync + 'static {
    let keyed = Hmac::<Sha256>::new_from_slice(secret.as_ref());
    move |request| {
        let value = request.headers.get(AUTHORIZATION)?;
        // HMAC takes a key of any length.
        let mut keyed = keyed.as_ref().ok()?.clone();
        keyed.update(value.as_bytes());
        Some(format!("authorization-keyed:{}", fingerprint::in_hex(&keyed.finalize().into_bytes())))
    }
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
    fn a_password_is_kept_under_the_secret_of_the_service_only() {
        let request = |header: &str| {
            let request = http::Request::builder().header("authorization", header);
            request.body(()).unwrap().into_parts().0
        };
        let (one, other) = (keyed_authorization("secret"), keyed_authorization("other"));
        for header in ["Basic YTpi", "Bearer one"] {
            assert_eq!(one(&request(header)), keyed_authorization("secret")(&request(header)));
            assert_ne!(one(&request(header)), other(&request(header)));
        }
        assert_ne!(one(&request("Basic YTpi")), one(&request("Basic YTpj")));
        let (without, ()) = http::Request::new(()).into_parts();
        assert_eq!(one(&without), None);
        for password in ["Basic YTpi", "basic YTpi"] {
            assert_eq!(authorization(&request(password)), None, "anybody could try it out");
        }
        // RFC 4231, test case 2.
        let known = keyed_authorization("Jefe")(&request("what do ya want for nothing?")).unwrap();
        assert!(
            known.ends_with("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843")
        );
    }

    #[test]
    fn a_scope_is_bounded() {
        assert_eq!(storable("tenant".into()), "tenant");
        let (one, other) = (storable("x".repeat(10_000)), storable("x".repeat(10_001)));
        assert!(one.len() < 100 && one != other);
        assert!(!storable("a\0b".into()).contains('\0'));
    }
}
