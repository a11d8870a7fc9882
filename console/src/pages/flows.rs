//! The flow of one order through all services: a picture, what is open, and the same as text.

use std::sync::Arc;
use std::time::Duration;

use askama::Template;
use axum::extract::{Query as Asked, State as Shared};
use axum::http::StatusCode;
use axum::response::Response;
use futures::future::join_all;
use pillarbox_store::limit::within;
use pillarbox_trail::flow::{self, Bounds, Flow, FlowError, Part, drawing, text};
use serde::Deserialize;

use super::{Frame, given, html};
use crate::guard::Admitted;
use crate::place::Unanswered;
use crate::state::State;

/// How long the databases may take for one flow, once they have let the console in. Together with the time for that, it
/// is shorter than the limit on a page.
const ANSWER: Duration = Duration::from_secs(12);
/// The most events of a flow on a page.
const EVENTS: usize = 200;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Filter {
    id: String,
    key: String,
    correlation: String,
}

#[derive(Template)]
#[template(path = "flows.html")]
struct Flows {
    frame: Frame,
    filter: Filter,
    unread: Vec<(String, Unanswered)>,
    /// What is said instead of a flow.
    said: Option<String>,
    drawing: String,
    lines: Vec<String>,
}

pub(crate) async fn page(
    Shared(state): Shared<Arc<State>>,
    admitted: Admitted,
    Asked(filter): Asked<Filter>,
) -> Response {
    let asked = given(&filter.id)
        .map(flow::Asked::Event)
        .or_else(|| given(&filter.key).map(flow::Asked::Key))
        .or_else(|| given(&filter.correlation).map(flow::Asked::Correlation));
    let mut page = Flows {
        frame: Frame::new(&state, &admitted, "/flows", "Flows"),
        filter,
        unread: Vec::new(),
        said: None,
        drawing: String::new(),
        lines: Vec::new(),
    };
    if let Some(asked) = asked {
        match read(&state, asked, &mut page.unread).await {
            Ok(found) if found.events.is_empty() => page.said = Some(text::nothing(&found)),
            Ok(found) => {
                page.drawing = drawing::svg(&found);
                page.lines = text::tree(&found).lines().map(str::to_owned).collect();
            }
            Err(why) => page.unread.push(why),
        }
    }
    html(StatusCode::OK, &page)
}

/// Reads the flow from all places that let the console in. A connection that failed or was left waiting is closed.
async fn read(
    state: &State,
    asked: flow::Asked,
    unread: &mut Vec<(String, Unanswered)>,
) -> Result<Flow, (String, Unanswered)> {
    let mut opened = Vec::new();
    // All at once, so that one that says nothing takes no time from the others.
    let connections = state.places.iter().map(async |place| (place, place.connection().await));
    for (place, connection) in join_all(connections).await {
        match connection {
            Ok(connection) => opened.push((place, connection)),
            Err(why) => unread.push((place.name().to_owned(), why)),
        }
    }
    let mut parts: Vec<Part<'_>> = opened
        .iter_mut()
        .map(|(place, connection)| Part {
            name: place.name().to_owned(),
            schema: place.schema().clone(),
            connection,
        })
        .collect();
    let bounds = Bounds { events: EVENTS, ..Bounds::default() };
    let found = within(ANSWER, "the database", flow::read(&mut parts, asked, bounds)).await;
    drop(parts);
    let (part, why) = match found {
        Ok(Ok(found)) => return Ok(found),
        Ok(Err(error @ FlowError::NoTrail)) => {
            let why = Unanswered {
                why: error.to_string(),
                remedy: "docs/guides/finding-one-order.md says how.",
            };
            return Err(("The trail".to_owned(), why));
        }
        Ok(Err(error)) => {
            let part = match &error {
                FlowError::Database { part, .. } => part.clone(),
                _ => "The flow".to_owned(),
            };
            (part, Unanswered::by(&error))
        }
        Err(late) => ("The flow".to_owned(), Unanswered::by(&late)),
    };
    for (_, connection) in &mut opened {
        connection.close_on_drop();
    }
    Err((part, why))
}
