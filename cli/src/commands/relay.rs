//! `pillarbox relay`.

use clap::Args;
use pillarbox_relay::{Relay as OneRelay, Relays};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Done;
use super::settings::{All, Flags};
use crate::http::{Http, Parts};

/// Run a relay for each outbox in the settings.
#[derive(Debug, Args)]
pub(crate) struct Relay {
    #[command(flatten)]
    flags: Flags<All>,
    /// The same as --sink keyed-window.
    #[arg(long, hide = true)]
    keyed_window: bool,
}

impl Relay {
    pub(crate) async fn run(mut self) -> Done {
        if self.keyed_window {
            self.flags.set("sink", "keyed-window");
        }
        let settings = self.flags.settings()?;
        settings.require_database()?;
        for warning in settings.exposed_files() {
            tracing::warn!("{warning}");
        }
        let http = Http::new(&settings.program.http)?;
        let relays = Relays::new(settings.outboxes)?;
        let mut serving = JoinSet::new();
        if let Some(http) = http {
            let states = relays.each().iter().map(OneRelay::state).collect();
            serving.spawn(http.serve(Parts::Relays(states), relays.notice()));
        }
        let shutdown = CancellationToken::new();
        let running = relays.run(shutdown.clone());
        tokio::select! {
            ended = running_until_signalled(running, &shutdown) => Ok(ended?),
        }
    }
}

/// Runs what this process is for. The first SIGTERM or SIGINT asks them to stop; the second ends the process.
pub(super) async fn running_until_signalled<T, E: Into<Box<dyn std::error::Error>>>(
    running: impl Future<Output = Result<T, E>>,
    shutdown: &CancellationToken,
) -> Result<T, Box<dyn std::error::Error>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::pin!(running);
    loop {
        tokio::select! {
            ended = &mut running => return ended.map_err(Into::into),
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
