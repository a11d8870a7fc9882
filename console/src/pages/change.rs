//! Retrying, discarding and restoring dead letters: the question whether to, and the beginning of the job.

use std::sync::Arc;

use askama::Template;
use axum::Form;
use axum::extract::{Query as Asked, State as Shared};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use pillarbox_store::dead_letters::{Filter, LetterState};
use serde::Deserialize;

use super::letter_groups::{DISCARDED, SINCES, Which, side};
use super::{Frame, given, html, said, unanswered};
use crate::guard::Admitted;
use crate::jobs::{MOST, Order, Verb};
use crate::place::in_time;
use crate::state::State;
use crate::words::{counted, number};

/// What is to be done, to which letters. All of it is in the URL of the question.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Wish {
    #[serde(rename = "do")]
    verb: String,
    /// One letter's number, or nothing.
    letter: String,
    note: String,
    form_token: String,
    place: String,
    side: String,
    owner: String,
    #[serde(rename = "type")]
    event_type: String,
    reason: String,
    error: String,
    since: String,
    group: String,
    key: String,
    event: String,
    state: String,
}

impl Wish {
    fn which(&self) -> Which {
        Which {
            place: self.place.clone(),
            side: self.side.clone(),
            owner: self.owner.clone(),
            event_type: self.event_type.clone(),
            reason: self.reason.clone(),
            error: self.error.clone(),
            since: self.since.clone(),
            group: self.group.clone(),
            key: self.key.clone(),
            event: self.event.clone(),
            state: self.state.clone(),
        }
    }

    /// `None`: a field means nothing. It must not be left out, because then more letters would be changed than meant.
    fn filter(&self) -> Option<Filter> {
        let is_blank = |(_, value): &(&str, String)| value.trim().is_empty();
        let is_known = SINCES.iter().any(|(since, _)| *since == self.since);
        let is_restore = self.verb == Verb::Restore.as_str();
        let fits = self.state.is_empty() || (self.state == DISCARDED && is_restore);
        if self.fields().iter().any(is_blank) || !is_known || !fits {
            return None;
        }
        let letters = match given(&self.letter) {
            Some(letter) => Some(vec![letter.parse().ok()?]),
            None => None,
        };
        let state = is_restore.then_some(LetterState::Discarded);
        Some(Filter { letters, state, ..self.which().filter() })
    }

    /// Everything but the note and the token, for the form.
    fn fields(&self) -> Vec<(&'static str, String)> {
        let all = [
            ("do", &self.verb),
            ("letter", &self.letter),
            ("place", &self.place),
            ("side", &self.side),
            ("owner", &self.owner),
            ("type", &self.event_type),
            ("reason", &self.reason),
            ("error", &self.error),
            ("since", &self.since),
            ("group", &self.group),
            ("key", &self.key),
            ("event", &self.event),
            ("state", &self.state),
        ];
        all.into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| (name, value.clone()))
            .collect()
    }
}

#[derive(Template)]
#[template(path = "sure.html")]
struct Sure {
    frame: Frame,
    verb: &'static str,
    what: String,
    narrowed: Vec<(&'static str, String)>,
    fields: Vec<(&'static str, String)>,
    too_many: Option<String>,
    missing_note: bool,
}

/// Asks whether to do it, and why.
pub(crate) async fn sure(
    Shared(state): Shared<Arc<State>>,
    admitted: Admitted,
    Asked(wish): Asked<Wish>,
) -> Response {
    ask(&state, &admitted, &wish, StatusCode::OK).await
}

async fn ask(state: &State, admitted: &Admitted, wish: &Wish, status: StatusCode) -> Response {
    if !admitted.may_change() {
        return refused(state, admitted);
    }
    let (Some(verb), Some(place), Some(side), Some(filter)) =
        (Verb::named(&wish.verb), state.place(&wish.place), side(&wish.side), wish.filter())
    else {
        return unclear(state, admitted);
    };
    let count = match place.letters(side).await {
        Ok(letters) => in_time(letters.count(&filter)).await,
        Err(why) => Err(why),
    };
    let title = match verb {
        Verb::Retry => "Retry dead letters",
        Verb::Discard => "Discard dead letters",
        Verb::Restore => "Restore discarded letters",
    };
    let count = match count {
        Ok(count) => count,
        Err(why) => return unanswered(state, admitted, title, why),
    };
    let shown = ["do", "letter", "side", "state"];
    let page = Sure {
        frame: Frame::new(state, admitted, "/dead-letters", title),
        verb: verb.as_str(),
        what: match verb {
            Verb::Restore => counted(count, "discarded letter", "discarded letters"),
            _ => counted(count, "unresolved dead letter", "unresolved dead letters"),
        },
        narrowed: wish.fields().into_iter().filter(|(name, _)| !shown.contains(name)).collect(),
        fields: wish.fields(),
        too_many: (count > MOST).then(|| number(MOST)),
        missing_note: status == StatusCode::UNPROCESSABLE_ENTITY,
    };
    html(status, &page)
}

/// Begins to do it.
pub(crate) async fn change(
    Shared(state): Shared<Arc<State>>,
    admitted: Admitted,
    Form(wish): Form<Wish>,
) -> Response {
    if !admitted.may_change() || !admitted.is_own(&state, &wish.form_token) {
        return refused(&state, &admitted);
    }
    let (Some(verb), Some(place), Some(side), Some(filter)) =
        (Verb::named(&wish.verb), state.place(&wish.place), side(&wish.side), wish.filter())
    else {
        return unclear(&state, &admitted);
    };
    if verb != Verb::Retry && given(&wish.note).is_none() {
        return ask(&state, &admitted, &wish, StatusCode::UNPROCESSABLE_ENTITY).await;
    }
    let operator = admitted.operator(&wish.note);
    let order = Order { verb, place: place.name().to_owned(), side, filter, operator };
    match state.jobs.begin(order, state.places.clone()) {
        Some(job) => {
            tracing::info!(
                visitor = admitted.visitor.name,
                what = verb.as_str(),
                "console: a job began"
            );
            Redirect::to(&format!("{}/job?id={}", state.base, job.id)).into_response()
        }
        None => {
            let text = "Other changes of many letters are running.";
            let remedy = "Wait until one of them has ended, then try again.";
            said(&state, &admitted, StatusCode::TOO_MANY_REQUESTS, "Not begun", text, remedy)
        }
    }
}

pub(super) fn refused(state: &State, admitted: &Admitted) -> Response {
    let text = "You may look, but not change anything here, or the form is not from a page of this session.";
    let remedy = "Log in as an operator, open the page again, and try again.";
    said(state, admitted, StatusCode::FORBIDDEN, "Not allowed", text, remedy)
}

fn unclear(state: &State, admitted: &Admitted) -> Response {
    let text = "The link does not say what to do with which dead letters.";
    let remedy = "Begin at the dead letters.";
    said(state, admitted, StatusCode::NOT_FOUND, "Dead letters", text, remedy)
}
