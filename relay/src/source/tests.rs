//! What may happen between the moment at which the source asks how far the sequence is and the page that it reads then.

use std::collections::BTreeSet;

use bytes::Bytes;
use pillarbox_testkit::{Scope, servers};
use sqlx::AssertSqlSafe;
use time::OffsetDateTime;

use super::*;

/// An outbox with a hundred events, and a source that has read them in two windows.
struct Read {
    scope: Scope,
    source: Source,
    found: Vec<i64>,
}

impl Read {
    async fn all_of_a_hundred() -> Self {
        Self::all_of_a_hundred_after("").await
    }

    /// `prepared`: what is done before the first event.
    async fn all_of_a_hundred_after(prepared: &str) -> Self {
        let scope = servers().await.unwrap().scope().await.unwrap();
        pillarbox_outbox::migrate(scope.pool()).await.unwrap();
        let prepared = AssertSqlSafe(prepared.to_owned());
        sqlx::raw_sql(prepared).execute(scope.pool()).await.unwrap();
        let connection = scope.pool().acquire().await.unwrap().detach();
        let start = Cursor::start("x");
        let source = Source::open(connection, "pillarbox", "default", start, 1_000, 1_000_000)
            .await
            .unwrap();
        let mut read = Self { scope, source, found: Vec::new() };
        read.insert(1..=80).await;
        read.until(80).await;
        read.insert(81..=100).await;
        read.until(100).await;
        let State::Between { cursor, .. } = &read.source.state else { panic!("in a window") };
        assert_eq!((cursor.floor, cursor.high), (80, 100));
        read.found.clear();
        read
    }

    async fn run(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(self.scope.pool()).await.unwrap();
    }

    async fn insert(&self, numbers: std::ops::RangeInclusive<i64>) {
        let (first, last) = (numbers.start(), numbers.end());
        self.run(&format!(
            "insert into pillarbox.outbox (event_type, topic, payload) \
             select 't', 't', convert_to(i::text, 'utf8') from generate_series({first}, {last}) i"
        ))
        .await;
    }

    /// Reads until it has found so many events. No sweep is due that soon.
    async fn until(&mut self, wanted: usize) {
        for _ in 0..20 {
            if let Some(page) = self.source.next().await.unwrap() {
                assert!(!page.late || page.rows.is_empty(), "a sweep found them");
                let payloads = page.rows.iter().map(|row| String::from_utf8_lossy(&row.payload));
                self.found.extend(payloads.map(|payload| payload.parse::<i64>().unwrap()));
            }
            if self.found.len() >= wanted {
                return;
            }
        }
        panic!("{} of {wanted}: {:?}", self.found.len(), self.found);
    }

    /// Until so many different rows have come, with a sweep before each page.
    async fn until_swept(&mut self, wanted: usize) {
        for _ in 0..2_000 {
            if let Some(page) = self.source.next().await.unwrap() {
                let payloads = page.rows.iter().map(|row| String::from_utf8_lossy(&row.payload));
                self.found.extend(payloads.map(|payload| payload.parse::<i64>().unwrap()));
            }
            self.source.sweep.next = None;
            let different: BTreeSet<i64> = self.found.iter().copied().collect();
            if different.len() >= wanted {
                return;
            }
        }
        panic!("{} of {wanted}: {:?}", self.found.len(), self.found);
    }

    /// The source has asked how far the sequence is, and then this happens.
    async fn has_asked_when(&mut self, sql: &str) {
        let State::Between { cursor, .. } = &self.source.state else { panic!("in a window") };
        let cursor = cursor.clone();
        let spend = self.source.statements.spend_xid();
        let row = spend.fetch_one(&mut self.source.connection).await.unwrap();
        let spent = Some(Spent { sequence: row.try_get(1).unwrap() });
        self.source.state = State::Between { cursor, spent };
        self.run(sql).await;
    }

    /// Reads these, and then ordinary ones behind them.
    async fn finds(mut self, numbers: std::ops::RangeInclusive<i64>) {
        let many = usize::try_from(numbers.end() - numbers.start() + 1).unwrap();
        self.until(many).await;
        self.insert(9_001..=9_005).await;
        self.until(many + 5).await;
        let found: BTreeSet<i64> = self.found.iter().copied().collect();
        let wanted: BTreeSet<i64> = numbers.chain(9_001..=9_005).collect();
        assert_eq!(found, wanted);
    }
}

const INSERT: &str = "insert into pillarbox.outbox (event_type, topic, payload) \
     select 't', 't', convert_to((1000 + i)::text, 'utf8') from generate_series(1, {many}) i";

