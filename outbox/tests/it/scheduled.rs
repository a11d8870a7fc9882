//! What is scheduled, cancelled and released, and when: against the database alone.

use std::time::{Duration, SystemTime};

use pillarbox_event::{Context, EventId, RawEvent};
use pillarbox_outbox::{Outbox, OutboxError, cancel, publish_at, publish_in};
use pillarbox_testkit::{Scope, eventually, servers};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, Row};

const DEADLINE: Duration = Duration::from_secs(20);

async fn migrated() -> Scope {
    let scope = servers().await.unwrap().scope().await.unwrap();
    pillarbox_outbox::migrate(scope.pool()).await.unwrap();
    scope
}

fn event(payload: &str) -> RawEvent {
    RawEvent::builder("payment.overdue", "orders.overdue")
        .key("k")
        .payload(payload.to_owned())
        .build()
        .unwrap()
}

async fn run(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(pool).await.unwrap();
}

async fn number(pool: &PgPool, sql: &str) -> i64 {
    sqlx::query(AssertSqlSafe(sql.to_owned())).fetch_one(pool).await.unwrap().get(0)
}

/// Plain SQL, as from any language: events that were due one after the other, with their numbers as payload.
async fn due(pool: &PgPool, count: i64) {
    sqlx::query(
        "insert into pillarbox.outbox_scheduled (due_at, event_type, topic, key, headers, payload) \
         select clock_timestamp() - interval '1 s' * i, 't', 'a.b', 'k', '{\"x\": \"y\"}', convert_to(i::text, 'utf8') \
         from generate_series(1, $1) i",
    )
    .bind(count)
    .execute(pool)
    .await
    .unwrap();
}

/// The relay `default` leads with epoch 7.
async fn lead(pool: &PgPool) {
    run(pool, "insert into pillarbox.relay (name, cursor, holder, epoch) values ('default', '{}', 'me', 7)").await;
}

#[derive(Debug, PartialEq)]
struct Released {
    leads: bool,
    released: i64,
    failed: i64,
    left: bool,
}

async fn release(connection: &mut PgConnection, epoch: i64, most: i32, alone: bool) -> Released {
    let row = sqlx::query(
        "select leads, released, failed, next_due_in <= 0 as left_due \
         from pillarbox.release_scheduled('default', $1, $2, $3, null)",
    )
    .bind(epoch)
    .bind(most)
    .bind(alone)
    .fetch_one(connection)
    .await
    .unwrap();
    Released {
        leads: row.get(0),
        released: row.get(1),
        failed: row.get(2),
        left: row.get::<Option<bool>, _>(3).unwrap_or(false),
    }
}

async fn released(pool: &PgPool, most: i32, alone: bool) -> Released {
    release(&mut pool.acquire().await.unwrap(), 7, most, alone).await
}

/// The payloads in the outbox, in the order of their positions.
async fn outbox(pool: &PgPool) -> Vec<String> {
    sqlx::query("select convert_from(payload, 'utf8') from pillarbox.outbox order by position")
        .fetch_all(pool)
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect()
}

#[tokio::test]
async fn a_scheduled_event_is_there_after_the_commit_and_due_by_the_databases_clock() {
    let scope = migrated().await;
    let cause = RawEvent::builder("order.placed", "orders.placed").build().unwrap();
    let outbox = Outbox::new().source("/shop").unwrap();
    let mut tx = scope.pool().begin().await.unwrap();
    // A transaction that takes long does not make it due earlier.
    sqlx::query("select pg_sleep(0.3)").execute(&mut *tx).await.unwrap();
    let id = Context::of(&cause)
        .scope(outbox.publish_in(&mut tx, event("{}"), Duration::from_secs(900)))
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let mut tx = scope.pool().begin().await.unwrap();
    publish_in(&mut tx, event("{}"), Duration::from_secs(900)).await.unwrap();
    tx.rollback().await.unwrap();

    let row = sqlx::query(
        "select event_id::text, topic, key, headers ->> 'ce-causationid', headers ->> 'ce-source', \
         extract(epoch from due_at - created_at)::float8 from pillarbox.outbox_scheduled",
    )
    .fetch_one(scope.pool())
    .await
    .unwrap();
    let text = |at: usize| row.get::<String, _>(at);
    assert_eq!(
        [text(0), text(1), text(2), text(3), text(4)],
        [
            id.to_string(),
            "orders.overdue".into(),
            "k".into(),
            cause.id().to_string(),
            "/shop".into()
        ]
    );
    let ahead: f64 = row.get(5);
    assert!((899.9..=900.0).contains(&ahead), "{ahead}");
}

