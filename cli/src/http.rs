//! The endpoints for operators and monitoring: `/healthz`, `/readyz` and `/metrics`.
//!
//! Shipping comes first. The address may be in use by another process, missing on this machine, not allowed, or have a
//! name that is not found. None of this stops the relay: it ships without endpoints, says so, and listens on the
//! address as soon as it can. A client can hold a connection for a few seconds at most, so `/healthz` answers whatever
//! other clients do; see [`connections`].

mod address;
pub(crate) mod connections;
mod pages;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use pillarbox_relay::Notice;
use pillarbox_relay::metrics::BUCKETS;
use tokio::net::TcpListener;
use tokio::time::MissedTickBehavior;

use address::Address;
use connections::Connections;
use pages::Pages;
pub(crate) use pages::Parts;

/// How often observations are merged into the histograms. Until then, each observation takes memory.
const UPKEEP: Duration = Duration::from_secs(1);
/// How long to wait after a connection could not be accepted, most likely because no file descriptor was left.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a connection may last.
const WHOLE: Duration = Duration::from_secs(10);

/// The address of the endpoints, and the recorder of all metrics.
pub(crate) struct Http {
    address: Address,
    metrics: PrometheusHandle,
}

/// The metrics cannot be recorded.
#[derive(Debug, thiserror::Error)]
#[error("the metrics cannot be recorded")]
pub(crate) struct RecorderError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl Http {
    /// Installs the recorder. Returns `None` if the address is `off`. Must be called before any relay is made: what was
    /// counted earlier is lost.
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

    /// Listens on the address as soon as it can, and answers for as long as it is polled. Connections end with it.
    pub(crate) async fn serve(self, parts: Parts, notice: Notice) {
        let Self { address, metrics } = self;
        let answering = async {
            let listener = address.listen(&notice).await;
            answer(listener, Arc::new(Pages::new(metrics.clone(), parts))).await;
        };
        tokio::join!(answering, keep_up(&metrics));
    }
}

/// Merges observations, whether or not the endpoints can be reached.
async fn keep_up(metrics: &PrometheusHandle) {
    let mut upkeep = tokio::time::interval(UPKEEP);
    upkeep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        upkeep.tick().await;
        metrics.run_upkeep();
    }
}

async fn answer(listener: TcpListener, pages: Arc<Pages>) {
    let mut connections = Connections::lasting(WHOLE);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let pages = pages.clone();
                let service = service_fn(move |request: Request<Incoming>| {
                    let pages = pages.clone();
                    async move {
                        let response = pages.answer(request.method(), request.uri().path()).await;
                        Ok::<_, Infallible>(response)
                    }
                });
                connections.hold(service, stream);
            }
            Err(error) => {
                tracing::debug!(%error, "a connection was not accepted");
                connections.close_oldest();
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
