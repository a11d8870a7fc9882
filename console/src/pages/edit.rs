//! Editing one dead letter, as `pillarbox dead-letters edit` does.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use askama::Template;
use axum::Form;
use axum::extract::{Query as Asked, State as Shared};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use pillarbox_store::dead_letters::{
    Edit, EditError, LetterState, LetterView, PayloadEdit, Side, brief,
};
use pillarbox_store::full_text;
use pillarbox_store::shown::{acts, harmless_json};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::change::refused;
use super::letter::{PAYLOAD, Which, gone, one, read};
use super::letter_groups::{side, side_name};
use super::{Frame, given, html, said, unanswered};
use crate::guard::Admitted;
use crate::place::{Place, Unanswered, in_time};
use crate::state::State;
use crate::words::Query;

const TITLE: &str = "Edit a dead letter";

/// What the form says. It has a payload in it, so it has no `Debug`.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Wish {
    form_token: String,
    place: String,
    side: String,
    letter: i64,
    /// When the letter had been edited last, as the form knew it.
    edited_at: String,
    payload: String,
    merge: String,
    headers: String,
    note: String,
}

#[derive(Template)]
#[template(path = "edit.html")]
struct Page {
    frame: Frame,
    place: String,
    side: &'static str,
    who: &'static str,
    one: Query,
    event_type: String,
    error: String,
    edited_at: String,
    /// Whether the form has the payload of the letter in it.
    is_filled: bool,
    /// Why it has not.
    unfilled: &'static str,
    payload: Vec<String>,
    merge: Vec<String>,
    headers: Vec<String>,
    note: String,
    refusal: Option<String>,
    letter: LetterView,
}

/// The form.
pub(crate) async fn page(
    Shared(state): Shared<Arc<State>>,
    admitted: Admitted,
    Asked(which): Asked<Which>,
) -> Response {
    if !admitted.may_change() {
        return refused(&state, &admitted);
    }
    match find(&state, &admitted, &which).await {
        Ok((place, side, letter)) => {
            let frame = Frame::new(&state, &admitted, "/dead-letters", TITLE);
            let page = form(frame, place, side, letter, state.shows_payloads);
            html(StatusCode::OK, &page)
        }
        Err(answer) => answer,
    }
}

/// Edits the letter.
pub(crate) async fn edit(
    Shared(state): Shared<Arc<State>>,
    admitted: Admitted,
    Form(wish): Form<Wish>,
) -> Response {
    if !admitted.may_change() || !admitted.is_own(&state, &wish.form_token) {
        return refused(&state, &admitted);
    }
    let which = Which { place: wish.place.clone(), side: wish.side.clone(), letter: wish.letter };
    let (place, side, letter) = match find(&state, &admitted, &which).await {
        Ok(found) => found,
        Err(answer) => return answer,
    };
    let again = |status, why: String| {
        let frame = Frame::new(&state, &admitted, "/dead-letters", TITLE);
        let page = form(frame, place, side, letter.clone(), state.shows_payloads);
        html(status, &page.with(&wish, why))
    };
    if letter.edited_at.clone().unwrap_or_default() != wish.edited_at {
        let why = EditError::Changed { event_id: letter.event_id.clone() };
        return said(&state, &admitted, StatusCode::CONFLICT, TITLE, why.to_string(), AGAIN);
    }
    let wanted = match wanted(&wish, &letter, state.shows_payloads) {
        Ok(wanted) => wanted,
        Err(why) => return again(StatusCode::UNPROCESSABLE_ENTITY, why),
    };
    match change(place, side, &letter, &wanted, &admitted, &wish.note).await {
        Ok(Ok(())) => {
            tracing::info!(visitor = admitted.visitor.name, "console: a letter was edited");
            let to = format!("{}/dead-letters/one?{}", state.base, one(place, side, wish.letter));
            Redirect::to(&to).into_response()
        }
        Ok(Err(EditError::Database { source, .. })) => {
            unanswered(&state, &admitted, TITLE, Unanswered::by(&source))
        }
        Ok(Err(why @ EditError::Changed { .. })) => {
            said(&state, &admitted, StatusCode::CONFLICT, TITLE, why.to_string(), AGAIN)
        }
        Ok(Err(why)) => again(StatusCode::UNPROCESSABLE_ENTITY, full_text(&why)),
        Err(why) => unanswered(&state, &admitted, TITLE, why),
    }
}

const AGAIN: &str = "Open the letter again, and edit what it is now.";

/// The letter, if it can be edited, or the answer that says why not.
async fn find<'s>(
    state: &'s State,
    admitted: &Admitted,
    which: &Which,
) -> Result<(&'s Place, Side, LetterView), Response> {
    let (Some(place), Some(side)) = (state.place(&which.place), side(&which.side)) else {
        return Err(gone(state, admitted));
    };
    let answer = |status, text: String, remedy| said(state, admitted, status, TITLE, text, remedy);
    match read(place, side, which.letter).await {
        Ok(Some(letter)) if letter.state == LetterState::Dead => Ok((place, side, letter)),
        Ok(Some(letter)) => {
            let text =
                format!("Only a dead letter can be edited, and this one is {}.", letter.state);
            let remedy = "Restore it if it was discarded. If it is parked, wait until it is handled or fails again.";
            Err(answer(StatusCode::CONFLICT, text, remedy))
        }
        Ok(None) => Err(gone(state, admitted)),
        Err(why) => Err(unanswered(state, admitted, TITLE, why)),
    }
}

