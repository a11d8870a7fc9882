//! A dump, restored into a fresh Postgres whose transaction ids start low.

use std::path::Path;
use std::process::Command;

use pillarbox_testkit::{Postgres, servers};
use sqlx::postgres::PgPoolOptions;

use super::load::{Habits, Load, Told};
use super::verdict::Verdict;
use super::{relays::Relays, seed};
use crate::support::{Process, Shop};

/// A program of Postgres, from the server's own folder or from `PATH`; a private install may have neither.
fn program(postgres: &Postgres, name: &str) -> Option<Command> {
    let own = postgres.programs().join(name);
    let runs = |program: &Path| {
        Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
    };
    [own.as_path(), Path::new(name)].into_iter().find(|path| runs(path)).map(Command::new)
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn a_restored_dump_ships_exactly_what_had_not_been_shipped() {
    let seed = seed();
    let old = Postgres::options().own_identity().start().await.unwrap();
    let (Some(mut dump), Some(mut restore)) =
        (program(&old, "pg_dump"), program(&old, "pg_restore"))
    else {
        // tests/it/new_cluster.rs carries the rows over by other means.
        println!("no pg_dump here: skipped");
        return;
    };
    let nats = &servers().await.unwrap().nats;
    let shop = Shop::on(pillarbox_testkit::Scope::on(&old, &nats.url()).await.unwrap()).await;
    // The old cluster's ids are high, and its cursor's snapshot with them.
    sqlx::raw_sql(
        "do $$ begin for i in 1..50000 loop perform pg_current_xact_id(); commit; end loop; end $$",
    )
    .execute(shop.pool())
    .await
    .unwrap();
    let load = Load::start(&shop, seed, Habits::default()).await;
    let mut relays = Relays::new(&shop, std::time::Duration::from_secs(10));
    relays.start(&[]);
    shop.until_messages(3_000).await;
    // Killed, so that the saved cursor is behind what was shipped, perhaps within a window; then more is written.
    relays.processes[0].kill();
    let shipped = shop.messages().await;
    tokio::time::sleep(std::time::Duration::from_millis(700)).await;
    let told = load.stop().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    run(dump
        .args(["--format=custom", "--no-owner", "--file"])
        .arg(file.path())
        .arg(shop.scope.database_url()));

    let new = Postgres::options().own_identity().start().await.unwrap();
    let restored = new.create_database("restored").await.unwrap();
    run(restore
        .args(["--exit-on-error", "--no-owner", "--dbname", &restored.url])
        .arg(file.path()));
    let next = "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint";
    let new_next: i64 = sqlx::query_scalar(next).fetch_one(&restored.pool).await.unwrap();
    assert!(new_next + 40_000 < shop.number(next).await, "the new cluster's ids start low");
    // The service goes on before the relay is there again.
    let habits = Habits { writers: 3, ..Habits::default() };
    let more = Load::through(&shop, &restored.url, seed.wrapping_add(100), habits);
    let environment = [("DATABASE_URL", &*restored.url), ("NATS_URL", shop.scope.nats_url())];
    let relay = Process::run(&["relay"], &environment);
    relay.until_said("another database cluster").await;
    shop.until_messages(shipped + 3_000).await;
    let more = more.stop().await;

    let told = Told {
        committed: [told.committed, more.committed].concat(),
        rolled_back: [told.rolled_back, more.rolled_back].concat(),
        unknown: [told.unknown, more.unknown].concat(),
    };
    let pool = PgPoolOptions::new().connect(&restored.url).await.unwrap();
    let wanted: i64 =
        sqlx::query_scalar("select count(*) from pillarbox.outbox").fetch_one(&pool).await.unwrap();
    shop.until_messages(u64::try_from(wanted).unwrap()).await;
    let verdict = Verdict::between(&pool, &told, &shop.stored().await).await;
    verdict.assert_faultless("restore of a dump", seed, 1);
}
