//! The dead letters in groups of one kind: consumer or relay, event type, reason, and error.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Query as Asked, State as Shared};
use axum::http::StatusCode;
use axum::response::Response;
use futures::future::join_all;
use pillarbox_store::dead_letters::{Filter, Group, Groups, LetterState, Side, brief};
use serde::Deserialize;

use super::{Frame, given, html};
use crate::guard::Admitted;
use crate::place::{Place, Unanswered, in_time};
use crate::state::State;
use crate::words::{Moment, Query, number};

/// As many letters of each side are read for the groups. With more, the page says so.
const READ: i64 = 20_000;

/// Which letters. The URL has all of it, so it can be sent to a colleague.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Which {
    pub(super) place: String,
    pub(super) side: String,
    pub(super) owner: String,
    #[serde(rename = "type")]
    pub(super) event_type: String,
    pub(super) reason: String,
    pub(super) error: String,
    pub(super) since: String,
    pub(super) group: String,
    pub(super) key: String,
    pub(super) event: String,
    /// `discarded`, or nothing for the unresolved ones.
    pub(super) state: String,
}

impl Which {
    /// The sides that are wanted.
    fn sides(&self) -> Vec<Side> {
        match side(&self.side) {
            Some(side) => vec![side],
            None => vec![Side::Inbox, Side::Outbox],
        }
    }

    /// For the calls.
    pub(super) fn filter(&self) -> Filter {
        Filter {
            owner: given(&self.owner),
            event_type: given(&self.event_type),
            reason: given(&self.reason),
            error_like: given(&self.error),
            since_s: self.since_seconds(),
            group: given(&self.group),
            key: given(&self.key),
            event_id: given(&self.event),
            state: self.is_discarded().then_some(LetterState::Discarded),
            ..Filter::default()
        }
    }

    /// Whether the discarded letters are wanted, and not the unresolved ones.
    pub(super) fn is_discarded(&self) -> bool {
        self.state == DISCARDED
    }

    fn since_seconds(&self) -> Option<i64> {
        match &*self.since {
            "hour" => Some(3_600),
            "day" => Some(86_400),
            "week" => Some(604_800),
            _ => None,
        }
    }

    /// The part of the URL that says all of this.
    pub(super) fn query(&self) -> Query {
        Query::default()
            .with_some("place", &self.place)
            .with_some("side", &self.side)
            .with_some("owner", &self.owner)
            .with_some("type", &self.event_type)
            .with_some("reason", &self.reason)
            .with_some("error", &self.error)
            .with_some("since", &self.since)
            .with_some("group", &self.group)
            .with_some("key", &self.key)
            .with_some("event", &self.event)
            .with_some("state", &self.state)
    }

    fn narrows(&self) -> bool {
        !self.query().to_string().is_empty()
    }
}

/// The side of this name.
pub(super) fn side(name: &str) -> Option<Side> {
    match name {
        "inbox" => Some(Side::Inbox),
        "outbox" => Some(Side::Outbox),
        _ => None,
    }
}

pub(super) fn side_name(side: Side) -> &'static str {
    match side {
        Side::Inbox => "inbox",
        Side::Outbox => "outbox",
    }
}

#[derive(Template)]
#[template(path = "letter_groups.html")]
struct LetterGroups {
    frame: Frame,
    which: Which,
    sinces: [(&'static str, &'static str); 4],
    groups: Vec<Kind>,
    letters: String,
    left_out: i64,
    partly: bool,
    unread: Vec<(String, Unanswered)>,
}

/// Letters of one kind, as the page shows them.
struct Kind {
    place: String,
    who: &'static str,
    owner: String,
    event_type: String,
    reason: String,
    error: String,
    whole_error: String,
    sort: i64,
    count: String,
    parked: i64,
    first: Moment,
    last: Moment,
    list: Query,
}

/// The name of the state that the letters of a filter may have beside the unresolved ones.
pub(super) const DISCARDED: &str = "discarded";

/// The choices of how far back.
pub(super) const SINCES: [(&str, &str); 4] = [
    ("", "any time"),
    ("hour", "the last hour"),
    ("day", "the last day"),
    ("week", "the last week"),
];

pub(crate) async fn page(
    Shared(state): Shared<Arc<State>>,
    admitted: Admitted,
    Asked(which): Asked<Which>,
) -> Response {
    let places =
        state.places.iter().filter(|place| which.place.is_empty() || which.place == place.name());
    let looks = places.flat_map(|place| which.sides().into_iter().map(move |side| (place, side)));
    let read =
        join_all(looks.map(async |(place, side)| (place, side, read(place, side, &which).await)));
    let (mut groups, mut unread, mut letters, mut left_out, mut partly) =
        (Vec::new(), Vec::new(), 0, 0, false);
    for (place, side, found) in read.await {
        match found {
            Ok(found) => {
                partly |= found.letters >= READ;
                letters += found.letters;
                left_out += found.left_out;
                let kinds = found.groups.into_iter();
                groups.extend(kinds.map(|group| kind(place, side, &which, group)));
            }
            Err(why) => unread.push((place.name().to_owned(), why)),
        }
    }
    groups.sort_by_key(|kind| std::cmp::Reverse(kind.sort));
    let page = LetterGroups {
        frame: Frame::new(&state, &admitted, "/dead-letters", "Dead letters").live(),
        which,
        sinces: SINCES,
        groups,
        letters: number(letters),
        left_out,
        partly,
        unread,
    };
    html(StatusCode::OK, &page)
}

async fn read(place: &Place, side: Side, which: &Which) -> Result<Groups, Unanswered> {
    if !has_letters(place, side).await? {
        return Ok(Groups::default());
    }
    let letters = place.letters(side).await?;
    in_time(letters.groups_of(&which.filter(), READ)).await
}

/// Whether the place has the tables of this side. A database that only consumes has no outbox.
async fn has_letters(place: &Place, side: Side) -> Result<bool, Unanswered> {
    let tables = place.schema().as_str().to_owned();
    let found = place.ask(|connection| {
        Box::pin(async move {
            sqlx::query_as::<_, (bool, bool)>(include_str!("../sql/tables.sql"))
                .bind(tables)
                .fetch_one(connection)
                .await
        })
    });
    let (outbox, inbox) = found.await?;
    Ok(match side {
        Side::Outbox => outbox,
        Side::Inbox => inbox,
    })
}

fn kind(place: &Place, side: Side, which: &Which, group: Group) -> Kind {
    let list = Query::default()
        .with("place", place.name())
        .with("side", side_name(side))
        .with("group", &group.group)
        .with_some("state", &which.state);
    Kind {
        place: place.name().to_owned(),
        who: if side == Side::Inbox { "consumer" } else { "relay" },
        owner: group.owner,
        event_type: group.event_type.unwrap_or_else(|| "no event".to_owned()),
        reason: group.reason,
        error: brief(&group.error, 200),
        whole_error: group.error,
        sort: group.count,
        count: number(group.count),
        parked: group.parked,
        first: Moment::ago(group.first_age_seconds),
        last: Moment::ago(group.last_age_seconds),
        list,
    }
}
