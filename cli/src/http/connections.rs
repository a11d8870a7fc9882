//! The connections to the endpoints, and to the console. No connection can keep another one from getting its answer.
//!
//! - Each connection carries one request, so the bytes written to it are bounded, however many requests follow unread.
//! - The request's head has a deadline, and so has the whole connection with its answer.
//! - The number of connections is limited. When one more arrives, the oldest is closed. A connection that gets its
//!   answer at once is never the oldest for long; a connection that a client holds open is.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use hyper::body::{Body, Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

/// The most connections at a time.
const CONNECTIONS: usize = 256;
/// How long a request's head may take to arrive.
const HEAD: Duration = Duration::from_secs(5);
/// The most bytes of a request's head, and of what is read ahead of its body.
const READ: usize = 16 * 1024;

/// The open connections. Dropping this closes them.
pub(crate) struct Connections {
    /// How long a connection may last, from its beginning to the last byte of the answer.
    whole: Duration,
    tasks: JoinSet<()>,
    /// The oldest first, and some that have ended.
    open: VecDeque<AbortHandle>,
}

impl Connections {
    /// Connections that last this long at most, from their beginning to the last byte of the answer.
    pub(crate) fn lasting(whole: Duration) -> Self {
        Self { whole, tasks: JoinSet::new(), open: VecDeque::new() }
    }

    /// Adds a connection, and answers it in a task of its own.
    pub(crate) fn hold<S, B>(&mut self, service: S, stream: TcpStream)
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
        S::Future: Send,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        while self.tasks.try_join_next().is_some() {}
        self.open.retain(|connection| !connection.is_finished());
        if self.open.len() >= CONNECTIONS {
            self.close_oldest();
        }
        let whole = self.whole;
        let conversation = async move {
            let conversation = http1::Builder::new()
                .timer(TokioTimer::new())
                .keep_alive(false)
                .header_read_timeout(HEAD)
                .max_buf_size(READ)
                .serve_connection(TokioIo::new(stream), service);
            // On failure, the client was too slow, went away, or did not speak HTTP.
            let _ = timeout(whole, conversation).await;
        };
        self.open.push_back(self.tasks.spawn(conversation));
    }

    /// Closes the oldest, if there is one.
    pub(crate) fn close_oldest(&mut self) {
        if let Some(oldest) = self.open.pop_front() {
            oldest.abort();
        }
    }
}
