//! The endpoints for operators and their machines: `/healthz`, `/readyz` and `/metrics`.
//!
//! Shipping comes first. An address that another process holds, that this machine does not have yet or does not allow, or
//! whose name is not found, ends nothing: the relay ships without endpoints, says so, and takes the address when it can. Whoever connects can hold a
//! connection for a few seconds and no longer, so `/healthz` answers whatever others do; see [`connections`].

mod address;
mod connections;
mod pages;

use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use pillarbox_relay::metrics::BUCKETS;
use pillarbox_relay::{Notice, RelayState};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use address::Address;
use connections::Connections;
use pages::Pages;

/// How often what has been observed is taken into the histograms; until then each observation takes memory.
const UPKEEP: Duration = Duration::from_secs(1);
/// How long to wait where no further connection can be accepted: out of file descriptors, most likely.
const PAUSE: Duration = Duration::from_millis(100);

/// An address, perhaps listened on already, and the recorder that everything counts on from now on.
pub(crate) struct Http {
    address: Address,
    metrics: PrometheusHandle,
}

/// The metrics cannot be recorded.
#[derive(Debug, thiserror::Error)]
#[error("the metrics cannot be recorded")]
pub(crate) struct RecorderError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl Http {
    /// Installs the recorder; `None` if the address is `off`. Must be called before any relay is made: what is counted
    /// earlier is lost.
    pub(crate) fn new(address: &str) -> Result<Option<Self>, RecorderError> {
        if address == "off" {
            return Ok(None);
        }
        let address = Address::new(address);
        let recorder = PrometheusBuilder::new()
            .set_buckets(BUCKETS)
            .map_err(|error| RecorderError(Box::new(error)))?
            .build_recorder();
        let metrics = recorder.handle();
        ::metrics::set_global_recorder(recorder)
            .map_err(|error| RecorderError(error.to_string().into()))?;
        Ok(Some(Self { address, metrics }))
    }

    /// Answers for as long as it is polled, once the address can be listened on. Connections end with it.
    pub(crate) async fn serve(self, relays: Vec<watch::Receiver<RelayState>>, notice: Notice) {
        let Self { address, metrics } = self;
        let answering = async {
            let listener = address.listen(&notice).await;
            answer(listener, Arc::new(Pages::new(metrics.clone(), relays))).await;
        };
        tokio::join!(answering, keep_up(&metrics));
    }
}

/// Observations are taken in whether or not anybody can ask for them.
async fn keep_up(metrics: &PrometheusHandle) {
    let mut upkeep = tokio::time::interval(UPKEEP);
    upkeep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        upkeep.tick().await;
        metrics.run_upkeep();
    }
}

async fn answer(listener: TcpListener, pages: Arc<Pages>) {
    let mut connections = Connections::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => connections.hold(pages.clone(), stream),
            Err(error) => {
                tracing::debug!(%error, "a connection was not accepted");
                connections.close_oldest();
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
