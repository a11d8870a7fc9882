//! PgBouncer shares server connections between its clients as its mode says.

use pillarbox_testkit::{PgBouncer, PoolMode, Postgres};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

/// Which server process answers. It uses no prepared statement, because that would be left behind in a pooled
/// connection.
async fn backend(connection: &mut PgConnection) -> i32 {
    let rows = sqlx::raw_sql("select pg_backend_pid()").fetch_all(connection).await.unwrap();
    rows[0].get(0)
}

async fn run(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.unwrap();
}

#[tokio::test]
async fn transaction_mode_moves_a_client_to_another_server_connection_and_session_mode_does_not() {
    let postgres = Postgres::start().await.unwrap();
    postgres.create_database("shop").await.unwrap();
    for mode in [PoolMode::Transaction, PoolMode::Session] {
        let Some(pgbouncer) = PgBouncer::options().mode(mode).start(&postgres).await.unwrap()
        else {
            eprintln!("NOT TESTED: there is no PgBouncer here");
            return;
        };
        let mut one = PgConnection::connect(&pgbouncer.url("shop")).await.unwrap();
        let mut two = PgConnection::connect(&pgbouncer.url("shop")).await.unwrap();
        let first = backend(&mut one).await;
        run(&mut two, "begin").await;
        let in_the_way = backend(&mut two).await;
        let second = backend(&mut one).await;
        run(&mut two, "rollback").await;
        if mode == PoolMode::Session {
            assert!(first == second && first != in_the_way, "{first} {in_the_way} {second}");
        } else {
            assert!(first == in_the_way && first != second, "{first} {in_the_way} {second}");
        }
    }
}

#[tokio::test]
async fn a_role_that_was_made_later_is_let_in_as_itself() {
    let postgres = Postgres::start().await.unwrap();
    let database = postgres.create_database("shop").await.unwrap();
    let Some(pgbouncer) = PgBouncer::options().start(&postgres).await.unwrap() else {
        eprintln!("NOT TESTED: there is no PgBouncer here");
        return;
    };
    sqlx::raw_sql("create role clerk login").execute(&database.pool).await.unwrap();
    let mut clerk = PgConnection::connect(&pgbouncer.url_as("clerk", "shop")).await.unwrap();
    let rows = sqlx::raw_sql("select current_user::text").fetch_all(&mut clerk).await.unwrap();
    assert_eq!(rows[0].get::<String, _>(0), "clerk", "{}", pgbouncer.log_tail());
}
