//! A leader that is paused (SIGSTOP), loses its lease, and wakes with its messages half sent.

use std::time::Duration;

use pillarbox_testkit::eventually;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;

use super::load::{Habits, Load, backlog};
use super::relays::Relays;
use super::verdict::Verdict;
use super::{CATCH_UP, faults, seed};
use crate::support::{DEADLINE, Shop};

const LEASE: Duration = Duration::from_millis(600);

/// Notes down every write that moves the epoch or the cursor back.
const WATCH: &str = "
create table moved_back (epoch bigint, cursor jsonb, by_epoch bigint, to_cursor jsonb);
create function note_down() returns trigger language plpgsql as $$
begin
    if new.epoch < old.epoch
        or (new.cursor ->> 'high')::bigint < (old.cursor ->> 'high')::bigint
        or (
            new.cursor ->> 'snapshot' = old.cursor ->> 'snapshot'
            and (new.cursor #>> '{window,position}')::bigint < (old.cursor #>> '{window,position}')::bigint
        )
    then
        insert into moved_back values (old.epoch, old.cursor, new.epoch, new.cursor);
    end if;
    return new;
end $$;
create trigger watch before update on pillarbox.relay for each row execute function note_down()";

/// Pauses the leader in the middle of a backlog, waits until another ships, and lets it wake.
async fn pause_and_wake(sink: &[&str], run: &str) {
    const BACKLOG: i64 = 12_000;
    let (pauses, seed) = (faults(4), seed());
    let mut random = StdRng::seed_from_u64(seed);
    let shop = Shop::open().await;
    sqlx::raw_sql(WATCH).execute(shop.pool()).await.unwrap();
    let load = Load::start(&shop, seed, Habits { writers: 3, ..Habits::default() }).await;
    let mut relays = Relays::new(&shop, LEASE);
    relays.start(sink);
    relays.start(sink);
    for pause in 0..pauses {
        let leader = relays.leader().await;
        let holder = relays.holder().await.unwrap();
        let epoch = shop.status().await.epoch.unwrap();
        let before = shop.messages().await;
        backlog(&shop, BACKLOG).await;
        // Within the backlog, so that a batch is open or the window full.
        shop.until_messages(before + random.random_range(500..4_000)).await;
        relays.processes[leader].signal(Signal::STOP);
        let at_pause = shop.messages().await;
        eventually("another leader", DEADLINE, async || {
            let now = relays.holder().await;
            Ok::<_, String>(now.filter(|now| *now != holder).map(drop))
        })
        .await
        .unwrap();
        // Now and then the successor is still on what the paused one has under way, or far ahead.
        tokio::time::sleep(Duration::from_millis(random.random_range(0..400))).await;
        let said = relays.processes[leader].said("leading");
        relays.processes[leader].signal(Signal::CONT);
        shop.until_messages(before + BACKLOG as u64 + 1_000).await;
        let status = shop.status().await;
        assert!(status.epoch > Some(epoch), "{run}, seed {seed}: {status:?}");
        assert!(
            at_pause < before + BACKLOG as u64,
            "{run}, seed {seed}, pause {pause}: the pause came too late to mean anything"
        );
        // It noticed by itself, and led no more under the old epoch.
        eventually("the woken one to stand by", DEADLINE, async || {
            let process = &relays.processes[leader];
            let noticed = process.said("standing by") > 0 || process.said("leading") > said;
            Ok::<_, String>(noticed.then_some(()))
        })
        .await
        .unwrap();
    }
    let told = load.stop().await;
    shop.shipped_within(CATCH_UP).await;
    Verdict::of(&shop, &told).await.assert_faultless(run, seed, pauses);
    assert_eq!(shop.number("select count(*) from moved_back").await, 0, "{run}, seed {seed}");
}

#[tokio::test]
async fn a_leader_that_wakes_with_an_open_batch_does_no_harm() {
    pause_and_wake(&[], "paused leaders, fast ingest").await;
}

#[tokio::test]
async fn a_leader_that_wakes_with_a_full_window_does_no_harm() {
    pause_and_wake(&["--keyed-window"], "paused leaders, keyed window").await;
}
