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

use crate::error::InboxError;
use crate::http::once;
use crate::http::requests::StoredRequests;
use crate::http::settings::Settings;
use crate::http::verdict::Verdict;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The headers of answers that are not stored unless told. `content-length` is made anew of the body.
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
/// Requests with a safe method (`GET`, `HEAD`, `OPTIONS`, `TRACE`) pass through untouched. `POST` and `PATCH`
/// need a key, unless [`key_optional`](Self::key_optional); other methods may have one. The handler finds a
/// [`Command`](crate::http::Command) in the request's extensions, with the transaction.
///
/// - The first request holds a connection of the pool while its handler runs. A handler that takes a second one
///   from the same pool can starve others, and itself.
/// - Its body is read before the transaction begins; its answer is read before the transaction ends, so a
///   streamed one is sent when it is complete.
/// - What lies outside of this layer sees every request (authentication, tracing, compression, rate limits);
///   what lies inside of it sees each request once, with its transaction. A timeout outside or inside rolls
///   back.
/// - A dropped future rolls back: the client has gone, a timeout outside has struck. If that is while it
///   commits, a repeat finds out.
///
/// The bodies of request and response are rebuilt from bytes, as `axum::body::Body` and
/// `http_body_util::Full<Bytes>` can be.
#[derive(Clone)]
pub struct IdempotencyLayer {
    settings: Settings,
}

impl IdempotencyLayer {
    /// With the answers in schema `pillarbox` of this database.
    ///
    /// `scope` says to whom a request's key belongs, see [`scope`](crate::http::scope): two requests with the
    /// same key are the same only in the same scope. A request for which it returns `None` is answered with
    /// 403. [`everybody`](crate::http::scope::everybody) is for a service with one client.
    pub fn new(
        pool: PgPool,
        scope: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        Self::over(StoredRequests::new(pool), scope)
    }

    /// The same in another schema.
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

    /// Lets `POST` and `PATCH` come without a key. Such a request runs in a transaction like any other, and its
    /// answer is not stored.
    pub fn key_optional(mut self) -> Self {
        self.settings.key_required = false;
        self
    }

    /// How many bytes the body of a request with a key may have; 2 MiB unless told. It is held in memory.
    /// A longer one is answered with 413.
    pub fn max_request_bytes(mut self, bytes: usize) -> Self {
        self.settings.max_request_bytes = bytes;
        self
    }

    /// How many bytes the body of an answer that is to be stored may have; 1 MiB unless told. It is held in
    /// memory. A longer one undoes the request: it is answered with 500, and the log says why.
    pub fn max_response_bytes(mut self, bytes: usize) -> Self {
        self.settings.max_response_bytes = bytes;
        self
    }

    /// Stores these headers of answers too. Stored unless told are all but those that are about one connection
    /// (hop-by-hop headers, and what `connection` names), one moment (`date`) or one session (`set-cookie`):
    /// a repeat may come from somebody to whom the session does not belong.
    pub fn keep_headers(mut self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        let kept: Vec<HeaderName> = names.into_iter().collect();
        self.settings.dropped_headers.retain(|name| !kept.contains(name));
        self
    }

    /// Does not store these headers of answers: a repeat goes without them.
    pub fn drop_headers(mut self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.settings.dropped_headers.extend(names);
        self
    }

    /// Judges responses otherwise than by [`Verdict::of_status`].
    pub fn verdict(
        mut self,
        verdict: impl Fn(&response::Parts) -> Verdict + Send + Sync + 'static,
    ) -> Self {
        self.settings.verdict = Arc::new(verdict);
        self
    }

    /// Where the API documents its keys, and how long they are remembered: the `type` of the problem details,
    /// and their `link`.
    pub fn documentation(mut self, url: impl Into<String>) -> Self {
        self.settings.documentation = Some(url.into());
        self
    }

    /// How long a handler may leave its transaction idle, while it waits for another service perhaps; 5 minutes
    /// unless told. After that the database ends it, and the handler's next statement fails. Until then a
    /// process whose machine is gone keeps its keys answered with 409.
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

/// See [`IdempotencyLayer`].
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
    // Cloned so that the future owns the instance that was ready, and can call it once the transaction is open.
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
