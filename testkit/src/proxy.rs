//! A TCP proxy in front of a server, which can cut, stall, slow down and refuse connections.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::error::{IoContext, TestkitError};

/// A proxy in front of one address. It ends with its owner.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    _accepting: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Shared {
    /// Grows with every cut. Connections with an earlier number end.
    generation: watch::Sender<u64>,
    stalled: watch::Sender<bool>,
    refusing: AtomicBool,
    cut_at_reply: AtomicBool,
    /// The text that marks the connections of which one is to be cut.
    cut_where_said: Mutex<Option<Vec<u8>>>,
    /// When a client says this text, the connection is cut in place of the answer.
    cut_where_asked: Mutex<Option<Vec<u8>>>,
    delay: watch::Sender<Duration>,
    /// Connections with a number up to this one pass nothing on.
    swallowing: watch::Sender<u64>,
    /// A connection on which the client has said this text passes nothing on.
    swallow_where_said: Mutex<Option<Vec<u8>>>,
    connections: AtomicU64,
    cuts_at_reply: AtomicU64,
}

impl Shared {
    /// Whether the next reply on this connection must be swallowed.
    fn cuts(&self, said: &Said) -> bool {
        let mut mark = self.cut_where_said.lock().unwrap_or_else(PoisonError::into_inner);
        let text = said.text.lock().unwrap_or_else(PoisonError::into_inner);
        let marked = mark.as_ref().is_some_and(|mark| contains(&text, mark));
        if marked {
            *mark = None;
        }
        let cut = marked
            || said.doomed.load(Ordering::SeqCst)
            || self.cut_at_reply.swap(false, Ordering::SeqCst);
        if cut {
            self.cuts_at_reply.fetch_add(1, Ordering::SeqCst);
        }
        cut
    }
}

/// What the client of a connection has said.
#[derive(Debug, Default)]
struct Said {
    text: Mutex<Vec<u8>>,
    /// Whether the next reply is swallowed.
    doomed: AtomicBool,
    /// The number of the connection.
    number: u64,
    /// Whether nothing is passed on any more.
    swallowed: AtomicBool,
}

impl Said {
    /// Whether this connection passes nothing on any more.
    fn is_swallowed(&self, shared: &Shared) -> bool {
        if self.swallowed.load(Ordering::SeqCst) || self.number <= *shared.swallowing.borrow() {
            return true;
        }
        let mut mark = shared.swallow_where_said.lock().unwrap_or_else(PoisonError::into_inner);
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        let marked = mark.take_if(|mark| contains(&text, mark)).is_some();
        self.swallowed.fetch_or(marked, Ordering::SeqCst) || marked
    }

    fn hear(&self, piece: &[u8], shared: &Shared) {
        let mut text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        let room = REMEMBERED.saturating_sub(text.len());
        text.extend_from_slice(&piece[..piece.len().min(room)]);
        let mut asked = shared.cut_where_asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.take_if(|asked| contains(piece, asked)).is_some() {
            self.doomed.store(true, Ordering::SeqCst);
        }
    }
}

/// How many bytes of what a client says are remembered, from the first one on.
const REMEMBERED: usize = 64 * 1024;

fn contains(said: &[u8], mark: &[u8]) -> bool {
    said.windows(mark.len().max(1)).any(|window| window == mark)
}

