//! The settings of a run.

use std::path::PathBuf;

use clap::Args;

use crate::schedule::Kinds;
use crate::switched_off::SwitchedOff;

/// The settings of a run.
#[derive(Clone, Debug, PartialEq, Args)]
pub struct Options {
    /// Fixes what writers and faults choose; random by default. It does not fix exactly when a process dies
    #[arg(long)]
    pub seed: Option<u64>,
    /// How long faults are made, in seconds
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=2_400))]
    pub seconds: u64,
    /// Only faults of these kinds, separated by commas: names as --schedule-only shows them, or their beginnings
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
    /// The longest pause of the foreign producer between two messages, in milliseconds; with 0 there is no foreign
    /// producer
    #[arg(long, default_value_t = 200)]
    pub foreign_ms: u64,
    /// How many seconds everything may take to come to rest after the last fault
    #[arg(long, default_value_t = 120)]
    pub patience: u64,
    /// How many times longer the lease and other times are than on an idle machine
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=20))]
    pub slow: u64,
    /// Keys wait behind their dead letters, which are discarded after a while
    #[arg(long)]
    pub strict: bool,
    /// The number of partitions into which the relays put the keys, and which two processes of `ledger` share; 1 means
    /// none
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub partitions: u32,
    /// Writers reach the database through a PgBouncer in transaction mode, and consumers through one in session mode
    #[arg(long)]
    pub pooler: bool,
    /// The broker is a cluster of three servers with a stream of three replicas; its store is never put back
    #[arg(long)]
    pub cluster: bool,
    /// Writers also ask for trips, which a saga books at three services, a process each
    #[arg(long)]
    pub saga: bool,
    /// Keep the journals and logs of all processes in this folder
    #[arg(long)]
    pub keep: Option<PathBuf>,
    /// The protection that is switched off. There is no flag for it, because only tests set it.
    #[arg(skip)]
    pub switched_off: Option<SwitchedOff>,
}

impl Default for Options {
    /// The settings without any flag.
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
            saga: false,
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