async fn change(
    place: &Place,
    side: Side,
    letter: &LetterView,
    edit: &Edit,
    admitted: &Admitted,
    note: &str,
) -> Result<Result<(), EditError>, Unanswered> {
    let letters = place.letters(side).await?;
    let operator = admitted.operator(note);
    in_time(async { Ok::<_, Infallible>(letters.edit(letter, edit, &operator).await) }).await
}

/// What the form changes, or what is wrong with it.
fn wanted(wish: &Wish, letter: &LetterView, shows: bool) -> Result<Edit, String> {
    let mut edit = Edit::default();
    let payload = unix_lines(&wish.payload);
    let is_changed = match filled(letter, shows) {
        Ok(lines) => payload != lines.join("\n"),
        Err(_) => !payload.is_empty(),
    };
    edit.payload = match (is_changed, given(&wish.merge)) {
        (true, Some(_)) => {
            return Err(
                "The payload is changed twice: change its text, or give a patch.".to_owned()
            );
        }
        (true, None) => PayloadEdit::Replace(payload.into()),
        (false, Some(patch)) => PayloadEdit::Merge(patch),
        (false, None) => PayloadEdit::Keep,
    };
    if let Some(headers) = given(&wish.headers) {
        edit.headers = serde_json::from_str::<BTreeMap<String, Option<String>>>(&headers).map_err(
            |error| format!("The headers must be a JSON object of strings, such as {{\"tenant\": \"acme\"}}: {error}"),
        )?;
    }
    if edit.headers.is_empty() && matches!(edit.payload, PayloadEdit::Keep) {
        return Err(
            "Nothing would change: change the payload, give a patch, or set headers.".to_owned()
        );
    }
    if given(&wish.note).is_none() {
        return Err("Say why: an edit needs a note.".to_owned());
    }
    Ok(edit)
}

fn form(frame: Frame, place: &Place, side: Side, letter: LetterView, shows: bool) -> Page {
    let (payload, unfilled) = match filled(&letter, shows) {
        Ok(lines) => (Some(lines), ""),
        Err(why) => (None, why),
    };
    Page {
        frame,
        place: place.name().to_owned(),
        side: side_name(side),
        who: if side == Side::Inbox { "consumer" } else { "relay" },
        one: one(place, side, letter.letter),
        event_type: letter.event_type.clone().unwrap_or_else(|| "no event".to_owned()),
        error: brief(&letter.error, 200),
        edited_at: letter.edited_at.clone().unwrap_or_default(),
        is_filled: payload.is_some(),
        unfilled,
        payload: payload.unwrap_or_default(),
        merge: Vec::new(),
        headers: Vec::new(),
        note: String::new(),
        refusal: None,
        letter,
    }
}

impl Page {
    /// The same with what was filled in, as far as a form can hold it, and why nothing was changed.
    fn with(mut self, wish: &Wish, refusal: String) -> Self {
        let again = |text: &str| editable(&unix_lines(text));
        if let Some(payload) = again(&wish.payload) {
            self.payload = payload;
        }
        self.merge = again(&wish.merge).unwrap_or_default();
        self.headers = again(&wish.headers).unwrap_or_default();
        self.note = wish.note.clone();
        self.refusal = Some(refusal);
        self
    }
}

/// The lines of the payload for the form, or why it is not filled in.
fn filled(letter: &LetterView, shows: bool) -> Result<Vec<String>, &'static str> {
    if !shows {
        return Err("Payloads are not shown here (--show-payloads).");
    }
    if letter.payload.len() > PAYLOAD {
        return Err("The payload is larger than 64 KiB, too large to be edited as a text here.");
    }
    let text = std::str::from_utf8(&letter.payload).ok();
    text.and_then(editable)
        .ok_or("The payload is no text, or has characters that a form changes or does not show.")
}

/// The lines of a text that a form shows as it is. In JSON, a character that acts instead of showing something becomes an
/// escape with the same meaning. `None`: the form would change it.
fn editable(text: &str) -> Option<Vec<String>> {
    let text = match serde_json::from_str::<IgnoredAny>(text) {
        Ok(_) if !text.contains('\r') => harmless_json(text).replace('\t', "  "),
        _ => text.to_owned(),
    };
    let is_shown = !text.chars().any(|c| acts(c) && c != '\n');
    is_shown.then(|| text.split('\n').map(str::to_owned).collect())
}

/// A form sends each line break as two characters.
fn unix_lines(text: &str) -> String {
    text.replace("\r\n", "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_gets_only_what_it_shows_as_it_is() {
        for (text, lines) in [
            ("", Some(vec![""])),
            ("{\"a\": 1}\n", Some(vec!["{\"a\": 1}", ""])),
            (
                "{\t\"a\": \"\u{202e}\u{1d173}\"}",
                Some(vec!["{  \"a\": \"\\u202e\\ud834\\udd73\"}"]),
            ),
            ("plain\ntext <b>", Some(vec!["plain", "text <b>"])),
            ("{\"a\":\r\n1}", None),
            ("a\tb", None),
            ("a\u{200b}b", None),
        ] {
            let lines = lines.map(|all| all.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(editable(text), lines, "{text:?}");
        }
    }
}