#[tokio::test]
async fn a_time_in_the_past_is_due_now_and_one_beyond_the_calendar_is_refused() {
    let scope = migrated().await;
    let mut tx = scope.pool().begin().await.unwrap();
    let year_10000 = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_800);
    for refused in [
        publish_in(&mut tx, event("{}"), Duration::MAX).await,
        publish_in(&mut tx, event("{}"), Duration::from_secs(8_000 * 365 * 86_400)).await,
        publish_at(&mut tx, event("{}"), year_10000).await,
    ] {
        assert!(matches!(refused, Err(OutboxError::DueTime { .. })), "{refused:?}");
    }
    publish_at(&mut tx, event("last"), year_10000 - Duration::from_micros(1)).await.unwrap();
    publish_in(&mut tx, event("late"), Duration::from_secs(7_000 * 365 * 86_400)).await.unwrap();
    for time in [
        SystemTime::UNIX_EPOCH,
        SystemTime::UNIX_EPOCH - Duration::from_secs(3_000_000_000),
        SystemTime::now() - Duration::from_secs(1),
    ] {
        publish_at(&mut tx, event("past"), time).await.unwrap();
    }
    // Exact to the microsecond.
    let time = SystemTime::UNIX_EPOCH + Duration::from_micros(4_102_444_800_123_456);
    publish_at(&mut tx, event("exact"), time).await.unwrap();
    publish_in(&mut tx, event("now"), Duration::ZERO).await.unwrap();
    tx.commit().await.unwrap();
    let count = async |sql| number(scope.pool(), sql).await;
    let past = "select count(*) from pillarbox.outbox_scheduled where payload = 'past' and due_at <= clock_timestamp() and \
                due_at > clock_timestamp() - interval '1 minute'";
    assert_eq!(count(past).await, 3);
    let exact = "select count(*) from pillarbox.outbox_scheduled where due_at = '2100-01-01 00:00:00.123456+00' or \
                 due_at = '9999-12-31 23:59:59.999999+00'";
    assert_eq!(count(exact).await, 2);
    let in_order = "select count(*) from pillarbox.outbox_scheduled where due_at > created_at + interval '6990 years'";
    assert_eq!(count(in_order).await, 2);
}

#[tokio::test]
async fn a_cancel_holds_if_its_transaction_commits() {
    let scope = migrated().await;
    let mut tx = scope.pool().begin().await.unwrap();
    let id = publish_in(&mut tx, event("a"), Duration::ZERO).await.unwrap();
    let gone = publish_in(&mut tx, event("b"), Duration::ZERO).await.unwrap();
    assert!(cancel(&mut tx, &gone).await.unwrap(), "in the same transaction");
    assert!(!cancel(&mut tx, &gone).await.unwrap(), "once");
    let foreign = EventId::parse("order/42").unwrap();
    assert!(matches!(cancel(&mut tx, &foreign).await, Err(OutboxError::Id { .. })));
    tx.commit().await.unwrap();

    lead(scope.pool()).await;
    let mut tx = scope.pool().begin().await.unwrap();
    assert!(cancel(&mut tx, &id).await.unwrap());
    assert_eq!(released(scope.pool(), 10, false).await.released, 0, "it is being cancelled");
    tx.rollback().await.unwrap();
    assert_eq!(released(scope.pool(), 10, false).await.released, 1, "it was not cancelled");
    let mut tx = scope.pool().begin().await.unwrap();
    assert!(!cancel(&mut tx, &id).await.unwrap(), "it has left");
    assert!(!cancel(&mut tx, &EventId::generate()).await.unwrap(), "it never was");
    tx.commit().await.unwrap();
    assert_eq!(outbox(scope.pool()).await, ["a"]);
}

