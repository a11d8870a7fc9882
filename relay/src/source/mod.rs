//! Reads the outbox: the next page behind a cursor.
//!
//! [`cursor`](crate::cursor) says what is read and why; here it is done. One connection is held for as long
//! as the source lives: when it is lost, the source is of no more use, and a new one starts from the cursor
//! that the database holds. (After a failover the new primary may know fewer transactions than a cursor in
//! memory has seen.)

mod sql;
mod sweep;
pub(crate) mod visibility;

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};

use crate::cursor::{Cursor, Snapshot};
use crate::message::Row;
use crate::rows::{
    BadRow, Compression, Entry, Filled, Memory, PAGE_BYTES, Reading, Room, Table, is_of_data,
    read_entry,
};
use sql::{Size, Statements};
use sweep::Sweep;

/// Rows to ship, in the order of their positions, and where the relay stands when it has.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) rows: Vec<Row>,
    /// Rows among them that cannot be read, or are larger than the broker takes.
    pub(crate) bad: Vec<BadRow>,
    /// The memory that it takes.
    pub(crate) room: Room,
    /// The largest message that the broker takes.
    pub(crate) max_payload: usize,
    /// The cursor before the window that this page belongs to.
    base: Arc<Cursor>,
    /// The window's end.
    window: Arc<Snapshot>,
    /// The cursor when all rows have been shipped.
    pub(crate) after: Cursor,
    /// Whether the rows are late ones of a sweep, of which the cursor's place says nothing.
    late: bool,
}

impl Page {
    /// The cursor when the rows up to this position have been shipped.
    pub(crate) fn cursor_at(&self, position: i64) -> Cursor {
        match self.late {
            true => Cursor::clone(&self.base),
            false => self.base.within(&self.window, position),
        }
    }
}

