//! What operators have done: who, when, what, and why.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Query as Asked, State as Shared};
use axum::http::StatusCode;
use axum::response::Response;
use futures::future::join_all;
use pillarbox_store::actions::{Action, ActionFilter, Actions};
use serde::Deserialize;

use super::{Frame, ROWS, given, html};
use crate::guard::Admitted;
use crate::place::{Place, Unanswered, in_time};
use crate::state::State;
use crate::words::{Moment, number};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Filter {
    place: String,
    who: String,
    what: String,
}

#[derive(Template)]
#[template(path = "actions.html")]
struct Page {
    frame: Frame,
    filter: Filter,
    done: Vec<Done>,
    unread: Vec<(String, Unanswered)>,
    more: bool,
}

struct Done {
    place: String,
    at: Moment,
    who: String,
    role: String,
    what: String,
    target: String,
    count: String,
    note: String,
}

pub(crate) async fn page(
    Shared(state): Shared<Arc<State>>,
    admitted: Admitted,
    Asked(filter): Asked<Filter>,
) -> Response {
    let places = state.places.iter();
    let places = places.filter(|place| filter.place.is_empty() || filter.place == place.name());
    let read = join_all(places.map(async |place| (place, read(place, &filter).await))).await;
    let (mut done, mut unread) = (Vec::new(), Vec::new());
    for (place, found) in read {
        match found {
            Ok(found) => done.extend(found.into_iter().map(|action| (place.name(), action))),
            Err(why) => unread.push((place.name().to_owned(), why)),
        }
    }
    done.sort_by(|(_, one), (_, other)| one.age_seconds.total_cmp(&other.age_seconds));
    let more = done.len() as i64 > ROWS;
    done.truncate(ROWS as usize);
    let done = done.into_iter().map(|(place, action)| shown(place, action)).collect();
    let frame = Frame::new(&state, &admitted, "/actions", "Actions").live();
    html(StatusCode::OK, &Page { frame, filter, done, unread, more })
}

async fn read(place: &Place, filter: &Filter) -> Result<Vec<Action>, Unanswered> {
    let pool = place.pool().await?.clone();
    let actions = Actions::new(pool, place.schema().as_str());
    let actions = actions.map_err(|error| Unanswered::by(&error))?;
    let which = ActionFilter {
        what: given(&filter.what),
        who: given(&filter.who),
        ..ActionFilter::default()
    };
    in_time(actions.list(&which, ROWS + 1)).await
}

fn shown(place: &str, action: Action) -> Done {
    Done {
        place: place.to_owned(),
        at: Moment::ago(action.age_seconds),
        who: action.who,
        role: action.role,
        what: action.what,
        target: action.target,
        count: number(action.count),
        note: action.note.unwrap_or_default(),
    }
}
