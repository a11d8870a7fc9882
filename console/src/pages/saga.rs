//! One instance of a saga, with its history as a timeline.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Query as Asked, State as Shared};
use axum::http::StatusCode;
use axum::response::Response;
use pillarbox_saga::operate::{Entry, Listed, Which};
use serde::Deserialize;

use super::letter::lines;
use super::sagas::instances;
use super::{Frame, html, said, unanswered};
use crate::guard::Admitted;
use crate::place::{Place, Unanswered};
use crate::state::State;
use crate::words::{Moment, Query};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct One {
    place: String,
    saga: String,
    id: String,
}

#[derive(Template)]
#[template(path = "saga.html")]
struct Page {
    frame: Frame,
    place: String,
    one: Query,
    is_open: bool,
    may_cancel: bool,
    instance: Listed,
    deadline: String,
    age: Moment,
    overdue: Option<Moment>,
    failure: String,
    timers: Vec<String>,
    history: Vec<Turn>,
    state: Option<Vec<String>>,
}

/// One entry of the history.
struct Turn {
    at: String,
    event_type: String,
    event_id: String,
    flow: Query,
    step: String,
    status: String,
    did: Vec<String>,
    note: String,
}

pub(crate) async fn page(
    Shared(state): Shared<Arc<State>>,
    admitted: Admitted,
    Asked(one): Asked<One>,
) -> Response {
    let title = "One instance of a saga";
    let Some(place) = state.place(&one.place) else {
        let text = "There is no such place.";
        return said(&state, &admitted, StatusCode::NOT_FOUND, title, text, "Begin at the sagas.");
    };
    match read(place, &one, state.shows_payloads).await {
        Ok(Some((instance, history, content))) => {
            let frame = Frame::new(&state, &admitted, "/sagas", title);
            let is_open = instance.ended_at.is_none();
            let page = Page {
                frame,
                one: Query::default()
                    .with("place", &one.place)
                    .with("saga", &one.saga)
                    .with("id", &one.id),
                is_open,
                may_cancel: is_open && instance.status != "compensating",
                place: one.place,
                deadline: instance.deadline_at.as_deref().map_or("none".to_owned(), to_the_second),
                age: Moment::ago(instance.age_seconds),
                overdue: instance.overdue_seconds.map(Moment::ago),
                failure: instance.failure.clone().unwrap_or_default(),
                timers: instance.timers.iter().map(timer).collect(),
                instance,
                history: history.into_iter().map(turn).collect(),
                state: content.map(|content| lines(content.as_bytes())),
            };
            html(StatusCode::OK, &page)
        }
        Ok(None) => {
            let text = "There is no such instance.";
            let remedy = "It has ended and was removed after its retention, or the link is wrong.";
            said(&state, &admitted, StatusCode::NOT_FOUND, title, text, remedy)
        }
        Err(why) => unanswered(&state, &admitted, title, why),
    }
}

type Found = (Listed, Vec<Entry>, Option<String>);

async fn read(place: &Place, one: &One, shows: bool) -> Result<Option<Found>, Unanswered> {
    let (instances, one) = (instances(place)?, one.clone());
    let found = place.ask(|connection| {
        Box::pin(async move {
            let which = Which {
                saga: Some(one.saga.clone()),
                id: Some(one.id.clone()),
                ..Which::default()
            };
            let listed = instances.list(connection, &which, 1).await?.into_iter().next();
            let Some(listed) = listed else { return Ok(None) };
            let history = instances.history(connection, &one.saga, &one.id).await?;
            let content = match shows {
                // The role may lack the right.
                true => instances.state(connection, &one.saga, &one.id).await.unwrap_or_default(),
                false => None,
            };
            Ok::<_, sqlx::Error>(Some((listed, history, content)))
        })
    });
    found.await
}

fn timer(timer: &impl serde::Serialize) -> String {
    let text = serde_json::to_value(timer).unwrap_or_default();
    word(&text, &["name", "event_type", "due_at"])
}

/// The values of these names, as far as they are there.
fn word(value: &serde_json::Value, names: &[&str]) -> String {
    let words: Vec<String> = names
        .iter()
        .filter_map(|name| value.get(name))
        .map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        .collect();
    if words.is_empty() { value.to_string() } else { words.join(" · ") }
}

fn turn(entry: Entry) -> Turn {
    let all = |what: &str, value: &serde_json::Value| -> Vec<String> {
        let values = value.as_array().map(Vec::as_slice).unwrap_or_default();
        let names = ["name", "type", "event_type", "due_at"];
        values.iter().map(|value| format!("{what} {}", word(value, &names))).collect()
    };
    let mut did = all("published", &entry.published);
    did.extend(all("set timer", &entry.timers_set));
    did.extend(all("cancelled timer", &entry.timers_cancelled));
    Turn {
        at: to_the_second(&entry.at),
        event_type: entry.event_type,
        flow: Query::default().with("id", &entry.event_id),
        event_id: entry.event_id,
        step: match entry.step_before == entry.step_after {
            true => entry.step_after,
            false => format!("{} → {}", entry.step_before, entry.step_after),
        },
        status: entry.status,
        did,
        note: entry.note.unwrap_or_default(),
    }
}

/// A time without the parts of its second.
fn to_the_second(time: &str) -> String {
    match time.split_once('.') {
        Some((time, _)) => format!("{time}Z"),
        None => time.to_owned(),
    }
}
