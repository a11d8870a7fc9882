//! How far a job is, and the button that stops it.

use std::sync::Arc;

use askama::Template;
use axum::Form;
use axum::extract::{Query as Asked, State as Shared};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use serde::Deserialize;

use super::change::refused;
use super::{Frame, html, said};
use crate::guard::Admitted;
use crate::jobs::{End, Verb};
use crate::state::State;
use crate::words::{Moment, counted, number};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Which {
    id: String,
    form_token: String,
}

#[derive(Template)]
#[template(path = "job.html")]
struct Page {
    frame: Frame,
    id: String,
    place: String,
    who: String,
    note: String,
    began: Moment,
    running: bool,
    state: &'static str,
    failure: Option<(String, &'static str)>,
    looked_at: usize,
    matched: usize,
    looking: bool,
    changed: String,
    refused: usize,
    refusal: String,
    outcome: Vec<String>,
}

pub(crate) async fn page(
    Shared(state): Shared<Arc<State>>,
    admitted: Admitted,
    Asked(which): Asked<Which>,
) -> Response {
    let Some(job) = state.jobs.get(&which.id) else {
        let text = "This job is not known any more.";
        let remedy = "The page of actions has what was done.";
        return said(&state, &admitted, StatusCode::NOT_FOUND, "Job", text, remedy);
    };
    let progress = job.progress();
    let title = match job.order.verb {
        Verb::Retry => "Retry of dead letters",
        Verb::Discard => "Discarding dead letters",
        Verb::Restore => "Restoring discarded letters",
    };
    let outcome = job.outcome(&state.places).await.map(|outcome| {
        let mut said = vec![
            format!("{} handled or shipped", number(outcome.done)),
            format!("{} waiting", number(outcome.waiting)),
            format!("{} failed again", number(outcome.failed_again)),
        ];
        if outcome.discarded > 0 {
            said.push(format!("{} discarded meanwhile", number(outcome.discarded)));
        }
        said
    });
    let changed = i64::try_from(progress.changed.len()).unwrap_or(i64::MAX);
    let page = Page {
        frame: Frame::new(&state, &admitted, "/dead-letters", title).live(),
        id: job.id.clone(),
        place: job.order.place.clone(),
        who: job.order.operator.who().to_owned(),
        note: job.order.operator.note().unwrap_or("none").to_owned(),
        began: Moment::ago(job.began.elapsed().as_secs_f64()),
        running: progress.end.is_none(),
        state: match &progress.end {
            None => "running",
            Some(End::Done) => "done",
            Some(End::Stopped) => "stopped",
            Some(End::Failed(_)) => "failed",
        },
        failure: match progress.end {
            Some(End::Failed(why)) => Some((why.why, why.remedy)),
            _ => None,
        },
        looked_at: progress.looked_at,
        matched: progress.matched.unwrap_or_default(),
        looking: progress.matched.is_none(),
        changed: match job.order.verb {
            Verb::Retry => {
                counted(changed, "letter is to be tried again", "letters are to be tried again")
            }
            Verb::Discard => counted(changed, "letter discarded", "letters discarded"),
            Verb::Restore => counted(changed, "letter is dead again", "letters are dead again"),
        },
        refused: progress.refused,
        refusal: progress.refusal.unwrap_or_default(),
        outcome: outcome.unwrap_or_default(),
    };
    html(StatusCode::OK, &page)
}

/// Stops a job.
pub(crate) async fn stop(
    Shared(state): Shared<Arc<State>>,
    admitted: Admitted,
    Form(which): Form<Which>,
) -> Response {
    if !admitted.may_change() || !admitted.is_own(&state, &which.form_token) {
        return refused(&state, &admitted);
    }
    if let Some(job) = state.jobs.get(&which.id) {
        job.stop();
        return Redirect::to(&format!("{}/job?id={}", state.base, job.id)).into_response();
    }
    Redirect::to(&format!("{}/actions", state.base)).into_response()
}
