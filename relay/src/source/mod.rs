//! Reads the outbox: the next page behind a cursor.
//!
//! [`cursor`](crate::cursor) explains what is read and why. A source keeps one connection for as long as it lives. If
//! the connection is lost, the source must not be used again, and a new one starts from the cursor in the database.
//! (After a failover, the new primary may know fewer transactions than a cursor in memory has seen.)

#[cfg(test)]
mod flush_tests;
mod sql;
mod sweep;
#[cfg(test)]
mod tests;
pub(crate) mod visibility;

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};

use crate::cursor::{Cursor, Snapshot, TableId};
use crate::message::Row;
use crate::rows::{
    BadRow, Compression, Entry, Filled, Memory, PAGE_BYTES, Reading, Room, Table, is_of_data,
    read_entry,
};
use crate::table;
use sql::{Size, Statements};
use sweep::{Late, Sweep};

/// Rows to ship, in the order of their positions, and the cursor once they are shipped.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) rows: Vec<Row>,
    /// Rows of the page that cannot be read, or that are larger than the broker accepts.
    pub(crate) bad: Vec<BadRow>,
    /// The memory that the page takes.
    pub(crate) room: Room,
    /// The largest message that the broker accepts, in bytes.
    pub(crate) max_payload: usize,
    /// The cursor before the window that this page belongs to.
    base: Arc<Cursor>,
    /// The end of that window.
    window: Arc<Snapshot>,
    /// The cursor once all rows have been shipped.
    pub(crate) after: Cursor,
    /// Whether the rows are late rows that a sweep found. The cursor does not depend on them.
    late: bool,
}

impl Page {
    /// The cursor once the rows up to this position have been shipped.
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
    schema: String,
    relay: String,
    compression: Compression,
    statements: Statements,
    reading: Reading,
    size: PageSize,
    /// The memory for everything that was read and is not stored yet.
    all: Arc<Memory>,
    state: State,
    sweep: Sweep,
}

/// How many rows to ask for: as many as had about [`PAGE_BYTES`] last time, within the configured limit. So pages of
/// large rows do not fill the memory.
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

    /// The largest row that is read with its page: twice its share of the page.
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
    /// Between two windows. `spent` says whether the relay has consumed a transaction id of its own since the cursor's
    /// snapshot was taken, and how far the sequence was then.
    Between { cursor: Arc<Cursor>, spent: Option<Spent> },
    /// In a window, which has been read up to `position`. `last` is the last position in it. `sequence` is how far the
    /// sequence was before the window's snapshot was taken. Both may be unknown.
    Within {
        base: Arc<Cursor>,
        window: Arc<Snapshot>,
        position: i64,
        last: Option<i64>,
        sequence: Option<i64>,
    },
}

/// A transaction id of the relay's own has been consumed.
#[derive(Clone, Copy, Debug)]
struct Spent {
    /// How far the sequence of positions was then. `None`: there is none.
    sequence: Option<i64>,
}

impl State {
    /// Where reading begins with this cursor.
    fn at(cursor: Cursor) -> Self {
        match cursor.window.clone() {
            Some(window) => Self::Within {
                base: Arc::new(Cursor { window: None, ..cursor }),
                window: Arc::new(window.snapshot),
                position: window.position,
                last: None,
                sequence: None,
            },
            None => Self::Between { cursor: Arc::new(cursor), spent: None },
        }
    }
}

impl Source {
    /// A source that reads from `cursor` on, `page_rows` rows at a time, without payloads larger than `largest`.
    /// Prepares the connection for it.
    pub(crate) async fn open(
        mut connection: PgConnection,
        schema: &str,
        relay: &str,
        cursor: Cursor,
        page_rows: u32,
        largest: usize,
    ) -> Result<Self, sqlx::Error> {
        // The planner must walk along the primary key, and not sort the whole table. The relay's own commits must reach
        // the disk, whatever the database's default is.
        sqlx::raw_sql(
            "set enable_seqscan = off; set enable_bitmapscan = off; set jit = off; \
             set default_transaction_isolation = 'read committed'; set synchronous_commit = on",
        )
        .execute(&mut connection)
        .await?;
        let compression = Compression::of(&mut connection).await?;
        let found = table::find(&mut connection, schema).await?;
        let mut source = Self {
            schema: schema.to_owned(),
            relay: relay.to_owned(),
            compression,
            statements: Statements::new(schema, relay, compression, &found),
            reading: Reading::new(schema, Table::Outbox, compression, largest),
            connection,
            size: PageSize::new(page_rows),
            all: Room::all(),
            state: State::at(cursor.clone()),
            sweep: Sweep::default(),
        };
        source.settle_in(found, &cursor, None).await?;
        Ok(source)
    }

