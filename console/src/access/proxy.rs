//! A proxy that has found out who the visitor is.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderName};

use super::{Role, Visitor};

/// A trusted proxy, and the headers in which it says who the visitor is and what the visitor may do.
///
/// The proxy must remove these headers from what its own clients send. Everybody who can connect from one of the
/// proxy's addresses is trusted as the proxy is.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// The addresses that the proxy connects from.
    pub from: Vec<IpAddr>,
    /// The header with the visitor's name, for example `x-forwarded-user`.
    pub user_header: HeaderName,
    /// The header with the visitor's role, `viewer` or `operator`, for example `x-pillarbox-role`.
    pub role_header: HeaderName,
}

impl Proxy {
    /// Whom the proxy lets in. `None`: the request does not come from the proxy, or lacks a header, has it twice, or
    /// has a value that means nothing.
    pub(crate) fn visitor(&self, peer: Option<IpAddr>, headers: &HeaderMap) -> Option<Visitor> {
        if !self.from.iter().any(|from| Some(from.to_canonical()) == peer) {
            return None;
        }
        let one = |name: &HeaderName| {
            let mut values = headers.get_all(name).iter();
            let value = values.next()?.to_str().ok()?.trim();
            (values.next().is_none() && !value.is_empty()).then_some(value)
        };
        let name = one(&self.user_header).filter(|name| name.len() <= 256)?.to_owned();
        let role = Role::named(one(&self.role_header)?)?;
        Some(Visitor { name, role })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_proxy_says_who_it_is_and_only_in_full() {
        let proxy = Proxy {
            from: vec!["10.0.0.1".parse().unwrap()],
            user_header: HeaderName::from_static("x-user"),
            role_header: HeaderName::from_static("x-role"),
        };
        let ask = |peer: &str, lines: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(*name, value.parse().unwrap());
            }
            let peer = peer.parse::<IpAddr>().unwrap().to_canonical();
            proxy.visitor(Some(peer), &headers).map(|visitor| (visitor.name, visitor.role))
        };
        let anna = [("x-user", "anna"), ("x-role", "operator")];
        assert_eq!(ask("10.0.0.1", &anna), Some(("anna".into(), Role::Operator)));
        assert_eq!(ask("::ffff:10.0.0.1", &anna), Some(("anna".into(), Role::Operator)));
        assert_eq!(ask("10.0.0.2", &anna), None);
        for wrong in [
            &[("x-user", "anna")][..],
            &[("x-role", "operator")],
            &[("x-user", ""), ("x-role", "operator")],
            &[("x-user", "anna"), ("x-role", "Operator")],
            &[("x-user", "anna"), ("x-role", "operator, viewer")],
            &[("x-user", "anna"), ("x-role", "viewer"), ("x-role", "operator")],
            &[("x-user", "anna"), ("x-user", "ben"), ("x-role", "viewer")],
        ] {
            assert_eq!(ask("10.0.0.1", wrong), None, "{wrong:?}");
        }
    }
}
