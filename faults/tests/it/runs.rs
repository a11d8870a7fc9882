//! Short runs: one that must pass, and one for each protection that is taken away, which must fail.

use std::path::Path;

use pillarbox_faults::{Options, Report, SwitchedOff, Violation, run, story};
use tokio::sync::{Mutex, MutexGuard};

/// Each run has two servers and a dozen processes of its own, so only one run is made at a time.
async fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::const_new(());
    ONE.lock().await
}

async fn report(options: &Options) -> Report {
    let report = run(options, Path::new(env!("CARGO_BIN_EXE_pillarbox-faults"))).await.unwrap();
    println!("{report}");
    report
}

#[tokio::test]
async fn a_short_run_of_many_faults_is_well() {
    let _alone = alone().await;
    // The same faults each time. A fault that loses data of the broker comes late, because the others wait for it.
    let seed = std::env::var("PILLARBOX_SEED").map_or(6, |seed| seed.parse().unwrap());
    let options =
        Options { seed: Some(seed), seconds: 20, every_ms: 600, saga: true, ..Options::default() };
    let report = report(&options).await;
    assert!(report.is_well(), "{report}");
    let hit: usize = report.faults().values().map(|(hit, _)| hit).sum();
    // How many more faults fit into the time depends on the machine: a slow one needs longer to recover after each.
    assert!(hit >= 3, "only {hit} faults hit");
    assert!(report.history.committed.len() > 200, "there was next to nothing to break");
    // How many are booked in time depends on the machine. But one was booked before the first fault, and services
    // refuse some everywhere.
    let trips = &report.history.trips.instances;
    let ended = |status: &str| trips.iter().filter(|trip| trip.status == status).count();
    let (booked, undone) = (ended("completed"), ended("failed"));
    assert!(booked >= 1, "none of {} trips was booked", trips.len());
    assert!(undone > 5, "only {undone} of {} trips had to be undone", trips.len());
}

/// Takes a protection away, and makes runs until one has found a violation. What exactly happens depends on the
/// machine, so a few seeds are tried. Prints the story.
async fn found_out(options: Options, finds: impl Fn(&Violation) -> bool) {
    let _alone = alone().await;
    for seed in 1..=4 {
        let patience = options.patience.min(30);
        let options = Options { seed: Some(seed), patience, foreign_ms: 0, ..options.clone() };
        let report = report(&options).await;
        let found: Vec<_> = report.violations.iter().filter(|v| finds(v)).cloned().collect();
        if !found.is_empty() {
            let story = story::shortest(&report.history, &found);
            println!("found {} times:\n{}", found.len(), story.join("\n"));
            assert!(story.len() > 2, "that is no story");
            return;
        }
    }
    panic!("nobody noticed that {:?} was missing", options.switched_off);
}

#[tokio::test]
async fn without_the_open_transactions_in_the_saved_cursor_events_are_found_lost() {
    let options = Options {
        seconds: 8,
        // A transaction is open while another relay takes over, and reads the cursor as it was saved.
        faults: "open-transaction,overtake,steal-lease".parse().unwrap(),
        every_ms: 400,
        switched_off: Some(SwitchedOff::OpenTransactions),
        ..Options::default()
    };
    found_out(options, |v| matches!(v, Violation::Lost { consumer: Some(_), .. })).await;
}

#[tokio::test]
async fn without_the_fence_a_relay_is_found_to_move_a_cursor_that_is_not_its_own() {
    let options = Options {
        seconds: 10,
        faults: "steal-lease,pause-relay".parse().unwrap(),
        every_ms: 1_500,
        switched_off: Some(SwitchedOff::Fence),
        ..Options::default()
    };
    found_out(options, |v| matches!(v, Violation::Unfenced { .. })).await;
}

#[tokio::test]
async fn without_the_dedup_events_are_found_to_take_effect_twice() {
    let options = Options {
        seconds: 8,
        faults: "kill-consumer,cut-commit-consumer".parse().unwrap(),
        every_ms: 700,
        switched_off: Some(SwitchedOff::Dedup),
        ..Options::default()
    };
    found_out(options, |v| matches!(v, Violation::Repeated { .. })).await;
}

#[tokio::test]
async fn without_the_dedup_a_saga_and_its_services_are_found_to_act_twice() {
    let options = Options {
        seconds: 8,
        // Answers that are not acknowledged, and a stream that is shipped again.
        faults: "kill-consumer,cut-commit-consumer,wipe-stream".parse().unwrap(),
        every_ms: 700,
        // Without the dedup, not everything comes to rest.
        patience: 8,
        saga: true,
        switched_off: Some(SwitchedOff::Dedup),
        ..Options::default()
    };
    found_out(options, |v| matches!(v, Violation::WrongTrip { .. })).await;
}
