//! Faults under load, with real processes: what is shipped is everything committed, and nothing else.
//!
//! Each run counts and prints what it found; [docs/faults.md](../../../../docs/faults.md) explains them.
//! `PILLARBOX_FAULTS=200` makes each run longer, `PILLARBOX_BACKLOG=1000000` the backlog larger, and
//! `PILLARBOX_SEED=…` uses a seed that a run has printed.

mod backlog;
mod broker;
mod cluster;
mod cuts;
mod full;
mod kills;
mod load;
mod paused;
mod relays;
mod restore;
mod standby_server;
mod takeover;
mod verdict;

/// How long the relays may take, on a busy machine, to ship what has piled up in a run.
const CATCH_UP: std::time::Duration = std::time::Duration::from_secs(120);

/// How many faults a run makes, unless `PILLARBOX_FAULTS` says otherwise.
fn faults(usual: usize) -> usize {
    std::env::var("PILLARBOX_FAULTS").map_or(usual, |faults| faults.parse().unwrap())
}

/// The seed of a run: a random one, or that of `PILLARBOX_SEED`.
fn seed() -> u64 {
    let seed = match std::env::var("PILLARBOX_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => rand::random(),
    };
    println!("seed {seed}: PILLARBOX_SEED={seed} runs it again");
    seed
}