    /// Looks which table is the outbox now, and goes on from this cursor there. `reached`: how far the sequence was a
    /// moment ago.
    async fn settle(&mut self, cursor: &Cursor, reached: Option<i64>) -> Result<(), sqlx::Error> {
        let found = table::find(&mut self.connection, &self.schema).await?;
        self.statements = Statements::new(&self.schema, &self.relay, self.compression, &found);
        self.settle_in(found, cursor, reached).await
    }

    async fn settle_in(
        &mut self,
        found: table::Found,
        cursor: &Cursor,
        reached: Option<i64>,
    ) -> Result<(), sqlx::Error> {
        let id = found.id;
        let reached = reached.into_iter().chain(found.reached).min();
        let mut now = cursor.in_table(id, reached);
        match cursor.table {
            Some(table) if table.relation != id.relation => {
                self.say_replaced(table.relation).await?
            }
            _ => match reached {
                Some(reached) if reached < cursor.high => {
                    self.say_set_back(reached, cursor.high).await?;
                    now = now.set_back(reached);
                }
                _ if cursor.table.is_some_and(|table| table != id) => tracing::info!(
                    "the sequence of positions was restarted or replaced; looking through the whole outbox once more"
                ),
                _ => {}
            },
        }
        self.state = State::at(now);
        self.sweep = Sweep::default();
        Ok(())
    }

    /// Says that another table is the outbox now.
    async fn say_replaced(&mut self, before: i64) -> Result<(), sqlx::Error> {
        let name =
            "select $1::bigint::oid::regclass::text from pg_class where oid = $1::bigint::oid";
        let name = sqlx::query(name).bind(before).fetch_optional(&mut self.connection).await?;
        let old_table: Option<String> = name.map(|row| row.try_get(0)).transpose()?;
        tracing::warn!(
            old_table = old_table.as_deref().unwrap_or("(dropped)"),
            remedy = "what had not been shipped is left in the old table: copy it into the new one, then drop the old one",
            "another table is the outbox now; reading it from its start"
        );
        Ok(())
    }

    /// The memory of this reader. Rows take a part of it until they are stored.
    pub(crate) fn memory(&self) -> Arc<Memory> {
        self.all.clone()
    }

