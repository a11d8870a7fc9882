//! `pillarbox relay`.

use clap::Args;
use pillarbox_relay::{NoStream, Order, RelayConfig, SinkChoice};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::http::Http;
use super::{Database, Done};

/// Run the relay.
#[derive(Debug, Args)]
pub(crate) struct Relay {
    #[command(flatten)]
    database: Database,
    /// The broker, nats://host:port; several parted by commas are one cluster.
    #[arg(
        long,
        env = "NATS_URL",
        hide_env_values = true,
        value_name = "URL",
        default_value = "nats://127.0.0.1:4222"
    )]
    nats_url: String,
    /// The relay's name. Relays of one name share a cursor: one ships, the others stand by.
    #[arg(long, env = "PILLARBOX_RELAY", default_value = "default")]
    name: String,
    /// The `ce-source` of events that name none.
    #[arg(long, env = "PILLARBOX_SOURCE", default_value = "/pillarbox")]
    source: String,
    /// How long the lease lasts unless renewed, in milliseconds.
    #[arg(long, default_value_t = RelayConfig::default().lease_ms, value_name = "MS")]
    lease_ms: u64,
    /// The longest pause between two looks at an idle outbox, in milliseconds.
    #[arg(long, default_value_t = RelayConfig::default().idle_interval_ms, value_name = "MS")]
    idle_interval_ms: u64,
    /// How long shipped rows are kept, in seconds.
    #[arg(long, env = "PILLARBOX_RETENTION_S", default_value_t = RelayConfig::default().retention_s, value_name = "SECONDS")]
    retention_s: u64,
    /// Store through the keyed window even where fast ingest could be had.
    #[arg(long)]
    keyed_window: bool,
    /// What becomes of the later events of a key when one is set aside: they go on, or wait behind it.
    #[arg(long, env = "PILLARBOX_ORDER", value_parser = ["key", "strict"], default_value = "key")]
    order: String,
    /// What becomes of an event whose subject no stream takes.
    #[arg(long, env = "PILLARBOX_NO_STREAM", value_parser = ["hold", "dead-letter"], default_value = "hold")]
    no_stream: String,
    /// End with exit code 1 if the database or the broker cannot be reached at the start, instead of trying
    /// again.
    #[arg(long)]
    fail_fast: bool,
    /// Where /healthz, /readyz and /metrics are served: an address and a port, or `off`. Port 0: any free one.
    #[arg(long, env = "PILLARBOX_HTTP", default_value = "127.0.0.1:9464", value_name = "ADDR")]
    http: String,
}

impl Relay {
    pub(crate) async fn run(self) -> Done {
        let config = RelayConfig {
            database_url: self.database.database_url,
            schema: self.database.schema,
            nats_url: self.nats_url,
            name: self.name,
            source: self.source,
            lease_ms: self.lease_ms,
            idle_interval_ms: self.idle_interval_ms,
            retention_s: self.retention_s,
            sink: if self.keyed_window { SinkChoice::KeyedWindow } else { SinkChoice::Auto },
            order: if self.order == "strict" { Order::Strict } else { Order::Key },
            no_stream: if self.no_stream == "hold" { NoStream::Hold } else { NoStream::DeadLetter },
            fail_fast: self.fail_fast,
            ..RelayConfig::default()
        };
        let http = Http::bind(&self.http).await?;
        let relay = pillarbox_relay::Relay::new(config)?;
        let mut serving = JoinSet::new();
        if let Some(http) = http {
            serving.spawn(http.serve(vec![relay.state()]));
        }
        let shutdown = CancellationToken::new();
        let running = relay.run(shutdown.clone());
        tokio::select! {
            ended = running_until_signalled(running, &shutdown) => Ok(ended?),
        }
    }
}

/// Runs it; the first SIGTERM or SIGINT asks it to stop, the second ends the process.
async fn running_until_signalled<T>(
    running: impl Future<Output = Result<T, pillarbox_relay::RelayError>>,
    shutdown: &CancellationToken,
) -> Result<T, Box<dyn std::error::Error>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::pin!(running);
    loop {
        tokio::select! {
            ended = &mut running => return Ok(ended?),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if shutdown.is_cancelled() {
            tracing::warn!("second signal: stopping at once");
            std::process::exit(130);
        }
        shutdown.cancel();
    }
}
