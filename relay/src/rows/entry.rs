//! One row of a page, as the database returned it.

use bytes::Bytes;
use sqlx::postgres::PgRow;
use sqlx::{Row as _, ValueRef};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::message::Row;
use crate::refused::{Reason, Refused};

/// A row of a page. `place` identifies it, so that it can be read again.
#[derive(Debug)]
pub(crate) enum Entry {
    Whole {
        place: i64,
        row: Row,
    },
    /// The row cannot be read or cannot be sent.
    Bad(BadRow),
    /// The row came without its columns. `bytes`: its size, if it is known.
    Withheld {
        place: i64,
        position: i64,
        bytes: Option<usize>,
    },
}

/// A row that cannot be sent, whatever the broker's state.
#[derive(Debug)]
pub(crate) struct BadRow {
    pub(crate) place: i64,
    pub(crate) refused: Refused,
    /// The ordering key, if it can be read.
    pub(crate) key: Option<String>,
    /// The columns that cannot even be copied.
    pub(crate) lost: Vec<&'static str>,
}

impl Entry {
    pub(crate) fn position(&self) -> i64 {
        match self {
            Self::Whole { row, .. } => row.position,
            Self::Bad(bad) => bad.refused.position,
            Self::Withheld { position, .. } => *position,
        }
    }
}

/// Reads a row of a statement made by [`Select`](super::Select).
pub(crate) fn read(row: &PgRow) -> Result<Entry, sqlx::Error> {
    let (position, place): (i64, i64) = (row.try_get(0)?, row.try_get("place")?);
    let withheld = Entry::Withheld {
        place,
        position,
        bytes: row.try_get::<Option<i64>, _>(8)?.and_then(|bytes| usize::try_from(bytes).ok()),
    };
    // The type is never null in a valid row, so this shows whether the columns came.
    let Some(event_type) = text(row, 2)? else { return Ok(withheld) };
    let event_id: Option<Uuid> = row.try_get(1)?;
    let key = text(row, 4)?;
    let readable_key = key.clone().and_then(Result::ok);
    let whole = || -> Result<Row, String> {
        let created_at: Option<i64> =
            row.try_get_unchecked(7).map_err(|error| error.to_string())?;
        let column = |name: &str, at: usize| -> Result<Option<String>, String> {
            let found = text(row, at).map_err(|error| error.to_string())?;
            found.transpose().map_err(|problem| format!("its {name} {problem}"))
        };
        Ok(Row {
            position,
            event_id: event_id.ok_or("its event_id is null")?,
            event_type: event_type.map_err(|problem| format!("its event_type {problem}"))?,
            topic: column("topic", 3)?.ok_or("its topic is null")?,
            key: key.transpose().map_err(|problem| format!("its key {problem}"))?,
            headers: column("headers", 5)?,
            payload: payload(row, 6).map_err(|error| error.to_string())?,
            created_at: time_of(created_at)?,
        })
    };
    Ok(match whole() {
        Ok(row) => Entry::Whole { place, row },
        Err(error) => Entry::Bad(BadRow {
            place,
            refused: Refused {
                position,
                event_id: event_id.unwrap_or_default(),
                reason: Reason::Unreadable,
                error,
            },
            key: readable_key,
            lost: Vec::new(),
        }),
    })
}

/// A text column. A database with the encoding SQL_ASCII may send any bytes.
pub(super) fn text(row: &PgRow, at: usize) -> Result<Option<Result<String, String>>, sqlx::Error> {
    let value = row.try_get_raw(at)?;
    if value.is_null() {
        return Ok(None);
    }
    let bytes = value.as_bytes().map_err(sqlx::Error::Decode)?;
    Ok(Some(match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => {
            let odd: String = bytes
                .iter()
                .skip(error.valid_up_to())
                .take(4)
                .map(|byte| format!(" {byte:02x}"))
                .collect();
            Err(format!(
                "is not text in UTF-8: at byte {} it goes on with{odd}",
                error.valid_up_to()
            ))
        }
    }))
}

pub(super) fn payload(row: &PgRow, at: usize) -> Result<Bytes, sqlx::Error> {
    let bytes = row.try_get_raw(at)?.as_bytes().map_err(sqlx::Error::Decode)?;
    Ok(Bytes::copy_from_slice(bytes))
}

/// The time of a timestamptz, which is sent as microseconds since 2000. sqlx would panic if it is infinite, or outside
/// the years that `OffsetDateTime` supports.
pub(super) fn time_of(microseconds: Option<i64>) -> Result<OffsetDateTime, String> {
    const EPOCH: i128 = 946_684_800_000_000;
    match microseconds {
        None => Err("its created_at is null".to_owned()),
        Some(i64::MAX) => Err("its created_at is infinity, which is no time".to_owned()),
        Some(i64::MIN) => Err("its created_at is -infinity, which is no time".to_owned()),
        Some(microseconds) => {
            OffsetDateTime::from_unix_timestamp_nanos((i128::from(microseconds) + EPOCH) * 1_000)
                .map_err(|_| "its created_at lies outside the years -9999 to 9999".to_owned())
        }
    }
}
