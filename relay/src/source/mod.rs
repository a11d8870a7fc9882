//! Reads the outbox: the next page behind a cursor.
//!
//! [`cursor`](crate::cursor) says what is read and why; here it is done. One connection is held for as long
//! as the source lives: when it is lost, the source is of no more use, and a new one starts from the cursor
//! that the database holds. (After a failover the new primary may know fewer transactions than a cursor in
//! memory has seen.)

mod sql;

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};
use tokio::sync::Semaphore;

use crate::cursor::{Cursor, Snapshot};
use crate::message::Row;
use crate::rows::{
    BadRow, Compression, Entry, Filled, PAGE_BYTES, Reading, Room, Table, is_of_data, read_entry,
};
use crate::sabotage::{Protection, Protections};
use sql::Statements;

/// Rows to ship, in the order of their positions, and where the relay stands when it has.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) rows: Vec<Row>,
    /// Rows among them that cannot be read, or are larger than the broker takes.
    pub(crate) bad: Vec<BadRow>,
    /// The memory that it takes.
    pub(crate) room: Room,
    /// The cursor before the window that this page belongs to.
    base: Arc<Cursor>,
    /// The window's end.
    window: Arc<Snapshot>,
    /// The cursor when all rows have been shipped.
    pub(crate) after: Cursor,
}

impl Page {
    /// The cursor when the rows up to this position have been shipped.
    pub(crate) fn cursor_at(&self, position: i64) -> Cursor {
        self.base.within(&self.window, position)
    }
}

#[cfg(test)]
impl Page {
    /// The only page of the first window, which ends at this snapshot.
    pub(crate) fn only(window: Snapshot, rows: Vec<Row>) -> Self {
        let base = Cursor::start("x");
        let after = base.close(&window, rows.last().map(|row| row.position));
        let (bad, room) = (Vec::new(), Room::default());
        Self { rows, bad, room, base: Arc::new(base), window: Arc::new(window), after }
    }
}

/// Reads one outbox from a cursor on.
#[derive(Debug)]
pub(crate) struct Source {
    connection: PgConnection,
    statements: Statements,
    reading: Reading,
    size: PageSize,
    /// The memory for all that is read and not stored yet.
    all: Arc<Semaphore>,
    state: State,
    protections: Protections,
}

/// How many rows to ask for: as many as were about [`PAGE_BYTES`] last time, within the configured bound, so
/// that pages of large rows do not fill the memory.
#[derive(Debug)]
struct PageSize {
    rows: i64,
    most: i64,
}

const FIRST_PAGE_ROWS: i64 = 200;

impl PageSize {
    fn new(most: u32) -> Self {
        let most = i64::from(most);
        Self { rows: most.min(FIRST_PAGE_ROWS), most }
    }

    /// What one of them may weigh to come with its page: twice its share.
    fn each(&self) -> i64 {
        2 * i64::try_from(PAGE_BYTES).unwrap_or(i64::MAX) / self.rows.max(1)
    }

    fn learn(&mut self, rows: &[Row]) {
        let bytes: usize = rows.iter().map(Row::size).sum();
        if let Some(each) = bytes.checked_div(rows.len()) {
            let fit = PAGE_BYTES / each.max(1);
            self.rows = i64::try_from(fit).unwrap_or(i64::MAX).clamp(1, self.most);
        }
    }
}

#[derive(Debug)]
enum State {
    /// Between two windows. `spent` says whether a transaction id of the relay's own has been consumed since
    /// the cursor's snapshot was taken.
    Between { cursor: Arc<Cursor>, spent: bool },
    /// In a window, read up to `position`.
    Within { base: Arc<Cursor>, window: Arc<Snapshot>, position: i64 },
}

