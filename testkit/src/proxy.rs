//! A TCP proxy that can be cut, stalled and closed, to stand in front of a server.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

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
    /// Grows with every cut; connections of an earlier number end.
    generation: watch::Sender<u64>,
    stalled: watch::Sender<bool>,
    refusing: AtomicBool,
    cut_at_reply: AtomicBool,
    connections: AtomicU64,
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
            connections: AtomicU64::new(0),
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

    /// Cuts every open connection. What is under way is lost.
    pub fn cut(&self) {
        self.shared.generation.send_modify(|generation| *generation += 1);
    }

    /// Closes new connections at once, until [`accept`](Self::accept).
    pub fn refuse(&self) {
        self.shared.refusing.store(true, Ordering::SeqCst);
    }

    /// Lets new connections in again.
    pub fn accept(&self) {
        self.shared.refusing.store(false, Ordering::SeqCst);
    }

    /// Passes nothing on, without closing anything, until [`flow`](Self::flow).
    pub fn stall(&self) {
        self.shared.stalled.send_replace(true);
    }

    /// Passes bytes on again.
    pub fn flow(&self) {
        self.shared.stalled.send_replace(false);
    }

    /// Cuts the connection on which the server next says something, instead of passing that on: the server has
    /// done what it was asked, and the client does not learn of it.
    pub fn cut_at_next_reply(&self) {
        self.shared.cut_at_reply.store(true, Ordering::SeqCst);
    }

    /// How many connections have been let in so far.
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
    shared.connections.fetch_add(1, Ordering::SeqCst);
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    tokio::select! {
        _ = copy(client_read, server_write, &shared, false) => {}
        _ = copy(server_read, client_write, &shared, true) => {}
        _ = generation.changed() => {}
    }
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: &Shared,
    replies: bool,
) -> std::io::Result<()> {
    let mut stalled = shared.stalled.subscribe();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 || (replies && shared.cut_at_reply.swap(false, Ordering::SeqCst)) {
            return Ok(());
        }
        // The sender lives as long as the proxy.
        if stalled.wait_for(|stalled| !stalled).await.is_err() {
            return Ok(());
        }
        to.write_all(&buffer[..read]).await?;
    }
}
