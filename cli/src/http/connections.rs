//! The connections to the endpoints. No connection can keep another one from getting its answer.
//!
//! - Each connection carries one request, so the bytes written to it are bounded, however many requests follow unread.
//! - The request's head has a deadline, and so has the whole connection with its answer.
//! - The number of connections is limited. When one more arrives, the oldest is closed. A connection that gets its
//!   answer at once is never the oldest for long; a connection that a client holds open is.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use super::pages::Pages;

/// The most connections at a time.
const CONNECTIONS: usize = 256;
/// How long a request's head may take to arrive.
const HEAD: Duration = Duration::from_secs(5);
/// How long a connection may last, from its beginning to the last byte of the answer.
const WHOLE: Duration = Duration::from_secs(10);
/// The most bytes of a request that are read: its head, since no body is.
const READ: usize = 16 * 1024;

/// The open connections. Dropping this closes them.
#[derive(Default)]
pub(super) struct Connections {
    tasks: JoinSet<()>,
    /// The oldest first, and some that have ended.
    open: VecDeque<AbortHandle>,
}

impl Connections {
    /// Adds a connection, and answers it in a task of its own.
    pub(super) fn hold(&mut self, pages: Arc<Pages>, stream: TcpStream) {
        while self.tasks.try_join_next().is_some() {}
        self.open.retain(|connection| !connection.is_finished());
        if self.open.len() >= CONNECTIONS {
            self.close_oldest();
        }
        let conversation = async move {
            // On failure, the client was too slow, went away, or did not speak HTTP.
            let _ = timeout(WHOLE, converse(pages, stream)).await;
        };
        self.open.push_back(self.tasks.spawn(conversation));
    }

    /// Closes the oldest, if there is one.
    pub(super) fn close_oldest(&mut self) {
        if let Some(oldest) = self.open.pop_front() {
            oldest.abort();
        }
    }
}

async fn converse(pages: Arc<Pages>, stream: TcpStream) -> hyper::Result<()> {
    let service = service_fn(move |request: Request<Incoming>| {
        let pages = pages.clone();
        async move {
            let response = pages.answer(request.method(), request.uri().path()).await;
            Ok::<_, Infallible>(response)
        }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .header_read_timeout(HEAD)
        .max_buf_size(READ)
        .serve_connection(TokioIo::new(stream), service)
        .await
}
