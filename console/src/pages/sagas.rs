//! The instances of sagas.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Query as Asked, State as Shared};
use axum::http::StatusCode;
use axum::response::Response;
use futures::future::join_all;
use pillarbox_outbox::Outbox;
use pillarbox_saga::operate::{Instances, Listed, Which};
use pillarbox_store::dead_letters::brief;
use serde::Deserialize;

use super::{Frame, ROWS, given, html};
use crate::guard::Admitted;
use crate::place::{Place, Unanswered};
use crate::stand::Saga;
use crate::state::State;
use crate::words::{Moment, Query, number};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Filter {
    place: String,
    saga: String,
    step: String,
    status: String,
    overdue: String,
}

#[derive(Template)]
#[template(path = "sagas.html")]
struct Sagas {
    frame: Frame,
    filter: Filter,
    statuses: [(&'static str, &'static str); 5],
    summaries: Vec<Summary>,
    instances: Vec<Instance>,
    unread: Vec<(String, Unanswered)>,
    more: bool,
}

struct Summary {
    place: String,
    name: String,
    open: String,
    overdue: i64,
    failed: i64,
    oldest: Option<Moment>,
    query: Query,
}

struct Instance {
    place: String,
    saga: String,
    id: String,
    step: String,
    status: String,
    age: Moment,
    overdue: Option<Moment>,
    failure: String,
    one: Query,
}

pub(crate) async fn page(
    Shared(state): Shared<Arc<State>>,
    admitted: Admitted,
    Asked(filter): Asked<Filter>,
) -> Response {
    let seen = state.watch.seen().await;
    let mut summaries = Vec::new();
    for (place, stand) in state.places.iter().zip(&seen.stands) {
        let sagas = stand.as_ref().map(|stand| &*stand.sagas).unwrap_or_default();
        summaries.extend(sagas.iter().map(|saga| summary(place, saga)));
    }
    let places = state.places.iter().zip(&seen.stands).filter(|(place, stand)| {
        let has_inbox = stand.as_ref().map_or(true, |stand| stand.has_inbox);
        has_inbox && (filter.place.is_empty() || filter.place == place.name())
    });
    let read = join_all(places.map(async |(place, _)| (place, read(place, &filter).await))).await;
    let (mut instances, mut unread) = (Vec::new(), Vec::new());
    for (place, found) in read {
        match found {
            Ok(found) => instances.extend(found.into_iter().map(|it| instance(place, it))),
            Err(why) => unread.push((place.name().to_owned(), why)),
        }
    }
    let more = instances.len() as i64 > ROWS;
    instances.truncate(ROWS as usize);
    let page = Sagas {
        frame: Frame::new(&state, &admitted, "/sagas", "Sagas").live(),
        filter,
        statuses: [
            ("", "not ended"),
            ("running", "running"),
            ("compensating", "compensating"),
            ("completed", "completed"),
            ("failed", "failed"),
        ],
        summaries,
        instances,
        unread,
        more,
    };
    html(StatusCode::OK, &page)
}

fn summary(place: &Place, saga: &Saga) -> Summary {
    Summary {
        place: place.name().to_owned(),
        name: saga.name.clone(),
        open: number(saga.open),
        overdue: saga.overdue,
        failed: saga.failed,
        oldest: saga.oldest_seconds.map(Moment::ago),
        query: Query::default().with("place", place.name()).with("saga", &saga.name),
    }
}

/// The instances of a place's schema.
pub(super) fn instances(place: &Place) -> Result<Instances, Unanswered> {
    let outbox = Outbox::new().schema(place.schema().as_str());
    Ok(Instances::new(outbox.map_err(|error| Unanswered::by(&error))?))
}

async fn read(place: &Place, filter: &Filter) -> Result<Vec<Listed>, Unanswered> {
    let instances = instances(place)?;
    let which = Which {
        saga: given(&filter.saga),
        id: None,
        status: filter.status.parse().ok(),
        step: given(&filter.step),
        overdue: !filter.overdue.is_empty(),
    };
    let listed = place.ask(|connection| {
        Box::pin(async move { instances.list(connection, &which, ROWS + 1).await })
    });
    listed.await
}

fn instance(place: &Place, listed: Listed) -> Instance {
    Instance {
        place: place.name().to_owned(),
        one: Query::default()
            .with("place", place.name())
            .with("saga", &listed.saga)
            .with("id", &listed.id),
        saga: listed.saga,
        id: listed.id,
        step: listed.step,
        status: listed.status,
        age: Moment::ago(listed.age_seconds),
        overdue: listed.overdue_seconds.map(Moment::ago),
        failure: brief(&listed.failure.unwrap_or_default(), 120),
    }
}
