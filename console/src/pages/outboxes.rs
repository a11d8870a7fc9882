//! The outboxes: backlog, oldest age, holder, cursor.

use std::sync::Arc;

use askama::Template;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::response::Response;
use pillarbox_relay::RelayStatus;

use super::{Frame, html};
use crate::guard::Admitted;
use crate::place::Unanswered;
use crate::state::State;
use crate::words::{Moment, age, number};

#[derive(Template)]
#[template(path = "outboxes.html")]
struct Outboxes {
    frame: Frame,
    relays: Vec<Relay>,
    unread: Vec<(String, Unanswered)>,
    without: Vec<String>,
    seen: Moment,
}

struct Relay {
    place: String,
    name: String,
    state: &'static str,
    holder: String,
    heartbeat: Option<Moment>,
    epoch: String,
    backlog: String,
    oldest: String,
    dead: String,
    scheduled: String,
    cursor: String,
}

pub(crate) async fn page(Shared(state): Shared<Arc<State>>, admitted: Admitted) -> Response {
    let seen = state.watch.seen().await;
    let (mut relays, mut unread, mut without) = (Vec::new(), Vec::new(), Vec::new());
    for (place, stand) in state.places.iter().zip(&seen.stands) {
        match stand {
            Err(why) => unread.push((place.name().to_owned(), why.clone())),
            Ok(stand) if !stand.has_outbox => without.push(place.name().to_owned()),
            Ok(stand) => relays.extend(stand.relays.iter().map(|it| relay(place.name(), it))),
        }
    }
    let frame = Frame::new(&state, &admitted, "/outboxes", "Outboxes").live();
    let seen = Moment::ago(seen.at.elapsed().as_secs_f64());
    html(StatusCode::OK, &Outboxes { frame, relays, unread, without, seen })
}

fn relay(place: &str, status: &RelayStatus) -> Relay {
    let state = match (status.leading, &status.holder, status.epoch) {
        (true, ..) => "leading",
        (false, Some(_), _) => "lease expired",
        (false, None, Some(_)) => "not running",
        (false, None, None) => "never run",
    };
    let scheduled = status.scheduled.as_ref();
    Relay {
        place: place.to_owned(),
        name: status.relay.clone(),
        state,
        holder: status.holder.clone().unwrap_or_else(|| "nobody".to_owned()),
        heartbeat: status.heartbeat_age_seconds.map(Moment::ago),
        epoch: status.epoch.map_or("–".to_owned(), number),
        backlog: number(status.backlog_events),
        oldest: if status.backlog_events > 0 {
            age(status.oldest_age_seconds)
        } else {
            "–".to_owned()
        },
        dead: number(status.dead_letters),
        scheduled: scheduled.map_or("–".to_owned(), |scheduled| number(scheduled.pending)),
        cursor: status.cursor.as_ref().map_or("none yet".to_owned(), |cursor| {
            format!(
                "position {}, floor {}, snapshot {}",
                cursor.high, cursor.floor, cursor.snapshot
            )
        }),
    }
}