impl Source {
    /// Reads from `cursor` on, `page_rows` rows at a time, without payloads larger than `largest`. Sets the connection
    /// up for it.
    pub(crate) async fn open(
        mut connection: PgConnection,
        schema: &str,
        relay: &str,
        cursor: Cursor,
        page_rows: u32,
        largest: usize,
    ) -> Result<Self, sqlx::Error> {
        // The planner may not trade the walk along the primary key for a sort of the whole table, and the
        // relay's own commits must reach the disk even where the database's default says otherwise.
        sqlx::raw_sql(
            "set enable_seqscan = off; set enable_bitmapscan = off; set jit = off; \
             set default_transaction_isolation = 'read committed'; set synchronous_commit = on",
        )
        .execute(&mut connection)
        .await?;
        let state = match cursor.window.clone() {
            Some(window) => State::Within {
                base: Arc::new(Cursor { window: None, ..cursor }),
                window: Arc::new(window.snapshot),
                position: window.position,
            },
            None => State::Between { cursor: Arc::new(cursor), spent: false },
        };
        let compression = Compression::of(&mut connection).await?;
        Ok(Self {
            statements: Statements::new(schema, relay, compression),
            reading: Reading::new(schema, Table::Outbox, compression, largest),
            connection,
            size: PageSize::new(page_rows),
            all: Room::all(),
            state,
            protections: Protections::default(),
        })
    }

    /// The same under these protections.
    pub(crate) fn under(self, protections: Protections) -> Self {
        Self { protections, ..self }
    }

    /// The cursor behind a window.
    fn close(&self, base: &Cursor, window: &Snapshot, largest: Option<i64>) -> Cursor {
        let mut closed = base.close(window, largest);
        if !self.protections.hold(Protection::Floor) {
            closed.floor = closed.high;
        }
        closed
    }

    /// The next page, or `None` if nothing is new. A page may be empty: then it only ends its window.
    ///
    /// Not safe to cancel: drop the source with the future.
    pub(crate) async fn next(&mut self) -> Result<Option<Page>, sqlx::Error> {
        match &self.state {
            State::Within { base, window, position } => {
                let (base, window, position) = (base.clone(), window.clone(), *position);
                let room = Room::of_a_page(&self.all).await;
                let size = self.size.rows;
                let page = |statements: &Statements, most| {
                    statements.next_page(&base.snapshot, &window, position, size, most)
                };
                let answer = self.ask(page).await?;
                let entries = answer.iter().map(read_entry).collect::<Result<Vec<_>, _>>()?;
                drop(answer);
                Ok(Some(self.page(base, window, entries, Some(position), room).await?))
            }
            State::Between { cursor, spent } => {
                let (cursor, spent) = (cursor.clone(), *spent);
                if !spent {
                    self.statements.spend_xid().execute(&mut self.connection).await?;
                }
                self.first_page(cursor).await
            }
        }
    }

    async fn first_page(&mut self, cursor: Arc<Cursor>) -> Result<Option<Page>, sqlx::Error> {
        let room = Room::of_a_page(&self.all).await;
        let size = self.size.rows;
        let answer =
            self.ask(|statements, most| statements.first_page(&cursor, size, most)).await?;
        let mut head = None;
        let mut rows = Vec::with_capacity(answer.len().saturating_sub(1));
        for row in &answer {
            if row.try_get_raw("position").map(|value| sqlx::ValueRef::is_null(&value))? {
                head = Some(Head::read(row)?);
            } else {
                rows.push(read_entry(row)?);
            }
        }
        drop(answer);
        let head = head.ok_or(sqlx::Error::RowNotFound)?;
        // `union all` does not promise an order.
        if !rows.is_sorted_by_key(Entry::position) {
            rows.sort_by_key(Entry::position);
        }
        if rows.is_empty() {
            let mut cursor = Arc::unwrap_or_clone(cursor);
            let mut spent = true;
            if cursor.floor < cursor.high {
                // An empty window: nothing to ship or to save, but the next read starts higher.
                cursor = self.close(&cursor, &head.snapshot, None);
                spent = false;
            } else {
                cursor.forget_finished(&head.snapshot);
            }
            self.state = State::Between { cursor: Arc::new(cursor), spent };
            return Ok(None);
        }
        if !head.flushed {
            self.wait_for_flush(&head.wal).await?;
        }
        Ok(Some(self.page(cursor, Arc::new(head.snapshot), rows, None, room).await?))
    }