impl Proxy {
    /// Starts a proxy on a free port of 127.0.0.1, in front of `target`.
    ///
    /// # Errors
    /// [`TestkitError::Io`].
    pub async fn start(target: SocketAddr) -> Result<Self, TestkitError> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("starting a proxy")?;
        let address = listener.local_addr().context("starting a proxy")?;
        let shared = Arc::new(Shared {
            generation: watch::Sender::new(0),
            stalled: watch::Sender::new(false),
            refusing: AtomicBool::new(false),
            cut_at_reply: AtomicBool::new(false),
            cut_where_said: Mutex::new(None),
            cut_where_asked: Mutex::new(None),
            delay: watch::Sender::new(Duration::ZERO),
            swallowing: watch::Sender::new(0),
            swallow_where_said: Mutex::new(None),
            connections: AtomicU64::new(0),
            cuts_at_reply: AtomicU64::new(0),
        });
        let accepting =
            AbortOnDropHandle::new(tokio::spawn(accept(listener, target, shared.clone())));
        Ok(Self { address, shared, _accepting: accepting })
    }

    /// A proxy in front of a port of 127.0.0.1.
    ///
    /// # Errors
    /// [`TestkitError::Io`].
    pub async fn to_port(port: u16) -> Result<Self, TestkitError> {
        Self::start(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await
    }

    /// Where to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Cuts every open connection. Data under way is lost.
    pub fn cut(&self) {
        self.shared.generation.send_modify(|generation| *generation += 1);
    }

    /// Closes new connections at once, until you call [`accept`](Self::accept).
    pub fn refuse(&self) {
        self.shared.refusing.store(true, Ordering::SeqCst);
    }

    /// Lets new connections in again.
    pub fn accept(&self) {
        self.shared.refusing.store(false, Ordering::SeqCst);
    }

    /// Passes nothing on, without closing anything, until you call [`flow`](Self::flow).
    pub fn stall(&self) {
        self.shared.stalled.send_replace(true);
    }

    /// Passes bytes on again.
    pub fn flow(&self) {
        self.shared.stalled.send_replace(false);
    }

    /// Swallows everything that arrives on the connections that are open now, in both directions and for good, without
    /// closing them, as if the machine at the other end had lost its power. New connections work as before.
    pub fn swallow(&self) {
        self.shared.swallowing.send_replace(self.connections());
    }

    /// Like [`swallow`](Self::swallow), but only for the next connection that speaks and on which the client has said
    /// `text`. The text must not be empty, and must be within the first 64 KiB, as plain bytes.
    pub fn swallow_where_said(&self, text: &str) {
        let mut mark =
            self.shared.swallow_where_said.lock().unwrap_or_else(PoisonError::into_inner);
        *mark = Some(text.as_bytes().to_vec());
    }

    /// Whether a client has said the text of [`swallow_where_said`](Self::swallow_where_said) since that was called.
    pub fn has_swallowed(&self) -> bool {
        let mark = self.shared.swallow_where_said.lock().unwrap_or_else(PoisonError::into_inner);
        mark.is_none()
    }

    /// Passes every piece on after this delay, in both directions. Zero means at once.
    pub fn delay(&self, each: Duration) {
        self.shared.delay.send_replace(each);
    }

    /// Cuts the connection on which the server next says something, instead of passing that on. So the server has done
    /// what it was asked, but the client does not learn of it.
    pub fn cut_at_next_reply(&self) {
        self.shared.cut_at_reply.store(true, Ordering::SeqCst);
    }

    /// Like [`cut_at_next_reply`](Self::cut_at_next_reply), but only on a connection on which the client has said
    /// `text`. The text must not be empty, and must be within the first 64 KiB, as plain bytes. So a statement that
    /// only one connection of a client prepares selects that connection.
    pub fn cut_at_next_reply_where_said(&self, text: &str) {
        let mut mark = self.shared.cut_where_said.lock().unwrap_or_else(PoisonError::into_inner);
        *mark = Some(text.as_bytes().to_vec());
    }

    /// Waits until a client says `text` (for instance `COMMIT`), as plain bytes and in one piece. When the server
    /// answers, cuts that connection instead of passing the answer on. The text must not be empty.
    pub fn cut_at_reply_to(&self, text: &str) {
        let mut asked = self.shared.cut_where_asked.lock().unwrap_or_else(PoisonError::into_inner);
        *asked = Some(text.as_bytes().to_vec());
    }

    /// How many connections have been cut instead of passing a reply on.
    pub fn cuts_at_reply(&self) -> u64 {
        self.shared.cuts_at_reply.load(Ordering::SeqCst)
    }

    /// How many connections have been accepted so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, shared: Arc<Shared>) {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => {
                if !shared.refusing.load(Ordering::SeqCst) {
                    open.spawn(pass(client, target, shared.clone()));
                }
            }
            Some(_) = open.join_next() => {}
        }
    }
}

async fn pass(client: TcpStream, target: SocketAddr, shared: Arc<Shared>) {
    let mut generation = shared.generation.subscribe();
    generation.mark_unchanged();
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    let number = shared.connections.fetch_add(1, Ordering::SeqCst) + 1;
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let said = Said { number, ..Said::default() };
    tokio::select! {
        _ = copy(client_read, server_write, &shared, &said, false) => {}
        _ = copy(server_read, client_write, &shared, &said, true) => {}
        _ = generation.changed() => {}
    }
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: &Shared,
    said: &Said,
    replies: bool,
) -> std::io::Result<()> {
    let mut stalled = shared.stalled.subscribe();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 || (replies && shared.cuts(said)) {
            return Ok(());
        }
        if !replies {
            said.hear(&buffer[..read], shared);
        }
        if said.is_swallowed(shared) {
            continue;
        }
        // The sender lives as long as the proxy.
        if stalled.wait_for(|stalled| !stalled).await.is_err() {
            return Ok(());
        }
        let delay = *shared.delay.borrow();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        to.write_all(&buffer[..read]).await?;
    }
}
