//! The consumers: how far they are behind, what fails, what was given up, what is paused.

use std::sync::Arc;

use askama::Template;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::response::Response;
use futures::future::join_all;
use pillarbox_store::consumers::{Condition, Overview, SILENT_AFTER_S};

use super::{Frame, html};
use crate::guard::Admitted;
use crate::place::{Place, Unanswered, in_time};
use crate::state::State;
use crate::words::{Moment, Query, age, number};

#[derive(Template)]
#[template(path = "consumers.html")]
struct Consumers {
    frame: Frame,
    consumers: Vec<Consumer>,
    unread: Vec<(String, Unanswered)>,
    silent_after: i64,
}

struct Consumer {
    place: String,
    name: String,
    condition: Condition,
    waits: bool,
    /// Why it waits, and what an operator has set, in words.
    remarks: Vec<String>,
    lag: Option<String>,
    measured: Option<Moment>,
    oldest: Option<String>,
    processes: String,
    failing: i64,
    failing_shown: String,
    since: Option<Moment>,
    parked: String,
    dead: i64,
    dead_shown: String,
    one: Query,
    retries: Query,
    letters: Query,
}

impl Consumer {
    fn is_well(&self) -> bool {
        self.condition == Condition::Running && !self.waits
    }
}

pub(crate) async fn page(Shared(state): Shared<Arc<State>>, admitted: Admitted) -> Response {
    let seen = state.watch.seen().await;
    let read = state.places.iter().zip(&seen.stands).map(async |(place, stand)| {
        let found = match stand {
            Ok(stand) if stand.has_inbox => read(place).await,
            Ok(_) => Ok(Vec::new()),
            Err(why) => Err(why.clone()),
        };
        (place, found)
    });
    let (mut consumers, mut unread) = (Vec::new(), Vec::new());
    for (place, found) in join_all(read).await {
        match found {
            Ok(found) => consumers.extend(found.into_iter().map(|it| consumer(place, it))),
            Err(why) => unread.push((place.name().to_owned(), why)),
        }
    }
    let frame = Frame::new(&state, &admitted, "/consumers", "Consumers").live();
    html(StatusCode::OK, &Consumers { frame, consumers, unread, silent_after: SILENT_AFTER_S })
}

async fn read(place: &Place) -> Result<Vec<Overview>, Unanswered> {
    let consumers = place.consumers().await?;
    in_time(consumers.list()).await
}

/// What says in a link which consumer it is.
pub(super) fn one(place: &Place, consumer: &str) -> Query {
    Query::default().with("place", place.name()).with("consumer", consumer)
}

fn consumer(place: &Place, found: Overview) -> Consumer {
    let here = Query::default().with("place", place.name());
    let waits = found.waits_for.iter().map(|reason| format!("handles nothing: {reason}"));
    let pauses = found.pauses.iter().filter_map(|pause| pause.event_type.as_ref());
    let pauses = pauses.map(|it| format!("type {it} is paused"));
    let mut remarks: Vec<String> = waits.chain(pauses).collect();
    if let Some(rate) = &found.rate {
        remarks.push(format!("at most {} events per second", rate.per_second));
    }
    Consumer {
        place: place.name().to_owned(),
        condition: found.condition,
        waits: found.waits_for.is_some(),
        remarks,
        lag: found.lag_events.map(number),
        measured: found.measured_age_seconds.map(Moment::ago),
        oldest: found.oldest_age_seconds.filter(|_| found.lag_events != Some(0)).map(age),
        processes: number(found.processes),
        failing: found.failing_events,
        failing_shown: number(found.failing_events),
        since: found.oldest_failure_seconds.map(Moment::ago),
        parked: number(found.parked_events),
        dead: found.dead_letters,
        dead_shown: number(found.dead_letters),
        one: one(place, &found.consumer),
        retries: here.clone().with("consumer", &found.consumer),
        letters: here.with("side", "inbox").with("owner", &found.consumer),
        name: found.consumer,
    }
}
