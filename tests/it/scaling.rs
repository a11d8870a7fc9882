//! Compares the simulation of `examples/scaling` with calculations by hand.
#![allow(dead_code, unreachable_pub)]

#[path = "../../examples/scaling/day.rs"]
mod day;
#[path = "../../examples/scaling/keys.rs"]
mod keys;
#[path = "../../examples/scaling/layout.rs"]
mod layout;
#[path = "../../examples/scaling/load.rs"]
mod load;
#[path = "../../examples/scaling/queue.rs"]
mod queue;

use std::process::Command;

use clap::Parser;
use day::Day;
use layout::{Layout, Rates};
use load::{DAY, Load};

#[derive(Parser)]
struct Defaults {
    #[command(flatten)]
    load: Load,
    #[command(flatten)]
    rates: Rates,
}

/// One outbox, one stream, one process, an even load, and no outage.
fn simple() -> Day {
    let Defaults { load, rates } = Defaults::parse_from(["test"]);
    let load =
        Load { events_per_day: 86_400_000.0, peak_to_mean: 1.0, keys: 1000, skew: 0.0, ..load };
    let rates = Rates {
        commit_rate: 5_000.0,
        relay_rate: 5_000.0,
        stream_rate: 5_000.0,
        process_rate: 2_000.0,
        ..rates
    };
    let layout =
        Layout { outboxes: 1, streams: 1, processes_per_stream: 1, partitions_per_process: 1 };
    Day { load, rates, layout, broker_away: 0, lease: 0, takeover: 0, seed: 1 }
}

#[test]
fn without_an_outage_nothing_waits() {
    let outcome = simple().live();
    assert!(outcome.holds());
    assert!((outcome.committed - 86_400_000.0).abs() < 1_000.0, "{}", outcome.committed);
    for stage in [&outcome.writers, &outcome.outboxes, &outcome.streams] {
        assert_eq!((stage.oldest, stage.late_seconds), (0.0, 0));
    }
}

#[test]
fn after_an_outage_the_backlog_and_the_time_to_catch_up_are_those_of_arithmetic() {
    // The events of 600 s at 1,000/s wait. Then 5,000/s are shipped while 1,000/s come: 600,000 / 4,000 = 150 s.
    let outcome = Day { broker_away: 600, ..simple() }.live();
    assert!((outcome.outboxes.most - 600_000.0).abs() < 2_000.0, "{}", outcome.outboxes.most);
    assert!((745..=755).contains(&outcome.outboxes.late_seconds), "{outcome:?}");
    // For 150 s, 5,000/s come and 2,000/s are handled, so 450,000 wait. Then it takes 450,000 / 1,000 = 450 s.
    assert!((outcome.streams.most - 450_000.0).abs() < 5_000.0, "{}", outcome.streams.most);
    assert!((590..=610).contains(&outcome.streams.late_seconds), "{outcome:?}");
    assert!(outcome.holds());
    assert!((outcome.handled - outcome.committed).abs() < 1.0);
}

#[test]
fn too_little_of_anything_does_not_hold() {
    for change in [
        |rates: &mut Rates| rates.commit_rate = 900.0,
        |rates: &mut Rates| rates.relay_rate = 900.0,
        |rates: &mut Rates| rates.stream_rate = 900.0,
        |rates: &mut Rates| rates.process_rate = 900.0,
    ] {
        let mut day = simple();
        change(&mut day.rates);
        assert!(!day.live().holds());
    }
}

#[test]
fn a_killed_process_leaves_its_partitions_to_the_others() {
    let mut day = simple();
    day.layout.processes_per_stream = 3;
    day.layout.partitions_per_process = 4;
    day.rates.process_rate = 600.0;
    day.takeover = 30;
    let outcome = day.live();
    assert!(outcome.holds());
    // Events of the first of 30 seconds are handled in the second after them.
    assert_eq!(outcome.streams.oldest, 29.0);
}

#[test]
fn the_example_says_whether_the_layout_holds() {
    let test = std::env::current_exe().unwrap();
    let example = test.parent().unwrap().parent().unwrap().join("examples/scaling");
    assert!(
        example.exists(),
        "not built: run `cargo build --example scaling`, or all of `cargo test`"
    );
    let run = |arguments: &[&str]| {
        let output = Command::new(&example).args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, shown) = run(&["--events-per-day", "1e8"]);
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains("VERDICT: all is well"), "{shown}");
    // A quarter of what the peak needs is less than what the average needs.
    let too_little = ["--events-per-day", "1e8", "--use-at-peak", "4", "--process-rate", "100"];
    let (code, shown) = run(&too_little);
    assert_eq!(code, Some(1), "{shown}");
    assert!(shown.contains("VERDICT: it does not hold"), "{shown}");
}

#[test]
fn a_day_has_its_average_and_its_peak() {
    let load = Load { peak_to_mean: 3.0, ..simple().load };
    let day = load.day();
    let all: f64 = day.iter().sum();
    assert!((all / load.events_per_day - 1.0).abs() < 1e-3, "{all}");
    assert!((day[DAY / 2] / load.peak() - 1.0).abs() < 1e-9);
}

#[test]
fn a_fitted_layout_leaves_the_room_that_was_asked_for() {
    let Defaults { load, rates } = Defaults::parse_from(["test", "--events-per-day", "1e10"]);
    let layout = Layout::fit(&load, &rates, 0.6, 8);
    let use_of = |number: usize, rate: f64| load.peak() / (number as f64 * rate);
    assert!(use_of(layout.outboxes, rates.outbox()) <= 0.6);
    assert!(use_of(layout.streams, rates.stream_rate) <= 0.6);
    assert!(use_of(layout.processes(), rates.process_rate) <= 0.6);
    assert!(use_of(layout.streams - 1, rates.stream_rate) > 0.6, "no more than it takes");
}
