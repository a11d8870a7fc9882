//! The question before one thing is changed: what it is, what becomes of it, and why.

use askama::Template;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;

use super::{Frame, given, html};
use crate::words::Query;

/// What the form answers.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Answer {
    pub(super) form_token: String,
    pub(super) note: String,
    /// Whether the choice of the question is taken.
    pub(super) choice: String,
}

impl Answer {
    /// Why nothing can be done yet.
    pub(super) fn lacks_note(&self) -> Option<String> {
        given(&self.note).is_none().then(|| "Say why: this needs a note.".to_owned())
    }
}

/// A question. What is to be changed stands in the URL, so that no form changes it.
#[derive(Template)]
#[template(path = "question.html")]
pub(super) struct Question {
    pub(super) frame: Frame,
    pub(super) about: Vec<(&'static str, String)>,
    pub(super) becomes: &'static str,
    /// The path of the form, and what it is about.
    pub(super) path: &'static str,
    pub(super) which: Query,
    pub(super) choice: Option<&'static str>,
    pub(super) button: &'static str,
    /// Where the link leads that does nothing.
    pub(super) back: &'static str,
    pub(super) refusal: Option<String>,
}

impl Question {
    pub(super) fn asked(self) -> Response {
        let status = match self.refusal {
            Some(_) => StatusCode::UNPROCESSABLE_ENTITY,
            None => StatusCode::OK,
        };
        html(status, &self)
    }
}
