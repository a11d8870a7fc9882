//! The settings of an [`IdempotencyLayer`](crate::http::IdempotencyLayer).

use std::sync::Arc;
use std::time::Duration;

use http::header::HeaderName;
use http::request::Parts;
use http::response;

use crate::http::requests::StoredRequests;
use crate::http::verdict::Verdict;

type ScopeOf = dyn Fn(&Parts) -> Option<String> + Send + Sync;
type VerdictOn = dyn Fn(&response::Parts) -> Verdict + Send + Sync;

#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) requests: StoredRequests,
    pub(crate) scope: Arc<ScopeOf>,
    pub(crate) verdict: Arc<VerdictOn>,
    pub(crate) key_required: bool,
    pub(crate) max_request_bytes: usize,
    pub(crate) max_response_bytes: usize,
    pub(crate) dropped_headers: Vec<HeaderName>,
    pub(crate) documentation: Option<String>,
    pub(crate) longest_idle: Duration,
}
