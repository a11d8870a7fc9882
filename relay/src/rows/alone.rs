//! Reads one row by itself: first its sizes, then its columns one by one.

use sqlx::{PgConnection, Row as _};
use uuid::Uuid;

use super::entry::{payload, text, time_of};
use super::is_of_data;
use super::{BadRow, Entry, Reading};
use crate::message::Row;
use crate::refused::{Reason, Refused};

/// At most this many bytes of a type, topic or key are read. A valid one has at most 255.
const LONGEST_TEXT: i32 = 64 * 1024;
/// Headers whose stored form is larger than this exceed the 64 KiB that JetStream accepts. If they are not compressed,
/// at most half of the stored form is structure; if they are compressed, they are larger than their stored form.
const LARGEST_HEADERS: i32 = 128 * 1024;
/// At most this many bytes of headers are read if they were compressed, or are longer as text.
const LARGEST_HEADERS_TEXT: i32 = 1024 * 1024;
/// Columns larger than this are not copied into the dead letters. No broker accepts them, and the copy would go through
/// the database's memory.
const LARGEST_COPY: i32 = 64 * 1024 * 1024;

/// What is known of a row before any column of it is read.
#[derive(Debug)]
pub(super) enum Alone {
    /// The row no longer exists.
    Gone,
    Bad(BadRow),
    /// The row can be read, and has this many bytes.
    Fits(usize),
}

/// The sizes of a row's columns, which the database knows without decompressing them.
pub(super) struct Sizes {
    pub(super) event_id: Option<Uuid>,
    pub(super) event_type: Option<i32>,
    pub(super) topic: Option<i32>,
    pub(super) key: Option<i32>,
    pub(super) payload: Option<i32>,
    /// In their stored form, in bytes.
    pub(super) headers: Option<i32>,
    pub(super) created_at: Option<i64>,
}

/// What is wrong with a row of these sizes, and which of its columns must not be copied.
pub(super) fn problem(sizes: &Sizes, largest: usize) -> Option<(Reason, String)> {
    let Sizes { event_id, event_type, topic, key, payload, headers, created_at } = *sizes;
    let is_null = |name| {
        let is = if name == "headers" { "are" } else { "is" };
        (Reason::Unreadable, format!("its {name} {is} null"))
    };
    if event_id.is_none() {
        return Some(is_null("event_id"));
    }
    for (name, size) in [("event_type", event_type), ("topic", topic), ("key", key)] {
        match size {
            Some(size) if size > LONGEST_TEXT => {
                let error = format!("its {name} has {size} bytes; an event's has at most 255");
                return Some((Reason::Invalid, error));
            }
            None if name != "key" => return Some(is_null(name)),
            _ => {}
        }
    }
    let (Some(headers), Some(payload)) = (headers, payload) else {
        return Some(is_null(if headers.is_none() { "headers" } else { "payload" }));
    };
    if headers > LARGEST_HEADERS {
        let error = format!(
            "its headers take {headers} bytes as they are stored, and JetStream stores at most 65535 with a message"
        );
        return Some((Reason::TooLarge, error));
    }
    if usize::try_from(payload).is_ok_and(|payload| payload > largest) {
        let error = format!(
            "the payload alone has {payload} bytes, and the server's max_payload is {largest}"
        );
        return Some((Reason::TooLarge, error));
    }
    time_of(created_at).err().map(|error| (Reason::Unreadable, error))
}

/// The columns that are too large to copy.
pub(super) fn too_large_to_copy(sizes: &Sizes) -> Vec<&'static str> {
    let Sizes { event_type, topic, key, payload, headers, .. } = *sizes;
    [
        ("event_type", event_type, LARGEST_HEADERS_TEXT),
        ("topic", topic, LARGEST_HEADERS_TEXT),
        ("key", key, LARGEST_HEADERS_TEXT),
        ("headers", headers, LARGEST_COPY),
        ("payload", payload, LARGEST_COPY),
    ]
    .into_iter()
    .filter(|(_, size, most)| size.is_some_and(|size| size > *most))
    .map(|(name, ..)| name)
    .collect()
}