#[tokio::test]
async fn a_cancel_waits_for_a_release_and_believes_what_became_of_it() {
    let scope = migrated().await;
    lead(scope.pool()).await;
    for commits in [true, false] {
        let mut tx = scope.pool().begin().await.unwrap();
        let id = publish_in(&mut tx, event("a"), Duration::ZERO).await.unwrap();
        tx.commit().await.unwrap();
        let mut releasing = scope.pool().begin().await.unwrap();
        assert_eq!(release(&mut releasing, 7, 10, false).await.released, 1);
        let pool = scope.pool().clone();
        let cancelling = tokio::spawn(async move {
            let mut tx = pool.begin().await.unwrap();
            let cancelled = cancel(&mut tx, &id).await.unwrap();
            tx.commit().await.unwrap();
            cancelled
        });
        eventually("the cancel to wait", DEADLINE, async || {
            let waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()";
            Ok::<_, String>((number(scope.pool(), waiting).await == 1).then_some(()))
        })
        .await
        .unwrap();
        match commits {
            true => releasing.commit().await.unwrap(),
            false => releasing.rollback().await.unwrap(),
        }
        assert_eq!(cancelling.await.unwrap(), !commits);
        assert_eq!(
            number(scope.pool(), "select count(*) from pillarbox.outbox_scheduled").await,
            0
        );
    }
    assert_eq!(outbox(scope.pool()).await, ["a"]);
}

#[tokio::test]
async fn it_works_without_prepared_statements_and_in_another_schema() {
    let scope = migrated().await;
    let outbox = Outbox::new().schema("billing").unwrap();
    outbox.migrate(scope.pool()).await.unwrap();
    let options: PgConnectOptions = scope.database_url().parse().unwrap();
    let options = options.statement_cache_capacity(0).options([
        ("DateStyle", "SQL,DMY"),
        ("IntervalStyle", "sql_standard"),
        ("TimeZone", "Asia/Kolkata"),
    ]);
    let pool = PgPoolOptions::new().max_connections(1).connect_with(options).await.unwrap();
    let mut tx = pool.begin().await.unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::from_micros(4_102_444_800_123_456);
    let id = outbox.publish_at(&mut tx, event("$1 o'clock"), time).await.unwrap();
    let gone = outbox.publish_in(&mut tx, event("b"), Duration::from_millis(1500)).await.unwrap();
    assert!(outbox.cancel(&mut tx, &gone).await.unwrap());
    assert!(!outbox.cancel(&mut tx, &gone).await.unwrap());
    tx.commit().await.unwrap();
    let found = sqlx::query(
        "select event_id::text, convert_from(payload, 'utf8'), due_at = '2100-01-01 00:00:00.123456+00' from billing.outbox_scheduled",
    )
    .fetch_one(scope.pool())
    .await
    .unwrap();
    assert_eq!(
        (found.get(0), found.get(1), found.get(2)),
        (id.to_string(), "$1 o'clock".to_owned(), true)
    );
}

