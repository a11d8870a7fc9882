//! The number of round trips that a writer waits for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pillarbox_event::RawEvent;
use pillarbox_outbox::{publish, publish_all};
use pillarbox_testkit::servers;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[tokio::test]
async fn publishing_is_one_round_trip_however_many_events() {
    let servers = servers().await.unwrap();
    let scope = servers.scope().await.unwrap();
    pillarbox_outbox::migrate(scope.pool()).await.unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let through_here = scope
        .database_url()
        .parse::<PgConnectOptions>()
        .unwrap()
        .port(listener.local_addr().unwrap().port());
    let turns = Arc::new(AtomicU64::new(0));
    let counting = tokio::spawn(count_turns(listener, servers.postgres.port(), turns.clone()));
    let pool = PgPoolOptions::new().max_connections(1).connect_with(through_here).await.unwrap();

    let event = || RawEvent::builder("t", "a").payload("{}").build().unwrap();
    // The first use of a statement on a connection prepares it.
    let mut tx = pool.begin().await.unwrap();
    publish(&mut tx, event()).await.unwrap();
    publish_all(&mut tx, [event()]).await.unwrap();
    tx.commit().await.unwrap();

    let mut tx = pool.begin().await.unwrap();
    let before = turns.load(Ordering::SeqCst);
    publish(&mut tx, event()).await.unwrap();
    assert_eq!(turns.load(Ordering::SeqCst) - before, 1);
    publish_all(&mut tx, (0..1000).map(|_| event())).await.unwrap();
    assert_eq!(turns.load(Ordering::SeqCst) - before, 2);
    tx.commit().await.unwrap();
    counting.abort();
}

/// Passes on what one client and the server say, and counts how often the client began to speak.
async fn count_turns(
    listener: TcpListener,
    port: u16,
    turns: Arc<AtomicU64>,
) -> std::io::Result<()> {
    let (mut client, _) = listener.accept().await?;
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
