//! Scaling: how many outboxes, streams and processes a load needs, and what a day with outages does to them.
//!
//! ```text
//! cargo run --release --example scaling -- --events-per-day 1e9
//! cargo run --release --example scaling -- --help             # lists the rates, which you can replace by your own
//! ```
//!
//! This program measures nothing. It calculates with rates that were measured on one small machine; replace them by
//! your own. It simulates the day second by second, with a peak, a broker that is away, a relay and a consumer process
//! that are killed, and keys of which a few get most events. The exit code is 1 if the layout does not hold: if events
//! still wait at the end, or if writers had to wait for their database.

mod day;
mod keys;
mod layout;
mod load;
mod queue;

use std::process::ExitCode;

use clap::Parser;

use day::{Day, Outcome, Stage};
use layout::{Layout, Rates};
use load::Load;

#[derive(Clone, Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    load: Load,
    #[command(flatten)]
    rates: Rates,
    /// How much of each part may be in use at the peak.
    #[arg(long, default_value_t = 0.6)]
    use_at_peak: f64,
    /// Partitions of each consumer, for each of its processes.
    #[arg(long, default_value_t = 8)]
    partitions_per_process: usize,
    /// How long the broker is away at the peak, in seconds.
    #[arg(long, default_value_t = 600)]
    broker_away_s: usize,
    /// How long a killed relay's lease lasts, in seconds.
    #[arg(long, default_value_t = 10)]
    lease_s: usize,
    /// How long a killed consumer process keeps its partitions, in seconds.
    #[arg(long, default_value_t = 6)]
    takeover_s: usize,
    /// The seed that decides which key belongs where.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Arguments { load, rates, use_at_peak, .. } = &arguments;
    let layout = Layout::fit(load, rates, *use_at_peak, arguments.partitions_per_process);
    print_load(load);
    print_layout(&layout, load, rates);
    print_storage(load, rates);
    let day = Day {
        load: load.clone(),
        rates: rates.clone(),
        layout,
        broker_away: arguments.broker_away_s,
        lease: arguments.lease_s,
        takeover: arguments.takeover_s,
        seed: arguments.seed,
    };
    let outcome = day.live();
    print_day(&day, &outcome);
    println!();
    for warning in warnings(load, rates, &outcome) {
        println!("note: {warning}");
    }
    if outcome.holds() {
        println!("VERDICT: all is well. The layout holds, and everything that waited was handled.");
        ExitCode::SUCCESS
    } else {
        println!("VERDICT: it does not hold. Use more parts, or leave more room at the peak.");
        ExitCode::FAILURE
    }
}

fn print_load(load: &Load) {
    println!(
        "{} events a day of {} bytes: {} events/s on average, {} at the peak, with {} MB/s of payload",
        grouped(load.events_per_day),
        load.payload_bytes,
        grouped(load.mean()),
        grouped(load.peak()),
        grouped(load.peak() * load.payload_bytes / 1e6),
    );
}

fn print_layout(layout: &Layout, load: &Load, rates: &Rates) {
    println!("\n{:<22} {:>8} {:>16} {:>14}", "part", "number", "events/s each", "use at peak");
    let rows = [
        ("outbox, and its relay", layout.outboxes, rates.outbox()),
        ("stream", layout.streams, rates.stream_rate),
        ("consumer process", layout.processes(), rates.process_rate),
    ];
    for (part, number, rate) in rows {
        let used = load.peak() / (number as f64 * rate);
        println!("{part:<22} {number:>8} {:>16} {used:>14.2}", grouped(rate));
    }
    println!("{:<22} {:>8}", "partition", layout.partitions());
}

fn print_storage(load: &Load, rates: &Rates) {
    let days = |days: f64| load.events_per_day * days;
    let rows = [
        ("outbox", rates.outbox_bytes, days(rates.outbox_kept_h / 24.0)),
        ("stream, per replica", rates.stream_bytes, days(rates.stream_kept_d)),
        ("inbox, per consumer", rates.inbox_bytes, days(rates.inbox_kept_d)),
    ];
    println!("\n{:<22} {:>12} {:>18} {:>12}", "kept", "bytes each", "events", "GB");
    for (what, bytes, events) in rows {
        let gigabytes = bytes * events / 1e9;
        println!("{what:<22} {bytes:>12.0} {:>18} {:>12}", grouped(events), grouped(gigabytes));
    }
}

fn print_day(day: &Day, outcome: &Outcome) {
    println!(
        "\nA day: the broker is away for {} s at the peak, and an hour later a relay and a consumer process are killed\n\
         (lease {} s, takeover {} s).\n",
        day.broker_away, day.lease, day.takeover
    );
    println!("{:<22} {:>16} {:>14} {:>16}", "waiting", "most events", "oldest, s", "late for, s");
    let row = |name: &str, stage: &Stage| {
        println!(
            "{name:<22} {:>16} {:>14.0} {:>16}",
            grouped(stage.most),
            stage.oldest,
            stage.late_seconds
        );
    };
    row("for the database", &outcome.writers);
    row("in the outboxes", &outcome.outboxes);
    row("in the streams", &outcome.streams);
    println!("\n{} committed, {} handled", grouped(outcome.committed), grouped(outcome.handled));
}

fn warnings(load: &Load, rates: &Rates, outcome: &Outcome) -> Vec<String> {
    let mut all = Vec::new();
    let hottest = outcome.hottest_key * load.peak();
    let serial = 1000.0 / rates.handler_ms;
    if hottest > serial {
        all.push(format!(
            "the hottest key alone gets {} events/s at the peak, and its handlers run one after the other. At {} ms \
             each, they can handle at most {}. Split the key, or handle its events in batches.",
            grouped(hottest),
            rates.handler_ms,
            grouped(serial),
        ));
    }
    all
}

/// A whole number in groups of three digits.
fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
