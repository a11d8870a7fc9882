//! Events that are scheduled for later.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Query as Asked, State as Shared};
use axum::http::StatusCode;
use axum::response::Response;
use futures::future::join_all;
use pillarbox_store::scheduled::{Scheduled, Which};
use serde::Deserialize;

use super::{Frame, ROWS, given, html};
use crate::guard::Admitted;
use crate::place::{Place, Unanswered};
use crate::state::State;
use crate::words::{Moment, Query, number};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Filter {
    place: String,
    topic: String,
    #[serde(rename = "type")]
    event_type: String,
    held: String,
}

#[derive(Template)]
#[template(path = "scheduled.html")]
struct Page {
    frame: Frame,
    filter: Filter,
    summaries: Vec<Summary>,
    events: Vec<Event>,
    unread: Vec<(String, Unanswered)>,
    more: bool,
}

struct Summary {
    place: String,
    pending: String,
    held: String,
    overdue: Option<Moment>,
}

struct Event {
    place: String,
    event: Scheduled,
    due: Moment,
    error: String,
    one: Query,
}

pub(crate) async fn page(
    Shared(state): Shared<Arc<State>>,
    admitted: Admitted,
    Asked(filter): Asked<Filter>,
) -> Response {
    let seen = state.watch.seen().await;
    let with_outbox = || {
        let all = state.places.iter().zip(&seen.stands);
        all.filter(|(_, stand)| stand.as_ref().map_or(true, |stand| stand.has_outbox))
    };
    let summaries = with_outbox().filter_map(|(place, stand)| {
        let relays = &stand.as_ref().ok()?.relays;
        let scheduled = relays.iter().find_map(|relay| relay.scheduled.as_ref())?;
        Some(Summary {
            place: place.name().to_owned(),
            pending: number(scheduled.pending),
            held: number(scheduled.held),
            overdue: (scheduled.overdue_seconds > 0.0)
                .then(|| Moment::ago(scheduled.overdue_seconds)),
        })
    });
    let places = with_outbox().map(|(place, _)| place);
    let places = places.filter(|place| filter.place.is_empty() || filter.place == place.name());
    let read = join_all(places.map(async |place| (place, read(place, &filter).await))).await;
    let (mut events, mut unread) = (Vec::new(), Vec::new());
    for (place, found) in read {
        match found {
            Ok(found) => events.extend(found.into_iter().map(|it| event(place, it))),
            Err(why) => unread.push((place.name().to_owned(), why)),
        }
    }
    let more = events.len() as i64 > ROWS;
    events.truncate(ROWS as usize);
    let frame = Frame::new(&state, &admitted, "/scheduled", "Scheduled events").live();
    let summaries = summaries.collect();
    html(StatusCode::OK, &Page { frame, filter, summaries, events, unread, more })
}

async fn read(place: &Place, filter: &Filter) -> Result<Vec<Scheduled>, Unanswered> {
    let which = Which {
        topic: given(&filter.topic),
        event_type: given(&filter.event_type),
        held: !filter.held.is_empty(),
        event_id: None,
    };
    let schema = place.schema().clone();
    let listed = place
        .ask(|connection| Box::pin(async move { which.list(connection, &schema, ROWS + 1).await }));
    listed.await
}

fn event(place: &Place, event: Scheduled) -> Event {
    Event {
        place: place.name().to_owned(),
        due: Moment::ago(-event.due_in_seconds),
        error: event.error.clone().unwrap_or_default(),
        one: Query::default().with("place", place.name()).with("event", &event.event_id),
        event,
    }
}
