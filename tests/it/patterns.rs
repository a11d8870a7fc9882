//! Each pattern example does what it says. It is run with few events, and its own verdict decides.

use std::time::Duration;

use tokio::process::Command;

/// Runs an example and shows what it printed. `cargo test` has built it.
async fn example(name: &str) -> String {
    let test = std::env::current_exe().unwrap();
    let example = test.parent().unwrap().parent().unwrap().join("examples").join(name);
    assert!(
        example.exists(),
        "not built: run `cargo build --example {name}`, or all of `cargo test`"
    );
    let running = Command::new(example).args(["--events", "60"]).kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(120), running).await.unwrap().unwrap();
    let shown = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(0), "{shown}");
    assert!(shown.contains("VERDICT: all is well") && !shown.contains("FAIL"), "{shown}");
    shown
}

#[tokio::test]
async fn a_work_queue_shares_its_jobs_and_a_killed_worker_loses_none() {
    let shown = example("work_queue").await;
    assert!(shown.contains("all three workers had a share"), "{shown}");
}

#[tokio::test]
async fn processes_share_partitions_and_a_killed_one_turns_nothing_around() {
    let shown = example("partitions").await;
    assert!(shown.contains("each account was charged in order"), "{shown}");
}

#[tokio::test]
async fn a_service_that_was_down_catches_up_with_the_fan_out() {
    let shown = example("fan_out").await;
    assert!(shown.contains("mail was down for two thirds"), "{shown}");
}

#[tokio::test]
async fn a_late_joiner_reads_the_event_log_from_the_start() {
    let shown = example("event_log").await;
    assert!(shown.contains("the service that joined late has every event"), "{shown}");
}

#[tokio::test]
async fn poison_is_set_aside_and_tried_again_once_the_handler_is_mended() {
    let shown = example("poison").await;
    assert!(shown.contains("no dead letter is left"), "{shown}");
}

#[tokio::test]
async fn a_wrong_projection_is_built_again_beside_the_one_in_use() {
    let shown = example("replay").await;
    assert!(shown.contains("readers see the right balances"), "{shown}");
}