impl Reading {
    /// Reads the sizes of a row.
    pub(super) async fn alone(
        &self,
        connection: &mut PgConnection,
        place: i64,
    ) -> Result<Alone, sqlx::Error> {
        let row = sqlx::query(self.sizes.clone()).bind(place).fetch_optional(&mut *connection);
        let Some(row) = row.await? else { return Ok(Alone::Gone) };
        let position: i64 = row.try_get(0)?;
        let sizes = Sizes {
            event_id: row.try_get(1)?,
            event_type: row.try_get(2)?,
            topic: row.try_get(3)?,
            key: row.try_get(4)?,
            payload: row.try_get(5)?,
            headers: row.try_get(6)?,
            created_at: row.try_get_unchecked(7)?,
        };
        let bad = |reason, error, mut lost: Vec<&'static str>| {
            lost.extend(too_large_to_copy(&sizes));
            let event_id = sizes.event_id.unwrap_or_default();
            let refused = Refused { position, event_id, reason, error };
            Alone::Bad(BadRow { place, refused, key: None, lost })
        };
        if let Some((reason, error)) = problem(&sizes, self.largest) {
            let Alone::Bad(mut bad) = bad(reason, error, Vec::new()) else {
                return Ok(Alone::Gone);
            };
            if sizes.key.is_some_and(|size| size <= LONGEST_TEXT) {
                bad.key = self.key(connection, place).await?;
            }
            return Ok(Alone::Bad(bad));
        }
        let headers = sqlx::query(self.headers_size.clone()).bind(place);
        let headers: i32 = match headers.fetch_optional(&mut *connection).await {
            Ok(Some(row)) => row.try_get::<Option<i32>, _>(0)?.unwrap_or(0),
            Ok(None) => return Ok(Alone::Gone),
            Err(error) if is_of_data(&error) => {
                let lost = lost("headers", &error);
                return Ok(bad(Reason::Unreadable, unreadable("headers", &error), lost));
            }
            Err(error) => return Err(error),
        };
        if headers > LARGEST_HEADERS_TEXT {
            let error = format!(
                "its headers have {headers} bytes, and JetStream stores at most 65535 with a message"
            );
            return Ok(bad(Reason::TooLarge, error, Vec::new()));
        }
        let all = [sizes.event_type, sizes.topic, sizes.key, sizes.payload, Some(headers)];
        let bytes = all.into_iter().flatten().map(|size| usize::try_from(size).unwrap_or(0)).sum();
        Ok(Alone::Fits(bytes))
    }

    async fn key(
        &self,
        connection: &mut PgConnection,
        place: i64,
    ) -> Result<Option<String>, sqlx::Error> {
        let query = sqlx::query(self.columns[2].1.clone()).bind(place);
        match query.fetch_optional(connection).await {
            Ok(Some(row)) => Ok(text(&row, 0)?.and_then(Result::ok)),
            Ok(None) => Ok(None),
            Err(error) if is_of_data(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads a row whose sizes are known, column by column. `None`: the row no longer exists.
    pub(super) async fn columns(
        &self,
        connection: &mut PgConnection,
        place: i64,
    ) -> Result<Option<Entry>, sqlx::Error> {
        let row = sqlx::query(self.sizes.clone()).bind(place).fetch_optional(&mut *connection);
        let Some(row) = row.await? else { return Ok(None) };
        let (position, event_id): (i64, Option<Uuid>) = (row.try_get(0)?, row.try_get(1)?);
        let event_id = event_id.unwrap_or_default();
        let created_at = time_of(row.try_get_unchecked(7)?);
        let mut texts: [Option<String>; 4] = Default::default();
        let mut content = None;
        let (mut problems, mut gone) = (Vec::new(), Vec::new());
        for (at, (name, sql)) in self.columns.iter().enumerate() {
            let row = sqlx::query(sql.clone()).bind(place).fetch_optional(&mut *connection).await;
            let row = match row {
                Ok(Some(row)) => row,
                Ok(None) => return Ok(None),
                Err(error) if is_of_data(&error) => {
                    problems.push(unreadable(name, &error));
                    gone.extend(lost(name, &error));
                    continue;
                }
                Err(error) => return Err(error),
            };
            match texts.get_mut(at) {
                Some(column) => match text(&row, 0)?.transpose() {
                    Ok(found) => *column = found,
                    Err(problem) => problems.push(format!("its {name} {problem}")),
                },
                None => content = Some(payload(&row, 0)?),
            }
        }
        problems.extend(created_at.as_ref().err().cloned());
        let [event_type, topic, key, headers] = texts;
        let (Some(event_type), Some(topic), Some(content), Ok(created_at), true) =
            (event_type, topic, content, created_at, problems.is_empty())
        else {
            let error = problems.join("; ");
            let refused = Refused { position, event_id, reason: Reason::Unreadable, error };
            return Ok(Some(Entry::Bad(BadRow { place, refused, key, lost: gone })));
        };
        let payload = content;
        let row = Row { position, event_id, event_type, topic, key, headers, payload, created_at };
        Ok(Some(Entry::Whole { place, row }))
    }
}

fn unreadable(name: &str, error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => format!("its {name} cannot be read: {}", error.message()),
        error => format!("its {name} cannot be read: {error}"),
    }
}

/// The column that cannot be read, if it cannot be copied either. Bytes that are no text can be copied. A value that
/// the database cannot assemble cannot.
fn lost(name: &'static str, error: &sqlx::Error) -> Vec<&'static str> {
    let is_damaged = match error {
        sqlx::Error::Database(error) => error.code().is_some_and(|code| code.starts_with("XX")),
        _ => false,
    };
    if is_damaged { vec![name] } else { Vec::new() }
}
