//! The source's statements, for one schema.

use std::collections::BTreeMap;
use std::sync::Arc;

use sqlx::postgres::{PgArguments, Postgres};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use super::visibility::spliced;
use crate::cursor::{Cursor, Mark, Snapshot, Xid};
use crate::rows::{Compression, Select, Table};
use crate::schema::in_schema;

/// How much to ask for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    /// So many rows at the most.
    pub(super) rows: i64,
    /// What a row may weigh to come whole. Below 0, no column is touched.
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
    sequence: String,
    force_flush: SqlStr,
}

/// How many positions a page looks at: some 50 ms of work at the most.
const POSITIONS: i64 = 50_000;
/// How many a step of a sweep looks at, which comes between the pages.
const SWEPT_POSITIONS: i64 = 10_000;

pub(super) type Statement<'q> = Query<'q, Postgres, PgArguments>;

impl Statements {
    pub(super) fn new(schema: &str, relay: &str, compression: Compression) -> Self {
        let sql =
            |text: &str| AssertSqlSafe(Arc::<str>::from(in_schema(text, schema))).into_sql_str();
        let page = |text: &str| {
            let whole = text.replace("{page}", include_str!("scan.sql"));
            sql(&spliced(&Select::text(&whole, Table::Outbox, compression, "$2")))
        };
        Self {
            relay: relay.to_owned(),
            first_page: page(include_str!("first_page.sql")),
            next_page: page(include_str!("next_page.sql")),
            late: page(include_str!("late.sql")),
            spend_xid: sql(
                "select pg_current_xact_id()::text, case when is_called then last_value else last_value - 1::bigint end \
                 from pillarbox.outbox_position_seq",
            ),
            last: sql("select max(position) from pillarbox.outbox"),
            sequence: in_schema("pillarbox.outbox_position_seq", schema),
            force_flush: sql(
                "update pillarbox.relay set heartbeat = clock_timestamp() where name = $1",
            ),
        }
    }

    /// The first page behind a cursor.
    pub(super) fn first_page(&self, cursor: &Cursor, size: Size) -> Statement<'static> {
        let (xids, lows) = arrays(&cursor.in_flight);
        page(&self.first_page, size, POSITIONS, cursor)
            .bind(cursor.snapshot.to_string())
            .bind(cursor.floor)
            .bind(xids)
            .bind(lows)
    }

    /// The page of a window that begins behind this position.
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

    /// Rows up to a mark's floor that are new since it was left, behind this position.
    pub(super) fn late(
        &self,
        cursor: &Cursor,
        mark: &Mark,
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

    /// Consumes a transaction id of the relay's own, and says how far the sequence of positions is. The statement's
    /// transaction has ended when it returns.
    pub(super) fn spend_xid(&self) -> Statement<'static> {
        sqlx::query(self.spend_xid.clone())
    }

    /// The last position there is.
    pub(super) fn last(&self) -> Statement<'static> {
        sqlx::query(self.last.clone())
    }

    /// The statement that has the sequence go on behind a position.
    pub(super) fn restart_behind(&self, last: i64) -> String {
        format!("alter sequence {} restart with {};", self.sequence, last.saturating_add(1))
    }

    pub(super) fn flushed(&self, wal: &str) -> Statement<'static> {
        sqlx::query("select pg_current_wal_flush_lsn() >= $1::text::pg_lsn").bind(wal.to_owned())
    }

    /// Commits something, which flushes the log as far as it has been written.
    pub(super) fn force_flush(&self) -> Statement<'static> {
        sqlx::query(self.force_flush.clone()).bind(self.relay.clone())
    }
}

fn arrays(in_flight: &BTreeMap<Xid, i64>) -> (Vec<String>, Vec<i64>) {
    in_flight.iter().map(|(xid, low)| (xid.to_string(), *low)).unzip()
}

/// A page's statement with the parameters that all of them have.
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
