//! Retries in progress: events that have failed and will be tried again.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Query as Asked, State as Shared};
use axum::http::StatusCode;
use axum::response::Response;
use futures::future::join_all;
use pillarbox_store::dead_letters::brief;
use serde::Deserialize;
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::{Frame, ROWS, given, html};
use crate::guard::Admitted;
use crate::place::{Place, Unanswered};
use crate::state::State;
use crate::words::Moment;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Filter {
    place: String,
    consumer: String,
}

#[derive(Template)]
#[template(path = "retries.html")]
struct Retries {
    frame: Frame,
    filter: Filter,
    retries: Vec<Retry>,
    unread: Vec<(String, Unanswered)>,
    more: bool,
}

struct Retry {
    place: String,
    consumer: String,
    event_id: String,
    source: Option<String>,
    tries: String,
    error: String,
    whole_error: String,
    since: Moment,
    last: Moment,
}

pub(crate) async fn page(
    Shared(state): Shared<Arc<State>>,
    admitted: Admitted,
    Asked(filter): Asked<Filter>,
) -> Response {
    let places =
        state.places.iter().filter(|place| filter.place.is_empty() || filter.place == place.name());
    let read = join_all(places.map(async |place| (place, read(place, &filter).await))).await;
    let (mut retries, mut unread) = (Vec::new(), Vec::new());
    for (place, found) in read {
        match found {
            Ok(found) => retries.extend(found),
            Err(why) => unread.push((place.name().to_owned(), why)),
        }
    }
    let more = retries.len() as i64 > ROWS;
    retries.truncate(ROWS as usize);
    let frame = Frame::new(&state, &admitted, "/retries", "Retries in progress").live();
    html(StatusCode::OK, &Retries { frame, filter, retries, unread, more })
}

async fn read(place: &Place, filter: &Filter) -> Result<Vec<Retry>, Unanswered> {
    let sql = place.schema().statement(include_str!("../sql/retries.sql"));
    let tables = place.schema().as_str().to_owned();
    let consumer = given(&filter.consumer);
    let rows = place.ask(|connection| {
        Box::pin(async move {
            let (_, has_inbox) =
                sqlx::query_as::<_, (bool, bool)>(include_str!("../sql/tables.sql"))
                    .bind(tables)
                    .fetch_one(&mut *connection)
                    .await?;
            if !has_inbox {
                return Ok(Vec::new());
            }
            sqlx::query(sql).bind(consumer).bind(ROWS + 1).fetch_all(connection).await
        })
    });
    let rows = rows.await?;
    let retries = rows.iter().map(|row| retry(place.name(), row)).collect::<Result<_, _>>();
    retries.map_err(|error: sqlx::Error| Unanswered::by(&error))
}

fn retry(place: &str, row: &PgRow) -> Result<Retry, sqlx::Error> {
    let count = |name| row.try_get::<i32, _>(name);
    let (attempts, outages, uncounted) =
        (count("attempts")?, count("outages")?, count("uncounted")?);
    let mut tries = vec![format!("{attempts} failed")];
    if outages > 0 {
        tries.push(format!("{outages} without its provider"));
    }
    if uncounted > 0 {
        tries.push(format!("{uncounted} not counted"));
    }
    let error: String = row.try_get("error")?;
    Ok(Retry {
        place: place.to_owned(),
        consumer: row.try_get("consumer")?,
        event_id: row.try_get("event_id")?,
        source: row.try_get("source")?,
        tries: tries.join(", "),
        error: brief(&error, 160),
        whole_error: error,
        since: Moment::ago(row.try_get("since")?),
        last: Moment::ago(row.try_get("last")?),
    })
}
