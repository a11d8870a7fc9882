//! Ending one instance of a saga by hand, as `pillarbox sagas cancel` and `complete` do.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Form;
use axum::extract::{Query as Asked, State as Shared};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use pillarbox_saga::operate::{End, Listed, OperateError, Which};
use serde::Deserialize;

use super::change::refused;
use super::question::{Answer, Question};
use super::sagas::instances;
use super::{Frame, said, unanswered};
use crate::guard::Admitted;
use crate::place::{Place, Unanswered, lacks_a_right};
use crate::state::State;
use crate::words::Query;

const TITLE: &str = "End an instance of a saga";

/// Which instance, and how it ends.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct One {
    #[serde(rename = "do")]
    verb: String,
    place: String,
    saga: String,
    id: String,
}

impl One {
    fn query(&self) -> Query {
        Query::default().with("place", &self.place).with("saga", &self.saga).with("id", &self.id)
    }

    /// How it ends. `None`: the link does not say it.
    fn end(&self, answer: &Answer) -> Option<End> {
        match (&*self.verb, &*answer.choice) {
            ("cancel", "") => Some(End::Cancel),
            ("cancel", _) => Some(End::CancelWithoutCompensation),
            ("complete", _) => Some(End::Complete),
            _ => None,
        }
    }
}

/// Asks whether to end it.
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
    let (Some(place), Some(end)) = (state.place(&one.place), one.end(&Answer::default())) else {
        return gone(state, admitted);
    };
    match find(place, one).await {
        Ok(Some(instance)) => {
            let compensations = match instance.compensations.is_empty() {
                true => "none".to_owned(),
                false => instance.compensations.join(", "),
            };
            let is_cancel = end == End::Cancel;
            let question = Question {
                frame: Frame::new(state, admitted, "/sagas", TITLE),
                about: vec![
                    ("Saga", instance.saga),
                    ("Instance", instance.id),
                    ("Status", instance.status),
                    ("Step", instance.step),
                    ("Compensations", compensations),
                    ("Place", one.place.clone()),
                ],
                becomes: match is_cancel {
                    true => {
                        "It fails: its compensations are published, the newest first, and it waits for their answers. \
                         Without any it has failed at once."
                    }
                    false => {
                        "It is completed, or failed if it was compensating. Compensations that were not published are \
                         dropped."
                    }
                },
                path: "/sagas/end",
                which: one.query().with("do", &one.verb),
                choice: is_cancel.then_some("Publish no compensations: it has failed at once"),
                button: if is_cancel { "Cancel the instance" } else { "Complete the instance" },
                back: "/sagas",
                refusal,
            };
            question.asked()
        }
        Ok(None) => gone(state, admitted),
        Err(why) => unanswered(state, admitted, TITLE, why),
    }
}

async fn find(place: &Place, one: &One) -> Result<Option<Listed>, Unanswered> {
    let instances = instances(place)?;
    let which =
        Which { saga: Some(one.saga.clone()), id: Some(one.id.clone()), ..Which::default() };
    let listed = place
        .ask(|connection| Box::pin(async move { instances.list(connection, &which, 1).await }));
    Ok(listed.await?.pop())
}

fn gone(state: &State, admitted: &Admitted) -> Response {
    let text = "There is no such instance, or the link does not say what to do with it.";
    let remedy = "Begin at the sagas.";
    said(state, admitted, StatusCode::NOT_FOUND, TITLE, text, remedy)
}

/// Ends it.
pub(crate) async fn end(
    Shared(state): Shared<Arc<State>>,
    admitted: Admitted,
    Asked(one): Asked<One>,
    Form(answer): Form<Answer>,
) -> Response {
    if !admitted.may_change() || !admitted.is_own(&state, &answer.form_token) {
        return refused(&state, &admitted);
    }
    let (Some(place), Some(end)) = (state.place(&one.place), one.end(&answer)) else {
        return gone(&state, &admitted);
    };
    if let Some(why) = answer.lacks_note() {
        return ask(&state, &admitted, &one, Some(why)).await;
    }
    let instances = match instances(place) {
        Ok(instances) => instances,
        Err(why) => return unanswered(&state, &admitted, TITLE, why),
    };
    let (operator, which) = (admitted.operator(&answer.note), one.clone());
    let done = place.ask(|connection| {
        Box::pin(async move {
            let One { saga, id, .. } = &which;
            Ok::<_, Infallible>(instances.end(connection, saga, id, end, &operator).await)
        })
    });
    match done.await {
        Ok(Ok(_)) => {
            tracing::info!(visitor = admitted.visitor.name, "console: a saga's instance was ended");
            let to = format!("{}/sagas/one?{}", state.base, one.query());
            Redirect::to(&to).into_response()
        }
        Ok(Err(OperateError::NotThere { .. })) => gone(&state, &admitted),
        Ok(Err(OperateError::Outbox(error))) => {
            let mut why = Unanswered::by(&error);
            if end == End::Cancel && lacks_a_right(&error) {
                why.remedy = "To publish compensations, the console's role must be a writer too: grant it \
                              pillarbox_writer, or cancel without compensations. Nothing was changed.";
            }
            unanswered(&state, &admitted, TITLE, why)
        }
        Ok(Err(OperateError::Database(error))) => {
            unanswered(&state, &admitted, TITLE, Unanswered::by(&error))
        }
        Ok(Err(why)) => {
            let remedy = "Open the instance again, and see how it stands.";
            said(&state, &admitted, StatusCode::CONFLICT, TITLE, why.to_string(), remedy)
        }
        Err(why) => unanswered(&state, &admitted, TITLE, why),
    }
}
