//! How many of each part a load needs.

use super::load::Load;

/// What one of each part can do, and how many bytes an event needs. The defaults are those of `docs/scaling.md`.
#[derive(Clone, Debug, clap::Args)]
pub struct Rates {
    /// Transactions with an event that one database commits, a second.
    #[arg(long, default_value_t = 5_400.0)]
    pub commit_rate: f64,
    /// Events that one relay ships, a second.
    #[arg(long, default_value_t = 130_000.0)]
    pub relay_rate: f64,
    /// Events that one stream leader stores, a second.
    #[arg(long, default_value_t = 160_000.0)]
    pub stream_rate: f64,
    /// Events that one consumer process handles, a second.
    #[arg(long, default_value_t = 5_000.0)]
    pub process_rate: f64,
    /// How long a handler takes, including its commit, in milliseconds.
    #[arg(long, default_value_t = 3.0)]
    pub handler_ms: f64,
    /// Bytes of an outbox row, including its index.
    #[arg(long, default_value_t = 401.0)]
    pub outbox_bytes: f64,
    /// Bytes of a message in a stream.
    #[arg(long, default_value_t = 606.0)]
    pub stream_bytes: f64,
    /// Bytes of an inbox row, including its index.
    #[arg(long, default_value_t = 161.0)]
    pub inbox_bytes: f64,
    /// How long shipped rows stay in the outbox, in hours.
    #[arg(long, default_value_t = 1.0)]
    pub outbox_kept_h: f64,
    /// How long messages stay in the stream, in days.
    #[arg(long, default_value_t = 3.0)]
    pub stream_kept_d: f64,
    /// How long a consumer remembers what it has handled, in days.
    #[arg(long, default_value_t = 7.0)]
    pub inbox_kept_d: f64,
}

impl Rates {
    /// What one outbox with its relay can do.
    pub fn outbox(&self) -> f64 {
        self.commit_rate.min(self.relay_rate)
    }
}

/// The number of each part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Each is a database, or a schema in a database that can commit for several of them.
    pub outboxes: usize,
    pub streams: usize,
    pub processes_per_stream: usize,
    pub partitions_per_process: usize,
}

impl Layout {
    /// The smallest layout that uses each part by `use_at_peak` or less at the peak.
    pub fn fit(
        load: &Load,
        rates: &Rates,
        use_at_peak: f64,
        partitions_per_process: usize,
    ) -> Self {
        let number = |load: f64, rate: f64| (load / (use_at_peak * rate)).ceil().max(1.0) as usize;
        let outboxes = number(load.peak(), rates.outbox());
        let streams = number(load.peak(), rates.stream_rate);
        Self {
            // Each outbox ships to one stream, so that all streams have the same number of outboxes.
            outboxes: outboxes.next_multiple_of(streams),
            streams,
            processes_per_stream: number(load.peak() / streams as f64, rates.process_rate),
            partitions_per_process,
        }
    }

    pub fn processes(&self) -> usize {
        self.streams * self.processes_per_stream
    }

    pub fn partitions_per_stream(&self) -> usize {
        self.processes_per_stream * self.partitions_per_process
    }

    pub fn partitions(&self) -> usize {
        self.streams * self.partitions_per_stream()
    }
}
