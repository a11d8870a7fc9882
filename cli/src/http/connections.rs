//! The connections to the endpoints, none of which can keep another from an answer.
//!
//! - One request for each connection: what is written for it is bounded, however many requests follow unread.
//! - A deadline for the request's head, and one for the whole connection, answer and all.
//! - At most so many connections. Where one more comes, the oldest is closed: a connection that gets its answer at once
//!   is never the oldest for long, and one that is held is.

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
/// How long a request's head may take to come.
const HEAD: Duration = Duration::from_secs(5);
/// How long a connection may last, from its beginning to the last byte of the answer.
const WHOLE: Duration = Duration::from_secs(10);
/// The most bytes of a request that are read: its head, since no body is.
const READ: usize = 16 * 1024;

/// Those that are open. They end with it.
#[derive(Default)]
pub(super) struct Connections {
    tasks: JoinSet<()>,
    /// The oldest first, and some that have ended.
    open: VecDeque<AbortHandle>,
}

impl Connections {
    /// One more, which is answered in a task of its own.
    pub(super) fn hold(&mut self, pages: Arc<Pages>, stream: TcpStream) {
        while self.tasks.try_join_next().is_some() {}
        self.open.retain(|connection| !connection.is_finished());
        if self.open.len() >= CONNECTIONS {
            self.close_oldest();
        }
        let conversation = async move {
            // Whoever asked is too slow, has gone, or spoke no HTTP.
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
