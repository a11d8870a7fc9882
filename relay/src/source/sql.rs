//! The source's statements, for one schema.

use std::sync::Arc;

use sqlx::postgres::{PgArguments, Postgres};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use super::visibility::spliced;
use crate::cursor::{Cursor, Mark, Snapshot};
use crate::rows::{Compression, Select, Table};
use crate::schema::in_schema;

#[derive(Debug)]
pub(super) struct Statements {
    relay: String,
    first_page: SqlStr,
    next_page: SqlStr,
    late: SqlStr,
    spend_xid: SqlStr,
    force_flush: SqlStr,
}

/// How many positions a page looks at: some 50 ms of work at the most.
const POSITIONS: i64 = 50_000;
/// How many a step of a sweep looks at, which comes between the pages.
const SWEPT_POSITIONS: i64 = 10_000;

/// Binds the three parameters that say what was shipped in another cluster.
trait WithBefore {
    fn with_before(self, cursor: &Cursor) -> Self;
}

impl WithBefore for Statement<'static> {
    fn with_before(self, cursor: &Cursor) -> Self {
        let before = cursor.before.as_ref();
        let found = before.map(|before| before.found.to_string());
        let shipped = before.map_or(&[][..], |before| &before.shipped);
        let (snapshots, positions): (Vec<String>, Vec<i64>) =
            shipped.iter().map(|(snapshot, position)| (snapshot.to_string(), *position)).unzip();
        self.bind(found).bind(snapshots).bind(positions)
    }
}

pub(super) type Statement<'q> = Query<'q, Postgres, PgArguments>;

impl Statements {
    pub(super) fn new(schema: &str, relay: &str, compression: Compression) -> Self {
        let sql =
            |text: &str| AssertSqlSafe(Arc::<str>::from(in_schema(text, schema))).into_sql_str();
        let page = |text: &str, most: &str| {
            sql(&spliced(&Select::text(text, Table::Outbox, compression, most)))
        };
        Self {
            relay: relay.to_owned(),
            first_page: page(include_str!("first_page.sql"), "$6"),
            next_page: page(include_str!("next_page.sql"), "$5"),
            late: page(include_str!("late.sql"), "$6"),
            spend_xid: sql(
                "select pg_current_xact_id()::text, case when is_called then last_value else 0::bigint end \
                 from pillarbox.outbox_position_seq",
            ),
            force_flush: sql(
                "update pillarbox.relay set heartbeat = clock_timestamp() where name = $1",
            ),
        }
    }

    pub(super) fn first_page(&self, cursor: &Cursor, rows: i64, most: i64) -> Statement<'static> {
        let (xids, lows): (Vec<String>, Vec<i64>) =
            cursor.in_flight.iter().map(|(xid, low)| (xid.to_string(), *low)).unzip();
        sqlx::query(self.first_page.clone())
            .bind(cursor.snapshot.to_string())
            .bind(cursor.floor)
            .bind(xids)
            .bind(lows)
            .bind(rows)
            .bind(most)
            .with_before(cursor)
            .bind(POSITIONS)
    }

    pub(super) fn next_page(
        &self,
        base: &Cursor,
        window: &Snapshot,
        position: i64,
        rows: i64,
        most: i64,
    ) -> Statement<'static> {
        sqlx::query(self.next_page.clone())
            .bind(base.snapshot.to_string())
            .bind(window.to_string())
            .bind(position)
            .bind(rows)
            .bind(most)
            .with_before(base)
            .bind(POSITIONS)
    }

    /// Rows up to a mark's floor that are new since it was left, behind this position.
    pub(super) fn late(
        &self,
        cursor: &Cursor,
        mark: &Mark,
        position: i64,
        rows: i64,
        most: i64,
    ) -> Statement<'static> {
        let in_flight: Vec<String> = mark.in_flight.iter().map(u64::to_string).collect();
        sqlx::query(self.late.clone())
            .bind(position)
            .bind(mark.floor)
            .bind(mark.snapshot.to_string())
            .bind(in_flight)
            .bind(rows)
            .bind(most)
            .with_before(cursor)
            .bind(SWEPT_POSITIONS)
    }

    /// Consumes a transaction id of the relay's own, and says how far the sequence of positions is. The statement's
    /// transaction has ended when it returns.
    pub(super) fn spend_xid(&self) -> Statement<'static> {
        sqlx::query(self.spend_xid.clone())
    }

    /// Where the write-ahead log stands.
    pub(super) fn wal(&self) -> Statement<'static> {
        sqlx::query("select pg_current_wal_insert_lsn()::text")
    }

    pub(super) fn flushed(&self, wal: &str) -> Statement<'static> {
        sqlx::query("select pg_current_wal_flush_lsn() >= $1::text::pg_lsn").bind(wal.to_owned())
    }

    /// Commits something, which flushes the log as far as it has been written.
    pub(super) fn force_flush(&self) -> Statement<'static> {
        sqlx::query(self.force_flush.clone()).bind(self.relay.clone())
    }
}
