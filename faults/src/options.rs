//! What a run is told.

use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::schedule::Kinds;

/// What a run is told.
#[derive(Clone, Debug, PartialEq, Args)]
pub struct Options {
    /// Fixes what writers and faults choose; random if left out. When exactly a process dies is the machine's choice
    #[arg(long)]
    pub seed: Option<u64>,
    /// How long faults are made, in seconds
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=2_400))]
    pub seconds: u64,
    /// Only faults of these kinds, parted by commas: names as --schedule-only shows them, or their beginnings
    #[arg(long, default_value = "")]
    pub faults: Kinds,
    /// Print the schedule and do nothing
    #[arg(long)]
    pub schedule_only: bool,
    /// The mean time between two faults, in milliseconds
    #[arg(long, default_value_t = 900, value_parser = clap::value_parser!(u64).range(50..))]
    pub every_ms: u64,
    /// How many writer processes there are, with two connections each
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=20))]
    pub writers: u64,
    /// How many relay processes there are
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=8))]
    pub relays: u64,
    /// How many keys there are
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub keys: u32,
    /// The longest pause of a writer's connection between two transactions, in milliseconds
    #[arg(long, default_value_t = 80)]
    pub pause_ms: u64,
    /// The longest pause of the foreign producer between two messages, in milliseconds; 0: there is no such producer
    #[arg(long, default_value_t = 200)]
    pub foreign_ms: u64,
    /// How long everything may take, in seconds, to come to rest after the last fault
    #[arg(long, default_value_t = 120)]
    pub patience: u64,
    /// By how much the lease, and what else is measured against a clock, is longer than on a machine that has nothing
    /// else to do
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=20))]
    pub slow: u64,
    /// Keys wait behind their dead letters, which somebody discards after a while
    #[arg(long)]
    pub strict: bool,
    /// Into how many partitions the relays put the keys, which two processes of `ledger` share; 1: none
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub partitions: u32,
    /// Writers reach the database through a PgBouncer in transaction mode, and consumers through one in session mode
    #[arg(long)]
    pub pooler: bool,
    /// The broker is a cluster of three with a stream of three replicas; its store is not put back
    #[arg(long)]
    pub cluster: bool,
    /// Keep the journals and logs of all processes in this folder
    #[arg(long)]
    pub keep: Option<PathBuf>,
    /// What protects no longer. There is no flag for it: only tests say so.
    #[arg(skip)]
    pub switched_off: Option<SwitchedOff>,
}

/// A protection that a test takes away, to show that the run finds what it prevents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SwitchedOff {
    /// The floor of the relay's cursor lags by a window.
    Floor,
    /// The relay's writes name the epoch, and it stops when its lease has run out.
    Fence,
    /// The inbox knows what it has handled.
    Dedup,
}

impl Default for Options {
    /// As without any flag.
    fn default() -> Self {
        Self {
            seed: None,
            seconds: 60,
            faults: Kinds::all(),
            schedule_only: false,
            every_ms: 900,
            writers: 3,
            relays: 2,
            keys: 24,
            pause_ms: 80,
            foreign_ms: 200,
            patience: 120,
            slow: 1,
            strict: false,
            partitions: 1,
            pooler: false,
            cluster: false,
            keep: None,
            switched_off: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn the_defaults_are_those_of_no_flags() {
        assert_eq!(Flags::parse_from(["test"]).options, Options::default());
    }
}