#[tokio::test]
async fn what_can_never_be_released_is_refused_where_it_is_written() {
    let scope = migrated().await;
    for (due_at, event_type, topic, headers) in [
        ("'infinity'", "t", "a", "{}"),
        ("'-infinity'", "t", "a", "{}"),
        ("'10000-01-01 00:00:00+00'", "t", "a", "{}"),
        ("clock_timestamp()", "", "a", "{}"),
        ("clock_timestamp()", "t", "", "{}"),
        ("clock_timestamp()", "t", "a", "[]"),
    ] {
        let sql = format!(
            "insert into pillarbox.outbox_scheduled (due_at, event_type, topic, headers, payload) \
             values ({due_at}, '{event_type}', '{topic}', '{headers}', '')"
        );
        let refused = sqlx::raw_sql(AssertSqlSafe(sql)).execute(scope.pool()).await.unwrap_err();
        assert!(refused.as_database_error().unwrap().is_check_violation(), "{refused}");
    }
    // The checks are those of the outbox.
    let differ = "select count(*) from pg_constraint as one where contype = 'c' and conrelid = 'pillarbox.outbox'::regclass \
                  and pg_get_constraintdef(oid) !~ 'position' and not exists (select from pg_constraint as other \
                  where other.contype = 'c' and other.conrelid = 'pillarbox.outbox_scheduled'::regclass \
                  and pg_get_constraintdef(other.oid) = pg_get_constraintdef(one.oid))";
    assert_eq!(number(scope.pool(), differ).await, 0);
}

#[tokio::test]
async fn what_is_due_leaves_in_the_order_of_its_times_some_at_a_time_under_the_lease() {
    let scope = migrated().await;
    lead(scope.pool()).await;
    due(scope.pool(), 25).await;
    let mut tx = scope.pool().begin().await.unwrap();
    publish_in(&mut tx, event("later"), Duration::from_secs(600)).await.unwrap();
    tx.commit().await.unwrap();
    let mut connection = scope.pool().acquire().await.unwrap();
    for epoch in [6, 8] {
        let fenced = release(&mut connection, epoch, 10, false).await;
        assert_eq!(fenced, Released { leads: false, released: 0, failed: 0, left: true });
    }
    let some = |released, left| Released { leads: true, released, failed: 0, left };
    assert_eq!(release(&mut connection, 7, 10, false).await, some(10, true));
    assert_eq!(release(&mut connection, 7, 10, false).await, some(10, true));
    assert_eq!(release(&mut connection, 7, 10, false).await, some(5, false));
    assert_eq!(release(&mut connection, 7, 10, false).await, some(0, false));
    let wanted: Vec<String> = (1..=25).rev().map(|i: i32| i.to_string()).collect();
    assert_eq!(outbox(scope.pool()).await, wanted);
    let moved = "select count(*) from pillarbox.outbox where key = 'k' and headers = '{\"x\": \"y\"}' and event_type = 't' \
                 and topic = 'a.b' and txid is not null and created_at > clock_timestamp() - interval '1 minute'";
    assert_eq!(number(scope.pool(), moved).await, 25);
    run(scope.pool(), "update pillarbox.relay set holder = null").await;
    assert!(!release(&mut connection, 7, 10, false).await.leads, "the lease was released");
}

#[tokio::test]
async fn a_release_takes_some_megabytes_at_a_time() {
    let scope = migrated().await;
    lead(scope.pool()).await;
    run(
        scope.pool(),
        "insert into pillarbox.outbox_scheduled (due_at, event_type, topic, payload) \
         select clock_timestamp(), 't', 'a', convert_to(repeat('x', 3000000), 'utf8') from generate_series(1, 5)",
    )
    .await;
    assert_eq!(released(scope.pool(), 100, false).await.released, 3);
    assert_eq!(released(scope.pool(), 100, false).await.released, 2);
}

