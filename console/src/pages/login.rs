//! Logging in with a token, and out.

use std::sync::Arc;
use std::time::Instant;

use askama::Template;
use axum::Form;
use axum::extract::{FromRequestParts, Query as Asked, State as Shared};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use serde::Deserialize;

use super::html;
use crate::access::{Access, LASTS, asks_loopback, peer};
use crate::guard::{Admitted, COOKIE, session_id};
use crate::state::State;

#[derive(Template)]
#[template(path = "login.html")]
struct Login {
    base: String,
    next: String,
    refused: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Next {
    next: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Given {
    token: String,
    next: String,
}

/// The address that a request came from.
pub(crate) struct Peer(Option<std::net::IpAddr>);

impl<S: Send + Sync> FromRequestParts<S> for Peer {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Self(peer(&parts.extensions)))
    }
}

pub(crate) async fn page(
    Shared(state): Shared<Arc<State>>,
    Asked(Next { next }): Asked<Next>,
) -> Response {
    match state.access {
        Access::Tokens(_) => show(&state, StatusCode::OK, next, ""),
        _ => Redirect::to(&format!("{}/", state.base)).into_response(),
    }
}

fn show(state: &State, status: StatusCode, next: String, refused: &str) -> Response {
    let page = Login { base: state.base.clone(), next, refused: refused.to_owned() };
    html(status, &page)
}

pub(crate) async fn log_in(
    Shared(state): Shared<Arc<State>>,
    Peer(from): Peer,
    headers: HeaderMap,
    Form(Given { token, next }): Form<Given>,
) -> Response {
    let Access::Tokens(tokens) = &state.access else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if let Some(wait) = state.attempts.begin(from, Instant::now()) {
        let seconds = wait.as_secs() + 1;
        let refused = format!("Too many wrong tokens from your address. Try again in {seconds} s.");
        let mut answer = show(&state, StatusCode::TOO_MANY_REQUESTS, next, &refused);
        answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        return answer;
    }
    let Some(visitor) = tokens.visitor(token.trim()) else {
        tracing::warn!(from = ?from, "console: a login with a wrong token was refused");
        return show(&state, StatusCode::UNAUTHORIZED, next, "This token is not known.");
    };
    state.attempts.succeeded(from);
    tracing::info!(visitor = visitor.name, role = visitor.role.as_str(), "console: logged in");
    let id = state.sessions.begin(visitor.clone(), Instant::now());
    // Elsewhere than on this machine, the cookie is only sent over TLS.
    let secure = if asks_loopback(&headers) { "" } else { "; Secure" };
    with_cookie(&state, local(&next), &format!("{id}; Max-Age={}{secure}", LASTS.as_secs()))
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Leave {
    form_token: String,
}

pub(crate) async fn log_out(
    Shared(state): Shared<Arc<State>>,
    admitted: Admitted,
    headers: HeaderMap,
    Form(Leave { form_token }): Form<Leave>,
) -> Response {
    if !admitted.is_own(&state, &form_token) {
        return (StatusCode::FORBIDDEN, "reload the page and try again\n").into_response();
    }
    if let Some(id) = session_id(&headers) {
        state.sessions.end(id);
    }
    with_cookie(&state, "/login", "; Max-Age=0")
}

fn with_cookie(state: &State, to: &str, value: &str) -> Response {
    let to = if to == "/" && !state.base.is_empty() { "" } else { to };
    let mut answer = Redirect::to(&format!("{}{to}", state.base)).into_response();
    let path = if state.base.is_empty() { "/" } else { &state.base };
    let cookie = format!("{COOKIE}={value}; Path={path}; HttpOnly; SameSite=Strict");
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        answer.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    answer
}

/// A path of this console, whatever the link said.
fn local(next: &str) -> &str {
    let plain = next.bytes().all(|b| b.is_ascii_graphic() && b != b'\\');
    if plain && next.starts_with('/') && !next.starts_with("//") { next } else { "/" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_leads_to_a_page_of_this_console_only() {
        assert_eq!(local("/dead-letters?place=shop"), "/dead-letters?place=shop");
        for wrong in [
            "",
            "https://evil.example",
            "//evil.example",
            "/\\evil.example",
            "/a\r\nb",
            "javascript:x",
        ] {
            assert_eq!(local(wrong), "/", "{wrong}");
        }
    }
}
