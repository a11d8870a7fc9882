//! The pages that the endpoints answer with.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Response, StatusCode};
use metrics_exporter_prometheus::PrometheusHandle;
use pillarbox_relay::RelayState;
use pillarbox_trail::TrailState;
use serde::Serialize;
use tokio::sync::{Mutex, watch};

use crate::terminal::harmless_json;

const TEXT: &str = "text/plain; charset=utf-8";

/// The pages, made anew for each request.
pub(super) struct Pages {
    /// Only one page of metrics is made at a time, so that many requests for metrics do not delay the health checks.
    metrics: Mutex<PrometheusHandle>,
    parts: Parts,
}

/// What runs in this process, and how it stands.
pub(crate) enum Parts {
    Relays(Vec<watch::Receiver<RelayState>>),
    Trail(watch::Receiver<TrailState>),
}

impl Pages {
    pub(super) fn new(metrics: PrometheusHandle, parts: Parts) -> Self {
        Self { metrics: Mutex::new(metrics), parts }
    }

    pub(super) async fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
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
                let kind = "text/plain; version=0.0.4; charset=utf-8";
                page(StatusCode::OK, kind, self.metrics().await)
            }
            _ => page(StatusCode::NOT_FOUND, TEXT, "/healthz\n/readyz\n/metrics\n".into()),
        }
    }

    /// The recorder's page, with its families sorted by name, so that people can find them.
    async fn metrics(&self) -> String {
        let metrics = self.metrics.lock().await;
        let page = metrics.render();
        let mut families: Vec<&str> = page.split_inclusive("\n\n").collect();
        families.sort_unstable();
        families.concat()
    }

    fn readiness(&self) -> Response<Full<Bytes>> {
        let (reason, json) = match &self.parts {
            Parts::Relays(relays) => of_relays(relays),
            Parts::Trail(trail) => {
                let trail = trail.borrow().clone();
                let reason = trail.not_ready();
                let ready = reason.is_none();
                let json = serde_json::to_string(&OfTrail { ready, reason: reason.clone(), trail });
                (reason, json)
            }
        };
        let status =
            if reason.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        // The text may hold names that others chose, and a terminal may show it.
        let mut text = harmless_json(&json.unwrap_or_default());
        text.push('\n');
        page(status, "application/json", text)
    }
}

/// Why one of the relays is not ready, and all of them as JSON.
fn of_relays(
    relays: &[watch::Receiver<RelayState>],
) -> (Option<String>, serde_json::Result<String>) {
    let outboxes: Vec<Outbox> = relays
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
    let readiness = Readiness { ready: reason.is_none(), reason: reason.clone(), outboxes };
    (reason, serde_json::to_string(&readiness))
}

#[derive(Serialize)]
struct OfTrail {
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(flatten)]
    trail: TrailState,
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
