//! Cancelling one scheduled event, as `pillarbox scheduled cancel` does.

use std::sync::Arc;

use axum::Form;
use axum::extract::{Query as Asked, State as Shared};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use pillarbox_store::scheduled::{self, Scheduled, Which};
use serde::Deserialize;

use super::change::refused;
use super::question::{Answer, Question};
use super::{Frame, said, unanswered};
use crate::guard::Admitted;
use crate::place::{Place, Unanswered};
use crate::state::State;
use crate::words::Query;

const TITLE: &str = "Cancel a scheduled event";

/// Which event.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct One {
    place: String,
    event: String,
}

/// Asks whether to cancel it.
pub(crate) async fn sure(
    Shared(state): Shared<Arc<State>>,
    admitted: Admitted,
    Asked(one): Asked<One>,
) -> Response {
    if !admitted.may_change() {
        return refused(&state, &admitted);
    }
    ask(&state, &admitted, &one, None).await
}

async fn ask(state: &State, admitted: &Admitted, one: &One, refusal: Option<String>) -> Response {
    let Some(place) = state.place(&one.place) else { return gone(state, admitted) };
    match find(place, &one.event).await {
        Ok(Some(event)) => {
            let question = Question {
                frame: Frame::new(state, admitted, "/scheduled", TITLE),
                which: Query::default().with("place", &one.place).with("event", &event.event_id),
                about: vec![
                    ("Event", event.event_id),
                    ("Type", event.event_type),
                    ("Topic", event.topic),
                    ("Due", event.due_at),
                    ("Place", one.place.clone()),
                ],
                becomes: "It is removed and never delivered. This cannot be taken back.",
                path: "/scheduled/cancel",
                choice: None,
                button: "Cancel the event",
                back: "/scheduled",
                refusal,
            };
            question.asked()
        }
        Ok(None) => gone(state, admitted),
        Err(why) => unanswered(state, admitted, TITLE, why),
    }
}

async fn find(place: &Place, event: &str) -> Result<Option<Scheduled>, Unanswered> {
    let Ok(id) = event.parse() else { return Ok(None) };
    let (schema, which) =
        (place.schema().clone(), Which { event_id: Some(id), ..Which::default() });
    let listed =
        place.ask(|connection| Box::pin(async move { which.list(connection, &schema, 1).await }));
    Ok(listed.await?.pop())
}

fn gone(state: &State, admitted: &Admitted) -> Response {
    let text = "There is no such scheduled event.";
    let remedy = "It has left, was cancelled, or the link is wrong. Begin at the scheduled events.";
    said(state, admitted, StatusCode::NOT_FOUND, TITLE, text, remedy)
}

/// Cancels it.
pub(crate) async fn cancel(
    Shared(state): Shared<Arc<State>>,
    admitted: Admitted,
    Asked(one): Asked<One>,
    Form(answer): Form<Answer>,
) -> Response {
    if !admitted.may_change() || !admitted.is_own(&state, &answer.form_token) {
        return refused(&state, &admitted);
    }
    if let Some(why) = answer.lacks_note() {
        return ask(&state, &admitted, &one, Some(why)).await;
    }
    let Some(place) = state.place(&one.place) else { return gone(&state, &admitted) };
    match find(place, &one.event).await {
        Ok(Some(_)) => {}
        Ok(None) => return gone(&state, &admitted),
        Err(why) => return unanswered(&state, &admitted, TITLE, why),
    }
    let (schema, operator) = (place.schema().clone(), admitted.operator(&answer.note));
    let done = place.ask(|connection| {
        Box::pin(async move { scheduled::cancel(connection, &schema, &one.event, &operator).await })
    });
    match done.await {
        Ok(true) => {
            tracing::info!(
                visitor = admitted.visitor.name,
                "console: a scheduled event was cancelled"
            );
            Redirect::to(&format!("{}/scheduled", state.base)).into_response()
        }
        Ok(false) => gone(&state, &admitted),
        Err(why) => unanswered(&state, &admitted, TITLE, why),
    }
}