#[tokio::test]
async fn positions_that_begin_again_between_two_statements_hide_nothing() {
    for reset in [
        "truncate pillarbox.outbox restart identity",
        "delete from pillarbox.outbox; alter sequence pillarbox.outbox_position_seq restart",
        "delete from pillarbox.outbox; select setval('pillarbox.outbox_position_seq', 1, false)",
    ] {
        let mut read = Read::all_of_a_hundred().await;
        read.has_asked_when(&format!("{reset}; {}", INSERT.replace("{many}", "5"))).await;
        println!("{reset}");
        read.finds(1_001..=1_005).await;
    }
}

#[tokio::test]
async fn positions_that_have_come_as_far_again_between_two_statements_hide_nothing() {
    for reset in [
        "truncate pillarbox.outbox restart identity",
        "delete from pillarbox.outbox; alter sequence pillarbox.outbox_position_seq restart",
    ] {
        let mut read = Read::all_of_a_hundred().await;
        read.has_asked_when(&format!("{reset}; {}", INSERT.replace("{many}", "150"))).await;
        println!("{reset}");
        read.finds(1_001..=1_150).await;
    }
}

#[tokio::test]
async fn a_column_that_gets_another_sequence_between_two_statements_hides_nothing() {
    let default = "alter table pillarbox.outbox alter position set default nextval";
    for (first, second) in [("a", "b"), ("b", "a")] {
        let mut read = Read::all_of_a_hundred_after(&format!(
            "alter table pillarbox.outbox alter position drop identity; create sequence pillarbox.a; \
             create sequence pillarbox.b; {default} ('pillarbox.{first}')"
        ))
        .await;
        read.has_asked_when(&format!(
            "delete from pillarbox.outbox; {default} ('pillarbox.{second}'); {}",
            INSERT.replace("{many}", "150")
        ))
        .await;
        read.finds(1_001..=1_150).await;
    }
}

#[tokio::test]
async fn a_change_of_the_column_that_does_not_concern_its_sequence_repeats_nothing() {
    let mut read = Read::all_of_a_hundred().await;
    read.has_asked_when(&format!(
        "alter table pillarbox.outbox alter position set statistics 7; {}",
        INSERT.replace("{many}", "5")
    ))
    .await;
    read.finds(1_001..=1_005).await;
}

#[tokio::test]
async fn a_sequence_that_was_set_back_and_has_passed_its_old_place_hides_nothing() {
    let (many, insert) = (150, INSERT.replace("{many}", "150"));
    for (back, insert) in [
        (1, insert.clone()),
        (40, insert.clone()),
        (70, format!("begin; savepoint s; {insert}; release s; commit")),
    ] {
        let mut read = Read::all_of_a_hundred().await;
        let back = format!("select setval('pillarbox.outbox_position_seq', {back}, false)");
        read.has_asked_when(&format!("delete from pillarbox.outbox; {back}; {insert}")).await;
        println!("{back}");
        read.until_swept(many).await;
        read.insert(9_001..=9_005).await;
        read.until_swept(many + 5).await;
        let found: BTreeSet<i64> = read.found.iter().copied().collect();
        // Some may come again: the sweep, which is far more frequent here than in a relay, also finds what a window
        // holds that has not closed, as long as transactions of other tests are running.
        assert_eq!(found, (1_001..=1_150).chain(9_001..=9_005).collect());
    }
}

#[tokio::test]
async fn a_table_that_is_swapped_in_between_two_statements_is_read_from_its_start() {
    for (made, many) in
        [("like pillarbox.old including all", 5), ("like pillarbox.old including all", 150)]
    {
        let mut read = Read::all_of_a_hundred().await;
        let swap = format!(
            "alter table pillarbox.outbox rename to old; create table pillarbox.outbox ({made}); {}",
            INSERT.replace("{many}", &many.to_string())
        );
        read.has_asked_when(&swap).await;
        read.finds(1_001..=1_000 + many).await;
    }
}

#[tokio::test]
async fn what_was_in_a_table_before_it_became_the_outbox_is_read() {
    let mut read = Read::all_of_a_hundred().await;
    // Every snapshot from now on sees these rows.
    read.run(&format!(
        "create table pillarbox.next (like pillarbox.outbox including all); {}",
        INSERT.replace("{many}", "5").replace("outbox", "next")
    ))
    .await;
    read.insert(101..=110).await;
    read.until(10).await;
    read.insert(111..=120).await;
    read.until(20).await;
    read.found.clear();
    read.has_asked_when(
        "alter table pillarbox.outbox rename to old; alter table pillarbox.next rename to outbox",
    )
    .await;
    read.finds(1_001..=1_005).await;
}

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
