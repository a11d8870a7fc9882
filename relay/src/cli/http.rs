//! The endpoints for operators and their machines: `/healthz`, `/readyz` and `/metrics`.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use pillarbox_relay::RelayState;
use pillarbox_relay::metrics::BUCKETS;
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

/// The most connections at a time. Further ones wait in the system's queue.
const CONNECTIONS: usize = 64;
/// How often what has been observed is taken into the histograms; until then each observation takes memory.
const UPKEEP: Duration = Duration::from_secs(1);
const TEXT: &str = "text/plain; charset=utf-8";

/// A bound address, and the recorder that everything counts on from now on.
pub(crate) struct Http {
    listener: TcpListener,
    metrics: PrometheusHandle,
}

/// Why there are no endpoints.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error(
        "http = {address:?} cannot be used; give another address with --http or PILLARBOX_HTTP, or `off`"
    )]
    Bind {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("the metrics cannot be recorded")]
    Recorder(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Http {
    /// Binds the address and installs the recorder; `None` if the address is `off`. Before any relay is made:
    /// what is counted earlier is lost.
    pub(crate) async fn bind(address: &str) -> Result<Option<Self>, HttpError> {
        if address == "off" {
            return Ok(None);
        }
        let failed = |source| HttpError::Bind { address: address.to_owned(), source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        let recorder = PrometheusBuilder::new()
            .set_buckets(BUCKETS)
            .map_err(|error| HttpError::Recorder(Box::new(error)))?
            .build_recorder();
        let metrics = recorder.handle();
        ::metrics::set_global_recorder(recorder)
            .map_err(|error| HttpError::Recorder(error.to_string().into()))?;
        tracing::info!(address = %bound, "http: /healthz, /readyz, /metrics");
        Ok(Some(Self { listener, metrics }))
    }

    /// Answers for as long as it is polled. Connections end with it.
    pub(crate) async fn serve(self, relays: Vec<watch::Receiver<RelayState>>) {
        let pages = Arc::new(Pages { metrics: self.metrics.clone(), relays });
        let mut connections = JoinSet::new();
        let mut upkeep = tokio::time::interval(UPKEEP);
        upkeep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = upkeep.tick() => self.metrics.run_upkeep(),
                Some(_) = connections.join_next() => {}
                accepted = self.listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                    Ok((stream, _)) => drop(connections.spawn(pages.clone().converse(stream))),
                    Err(error) => {
                        tracing::debug!(%error, "a connection was not accepted");
                        // Out of file descriptors, most likely.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        }
    }
}

struct Pages {
    metrics: PrometheusHandle,
    relays: Vec<watch::Receiver<RelayState>>,
}

impl Pages {
    async fn converse(self: Arc<Self>, stream: TcpStream) {
        let service = service_fn(move |request: Request<Incoming>| {
            let response = self.answer(request.method(), request.uri().path());
            std::future::ready(Ok::<_, Infallible>(response))
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(stream), service);
        // Whoever asked has gone, or spoke no HTTP.
        let _ = served.await;
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if method != Method::GET && method != Method::HEAD {
            let mut response =
                page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n".into());
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match path {
            "/healthz" => page(StatusCode::OK, TEXT, "ok\n".into()),
            "/readyz" => self.readiness(),
            "/metrics" => {
                page(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", self.metrics())
            }
            _ => page(StatusCode::NOT_FOUND, TEXT, "/healthz\n/readyz\n/metrics\n".into()),
        }
    }

    /// The recorder's page, its families sorted by name: whoever reads it by eye finds them again.
    fn metrics(&self) -> String {
        let page = self.metrics.render();
        let mut families: Vec<&str> = page.split_inclusive("\n\n").collect();
        families.sort_unstable();
        families.concat()
    }

    fn readiness(&self) -> Response<Full<Bytes>> {
        let outboxes: Vec<Outbox> = self
            .relays
            .iter()
            .map(|state| {
                let state = state.borrow().clone();
                Outbox { ready: state.is_ready(), state }
            })
            .collect();
        let reason = outboxes.iter().find_map(|outbox| {
            let reason = outbox.state.not_ready()?;
            let RelayState { relay, outbox, .. } = &outbox.state;
            Some(format!("relay {relay} of {outbox}: {reason}"))
        });
        let status =
            if reason.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let readiness = Readiness { ready: reason.is_none(), reason, outboxes };
        let mut text = serde_json::to_string(&readiness).unwrap_or_default();
        text.push('\n');
        page(status, "application/json", text)
    }
}

#[derive(Serialize)]
struct Readiness {
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    outboxes: Vec<Outbox>,
}

#[derive(Serialize)]
struct Outbox {
    ready: bool,
    #[serde(flatten)]
    state: RelayState,
}

fn page(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
