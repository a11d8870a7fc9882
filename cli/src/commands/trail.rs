//! `pillarbox trail`.

use std::time::Duration;

use clap::Args;
use pillarbox_relay::Notice;
use pillarbox_trail::{Trail, TrailConfig};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Done;
use super::relay::running_until_signalled;
use super::settings::{Flags, TrailKeys};
use crate::http::{Http, Parts};

/// Record which messages go through the streams: ids, types, keys, causes and times, and no payloads. `pillarbox trace`
/// reads it. Several processes may run: one reads, the others stand by. Needs the tables of `pillarbox migrate trail`.
#[derive(Debug, Args)]
pub(crate) struct TrailCommand {
    /// Read only these streams, separated by commas. By default, all streams are read but key-value buckets, object
    /// stores and work queues.
    #[arg(
        long,
        value_name = "NAMES",
        env = "PILLARBOX_TRAIL_STREAMS",
        value_delimiter = ',',
        help_heading = "Settings"
    )]
    streams: Vec<String>,
    /// How long rows are kept, in seconds, at least an hour. Whole days are dropped.
    #[arg(
        long,
        value_name = "N",
        env = "PILLARBOX_TRAIL_RETENTION_S",
        default_value_t = 259_200,
        help_heading = "Settings"
    )]
    trail_retention_s: u64,
    /// The most bytes that the rows may take with their indexes. Beyond that, the oldest days are dropped.
    #[arg(
        long,
        value_name = "N",
        env = "PILLARBOX_TRAIL_MAX_BYTES",
        default_value_t = 4_294_967_296,
        help_heading = "Settings"
    )]
    trail_max_bytes: u64,
    #[command(flatten)]
    flags: Flags<TrailKeys>,
}

impl TrailCommand {
    pub(crate) async fn run(self) -> Done {
        let settings = self.flags.settings_of_one()?;
        for warning in settings.exposed_files() {
            tracing::warn!("{warning}");
        }
        let http = Http::new(&settings.program.http)?;
        let outbox = settings.outboxes.into_iter().next().unwrap_or_default();
        let streams = self.streams.iter().map(|name| name.trim().to_owned());
        let trail = Trail::new(TrailConfig {
            database_url: outbox.database_url,
            schema: outbox.schema,
            nats_url: outbox.nats_url,
            nats: outbox.nats,
            streams: streams.filter(|name| !name.is_empty()).collect(),
            retention: Duration::from_secs(self.trail_retention_s),
            max_bytes: self.trail_max_bytes,
        })?;
        let mut serving = JoinSet::new();
        if let Some(http) = http {
            serving.spawn(http.serve(Parts::Trail(trail.state()), Notice::default()));
        }
        let shutdown = CancellationToken::new();
        let running = trail.run(shutdown.clone());
        let running = async {
            running.await;
            Ok::<_, std::convert::Infallible>(())
        };
        running_until_signalled(running, &shutdown).await
    }
}
