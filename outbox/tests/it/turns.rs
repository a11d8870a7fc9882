//! Counts the round trips of connections. The tests of `inbox/` have it, too.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Passes on what clients and the server say, and counts how often a client began to speak.
pub async fn count_turns(
    listener: TcpListener,
    port: u16,
    turns: Arc<AtomicU64>,
) -> std::io::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await?;
        connections.spawn(pass_on(client, port, turns.clone()));
    }
}

async fn pass_on(mut client: TcpStream, port: u16, turns: Arc<AtomicU64>) -> std::io::Result<()> {
    let mut server = TcpStream::connect(("127.0.0.1", port)).await?;
    let (mut asked, mut answered) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let mut client_spoke_last = false;
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                if !client_spoke_last {
                    turns.fetch_add(1, Ordering::SeqCst);
                    client_spoke_last = true;
                }
                match read? {
                    0 => return Ok(()),
                    read => server.write_all(&asked[..read]).await?,
                }
            }
            read = server.read(&mut answered) => {
                client_spoke_last = false;
                match read? {
                    0 => return Ok(()),
                    read => client.write_all(&answered[..read]).await?,
                }
            }
        }
    }
}