    /// Asks for a page; without any columns if the database stumbles over them. Then each row is read by itself.
    async fn ask(
        &mut self,
        page: impl Fn(&Statements, i64) -> sql::Statement<'static>,
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        let whole = page(&self.statements, self.size.each());
        match whole.fetch_all(&mut self.connection).await {
            Err(error) if is_of_data(&error) => {
                page(&self.statements, -1).fetch_all(&mut self.connection).await
            }
            answer => answer,
        }
    }

    /// Makes the page, and moves on behind it. `before`: the last position of the window's earlier pages.
    async fn page(
        &mut self,
        base: Arc<Cursor>,
        window: Arc<Snapshot>,
        entries: Vec<Entry>,
        before: Option<i64>,
        mut room: Room,
    ) -> Result<Page, sqlx::Error> {
        let full = i64::try_from(entries.len()).is_ok_and(|rows| rows >= self.size.rows);
        let Filled { rows, bad, last, cut } =
            self.reading.fill(&mut self.connection, entries, &mut room).await?;
        let rows: Vec<Row> = rows.into_iter().map(|(_, row)| row).collect();
        let last = last.or(before);
        let full = full || cut;
        self.size.learn(&rows);
        room.keep(rows.iter().map(Row::size).sum());
        let (after, state) = match last {
            Some(position) if full => (
                base.within(&window, position),
                State::Within { base: base.clone(), window: window.clone(), position },
            ),
            _ => {
                let after = self.close(&base, &window, last);
                let state = State::Between { cursor: Arc::new(after.clone()), spent: false };
                (after, state)
            }
        };
        self.state = state;
        Ok(Page { rows, bad, room, base, window, after })
    }

    /// Waits until the write-ahead log is on disk up to `wal`. Normally the writers' own commits see to
    /// that within a moment; if not, the relay commits something itself.
    async fn wait_for_flush(&mut self, wal: &str) -> Result<(), sqlx::Error> {
        let mut pause = Duration::from_millis(1);
        loop {
            let flushed: bool =
                self.statements.flushed(wal).fetch_one(&mut self.connection).await?.try_get(0)?;
            if flushed {
                return Ok(());
            }
            if pause > Duration::from_millis(4) {
                self.statements.force_flush().execute(&mut self.connection).await?;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}

struct Head {
    snapshot: Snapshot,
    wal: String,
    flushed: bool,
}

impl Head {
    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        let snapshot: String = row.try_get("snapshot")?;
        Ok(Self {
            snapshot: snapshot.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
            wal: row.try_get("wal")?,
            flushed: row.try_get("flushed")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use time::OffsetDateTime;

    use super::*;

    fn row(payload: usize) -> Row {
        Row {
            position: 1,
            event_id: uuid::Uuid::nil(),
            event_type: "t".into(),
            topic: "t".into(),
            key: None,
            headers: None,
            payload: Bytes::from(vec![0; payload]),
            created_at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn pages_of_large_rows_are_short_and_pages_of_small_ones_grow_again() {
        let mut size = PageSize::new(2000);
        assert_eq!(size.rows, 200);
        size.learn(&[row(1024 * 1024), row(1024 * 1024)]);
        assert_eq!(size.rows, 3);
        size.learn(&[row(8 * 1024 * 1024)]);
        assert_eq!(size.rows, 1);
        size.learn(&[row(100)]);
        assert_eq!(size.rows, 2000);
        size.learn(&[]);
        assert_eq!(size.rows, 2000);
    }
}
