//! Reads parked events that are due, and the keys that are blocked.

use std::collections::HashSet;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};

use super::{Due, Parked};
use crate::lease::{Lease, LeaseError};
use crate::rows::{Compression, PAGE_BYTES, Reading, Room, Select, Table, is_of_data, read_entry};

/// At most this many parked events are shipped at a time.
const DUE: i64 = 200;
/// The largest one that is read together with the others, in bytes.
const EACH: i64 = 2 * PAGE_BYTES as i64 / DUE;

impl Lease {
    /// The next parked events up to this position, without those of these letters, as many as fit a page. `largest`:
    /// the largest payload that the broker takes.
    pub(crate) async fn due(
        &self,
        is_strict: bool,
        left_out: &[i64],
        up_to: i64,
        largest: usize,
    ) -> Result<Due, LeaseError> {
        let compression = self.within(Compression::of).await?;
        let text = Select::text(include_str!("due.sql"), Table::Letters, compression, "$4");
        let page = |most: i64| {
            let query = self.read(&text).bind(is_strict).bind(DUE).bind(most);
            query.bind(left_out.to_vec()).bind(up_to)
        };
        let (whole, bare) = (page(EACH), page(-1));
        let rows = match self.within(async |c: &mut PgConnection| whole.fetch_all(c).await).await {
            // One of them cannot be read. Find out which.
            Err(LeaseError::Database(error)) if is_of_data(&error) => {
                self.within(async |c: &mut PgConnection| bare.fetch_all(c).await).await?
            }
            rows => rows?,
        };
        let mut attempts = Vec::with_capacity(rows.len());
        for row in &rows {
            attempts.push((row.try_get::<i64, _>("place")?, row.try_get::<i32, _>("attempts")?));
        }
        let entries = rows.iter().map(read_entry).collect::<Result<Vec<_>, _>>()?;
        let reading = Reading::new(self.schema(), Table::Letters, compression, largest);
        let fill =
            async |c: &mut PgConnection| reading.fill(c, entries, &mut Room::default()).await;
        let filled = self.within(fill).await?;
        let attempts_of = |letter: i64| {
            attempts.iter().find(|(place, _)| *place == letter).map_or(0, |(_, attempts)| *attempts)
        };
        let events = (filled.rows.into_iter())
            .map(|(letter, row)| Parked { letter, row, attempts: attempts_of(letter) })
            .collect();
        Ok(Due { events, bad: filled.bad })
    }

    /// The keys with an unresolved letter. A key that cannot be read is left out: an event with such a key cannot be
    /// read either, and is set aside by itself.
    pub(crate) async fn blocked(&self) -> Result<HashSet<String>, LeaseError> {
        let read = |row: &PgRow| row.try_get::<String, _>(0).ok();
        let query = self.read(include_str!("blocked.sql"));
        match self.within(async |c: &mut PgConnection| query.fetch_all(c).await).await {
            Err(LeaseError::Database(error)) if is_of_data(&error) => {}
            rows => return Ok(rows?.iter().filter_map(read).collect()),
        }
        // The database cannot convert one of them to UTF-8. Ask for each by itself.
        let text = include_str!("blocked.sql")
            .replace("distinct key", "distinct convert_to(key, getdatabaseencoding())");
        let query = self.read(&text);
        let keys = self.within(async |c: &mut PgConnection| query.fetch_all(c).await).await?;
        let mut blocked = HashSet::new();
        for key in keys {
            let key: Vec<u8> = key.try_get(0)?;
            let query = sqlx::query("select convert_from($1, getdatabaseencoding())").bind(key);
            match self.within(async |c: &mut PgConnection| query.fetch_one(c).await).await {
                Err(LeaseError::Database(error)) if is_of_data(&error) => {}
                key => blocked.extend(read(&key?)),
            }
        }
        Ok(blocked)
    }
}
