//! The source's statements, for one schema.

use std::collections::BTreeMap;
use std::sync::Arc;

use sqlx::postgres::{PgArguments, Postgres};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use super::visibility::spliced;
use crate::cursor::{Cursor, FloorMark, Snapshot, Xid};
use crate::rows::{Compression, Select, Table};
use crate::table::{self, Found};
use pillarbox_store::schema::in_schema;

/// How much to ask for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    /// At most this many rows.
    pub(super) rows: i64,
    /// The largest row that is read whole, in bytes. Below 0, no column is read.
    pub(super) most: i64,
}

#[derive(Debug)]
pub(super) struct Statements {
    relay: String,
    first_page: SqlStr,
    next_page: SqlStr,
    late: SqlStr,
    spend_xid: SqlStr,
    last: SqlStr,
    written_here: SqlStr,
    sequence: Option<String>,
    force_flush: SqlStr,
}

/// How many positions a page looks at: about 50 ms of work at most.
const POSITIONS: i64 = 50_000;
/// How many positions a step of a sweep looks at. Steps come between pages.
const SWEPT_POSITIONS: i64 = 10_000;

pub(super) type Statement<'q> = Query<'q, Postgres, PgArguments>;

impl Statements {
    /// For the table that was found. The pages say whether it is still the outbox.
    pub(super) fn new(schema: &str, relay: &str, compression: Compression, found: &Found) -> Self {
        let (reached, still) = (table::reached(found.sequence.as_deref()), table::still(found));
        // The sequence's name has its schema already.
        let sql = |text: &str| {
            let text = in_schema(text, schema).as_str().replace("{reached}", &reached);
            AssertSqlSafe(Arc::<str>::from(text)).into_sql_str()
        };
        let page = |text: &str| {
            let whole = text.replace("{page}", include_str!("scan.sql"));
            let whole = whole.replace("{table}", &still);
            sql(&spliced(&Select::text(&whole, Table::Outbox, compression, "$2")))
        };
        Self {
            relay: relay.to_owned(),
            first_page: page(include_str!("first_page.sql")),
            next_page: page(include_str!("next_page.sql")),
            late: page(include_str!("late.sql")),
            spend_xid: sql("select pg_current_xact_id()::text, {reached}"),
            last: sql("select max(position) from pillarbox.outbox"),
            written_here: sql(&spliced(
                "select count(*) from pillarbox.outbox where position = any ($1) and :own()",
            )),
            sequence: found.sequence.clone(),
            force_flush: sql(
                "update pillarbox.relay set heartbeat = clock_timestamp() where name = $1",
            ),
        }
    }

    /// The first page after a cursor.
    pub(super) fn first_page(&self, cursor: &Cursor, size: Size) -> Statement<'static> {
        let (xids, lows) = arrays(&cursor.in_flight);
        page(&self.first_page, size, POSITIONS, cursor)
            .bind(cursor.snapshot.to_string())
            .bind(cursor.floor)
            .bind(xids)
            .bind(lows)
    }

    /// The page of a window that begins after this position.
    pub(super) fn next_page(
        &self,
        base: &Cursor,
        window: &Snapshot,
        position: i64,
        size: Size,
    ) -> Statement<'static> {
        page(&self.next_page, size, POSITIONS, base)
            .bind(base.snapshot.to_string())
            .bind(window.to_string())
            .bind(position)
    }

    /// Late rows after this position, up to a mark's floor.
    pub(super) fn late(
        &self,
        cursor: &Cursor,
        mark: &FloorMark,
        position: i64,
        size: Size,
    ) -> Statement<'static> {
        let (xids, lows) = arrays(&mark.in_flight);
        page(&self.late, size, SWEPT_POSITIONS, cursor)
            .bind(position)
            .bind(mark.floor)
            .bind(mark.snapshot.to_string())
            .bind(xids)
            .bind(lows)
            .bind(self.relay.clone())
    }

    /// Consumes a transaction id of the relay's own, and returns how far the sequence of positions is. The statement's
    /// transaction has ended when this returns.
    pub(super) fn spend_xid(&self) -> Statement<'static> {
        sqlx::query(self.spend_xid.clone())
    }

    /// The last position in the table.
    pub(super) fn last(&self) -> Statement<'static> {
        sqlx::query(self.last.clone())
    }

    /// How many of the rows at these positions were surely written here, and not loaded.
    pub(super) fn written_here(&self, positions: Vec<i64>) -> Statement<'static> {
        sqlx::query(self.written_here.clone()).bind(positions)
    }

    /// The statement that makes the sequence continue after a position.
    pub(super) fn restart_behind(&self, last: i64) -> String {
        let sequence = self.sequence.as_deref().unwrap_or_default();
        format!("alter sequence {sequence} restart with {};", last.saturating_add(1))
    }

    pub(super) fn flushed(&self, wal: &str) -> Statement<'static> {
        sqlx::query("select pg_current_wal_flush_lsn() >= $1::text::pg_lsn").bind(wal.to_owned())
    }

    /// Commits something, which flushes everything in the log that was written before.
    pub(super) fn force_flush(&self) -> Statement<'static> {
        sqlx::query(self.force_flush.clone()).bind(self.relay.clone())
    }
}

fn arrays(in_flight: &BTreeMap<Xid, i64>) -> (Vec<String>, Vec<i64>) {
    in_flight.iter().map(|(xid, low)| (xid.to_string(), *low)).unzip()
}

/// The statement of a page, with the parameters that all pages have.
fn page(text: &SqlStr, size: Size, positions: i64, cursor: &Cursor) -> Statement<'static> {
    let before = cursor.before.as_ref();
    let found = before.map(|before| before.found.to_string());
    let shipped = before.map_or(&[][..], |before| &before.shipped);
    let (snapshots, places): (Vec<String>, Vec<i64>) =
        shipped.iter().map(|(snapshot, position)| (snapshot.to_string(), *position)).unzip();
    sqlx::query(text.clone())
        .bind(size.rows)
        .bind(size.most)
        .bind(positions)
        .bind(found)
        .bind(snapshots)
        .bind(places)
}
