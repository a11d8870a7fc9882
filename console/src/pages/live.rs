//! Tells an open page that there is something newer, by server-sent events. The page's script then fetches the page
//! again.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream;
use tokio::time::{Instant, sleep};

use crate::state::State;

/// How often an open page is told.
const EVERY: Duration = Duration::from_secs(5);
/// How long one connection lasts. The browser opens another one, if the page is still open and the session lasts.
const LASTS: Duration = Duration::from_secs(120);

pub(crate) async fn events(Shared(state): Shared<Arc<State>>) -> Response {
    let Ok(permit) = state.live.clone().try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many pages are open\n").into_response();
    };
    let until = Instant::now() + LASTS;
    let ticks = stream::unfold((permit, 0_u64), move |(permit, number)| async move {
        if Instant::now() >= until {
            return None;
        }
        sleep(EVERY).await;
        let event = Event::default().event("newer").data(number.to_string());
        Some((Ok::<_, Infallible>(event), (permit, number + 1)))
    });
    let mut answer = Sse::new(ticks).into_response();
    answer
        .headers_mut()
        .insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    answer
}
