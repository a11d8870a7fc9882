//! What `pillarbox doctor` finds.

use std::sync::Arc;

use askama::Template;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::response::Response;
use futures::future::join_all;

use super::{Frame, html};
use crate::check_up::{Finding, Level};
use crate::guard::Admitted;
use crate::state::State;
use crate::words::Moment;

#[derive(Template)]
#[template(path = "doctor.html")]
struct Doctor {
    frame: Frame,
    results: Vec<Result>,
}

/// The findings of one place, the worst first.
struct Result {
    place: String,
    at: Option<Moment>,
    late: bool,
    bad: Vec<Finding>,
    good: Vec<Finding>,
}

pub(crate) async fn page(Shared(state): Shared<Arc<State>>, admitted: Admitted) -> Response {
    let results = state.places.iter().map(async |place| {
        let Some(check_up) = place.doctor() else {
            let place = place.name().to_owned();
            return Result { place, at: None, late: false, bad: Vec::new(), good: Vec::new() };
        };
        let (at, found) = state.examined.result(place.name(), check_up).await;
        let findings = found.as_deref().cloned().unwrap_or_default();
        let (good, mut bad): (Vec<_>, Vec<_>) =
            findings.into_iter().partition(|finding| finding.level == Level::Ok);
        bad.sort_by_key(|finding| std::cmp::Reverse(finding.level));
        Result {
            place: place.name().to_owned(),
            at: Some(Moment::ago(at.elapsed().as_secs_f64())),
            late: found.is_none(),
            bad,
            good,
        }
    });
    let results = join_all(results).await;
    html(
        StatusCode::OK,
        &Doctor { frame: Frame::new(&state, &admitted, "/doctor", "Doctor"), results },
    )
}
