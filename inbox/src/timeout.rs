//! Limits how long a handler may take. It works inside the inbox, so that waiting for the database does not count.

use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use tower_service::Service;

use crate::delivery::Handling;
use crate::error::BoxError;

/// Drops the inner service's future if it takes too long, and fails. To be used inside an
/// [`InboxLayer`](crate::InboxLayer).
#[derive(Clone, Debug)]
pub struct HandlerTimeout<S> {
    inner: S,
    longest: Duration,
}

impl<S> HandlerTimeout<S> {
    /// Limits each call to `longest`.
    pub fn new(inner: S, longest: Duration) -> Self {
        Self { inner, longest }
    }
}

/// The handler took too long.
#[derive(Debug, thiserror::Error)]
#[error("the handler took longer than {0:?}")]
pub(crate) struct TookTooLong(pub(crate) Duration);

impl<S> Service<Handling> for HandlerTimeout<S>
where
    S: Service<Handling, Response = (), Error: Into<BoxError>, Future: Send + 'static>,
{
    type Response = ();
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<(), BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, handling: Handling) -> Self::Future {
        let longest = self.longest;
        let handled = tokio::time::timeout(longest, self.inner.call(handling));
        Box::pin(
            async move { handled.await.map_err(|_| TookTooLong(longest))?.map_err(Into::into) },
        )
    }
}
