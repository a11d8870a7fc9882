//! Dead letters one by one.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Query as Asked, State as Shared};
use axum::http::StatusCode;
use axum::response::Response;
use pillarbox_store::dead_letters::{LetterView, Side, brief};

use super::letter::one;
use super::letter_groups::{SINCES, Which, side};
use super::{Frame, ROWS, html, said};
use crate::guard::Admitted;
use crate::place::{Place, Unanswered, in_time};
use crate::state::State;
use crate::words::{Moment, Query};

#[derive(Template)]
#[template(path = "letter_list.html")]
struct LetterList {
    frame: Frame,
    which: Which,
    sinces: [(&'static str, &'static str); 4],
    who: &'static str,
    letters: Vec<Letter>,
    more: bool,
    unread: Option<Unanswered>,
}

struct Letter {
    event_id: String,
    event_type: String,
    key: String,
    state: &'static str,
    reason: String,
    error: String,
    attempts: i32,
    at: Moment,
    one: Query,
}

pub(crate) async fn page(
    Shared(state): Shared<Arc<State>>,
    admitted: Admitted,
    Asked(which): Asked<Which>,
) -> Response {
    let (Some(place), Some(side)) = (state.place(&which.place), side(&which.side)) else {
        let text = "A list needs a place and a side (inbox or outbox).";
        let remedy = "Begin at the dead letters by kind.";
        return said(&state, &admitted, StatusCode::NOT_FOUND, "Dead letters", text, remedy);
    };
    let (mut letters, unread) = match read(place, side, &which).await {
        Ok(letters) => (letters, None),
        Err(why) => (Vec::new(), Some(why)),
    };
    let more = letters.len() as i64 > ROWS;
    letters.truncate(ROWS as usize);
    let page = LetterList {
        frame: Frame::new(&state, &admitted, "/dead-letters", "Dead letters one by one"),
        who: if side == Side::Inbox { "consumer" } else { "relay" },
        letters: letters.into_iter().map(|it| letter(place, side, it)).collect(),
        which,
        sinces: SINCES,
        more,
        unread,
    };
    html(StatusCode::OK, &page)
}

async fn read(place: &Place, side: Side, which: &Which) -> Result<Vec<LetterView>, Unanswered> {
    let letters = place.letters(side).await?;
    in_time(letters.list(&which.filter(), ROWS + 1)).await
}

fn letter(place: &Place, side: Side, letter: LetterView) -> Letter {
    Letter {
        one: one(place, side, letter.letter),
        event_id: letter.event_id,
        event_type: letter.event_type.unwrap_or_else(|| "no event".to_owned()),
        key: letter.key.unwrap_or_else(|| "–".to_owned()),
        state: letter.state.as_str(),
        reason: letter.reason,
        error: brief(&letter.error, 140),
        attempts: letter.attempts,
        at: Moment::ago(letter.age_seconds),
    }
}