    /// The next page. `None`: there is nothing new. A page without rows only ends its window.
    ///
    /// This is not safe to cancel: drop the source together with the future.
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
                let Answer { head, reach, entries } = Answer::read(&answer)?;
                drop(answer);
                if !head.is_of(&base) {
                    self.settle(&base, head.reached).await?;
                    return Ok(None);
                }
                self.until_on_disk(&head).await?;
                let reach = Reach { last: last.or(reach.last), ..reach };
                Ok(Some(self.page(base, window, entries, (reach, sequence), room).await?))
            }
            State::Between { cursor, spent } => {
                let (cursor, spent) = (cursor.clone(), *spent);
                match self.late_page(&cursor).await? {
                    Late::Page(page) => return Ok(Some(*page)),
                    Late::Settled => return Ok(None),
                    Late::Nothing => {}
                }
                let sequence = match spent {
                    Some(Spent { sequence }) => sequence,
                    None => {
                        let spend = self.statements.spend_xid();
                        spend.fetch_one(&mut self.connection).await?.try_get(1)?
                    }
                };
                self.first_page(cursor, sequence).await
            }
        }
    }

    /// Logs that the sequence was set back, and what to do about it.
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
        sequence: Option<i64>,
    ) -> Result<Option<Page>, sqlx::Error> {
        let room = Room::of_a_page(&self.all).await;
        let answer = self.ask(|statements, size| statements.first_page(&cursor, size)).await?;
        let Answer { head, reach, entries } = Answer::read(&answer)?;
        drop(answer);
        let reached = sequence.into_iter().chain(head.reached).min();
        if !head.is_of(&cursor) || reached.is_some_and(|reached| reached < cursor.high) {
            self.settle(&cursor, reached).await?;
            return Ok(None);
        }
        // Nothing is left to ship again. The page without rows that says so lets parked events go on.
        let again = cursor.again_until.as_ref().is_some_and(|again| head.snapshot.covers(again));
        if entries.is_empty() && !reach.ends_before_the_last() && !again {
            let closed = cursor.close(&head.snapshot, None, sequence);
            let higher = closed.floor > cursor.floor || closed.high > cursor.high;
            self.state = match higher {
                // The window is empty: there is nothing to ship or to save, but the next read starts higher.
                true => State::Between { cursor: Arc::new(closed), spent: None },
                false => {
                    let mut cursor = Arc::unwrap_or_clone(cursor);
                    cursor.forget_finished(&head.snapshot);
                    State::Between { cursor: Arc::new(cursor), spent: Some(Spent { sequence }) }
                }
            };
            return Ok(None);
        }
        self.until_on_disk(&head).await?;
        let window = Arc::new(head.snapshot);
        Ok(Some(self.page(cursor, window, entries, (reach, sequence), room).await?))
    }

    /// Asks for a page. If the database cannot read one of the rows, asks again without any columns; then each row is
    /// read by itself.
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

    /// Makes the page, and continues after it. `sequence`: how far the sequence was before the window's snapshot was
    /// taken.
    async fn page(
        &mut self,
        base: Arc<Cursor>,
        window: Arc<Snapshot>,
        entries: Vec<Entry>,
        (reach, sequence): (Reach, Option<i64>),
        mut room: Room,
    ) -> Result<Page, sqlx::Error> {
        let Taken { rows, bad, largest, full } = self.take(entries, &mut room).await?;
        // A full page says nothing about rows after its last one.
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

    /// Fetches the rows of a page, as many as fit.
    async fn take(&mut self, entries: Vec<Entry>, room: &mut Room) -> Result<Taken, sqlx::Error> {
        let full = i64::try_from(entries.len()).is_ok_and(|rows| rows >= self.size.rows);
        let Filled { rows, bad, last, cut } =
            self.reading.fill(&mut self.connection, entries, room).await?;
        let rows: Vec<Row> = rows.into_iter().map(|(_, row)| row).collect();
        self.size.learn(&rows);
        room.keep(rows.iter().map(Row::size).sum());
        Ok(Taken { rows, bad, largest: last, full: full || cut })
    }

    /// Waits until the page's rows are on disk. Normally other writers' commits flush the write-ahead log within a
    /// moment; if not, the relay commits something itself.
    async fn until_on_disk(&mut self, head: &Head) -> Result<(), sqlx::Error> {
        if head.on_disk {
            return Ok(());
        }
        let mut pause = Duration::from_millis(1);
        loop {
            let flushed: bool = self
                .statements
                .flushed(&head.wal)
                .fetch_one(&mut self.connection)
                .await?
                .try_get(0)?;
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

/// The part of a page that was fetched.
struct Taken {
    rows: Vec<Row>,
    bad: Vec<BadRow>,
    /// The position of the last row.
    largest: Option<i64>,
    /// Whether there may be more rows after it.
    full: bool,
}

/// How far a statement looked.
#[derive(Clone, Copy, Debug)]
struct Reach {
    upto: i64,
    /// The last position in the table. `None`: the table is empty.
    last: Option<i64>,
}

impl Reach {
    fn ends_before_the_last(self) -> bool {
        self.last.is_some_and(|last| self.upto < last)
    }
}

/// The answer of a statement: the head, and the rows in the order of their positions.
struct Answer {
    head: Head,
    reach: Reach,
    entries: Vec<Entry>,
}

impl Answer {
    fn read(answer: &[PgRow]) -> Result<Self, sqlx::Error> {
        let mut head = None;
        let mut flushed = true;
        let mut entries = Vec::with_capacity(answer.len().saturating_sub(1));
        for row in answer {
            if row.try_get_raw("position").map(|value| sqlx::ValueRef::is_null(&value))? {
                head = Some(row);
            } else {
                // Null where nobody knows.
                flushed &= row.try_get::<Option<bool>, _>("flushed")?.unwrap_or(false);
                entries.push(read_entry(row)?);
            }
        }
        let head = head.ok_or(sqlx::Error::RowNotFound)?;
        // `union all` guarantees no order.
        if !entries.is_sorted_by_key(Entry::position) {
            entries.sort_by_key(Entry::position);
        }
        let reach = Reach { upto: head.try_get("upto")?, last: head.try_get("last")? };
        Ok(Self { head: Head::read(head, flushed)?, reach, entries })
    }
}

/// The snapshot that a statement had, the table that it read, and whether its rows are on disk.
struct Head {
    table: TableId,
    /// How far the sequence of positions was at the end of the statement, or a little before.
    reached: Option<i64>,
    snapshot: Snapshot,
    /// Where the write-ahead log stood when the rows were visible already.
    wal: String,
    /// Whether the commits of all rows are on disk.
    on_disk: bool,
}

impl Head {
    /// Whether this is the cursor's table still, and its positions have not begun again.
    fn is_of(&self, cursor: &Cursor) -> bool {
        cursor.table == Some(self.table)
            && self.reached.is_none_or(|reached| reached >= cursor.high)
    }

    /// `flushed`: whether each of the rows is surely on disk by itself.
    fn read(row: &PgRow, flushed: bool) -> Result<Self, sqlx::Error> {
        let snapshot: String = row.try_get("snapshot")?;
        Ok(Self {
            table: table::identity(row)?,
            reached: row.try_get("reached")?,
            snapshot: snapshot.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
            wal: row.try_get("wal")?,
            on_disk: flushed || row.try_get("flushed")?,
        })
    }
}
