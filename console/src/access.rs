//! Who may see the pages, and who may change something.
//!
//! | access | who gets in | who may change something |
//! |---|---|---|
//! | [`Access::Loopback`] | whoever asks from this machine, by its loopback address | nobody |
//! | [`Access::Tokens`] | who logs in with a token of the file | the tokens of operators |
//! | [`Access::Proxy`] | whom a trusted proxy lets in | whom it calls an operator |
//! | [`Access::Service`] | whom the service's own layer lets in | whom that layer calls an operator |

mod attempts;
mod proxy;
mod sessions;
mod tokens;

use std::net::{IpAddr, SocketAddr};

use axum::extract::ConnectInfo;
use axum::http::{Extensions, HeaderMap, header};

pub(crate) use attempts::Attempts;
pub use proxy::Proxy;
pub(crate) use sessions::{LASTS, Sessions, hex};
pub use tokens::{Tokens, TokensError};

/// What a visitor may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// May look.
    Viewer,
    /// May look and change something.
    Operator,
}

impl Role {
    /// The role of this name, exactly.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "viewer" => Some(Self::Viewer),
            "operator" => Some(Self::Operator),
            _ => None,
        }
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
        }
    }
}

/// Somebody who was let in. With [`Access::Service`], the service puts it into the request's extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visitor {
    /// The name under which changes are recorded.
    pub name: String,
    /// What the visitor may do.
    pub role: Role,
}

/// How visitors are let in.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Access {
    /// Everybody on this machine may look, and nobody may change anything. Requests from elsewhere, or to another name
    /// than the loopback address's, are refused.
    Loopback,
    /// By a token of the file.
    Tokens(Tokens),
    /// By the headers of a proxy that is trusted.
    Proxy(Proxy),
    /// By a layer of the service that mounts the console: it puts a [`Visitor`] into the request's extensions. A
    /// request without one is refused.
    Service,
}

/// The address that a request came from. `None`: the service does not tell, so nobody is trusted.
pub(crate) fn peer(extensions: &Extensions) -> Option<IpAddr> {
    let ConnectInfo(address) = extensions.get::<ConnectInfo<SocketAddr>>()?;
    Some(address.ip().to_canonical())
}

/// Whether the request was sent to this machine's loopback address by name. A page of another site cannot do that, not
/// even with a name of its own that leads here.
pub(crate) fn asks_loopback(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else {
        return false;
    };
    let port = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let name = match host.rsplit_once(':') {
        Some((name, end)) if port(end) => name,
        _ => host,
    };
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machines_own_names_are_loopback() {
        let asks = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            asks_loopback(&headers)
        };
        for fine in ["localhost:8080", "LOCALHOST", "127.0.0.1:1", "127.0.0.1", "[::1]:80", "[::1]"]
        {
            assert!(asks(fine), "{fine}");
        }
        for wrong in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.nip.io:8080",
            "10.0.0.1",
            "",
            "localhost:x",
            "0.0.0.0:8080",
        ] {
            assert!(!asks(wrong), "{wrong}");
        }
        assert!(!asks_loopback(&HeaderMap::new()));
    }
}
