//! The overview: the trouble first, then how everything stands.

use std::sync::Arc;

use askama::Template;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::response::Response;

use super::{Frame, html};
use crate::guard::Admitted;
use crate::stand::{COUNTED, Letters, Stand};
use crate::state::State;
use crate::trouble::{self, Trouble};
use crate::words::{Moment, number};

#[derive(Template)]
#[template(path = "overview.html")]
struct Overview {
    frame: Frame,
    troubles: Vec<Trouble>,
    places: Vec<Summary>,
    seen: Moment,
}

/// One place in a line.
struct Summary {
    name: String,
    unread: bool,
    backlog: String,
    oldest: Option<Moment>,
    scheduled: String,
    consumers: String,
    failing: String,
    dead: String,
    sagas: String,
}

pub(crate) async fn page(Shared(state): Shared<Arc<State>>, admitted: Admitted) -> Response {
    let seen = state.watch.seen().await;
    let stands = || state.places.iter().zip(&seen.stands);
    let mut troubles: Vec<Trouble> =
        stands().flat_map(|(place, stand)| trouble::at(place.name(), stand)).collect();
    troubles.sort_by_key(|trouble| trouble.severity);
    let places = stands().map(|(place, stand)| summary(place.name(), stand.as_ref().ok()));
    let page = Overview {
        frame: Frame::new(&state, &admitted, "/", "Overview").live(),
        troubles,
        places: places.collect(),
        seen: Moment::ago(seen.at.elapsed().as_secs_f64()),
    };
    html(StatusCode::OK, &page)
}

fn summary(name: &str, stand: Option<&Stand>) -> Summary {
    let nothing = Stand::default();
    let read = stand.unwrap_or(&nothing);
    let of_outbox = |count: i64| if read.has_outbox { number(count) } else { "–".to_owned() };
    let of_inbox = |count: i64| if read.has_inbox { number(count) } else { "–".to_owned() };
    let oldest = read.relays.iter().map(|relay| relay.oldest_age_seconds).fold(0.0, f64::max);
    let scheduled = read.relays.iter().filter_map(|relay| relay.scheduled.as_ref()).next();
    Summary {
        name: name.to_owned(),
        unread: stand.is_none(),
        backlog: of_outbox(read.relays.iter().map(|relay| relay.backlog_events).sum()),
        oldest: (oldest > 0.0).then(|| Moment::ago(oldest)),
        scheduled: scheduled.map_or("–".to_owned(), |scheduled| number(scheduled.pending)),
        consumers: of_inbox(i64::try_from(read.consumers.len()).unwrap_or(i64::MAX)),
        failing: of_inbox(read.consumers.iter().map(|consumer| consumer.failing).sum()),
        dead: dead(read.outbox_letters.iter().chain(&read.inbox_letters)),
        sagas: of_inbox(read.sagas.iter().map(|saga| saga.open).sum()),
    }
}

/// How many dead letters there are, as far as they were counted.
pub(super) fn dead<'a>(letters: impl IntoIterator<Item = &'a Letters>) -> String {
    let (mut dead, mut all) = (0, 0);
    for letters in letters {
        dead += letters.dead;
        all += letters.dead + letters.parked;
    }
    if all > COUNTED { format!("{}+", number(COUNTED)) } else { number(dead) }
}
