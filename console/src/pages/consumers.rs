//! The consumers: what fails, what was given up.

use std::sync::Arc;

use askama::Template;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::response::Response;
use pillarbox_store::consumers::SILENT_AFTER_S;

use super::{Frame, html};
use crate::guard::Admitted;
use crate::place::Unanswered;
use crate::state::State;
use crate::words::{Moment, Query, number};

#[derive(Template)]
#[template(path = "consumers.html")]
struct Consumers {
    frame: Frame,
    consumers: Vec<Consumer>,
    unread: Vec<(String, Unanswered)>,
    seen: Moment,
    silent_after: i64,
}

struct Consumer {
    place: String,
    name: String,
    processes: String,
    failing: i64,
    failing_shown: String,
    since: Option<Moment>,
    parked: String,
    dead: i64,
    dead_shown: String,
    retries: Query,
    letters: Query,
}

pub(crate) async fn page(Shared(state): Shared<Arc<State>>, admitted: Admitted) -> Response {
    let seen = state.watch.seen().await;
    let (mut consumers, mut unread) = (Vec::new(), Vec::new());
    for (place, stand) in state.places.iter().zip(&seen.stands) {
        let stand = match stand {
            Ok(stand) => stand,
            Err(why) => {
                unread.push((place.name().to_owned(), why.clone()));
                continue;
            }
        };
        consumers.extend(stand.consumers.iter().map(|consumer| {
            let letters = stand.letters_of(&consumer.name);
            let here = Query::default().with("place", place.name());
            Consumer {
                place: place.name().to_owned(),
                name: consumer.name.clone(),
                processes: number(consumer.processes),
                failing: consumer.failing,
                failing_shown: number(consumer.failing),
                since: consumer.failing_seconds.map(Moment::ago),
                parked: number(letters.parked),
                dead: letters.dead,
                dead_shown: number(letters.dead),
                retries: here.clone().with("consumer", &consumer.name),
                letters: here.with("side", "inbox").with("owner", &consumer.name),
            }
        }));
    }
    let frame = Frame::new(&state, &admitted, "/consumers", "Consumers").live();
    let seen = Moment::ago(seen.at.elapsed().as_secs_f64());
    html(
        StatusCode::OK,
        &Consumers { frame, consumers, unread, seen, silent_after: SILENT_AFTER_S },
    )
}
