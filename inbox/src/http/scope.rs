//! Whom a key belongs to.
//!
//! A key is unique only for its client. In one scope, the same key means the same request, and whoever sends it again
//! reads the stored answer. So two tenants must never share a scope. The scope is stored as it is, so it should be a
//! name, not a credential. A good scope is the principal that the service's own authentication has found; a layer
//! outside of this one puts it into the request's extensions. Add the route in front of it if routes that look the same
//! from inside (`/v1/orders` and `/v2/orders`, both nested) must have keys of their own.

use hmac::{Hmac, KeyInit, Mac};
use http::header::AUTHORIZATION;
use http::request::Parts;
use sha2::Sha256;

use crate::http::fingerprint;

/// The longest scope that is stored as it is, in bytes. Instead of a longer one, its digest is stored.
const MAX_SCOPE_BYTES: usize = 255;

/// One scope for everybody. For a service with one client, or whose clients may read each other's answers.
pub fn everybody(_: &Parts) -> Option<String> {
    Some(String::new())
}

/// The SHA-256 of the `Authorization` header. A request without one has no scope. It is for credentials that stay the
/// same: a client that repeats a request with a renewed token counts as another one, and its request runs again.
///
/// The digest uses no secret, because several processes and later versions of a service must find the same scope. So
/// this is only for random tokens: somebody who can read the table can test passwords against the digest. `Basic`
/// credentials have no scope here, and their requests are answered with 403; use [`keyed_authorization`] for them.
pub fn authorization(request: &Parts) -> Option<String> {
    let value = request.headers.get(AUTHORIZATION)?.as_bytes();
    let is_basic = value.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"basic"));
    (!is_basic).then(|| format!("authorization:{}", fingerprint::hex(value)))
}

/// The HMAC-SHA-256 of the `Authorization` header under a secret of the service. A request without the header has no
/// scope. This is also for passwords: somebody who can read the table but does not have the secret learns nothing about
/// the credentials.
///
/// The secret must be the same in all processes of the service, and must not change: under another secret, every key is
/// new. It should have at least 16 random bytes.
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
        // HMAC accepts a key of any length.
        let mut keyed = keyed.as_ref().ok()?.clone();
        keyed.update(value.as_bytes());
        Some(format!("authorization-keyed:{}", fingerprint::in_hex(&keyed.finalize().into_bytes())))
    }
}

/// The scope as it is stored: of limited length, and without NUL, which Postgres cannot store in a text.
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