#[tokio::test]
async fn a_row_that_cannot_be_moved_holds_only_itself_and_is_tried_again() {
    let scope = migrated().await;
    lead(scope.pool()).await;
    due(scope.pool(), 5).await;
    // Two kinds: a rule of the service's on the outbox, and a payload that is damaged on disk.
    run(scope.pool(), "alter table pillarbox.outbox add constraint odd check (payload <> '3')")
        .await;
    run(
        scope.pool(),
        "insert into pillarbox.outbox_scheduled (due_at, event_type, topic, payload) \
         values (clock_timestamp() - interval '1 hour', 't', 'a', convert_to(repeat('x', 100000), 'utf8'))",
    )
    .await;
    run(
        scope.pool(),
        "create extension pg_surgery; \
         do $$ declare kept regclass := (select reltoastrelid from pg_class where oid = 'pillarbox.outbox_scheduled'::regclass); \
                       places tid[]; \
         begin \
           execute format('select array_agg(ctid) from %s where chunk_seq = 3', kept) into places; \
           perform heap_force_kill(kept, places); \
         end $$",
    )
    .await;

    let at_once =
        sqlx::query("select * from pillarbox.release_scheduled('default', 7, 100, false, null)");
    assert!(at_once.fetch_one(scope.pool()).await.is_err(), "it says that it needs to go alone");
    assert!(outbox(scope.pool()).await.is_empty());
    let alone = released(scope.pool(), 100, true).await;
    assert_eq!((alone.released, alone.failed, alone.left), (4, 2, false));
    assert_eq!(outbox(scope.pool()).await, ["5", "4", "2", "1"]);
    let held = "select count(*) from pillarbox.outbox_scheduled where error like '23514: %odd%' or error like 'XX001: %'";
    assert_eq!(number(scope.pool(), held).await, 2);
    // The others do not meet them.
    due(scope.pool(), 1).await;
    assert_eq!(released(scope.pool(), 100, false).await.released, 1);

    run(scope.pool(), "alter table pillarbox.outbox drop constraint odd").await;
    assert_eq!(released(scope.pool(), 100, true).await.released, 0, "not at once");
    run(
        scope.pool(),
        "update pillarbox.outbox_scheduled set tried_at = tried_at - interval '2 minutes' where error is not null",
    )
    .await;
    let again = released(scope.pool(), 100, true).await;
    assert_eq!((again.released, again.failed), (1, 1));
    // What it is can still be seen, and it can be cancelled.
    run(scope.pool(), "delete from pillarbox.outbox_scheduled where error is not null").await;
}

/// What keeps rows out of the outbox without an error.
const SUPPRESSORS: [&str; 3] = [
    "create function leave_out() returns trigger language plpgsql as $$ begin \
     if new.payload = '2' then return null; end if; return new; end $$; \
     create trigger audit before insert on pillarbox.outbox for each row execute function leave_out()",
    "create rule audit as on insert to pillarbox.outbox where new.payload = '2' do instead nothing",
    "create function leave_out() returns trigger language plpgsql as $$ begin return null; end $$; \
     create trigger audit before insert on pillarbox.outbox for each row \
     when (new.payload = '2') execute function leave_out()",
];

#[tokio::test]
async fn a_row_that_the_outbox_leaves_out_without_an_error_stays_scheduled() {
    for suppressor in SUPPRESSORS {
        let scope = migrated().await;
        lead(scope.pool()).await;
        due(scope.pool(), 3).await;
        run(scope.pool(), suppressor).await;
        let mut connection = scope.pool().acquire().await.unwrap();
        let together =
            sqlx::query("select * from pillarbox.release_scheduled('default', 7, 10, false, null)");
        let failed = together.fetch_all(&mut *connection).await.unwrap_err();
        assert!(failed.to_string().contains("trigger or rule"), "{failed}");
        assert!(outbox(scope.pool()).await.is_empty());
        let alone = release(&mut connection, 7, 10, true).await;
        assert_eq!((alone.released, alone.failed), (2, 1));
        assert_eq!(outbox(scope.pool()).await, ["3", "1"]);
        let held = "select count(*) from pillarbox.outbox_scheduled where payload = '2' and error like 'P0001: %trigger or rule%'";
        assert_eq!(number(scope.pool(), held).await, 1, "{suppressor}");
    }
}

