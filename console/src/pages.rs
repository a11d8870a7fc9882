//! A file for each page.

pub(crate) mod actions;
pub(crate) mod assets;
pub(crate) mod cancel_scheduled;
pub(crate) mod change;
pub(crate) mod consumer;
pub(crate) mod consumers;
pub(crate) mod doctor;
pub(crate) mod edit;
pub(crate) mod end_saga;
pub(crate) mod flows;
pub(crate) mod job;
pub(crate) mod letter;
pub(crate) mod letter_groups;
pub(crate) mod letter_list;
pub(crate) mod live;
pub(crate) mod login;
pub(crate) mod outboxes;
pub(crate) mod overview;
mod question;
pub(crate) mod retries;
pub(crate) mod runbook;
pub(crate) mod saga;
pub(crate) mod sagas;
pub(crate) mod scheduled;

use std::sync::Arc;

use askama::Template;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};

use crate::guard::Admitted;
use crate::place::Unanswered;
use crate::state::State;

/// The most rows that a list shows.
const ROWS: i64 = 100;

/// What surrounds every page: who looks, and where the links lead.
pub(crate) struct Frame {
    /// The path of the console.
    pub(crate) base: String,
    /// The entry of the menu that is marked.
    pub(crate) current: &'static str,
    pub(crate) title: String,
    pub(crate) visitor: String,
    pub(crate) role: &'static str,
    pub(crate) has_session: bool,
    pub(crate) may_change: bool,
    pub(crate) form_token: String,
    /// Whether the page is updated while it is open.
    pub(crate) live: bool,
    /// The names of the places, for filters.
    pub(crate) places: Vec<String>,
}

/// The menu: paths and names.
const MENU: [(&str, &str); 10] = [
    ("/", "Overview"),
    ("/outboxes", "Outboxes"),
    ("/consumers", "Consumers"),
    ("/retries", "Retries"),
    ("/dead-letters", "Dead letters"),
    ("/flows", "Flows"),
    ("/sagas", "Sagas"),
    ("/scheduled", "Scheduled"),
    ("/doctor", "Doctor"),
    ("/actions", "Actions"),
];

impl Frame {
    fn new(
        state: &State,
        admitted: &Admitted,
        current: &'static str,
        title: impl Into<String>,
    ) -> Self {
        Self {
            base: state.base.clone(),
            current,
            title: title.into(),
            visitor: admitted.visitor.name.clone(),
            role: admitted.visitor.role.as_str(),
            has_session: admitted.has_session,
            may_change: admitted.may_change(),
            form_token: admitted.form_token(state),
            live: false,
            places: state.places.iter().map(|place| place.name().to_owned()).collect(),
        }
    }

    /// The same, updated while it is open.
    fn live(self) -> Self {
        Self { live: true, ..self }
    }

    /// Where a link to this page of the console leads.
    fn to(&self, path: &str) -> String {
        match path {
            "/" if !self.base.is_empty() => self.base.clone(),
            path => format!("{}{path}", self.base),
        }
    }

    fn menu(&self) -> &'static [(&'static str, &'static str)] {
        &MENU
    }
}

/// A page, or the error that it could not be made.
fn html(status: StatusCode, page: &impl Template) -> Response {
    match page.render() {
        Ok(page) => (status, Html(page)).into_response(),
        Err(error) => {
            tracing::error!(%error, "a page could not be made");
            (StatusCode::INTERNAL_SERVER_ERROR, "the page could not be made\n").into_response()
        }
    }
}

/// A page that says that there is nothing, or why something was not done.
#[derive(Template)]
#[template(path = "said.html")]
struct Said {
    frame: Frame,
    text: String,
    remedy: String,
}

/// A page with one sentence, and what to do.
fn said(
    state: &State,
    admitted: &Admitted,
    status: StatusCode,
    title: &str,
    text: impl Into<String>,
    remedy: impl Into<String>,
) -> Response {
    let frame = Frame::new(state, admitted, "", title);
    html(status, &Said { frame, text: text.into(), remedy: remedy.into() })
}

/// A page that says what could not be read or changed, and what to do.
fn unanswered(state: &State, admitted: &Admitted, title: &str, why: Unanswered) -> Response {
    said(state, admitted, StatusCode::SERVICE_UNAVAILABLE, title, why.why, why.remedy)
}

/// There is no such page.
pub(crate) async fn not_found(Shared(state): Shared<Arc<State>>, admitted: Admitted) -> Response {
    let remedy = "Begin at the overview.";
    said(&state, &admitted, StatusCode::NOT_FOUND, "Not found", "There is no such page.", remedy)
}

/// What a form or a link did not say is empty.
fn given(text: &str) -> Option<String> {
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}
