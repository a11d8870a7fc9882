//! The log of the cursor's movements: it says when the cursor moved back, also within a window, and when a relay went
//! back to where the cursor already was.

use pillarbox_testkit::servers;

/// Writes the cursor several times, with snapshot, window and `high`, and checks whether each write went back.
const WRITES: [(&str, bool, &str); 10] = [
    (r#"{"snapshot": "1:1:", "high": 0}"#, false, "the start"),
    (
        r#"{"snapshot": "1:1:", "high": 0, "window": {"snapshot": "9:9:", "position": 5}}"#,
        false,
        "a window",
    ),
    (
        r#"{"snapshot": "1:1:", "high": 0, "window": {"snapshot": "9:9:", "position": 7}}"#,
        false,
        "further",
    ),
    (
        r#"{"snapshot": "1:1:", "high": 0, "window": {"snapshot": "9:9:", "position": 6}}"#,
        true,
        "back in it",
    ),
    (r#"{"snapshot": "1:1:", "high": 0}"#, true, "in front of it"),
    (
        r#"{"snapshot": "1:1:", "high": 0, "window": {"snapshot": "10:10:", "position": 5}}"#,
        false,
        "the next one",
    ),
    (r#"{"snapshot": "10:10:", "high": 8}"#, false, "its end"),
    (
        r#"{"snapshot": "10:10:", "high": 8, "window": {"snapshot": "12:12:", "position": 3}}"#,
        false,
        "a late row",
    ),
    (r#"{"snapshot": "12:12:", "high": 8}"#, false, "its end, no higher"),
    (r#"{"snapshot": "1:1:", "high": 0}"#, true, "the start again"),
];

#[tokio::test]
async fn a_cursor_that_goes_back_is_noted_also_within_a_window() {
    let scope = servers().await.unwrap().scope().await.unwrap();
    pillarbox_outbox::migrate(scope.pool()).await.unwrap();
    sqlx::raw_sql(include_str!("../../src/service.sql")).execute(scope.pool()).await.unwrap();
    let insert = "insert into pillarbox.relay (name, cursor) values ('default', '{\"high\": 0}')";
    sqlx::query(insert).execute(scope.pool()).await.unwrap();
    for (cursor, back, what) in WRITES {
        let update = "update pillarbox.relay set cursor = $1::text::jsonb";
        sqlx::query(update).bind(cursor).execute(scope.pool()).await.unwrap();
        let last = "select back from cursor_write order by number desc limit 1";
        let noted: bool = sqlx::query_scalar(last).fetch_one(scope.pool()).await.unwrap();
        assert_eq!(noted, back, "{what}");
    }
}

#[tokio::test]
async fn a_relay_that_goes_back_to_where_the_cursor_stands_is_noted_by_its_checkpoints() {
    let scope = servers().await.unwrap().scope().await.unwrap();
    pillarbox_outbox::migrate(scope.pool()).await.unwrap();
    sqlx::raw_sql(include_str!("../../src/service.sql")).execute(scope.pool()).await.unwrap();
    let noted = async || {
        let noted = "select count(*) from checkpoint_forgotten";
        sqlx::query_scalar::<_, i64>(noted).fetch_one(scope.pool()).await.unwrap()
    };
    let forget = "delete from pillarbox.relay_checkpoint";
    sqlx::query(forget).execute(scope.pool()).await.unwrap();
    assert_eq!(noted().await, 0, "there was none to forget");
    sqlx::raw_sql(
        "insert into pillarbox.relay (name, cursor) values ('default', '{\"high\": 0}'); \
         insert into pillarbox.relay_checkpoint (relay, cursor, streams) values ('default', '{}', '{}')",
    )
    .execute(scope.pool())
    .await
    .unwrap();
    sqlx::query(forget).execute(scope.pool()).await.unwrap();
    assert_eq!(noted().await, 1);
}