#[cfg(test)]
impl Page {
    /// The only page of the first window, which ends at this snapshot.
    pub(crate) fn only(window: Snapshot, rows: Vec<Row>) -> Self {
        let base = Cursor::start("x");
        let largest = rows.last().map(|row| row.position);
        let after = base.close(&window, largest, largest);
        let (bad, room) = (Vec::new(), Room::default());
        let max_payload = usize::MAX;
        let (base, window) = (Arc::new(base), Arc::new(window));
        Self { rows, bad, room, max_payload, base, window, after, late: false }
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
    all: Arc<Memory>,
    state: State,
    sweep: Sweep,
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
    /// the cursor's snapshot was taken, and then how far the sequence was.
    Between { cursor: Arc<Cursor>, spent: Option<i64> },
    /// In a window, read up to `position`. `last` is the last position in it, `sequence` how far the sequence was
    /// before the window's snapshot was taken, where they are known.
    Within {
        base: Arc<Cursor>,
        window: Arc<Snapshot>,
        position: i64,
        last: Option<i64>,
        sequence: Option<i64>,
    },
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
                last: None,
                sequence: None,
            },
            None => State::Between { cursor: Arc::new(cursor), spent: None },
        };
        let compression = Compression::of(&mut connection).await?;
        Ok(Self {
            statements: Statements::new(schema, relay, compression),
            reading: Reading::new(schema, Table::Outbox, compression, largest),
            connection,
            size: PageSize::new(page_rows),
            all: Room::all(),
            state,
            sweep: Sweep::default(),
        })
    }

    /// What is read takes it until it is stored.
    pub(crate) fn memory(&self) -> Arc<Memory> {
        self.all.clone()
    }

    /// The next page, or `None` if nothing is new. A page may be empty: then it only ends its window.
    ///
    /// Not safe to cancel: drop the source with the future.
    pub(crate) async fn next(&mut self) -> Result<Option<Page>, sqlx::Error> {
        match &self.state {
            State::Within { base, window, position, last, sequence } => {
                let (base, window) = (base.clone(), window.clone());
                let (position, last, sequence) = (*position, *last, *sequence);
                let room = Room::of_a_page(&self.all).await;
                let page = |statements: &Statements, size| {
                    statements.next_page(&base, &window, position, size)
                };
                let answer = self.ask(page).await?;
                let Answer { reach, entries, .. } = Answer::read(&answer)?;
                drop(answer);
                let reach = Reach { last: last.or(reach.last), ..reach };
                Ok(Some(self.page(base, window, entries, (reach, sequence), room).await?))
            }
            State::Between { cursor, spent } => {
                let (mut cursor, spent) = (cursor.clone(), *spent);
                if let Some(page) = self.late_page(&cursor).await? {
                    return Ok(Some(page));
                }
                let sequence = match spent {
                    Some(sequence) => sequence,
                    None => {
                        let spend = self.statements.spend_xid();
                        spend.fetch_one(&mut self.connection).await?.try_get(1)?
                    }
                };
                if sequence < cursor.high {
                    self.say_set_back(sequence, cursor.high).await?;
                    cursor = Arc::new(cursor.set_back(sequence));
                }
                self.first_page(cursor, sequence).await
            }
        }
    }

    /// Says that the sequence was set back, and what to do about it, if anything is to be done.
    async fn say_set_back(&mut self, sequence: i64, shipped: i64) -> Result<(), sqlx::Error> {
        let last = self.statements.last().fetch_one(&mut self.connection).await?;
        match last.try_get::<Option<i64>, _>(0)? {
            Some(last) if last > sequence => tracing::warn!(
                sequence,
                last,
                "the sequence of positions was set back below rows of the outbox: writers are refused until it has \
                 passed them; {}",
                self.statements.restart_behind(last)
            ),
            _ => tracing::warn!(
                sequence,
                shipped,
                "the sequence of positions was set back, as by `truncate … restart identity`; looking through the whole \
                 outbox, in which no row is ahead of it: nothing is to be mended"
            ),
        }
        Ok(())
    }

    async fn first_page(
        &mut self,
        cursor: Arc<Cursor>,
        sequence: i64,
    ) -> Result<Option<Page>, sqlx::Error> {
        let room = Room::of_a_page(&self.all).await;
        let answer = self.ask(|statements, size| statements.first_page(&cursor, size)).await?;
        let Answer { head, reach, entries } = Answer::read(&answer)?;
        drop(answer);
        if entries.is_empty() && !reach.ends_before_the_last() {
            let closed = cursor.close(&head.snapshot, None, Some(sequence));
            let higher = closed.floor > cursor.floor || closed.high > cursor.high;
            self.state = match higher {
                // An empty window: nothing to ship or to save, but the next read starts higher.
                true => State::Between { cursor: Arc::new(closed), spent: None },
                false => {
                    let mut cursor = Arc::unwrap_or_clone(cursor);
                    cursor.forget_finished(&head.snapshot);
                    State::Between { cursor: Arc::new(cursor), spent: Some(sequence) }
                }
            };
            return Ok(None);
        }
        if !head.flushed {
            self.wait_for_flush(&head.wal).await?;
        }
        let window = Arc::new(head.snapshot);
        Ok(Some(self.page(cursor, window, entries, (reach, Some(sequence)), room).await?))
    }

    /// Asks for a page; without any columns if the database stumbles over them. Then each row is read by itself.
    async fn ask(
        &mut self,
        page: impl Fn(&Statements, Size) -> sql::Statement<'static>,
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        let size = Size { rows: self.size.rows, most: self.size.each() };
        match page(&self.statements, size).fetch_all(&mut self.connection).await {
            Err(error) if is_of_data(&error) => {
                let bare = page(&self.statements, Size { most: -1, ..size });
                bare.fetch_all(&mut self.connection).await
            }
            answer => answer,
        }
    }

    /// Makes the page, and moves on behind it. `sequence`: how far that was before the window's snapshot was taken.
    async fn page(
        &mut self,
        base: Arc<Cursor>,
        window: Arc<Snapshot>,
        entries: Vec<Entry>,
        (reach, sequence): (Reach, Option<i64>),
        mut room: Room,
    ) -> Result<Page, sqlx::Error> {
        let Taken { rows, bad, largest, full } = self.take(entries, &mut room).await?;
        // A page that is full says nothing of what lies behind its last row.
        let position = largest.filter(|_| full).unwrap_or(reach.upto);
        let (after, state) = match full || reach.ends_before_the_last() {
            true => (
                base.within(&window, position),
                State::Within {
                    base: base.clone(),
                    window: window.clone(),
                    position,
                    last: reach.last,
                    sequence,
                },
            ),
            false => {
                let last = reach.last.map(|last| last.min(reach.upto));
                let after = base.close(&window, largest.or(last), sequence);
                let state = State::Between { cursor: Arc::new(after.clone()), spent: None };
                (after, state)
            }
        };
        self.state = state;
        let max_payload = self.reading.largest();
        Ok(Page { rows, bad, room, max_payload, base, window, after, late: false })
    }

    /// Fetches the rows of a page as far as they fit.
    async fn take(&mut self, entries: Vec<Entry>, room: &mut Room) -> Result<Taken, sqlx::Error> {
        let full = i64::try_from(entries.len()).is_ok_and(|rows| rows >= self.size.rows);
        let Filled { rows, bad, last, cut } =
            self.reading.fill(&mut self.connection, entries, room).await?;
        let rows: Vec<Row> = rows.into_iter().map(|(_, row)| row).collect();
        self.size.learn(&rows);
        room.keep(rows.iter().map(Row::size).sum());
        Ok(Taken { rows, bad, largest: last, full: full || cut })
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

/// What of a page was fetched.
struct Taken {
    rows: Vec<Row>,
    bad: Vec<BadRow>,
    /// The position of its last row.
    largest: Option<i64>,
    /// Whether there may be more behind that.
    full: bool,
}

/// How far a statement looked.
#[derive(Clone, Copy, Debug)]
struct Reach {
    upto: i64,
    /// The last position there was; `None` in an empty table.
    last: Option<i64>,
}

impl Reach {
    fn ends_before_the_last(self) -> bool {
        self.last.is_some_and(|last| self.upto < last)
    }
}

/// What a statement answered: the head, and the rows in the order of their positions.
struct Answer {
    head: Head,
    reach: Reach,
    entries: Vec<Entry>,
}

impl Answer {
    fn read(answer: &[PgRow]) -> Result<Self, sqlx::Error> {
        let mut head = None;
        let mut entries = Vec::with_capacity(answer.len().saturating_sub(1));
        for row in answer {
            if row.try_get_raw("position").map(|value| sqlx::ValueRef::is_null(&value))? {
                head = Some(row);
            } else {
                entries.push(read_entry(row)?);
            }
        }
        let head = head.ok_or(sqlx::Error::RowNotFound)?;
        // `union all` does not promise an order.
        if !entries.is_sorted_by_key(Entry::position) {
            entries.sort_by_key(Entry::position);
        }
        let reach = Reach { upto: head.try_get("upto")?, last: head.try_get("last")? };
        Ok(Self { head: Head::read(head)?, reach, entries })
    }
}

/// The snapshot that a statement had, and whether all that it sees is on disk.
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
