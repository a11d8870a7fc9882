//! The runbook, as far as it is about trouble that the overview names. It is part of the program, so it is there when
//! nothing else is.

use std::sync::{Arc, LazyLock};

use askama::Template;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::response::Response;

use super::{Frame, html};
use crate::guard::Admitted;
use crate::state::State;

/// An entry: its anchor, its heading and its paragraphs.
pub(crate) struct Entry {
    anchor: String,
    heading: &'static str,
    paragraphs: Vec<Vec<&'static str>>,
}

#[derive(Template)]
#[template(path = "runbook.html")]
struct Runbook {
    frame: Frame,
    entries: &'static [Entry],
}

static ENTRIES: LazyLock<Vec<Entry>> =
    LazyLock::new(|| entries(include_str!("../../operations.md")));

pub(crate) async fn page(Shared(state): Shared<Arc<State>>, admitted: Admitted) -> Response {
    let frame = Frame::new(&state, &admitted, "", "Runbook");
    html(StatusCode::OK, &Runbook { frame, entries: &ENTRIES })
}

/// The entries of the part `## Runbook`.
fn entries(text: &'static str) -> Vec<Entry> {
    let book = text.split_once("\n## Runbook\n").map_or("", |(_, book)| book);
    let book = book.split("\n## ").next().unwrap_or_default();
    let entries = book.split("\n### ").skip(1).map(|entry| {
        let (heading, body) = entry.split_once('\n').unwrap_or((entry, ""));
        let paragraphs = body.split("\n\n").filter(|paragraph| !paragraph.trim().is_empty());
        Entry {
            anchor: heading.to_lowercase().replace(' ', "-"),
            heading,
            paragraphs: paragraphs
                .map(|paragraph| paragraph.trim_matches('\n').lines().collect())
                .collect(),
        }
    });
    entries.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_trouble_leads_to_an_entry_that_is_there() {
        let code = include_str!("../trouble.rs");
        let named: Vec<&str> = code
            .split("Some(\"")
            .skip(1)
            .filter_map(|rest| rest.split_once("\")"))
            .map(|(anchor, _)| anchor)
            .collect();
        assert!(named.len() >= 8, "{named:?}");
        for anchor in named {
            let entry = ENTRIES.iter().find(|entry| entry.anchor == anchor);
            assert!(entry.is_some_and(|entry| !entry.paragraphs.is_empty()), "{anchor}");
        }
    }
}
