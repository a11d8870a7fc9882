//! The source's statements, for one schema.

use std::sync::Arc;

use sqlx::postgres::{PgArguments, Postgres};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use crate::cursor::{Cursor, Snapshot};
use crate::rows::{Compression, Select, Table};
use crate::schema::in_schema;

#[derive(Debug)]
pub(super) struct Statements {
    relay: String,
    first_page: SqlStr,
    next_page: SqlStr,
    force_flush: SqlStr,
}

pub(super) type Statement<'q> = Query<'q, Postgres, PgArguments>;

impl Statements {
    pub(super) fn new(schema: &str, relay: &str, compression: Compression) -> Self {
        let sql =
            |text: &str| AssertSqlSafe(Arc::<str>::from(in_schema(text, schema))).into_sql_str();
        let page =
            |text: &str, most: &str| sql(&Select::text(text, Table::Outbox, compression, most));
        Self {
            relay: relay.to_owned(),
            first_page: page(include_str!("first_page.sql"), "$6"),
            next_page: page(include_str!("next_page.sql"), "$5"),
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
    }

    pub(super) fn next_page(
        &self,
        s: &Snapshot,
        window: &Snapshot,
        position: i64,
        rows: i64,
        most: i64,
    ) -> Statement<'static> {
        sqlx::query(self.next_page.clone())
            .bind(s.to_string())
            .bind(window.to_string())
            .bind(position)
            .bind(rows)
            .bind(most)
    }

    /// Consumes a transaction id of the relay's own; the statement's transaction has ended when it returns.
    pub(super) fn spend_xid(&self) -> Statement<'static> {
        sqlx::query("select pg_current_xact_id()::text")
    }

    pub(super) fn flushed(&self, wal: &str) -> Statement<'static> {
        sqlx::query("select pg_current_wal_flush_lsn() >= $1::text::pg_lsn").bind(wal.to_owned())
    }

    /// Commits something, which flushes the log as far as it has been written.
    pub(super) fn force_flush(&self) -> Statement<'static> {
        sqlx::query(self.force_flush.clone()).bind(self.relay.clone())
    }
}
