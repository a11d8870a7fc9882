//! What stands before every page: the headers of answers, the limit on how long an answer takes, who is let in, and
//! where a change may come from.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{FromRequestParts, Request, State as Shared};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use pillarbox_store::Operator;
use pillarbox_store::limit::within;

use crate::access::{Access, Role, Visitor, asks_loopback, peer};
use crate::state::State;
use crate::words::Query;

/// How long a page may take.
const PAGE: Duration = Duration::from_secs(20);

/// The cookie of a session.
pub(crate) const COOKIE: &str = "pillarbox_console";

/// Nothing is loaded from elsewhere, nothing runs but our own script, and no page can be framed.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; \
     form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// A visitor, and what binds the visitor's forms to the visitor.
#[derive(Clone, Debug)]
pub(crate) struct Admitted {
    pub(crate) visitor: Visitor,
    bound: String,
    /// Whether the visitor has logged in here, and can log out.
    pub(crate) has_session: bool,
}

impl Admitted {
    /// What the visitor's forms contain.
    pub(crate) fn form_token(&self, state: &State) -> String {
        state.form_token(&self.bound)
    }

    /// Whether a form comes from a page that this visitor was shown.
    pub(crate) fn is_own(&self, state: &State, form_token: &str) -> bool {
        state.is_form_token(&self.bound, form_token)
    }

    /// Who acts, for the record, and why.
    pub(crate) fn operator(&self, note: &str) -> Operator {
        Operator::new(&format!("{} (console)", self.visitor.name), Some(note.trim()))
    }

    pub(crate) fn may_change(&self) -> bool {
        self.visitor.role == Role::Operator
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Admitted {
    type Rejection = StatusCode;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, StatusCode> {
        parts.extensions.get::<Self>().cloned().ok_or(StatusCode::FORBIDDEN)
    }
}

/// Sets the headers of every answer, and limits how long it may take.
pub(crate) async fn protect(request: Request, next: Next) -> Response {
    let answer = within(PAGE, "the console", next.run(request)).await;
    let mut answer = answer.unwrap_or_else(|late| {
        (StatusCode::GATEWAY_TIMEOUT, format!("{late}: try again\n")).into_response()
    });
    let headers = answer.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("permissions-policy"), "interest-cohort=()"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    answer
}

/// Refuses a change that another site has caused.
pub(crate) async fn refuse_other_sites(request: Request, next: Next) -> Response {
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
    if changes && !is_from_here(request.headers()) {
        return (StatusCode::FORBIDDEN, "this request comes from another site\n").into_response();
    }
    next.run(request).await
}

/// Whether the browser says that the request comes from one of our own pages, or says nothing. The form's token decides
/// then.
fn is_from_here(headers: &HeaderMap) -> bool {
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    if let Some(site) = text(HeaderName::from_static("sec-fetch-site"))
        && site != "same-origin"
        && site != "none"
    {
        return false;
    }
    match (text(header::ORIGIN), text(header::HOST)) {
        (None, _) => true,
        (Some(origin), Some(host)) => {
            origin.split_once("://").is_some_and(|(_, from)| from.eq_ignore_ascii_case(host))
        }
        (Some(_), None) => false,
    }
}

/// Lets visitors in, or sends them to the login.
pub(crate) async fn admit(
    Shared(state): Shared<Arc<State>>,
    mut request: Request,
    next: Next,
) -> Response {
    let from = peer(request.extensions());
    let admitted = match &state.access {
        Access::Loopback => {
            let here = from.is_some_and(|address| address.is_loopback());
            let visitor = Visitor { name: "this machine".to_owned(), role: Role::Viewer };
            (here && asks_loopback(request.headers())).then_some((visitor, None))
        }
        Access::Tokens(_) => session_id(request.headers()).and_then(|id| {
            let visitor = state.sessions.visitor(id, Instant::now())?;
            Some((visitor, Some(id.to_owned())))
        }),
        Access::Proxy(proxy) => {
            proxy.visitor(from, request.headers()).map(|visitor| (visitor, None))
        }
        Access::Service => request.extensions().get::<Visitor>().cloned().map(|it| (it, None)),
    };
    match admitted {
        Some((visitor, session)) => {
            let has_session = session.is_some();
            let bound = session.unwrap_or_else(|| format!("visitor {}", visitor.name));
            request.extensions_mut().insert(Admitted { visitor, bound, has_session });
            next.run(request).await
        }
        None => refuse(&state, &request),
    }
}

fn refuse(state: &State, request: &Request) -> Response {
    match &state.access {
        Access::Tokens(_) if request.method() == Method::GET => {
            let to = request.uri().path_and_query().map_or("/", |to| to.as_str());
            // The live updates of a page whose session has ended.
            if request.uri().path() == "/live" {
                return (StatusCode::FORBIDDEN, "log in again\n").into_response();
            }
            let login = Query::default().with("next", to);
            Redirect::to(&format!("{}/login?{login}", state.base)).into_response()
        }
        Access::Tokens(_) => (StatusCode::FORBIDDEN, "log in again\n").into_response(),
        Access::Loopback => {
            let text = "this console has no accounts, so it only answers requests from its own machine to 127.0.0.1 or \
                        localhost: see docs/security.md for tokens and proxies\n";
            (StatusCode::FORBIDDEN, text).into_response()
        }
        Access::Proxy(_) => {
            let text = "the proxy must send the visitor's name and role, and connect from an address that the console \
                        trusts: see docs/security.md\n";
            (StatusCode::FORBIDDEN, text).into_response()
        }
        Access::Service => {
            (StatusCode::FORBIDDEN, "the service does not let you in\n").into_response()
        }
    }
}

/// The id of the session, from the cookie.
pub(crate) fn session_id(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).iter();
    cookies
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|cookie| cookie.trim().split_once('='))
        .find_map(|(name, value)| (name == COOKIE).then_some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_from_another_site_is_told_by_what_the_browser_says() {
        let asks = |lines: &[(&'static str, &str)]| {
            let lines = lines.iter().map(|(name, value)| {
                (HeaderName::from_static(name), value.parse::<HeaderValue>().unwrap())
            });
            is_from_here(&lines.collect())
        };
        let host = ("host", "127.0.0.1:9470");
        for fine in [
            &[host][..],
            &[host, ("origin", "http://127.0.0.1:9470"), ("sec-fetch-site", "same-origin")],
            &[("host", "ops.shop"), ("origin", "https://OPS.shop")],
        ] {
            assert!(asks(fine), "{fine:?}");
        }
        for wrong in [
            &[host, ("sec-fetch-site", "cross-site")][..],
            &[host, ("sec-fetch-site", "same-site")],
            &[host, ("origin", "http://evil.example")],
            &[host, ("origin", "http://127.0.0.1:9471")],
            &[host, ("origin", "null")],
            &[("origin", "http://127.0.0.1:9470")],
        ] {
            assert!(!asks(wrong), "{wrong:?}");
        }
    }
}