#[tokio::test]
async fn what_is_the_fault_of_the_database_is_no_rows_fault() {
    let scope = migrated().await;
    lead(scope.pool()).await;
    due(scope.pool(), 2).await;
    run(scope.pool(), "alter table pillarbox.outbox rename to elsewhere").await;
    for alone in [false, true] {
        let failed =
            sqlx::query("select * from pillarbox.release_scheduled('default', 7, 100, $1, null)")
                .bind(alone)
                .fetch_one(scope.pool())
                .await
                .unwrap_err();
        assert_eq!(failed.as_database_error().unwrap().code().unwrap(), "42P01", "{failed}");
    }
    run(scope.pool(), "alter table pillarbox.elsewhere rename to outbox").await;
    // A lock that does not come is waited for two seconds, and no longer.
    let mut locking = scope.pool().begin().await.unwrap();
    sqlx::raw_sql("lock table pillarbox.outbox in exclusive mode")
        .execute(&mut *locking)
        .await
        .unwrap();
    let failed =
        sqlx::query("select * from pillarbox.release_scheduled('default', 7, 100, true, null)")
            .fetch_one(scope.pool())
            .await
            .unwrap_err();
    assert_eq!(failed.as_database_error().unwrap().code().unwrap(), "55P03", "{failed}");
    locking.rollback().await.unwrap();
    assert_eq!(
        number(scope.pool(), "select count(*) from pillarbox.outbox_scheduled where error is null")
            .await,
        2
    );
    assert_eq!(released(scope.pool(), 100, false).await.released, 2);
}

#[tokio::test]
async fn releases_take_turns_and_skip_what_is_being_cancelled() {
    let scope = migrated().await;
    lead(scope.pool()).await;
    run(
        scope.pool(),
        "insert into pillarbox.relay (name, cursor, holder, epoch) values ('other', '{}', 'me', 7)",
    )
    .await;
    due(scope.pool(), 4).await;
    let mut cancelling = scope.pool().begin().await.unwrap();
    sqlx::query("delete from pillarbox.outbox_scheduled where payload = '3'")
        .execute(&mut *cancelling)
        .await
        .unwrap();
    let mut first = scope.pool().begin().await.unwrap();
    assert_eq!(release(&mut first, 7, 2, false).await.released, 2);
    let pool = scope.pool().clone();
    let second = tokio::spawn(async move {
        let sql = "select released from pillarbox.release_scheduled('other', 7, 2, false, null)";
        sqlx::query(sql).fetch_one(&pool).await.unwrap().get::<i64, _>(0)
    });
    eventually("the second release to wait", DEADLINE, async || {
        let waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()";
        Ok::<_, String>((number(scope.pool(), waiting).await == 1).then_some(()))
    })
    .await
    .unwrap();
    first.commit().await.unwrap();
    assert_eq!(second.await.unwrap(), 1);
    cancelling.commit().await.unwrap();
    assert_eq!(outbox(scope.pool()).await, ["4", "2", "1"]);
}

#[tokio::test]
async fn a_scan_begins_where_nothing_was_left_and_the_whole_is_counted() {
    let scope = migrated().await;
    lead(scope.pool()).await;
    due(scope.pool(), 3).await;
    let mut connection = PgConnection::connect(scope.database_url()).await.unwrap();
    // What was due before is not looked for, what is due later is.
    let row = sqlx::query(
        "select released, behind >= clock_timestamp() - interval '3 s' and behind <= clock_timestamp() \
         from pillarbox.release_scheduled('default', 7, 10, false, clock_timestamp() - interval '2500 ms')",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    assert_eq!((row.get(0), row.get(1)), (2_i64, true));
    let counted = sqlx::query(
        "select pending, held, overdue >= 3, released from pillarbox.release_scheduled('default', null, 0, false, null)",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    assert_eq!(
        (counted.get(0), counted.get(1), counted.get(2), counted.get(3)),
        (1_i64, 0_i64, true, 0_i64)
    );
    assert_eq!(released(scope.pool(), 10, false).await.released, 1);
}
