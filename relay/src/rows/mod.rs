//! Reads rows without relying on their size, or on being able to read them at all.
//!
//! | what | how |
//! |---|---|
//! | a page | [`Select`]: the database compares each row's size before it sends anything, and sends the columns only of rows up to a number of bytes |
//! | rows that came without their columns | [`Reading::fill`]: together as far as the page has room; a large row by itself |
//! | a page that fails | read again without any columns, then by halves, down to the row that fails |
//! | that row | [`Reading::alone`]: first its sizes, then its columns one by one, so that the error names the column |
//!
//! A row that cannot be read, or is larger than the broker accepts, becomes a [`BadRow`] that says what is wrong. The
//! other rows of its page are read as usual.
//!
//! The size of a row is its size after decompression. For a text or bytea, `octet_length` returns that without
//! decompressing the value. There is no such function for jsonb, so a page never contains compressed headers. The
//! outbox stores headers uncompressed, so such rows come from tables that somebody changed, or copied from elsewhere.

mod alone;
mod entry;
mod memory;
mod select;
#[cfg(test)]
mod tests;

use sqlx::{PgConnection, SqlStr};

use crate::message::Row;
use alone::Alone;
pub(crate) use entry::{BadRow, Entry, read as read_entry};
pub(crate) use memory::{Memory, Room};
pub(crate) use pillarbox_store::bad_data::is_of_data;
pub(crate) use select::{Compression, Select, Table};

/// The target size of a page, in bytes.
pub(crate) const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// Reads rows of one table one by one, or by their places.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    group: SqlStr,
    sizes: SqlStr,
    headers_size: SqlStr,
    columns: [(&'static str, SqlStr); 5],
    /// The largest payload that the broker accepts, in bytes. Larger ones are not read.
    largest: usize,
}

/// The rows of a page.
#[derive(Debug, Default)]
pub(crate) struct Filled {
    pub(crate) rows: Vec<(i64, Row)>,
    pub(crate) bad: Vec<BadRow>,
    /// The position of the last row that was examined.
    pub(crate) last: Option<i64>,
    /// Whether there was no room for the rows after it.
    pub(crate) cut: bool,
}

impl Reading {
    /// The largest payload that is read, in bytes.
    pub(crate) fn largest(&self) -> usize {
        self.largest
    }

    /// Fetches the rows of this page that came without their columns. `entries` must be in the order of the positions.
    pub(crate) async fn fill(
        &self,
        connection: &mut PgConnection,
        entries: Vec<Entry>,
        room: &mut Room,
    ) -> Result<Filled, sqlx::Error> {
        let mut filled = Filled::default();
        let mut weight = 0;
        let mut group = Vec::new();
        for entry in entries {
            let position = entry.position();
            let is_first = filled.last.is_none();
            match entry {
                Entry::Whole { place, row } => {
                    weight += row.size();
                    filled.rows.push((place, row));
                }
                Entry::Bad(bad) => filled.bad.push(bad),
                Entry::Withheld { place, bytes: Some(bytes), .. } if bytes <= PAGE_BYTES => {
                    if weight + bytes > PAGE_BYTES && !is_first {
                        filled.cut = true;
                        break;
                    }
                    weight += bytes;
                    group.push(place);
                }
                Entry::Withheld { place, bytes, .. } => {
                    // A row that is known to be large gets a page of its own.
                    if bytes.is_some_and(|bytes| bytes <= self.largest) && !is_first {
                        filled.cut = true;
                        break;
                    }
                    match self.alone(connection, place).await? {
                        Alone::Gone => {}
                        Alone::Bad(bad) => filled.bad.push(bad),
                        Alone::Fits(bytes) if weight + bytes > PAGE_BYTES && !is_first => {
                            filled.cut = true;
                            break;
                        }
                        Alone::Fits(bytes) => {
                            weight += bytes;
                            room.make(weight).await;
                            let entry = self.columns(connection, place).await?;
                            filled.add(entry);
                        }
                    }
                }
            }
            filled.last = Some(position);
        }
        for entry in self.group(connection, group).await? {
            filled.add(Some(entry));
        }
        filled.rows.sort_by_key(|(place, row)| (row.position, *place));
        filled.bad.sort_by_key(|bad| (bad.refused.position, bad.place));
        Ok(filled)
    }

    /// Reads these rows together, or by halves if that fails.
    async fn group(
        &self,
        connection: &mut PgConnection,
        places: Vec<i64>,
    ) -> Result<Vec<Entry>, sqlx::Error> {
        let mut found = Vec::with_capacity(places.len());
        let mut left = vec![places];
        while let Some(mut places) = left.pop() {
            if places.is_empty() {
                continue;
            }
            let most = i64::try_from(PAGE_BYTES).unwrap_or(i64::MAX);
            let rows = sqlx::query(self.group.clone())
                .bind(&places)
                .bind(most)
                .fetch_all(&mut *connection)
                .await;
            match rows {
                Ok(rows) => {
                    for row in &rows {
                        match entry::read(row)? {
                            // Its headers are compressed, or its size has grown since the page was read.
                            Entry::Withheld { place, .. } => {
                                found.extend(self.by_itself(connection, place).await?);
                            }
                            entry => found.push(entry),
                        }
                    }
                }
                Err(error) if is_of_data(&error) => {
                    let second = places.split_off(places.len() / 2);
                    match places.is_empty() {
                        true => found.extend(self.by_itself(connection, second[0]).await?),
                        false => left.extend([places, second]),
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    async fn by_itself(
        &self,
        connection: &mut PgConnection,
        place: i64,
    ) -> Result<Option<Entry>, sqlx::Error> {
        match self.alone(connection, place).await? {
            Alone::Gone => Ok(None),
            Alone::Bad(bad) => Ok(Some(Entry::Bad(bad))),
            Alone::Fits(_) => self.columns(connection, place).await,
        }
    }
}

impl Filled {
    fn add(&mut self, entry: Option<Entry>) {
        match entry {
            Some(Entry::Whole { place, row }) => self.rows.push((place, row)),
            Some(Entry::Bad(bad)) => self.bad.push(bad),
            // It was deleted since the page was read, so there is nothing to ship.
            Some(Entry::Withheld { .. }) | None => {}
        }
    }
}
