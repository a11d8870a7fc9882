//! The tower layer that answers a request once.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::{
    CONNECTION, CONTENT_LENGTH, DATE, HeaderName, PROXY_AUTHENTICATE, SET_COOKIE, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{Request, Response, response};
use http_body::Body;
use sqlx::PgPool;
use tower_layer::Layer;
use tower_service::Service;

use crate::error::{BoxError, InboxError};
use crate::http::requests::StoredRequests;
use crate::http::settings::Settings;
use crate::http::verdict::Verdict;
use crate::http::{metrics, once};

/// The headers of answers that are not stored by default. `content-length` is computed from the body.
const DROPPED: [HeaderName; 11] = [
    CONNECTION,
    CONTENT_LENGTH,
    DATE,
    HeaderName::from_static("keep-alive"),
    PROXY_AUTHENTICATE,
    HeaderName::from_static("proxy-connection"),
    SET_COOKIE,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Wraps a service of HTTP requests into one that answers each `Idempotency-Key` once. See the
/// [module](crate::http) for an example and for what it answers.
///
/// Requests with a safe method (`GET`, `HEAD`, `OPTIONS`, `TRACE`) pass through unchanged. `POST` and `PATCH` need a
/// key, unless [`key_optional`](Self::key_optional) is set; other methods may have one. The handler finds a
/// [`Command`](crate::http::Command) with the transaction in the request's extensions.
///
/// - The first request holds a connection of the pool while its handler runs. If handlers take a second one from the
///   same pool, they can make each other wait for ever.
/// - The request's body is read before the transaction begins, and the answer's body before the transaction ends. So a
///   streamed answer is sent when it is complete.
/// - Layers outside of this layer see every request (authentication, tracing, compression, rate limits). Layers inside
///   of it see each request once, with its transaction. A timeout rolls back, outside or inside.
/// - If the future is dropped, because the client is gone or a timeout outside has expired, the request is rolled back.
///   If that happens during the commit, a repeated request finds out whether the commit succeeded.
///
/// The bodies of request and response are rebuilt from bytes, so their types must allow that, as `axum::body::Body` and
/// `http_body_util::Full<Bytes>` do.
#[derive(Clone)]
pub struct IdempotencyLayer {
    settings: Settings,
}

impl IdempotencyLayer {
    /// A layer that stores answers in schema `pillarbox` of this database.
    ///
    /// `scope` says whom a request's key belongs to; see [`scope`](crate::http::scope). Two requests with the same key
    /// are the same only in the same scope. A request without a scope (`None`) is answered with 403.
    /// [`everybody`](crate::http::scope::everybody) is for a service with one client.
    pub fn new(
        pool: PgPool,
        scope: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        Self::over(StoredRequests::new(pool), scope)
    }

    /// A layer that stores answers in another schema.
    ///
    /// # Errors
    /// [`InboxError::Schema`].
    pub fn in_schema(
        pool: PgPool,
        schema: &str,
        scope: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static,
    ) -> Result<Self, InboxError> {
        Ok(Self::over(StoredRequests::in_schema(pool, schema)?, scope))
    }

    fn over(
        requests: StoredRequests,
        scope: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        metrics::describe();
        let settings = Settings {
            requests,
            scope: Arc::new(scope),
            verdict: Arc::new(|response: &response::Parts| Verdict::of_status(response.status)),
            key_required: true,
            max_request_bytes: 2 * 1024 * 1024,
            max_response_bytes: 1024 * 1024,
            dropped_headers: DROPPED.to_vec(),
            documentation: None,
            longest_idle: Duration::from_secs(300),
        };
        Self { settings }
    }

    /// Allows `POST` and `PATCH` without a key. Such a request also runs in a transaction, but its answer is not
    /// stored.
    pub fn key_optional(mut self) -> Self {
        self.settings.key_required = false;
        self
    }

    /// The largest body of a request with a key, in bytes, which is held in memory. A larger one is answered with 413.
    /// Default: 2 MiB.
    pub fn max_request_bytes(mut self, bytes: usize) -> Self {
        self.settings.max_request_bytes = bytes;
        self
    }

    /// The largest body of an answer that is stored, in bytes, which is held in memory. If it is larger, the request is
    /// undone and answered with 500, and the log says why. Default: 1 MiB.
    pub fn max_response_bytes(mut self, bytes: usize) -> Self {
        self.settings.max_response_bytes = bytes;
        self
    }

    /// Also stores these headers of answers. By default, all headers are stored except those that concern one
    /// connection (hop-by-hop headers, and those that `connection` names), one moment (`date`) or one session
    /// (`set-cookie`, because somebody else may repeat the request).
    pub fn keep_headers(mut self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        let kept: Vec<HeaderName> = names.into_iter().collect();
        self.settings.dropped_headers.retain(|name| !kept.contains(name));
        self
    }

    /// Does not store these headers of answers, so a repeated request gets an answer without them.
    pub fn drop_headers(mut self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.settings.dropped_headers.extend(names);
        self
    }

    /// Judges responses with this function. Default: [`Verdict::of_status`].
    pub fn verdict(
        mut self,
        verdict: impl Fn(&response::Parts) -> Verdict + Send + Sync + 'static,
    ) -> Self {
        self.settings.verdict = Arc::new(verdict);
        self
    }

    /// The URL where the API documents its keys and how long they are remembered. It becomes the `type` of the problem
    /// details and their `link`. Default: none.
    pub fn documentation(mut self, url: impl Into<String>) -> Self {
        self.settings.documentation = Some(url.into());
        self
    }

    /// How long a handler may leave its transaction idle, for example while it waits for another service. Default: 5
    /// minutes. After that the database ends the transaction, and the handler's next statement fails. If a machine
    /// is lost, the keys of its requests are answered with 409 until then.
    pub fn longest_idle(mut self, longest: Duration) -> Self {
        self.settings.longest_idle = longest;
        self
    }
}

impl fmt::Debug for IdempotencyLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyLayer").finish_non_exhaustive()
    }
}

impl<S> Layer<S> for IdempotencyLayer {
    type Service = Idempotency<S>;

    fn layer(&self, inner: S) -> Idempotency<S> {
        Idempotency { inner, settings: Arc::new(self.settings.clone()) }
    }
}

/// The service that [`IdempotencyLayer`] makes.
#[derive(Clone)]
pub struct Idempotency<S> {
    inner: S,
    settings: Arc<Settings>,
}

impl<S: fmt::Debug> fmt::Debug for Idempotency<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Idempotency").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<S, B, R> Service<Request<B>> for Idempotency<S>
where
    // The future must own the instance that was ready, because it calls it once the transaction is open.
    S: Service<Request<B>, Response = Response<R>, Error: Send, Future: Send>
        + Clone
        + Send
        + 'static,
    B: Body<Data: Send, Error: Into<BoxError>> + From<Bytes> + Send + 'static,
    R: Body<Data: Send, Error: Into<BoxError>> + From<Bytes> + Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<R>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let clone = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, clone);
        Box::pin(once::answer(self.settings.clone(), inner, request))
    }
}
