//! One dead letter.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Query as Asked, State as Shared};
use axum::http::StatusCode;
use axum::response::Response;
use pillarbox_store::dead_letters::{Filter, LetterState, LetterView, Side};
use serde::Deserialize;

use super::letter_groups::{side, side_name};
use super::{Frame, html, said, unanswered};
use crate::guard::Admitted;
use crate::place::{Place, Unanswered, in_time};
use crate::state::State;
use crate::words::{Moment, Query, bytes};

/// As much of a payload is shown, in bytes.
pub(super) const PAYLOAD: usize = 64 * 1024;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Which {
    pub(super) place: String,
    pub(super) side: String,
    pub(super) letter: i64,
}

#[derive(Template)]
#[template(path = "letter.html")]
struct Page {
    frame: Frame,
    place: String,
    side: &'static str,
    who: &'static str,
    letter: LetterView,
    state: &'static str,
    is_discarded: bool,
    may_edit: bool,
    kind: Query,
    one: Query,
    /// The flow that the event belongs to.
    flow: Query,
    at: Moment,
    key: String,
    event_type: String,
    /// The parts of the error, the outermost first.
    causes: Vec<String>,
    headers: Vec<(String, String)>,
    hidden_headers: usize,
    payload_size: String,
    /// The lines of the payload, if they may be shown.
    payload: Option<Vec<String>>,
    cut: bool,
}

pub(crate) async fn page(
    Shared(state): Shared<Arc<State>>,
    admitted: Admitted,
    Asked(which): Asked<Which>,
) -> Response {
    let (Some(place), Some(side)) = (state.place(&which.place), side(&which.side)) else {
        return gone(&state, &admitted);
    };
    match read(place, side, which.letter).await {
        Ok(Some(letter)) => {
            let frame = Frame::new(&state, &admitted, "/dead-letters", "One dead letter");
            html(StatusCode::OK, &shown(frame, place, side, letter, state.shows_payloads))
        }
        Ok(None) => gone(&state, &admitted),
        Err(why) => unanswered(&state, &admitted, "One dead letter", why),
    }
}

pub(super) fn gone(state: &State, admitted: &Admitted) -> Response {
    let text = "There is no such dead letter.";
    let remedy =
        "It was handled or shipped meanwhile, or the link is wrong. Begin at the dead letters.";
    said(state, admitted, StatusCode::NOT_FOUND, "One dead letter", text, remedy)
}

/// The letter of this number, with its whole payload, if it is unresolved or discarded.
pub(super) async fn read(
    place: &Place,
    side: Side,
    letter: i64,
) -> Result<Option<LetterView>, Unanswered> {
    let of = |state| Filter { letters: Some(vec![letter]), state, ..Filter::default() };
    let letters = place.letters(side).await?;
    match in_time(letters.first(&of(None))).await? {
        Some(found) => Ok(Some(found)),
        None => in_time(letters.first(&of(Some(LetterState::Discarded)))).await,
    }
}

fn shown(frame: Frame, place: &Place, side: Side, letter: LetterView, payload: bool) -> Page {
    // The event's own headers may hold secrets of the service.
    let is_known = |name: &str| name.to_ascii_lowercase().starts_with("ce-");
    let all = letter.headers.len();
    let headers: Vec<(String, String)> = letter
        .headers
        .iter()
        .filter(|(name, _)| payload || is_known(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let cut = letter.payload.len() > PAYLOAD;
    let mut whole = letter.payload.clone();
    whole.truncate(PAYLOAD);
    Page {
        frame,
        place: place.name().to_owned(),
        side: side_name(side),
        who: if side == Side::Inbox { "consumer" } else { "relay" },
        state: letter.state.as_str(),
        is_discarded: letter.state == LetterState::Discarded,
        may_edit: letter.state == LetterState::Dead && letter.whole,
        flow: Query::default().with("id", &letter.event_id),
        kind: Query::default()
            .with("place", place.name())
            .with("side", side_name(side))
            .with("owner", &letter.owner)
            .with("reason", &letter.reason),
        one: one(place, side, letter.letter),
        at: Moment::ago(letter.age_seconds),
        key: letter.key.clone().unwrap_or_else(|| "none".to_owned()),
        event_type: letter.event_type.clone().unwrap_or_else(|| "no event".to_owned()),
        causes: causes(&letter.error),
        hidden_headers: all - headers.len(),
        headers,
        payload_size: bytes(u64::try_from(letter.payload_bytes).unwrap_or_default()),
        payload: payload.then(|| lines(&whole)),
        cut,
        letter,
    }
}

/// What says in a link which letter it is.
pub(super) fn one(place: &Place, side: Side, letter: i64) -> Query {
    Query::default()
        .with("place", place.name())
        .with("side", side_name(side))
        .with("letter", &letter.to_string())
}

/// The lines of an error.
fn causes(error: &str) -> Vec<String> {
    error.lines().map(str::to_owned).collect()
}

/// A payload in lines: JSON is laid out, and bytes that are no text are shown by their number.
pub(super) fn lines(payload: &[u8]) -> Vec<String> {
    if let Ok(json) = serde_json::from_slice::<serde_json::Value>(payload) {
        let text = serde_json::to_string_pretty(&json).unwrap_or_default();
        return text.lines().map(str::to_owned).collect();
    }
    let mut text = String::with_capacity(payload.len());
    for chunk in payload.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    text.lines().map(str::to_owned).collect()
}
