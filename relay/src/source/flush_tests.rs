//! Which rows wait until the write-ahead log is on disk.

use pillarbox_testkit::{Database, Postgres};
use sqlx::{AssertSqlSafe, PgPool};

use super::*;

/// An outbox on a Postgres that leaves its log alone: what no commit flushes stays in memory for ten seconds.
struct Unflushed {
    database: Database,
    source: Source,
    _postgres: Postgres,
}

const INSERT: &str =
    "insert into pillarbox.outbox (event_type, topic, payload) values ('t', 't', '')";
/// How often a case is tried if the log was flushed by itself.
const TRIES: usize = 5;

impl Unflushed {
    async fn with_pages_of(rows: u32) -> Self {
        let postgres = Postgres::options()
            .setting("wal_writer_delay", "10s")
            .setting("bgwriter_lru_maxpages", "0")
            .setting("autovacuum", "off")
            .start()
            .await
            .unwrap();
        let database = postgres.create_database("unflushed").await.unwrap();
        pillarbox_outbox::migrate(&database.pool).await.unwrap();
        run(&database.pool, "create table other (id int)").await;
        // The relay's own row, whose update flushes the log.
        run(&database.pool, "insert into pillarbox.relay (name, cursor) values ('default', '{}')")
            .await;
        let connection = database.pool.acquire().await.unwrap().detach();
        let start = Cursor::start("x");
        let source =
            Source::open(connection, "pillarbox", "default", start, rows, 1_000_000).await.unwrap();
        Self { database, source, _postgres: postgres }
    }

    /// Runs these statements in a session of their own, which is asynchronous unless they say otherwise.
    async fn write(&self, sql: &str) {
        let mut session = self.database.pool.acquire().await.unwrap().detach();
        sqlx::raw_sql("set synchronous_commit = off").execute(&mut session).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut session).await.unwrap();
    }

    async fn written(&self) -> String {
        let text = "select pg_current_wal_insert_lsn()::text";
        sqlx::query_scalar(text).fetch_one(&self.database.pool).await.unwrap()
    }

    async fn is_on_disk(&self, wal: &str) -> bool {
        let text = "select pg_current_wal_flush_lsn() >= $1::text::pg_lsn";
        sqlx::query_scalar(text).bind(wal).fetch_one(&self.database.pool).await.unwrap()
    }

    /// The number of rows in the next page that has any.
    async fn page(&mut self) -> usize {
        for _ in 0..20 {
            if let Some(page) = self.source.next().await.unwrap()
                && !page.rows.is_empty()
            {
                return page.rows.len();
            }
        }
        panic!("nothing was found");
    }

    /// Whether the page of this row was read only when the log was on disk. `None`: it was flushed before.
    async fn waits(&mut self, sql: &str) -> Option<bool> {
        self.write(sql).await;
        self.write("insert into other values (1)").await;
        let wal = self.written().await;
        let before = self.is_on_disk(&wal).await;
        assert_eq!(self.page().await, 1, "{sql}");
        let after = self.is_on_disk(&wal).await;
        (!before).then_some(after)
    }
}

async fn run(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(pool).await.unwrap();
}

#[tokio::test]
async fn rows_of_synchronous_writers_do_not_wait_for_the_log() {
    let mut unflushed = Unflushed::with_pages_of(1_000).await;
    let mut waited = Vec::new();
    for setting in ["on", "local", "remote_write", "remote_apply"] {
        let sql = format!("set synchronous_commit = {setting}; {INSERT}");
        // The server may happen to flush the log meanwhile.
        let mut tries = 0..TRIES;
        while unflushed.waits(&sql).await != Some(false) {
            if tries.next().is_none() {
                waited.push(setting);
                break;
            }
        }
    }
    assert!(waited.is_empty(), "{waited:?}");
}

#[tokio::test]
async fn rows_that_may_be_asynchronous_are_read_only_when_the_log_is_on_disk() {
    let mut unflushed = Unflushed::with_pages_of(1_000).await;
    let columns = "event_type, topic, payload) overriding system value values";
    let replicated = format!(
        "set session_replication_role = replica; \
         insert into pillarbox.outbox (position, synchronous, {columns} (1000000, true, 't', 't', '')"
    );
    let restored = format!(
        "insert into pillarbox.outbox (txid, synchronous, {columns} ('3', true, 't', 't', '')"
    );
    let unknown =
        format!("insert into pillarbox.outbox (synchronous, {columns} (null, 't', 't', '')");
    run(&unflushed.database.pool, "alter table pillarbox.outbox alter synchronous drop not null")
        .await;
    let mut early = Vec::new();
    for (case, sql) in [
        ("off", INSERT),
        ("false", &format!("set synchronous_commit = false; {INSERT}")),
        (
            "off in the transaction",
            &format!(
                "set synchronous_commit = on; begin; set local synchronous_commit = off; {INSERT}; commit"
            ),
        ),
        ("unknown", &unknown),
        ("loaded from a synchronous writer's", &restored),
        ("brought by a subscription", &replicated),
    ] {
        let mut found = None;
        for _ in 0..TRIES {
            found = unflushed.waits(sql).await;
            if found.is_some() {
                break;
            }
        }
        if found != Some(true) {
            early.push((case, found));
        }
    }
    assert!(early.is_empty(), "{early:?}");
}

#[tokio::test]
async fn an_asynchronous_row_on_a_later_page_of_a_window_waits_as_well() {
    let mut unflushed = Unflushed::with_pages_of(2).await;
    let mut found = None;
    for _ in 0..TRIES {
        unflushed.write(&format!("set synchronous_commit = on; {INSERT}; {INSERT}")).await;
        unflushed.write(INSERT).await;
        let wal = unflushed.written().await;
        assert_eq!(unflushed.page().await, 2);
        let first = unflushed.is_on_disk(&wal).await;
        assert_eq!(unflushed.page().await, 1);
        assert!(unflushed.is_on_disk(&wal).await);
        if !first {
            found = Some(());
            break;
        }
    }
    assert!(found.is_some(), "the first page waited, too");
}
