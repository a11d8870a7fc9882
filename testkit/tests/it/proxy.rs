//! The proxy cuts, stalls and refuses.

use std::time::Duration;

use pillarbox_testkit::Proxy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// A server that sends back what it receives.
async fn echo() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

async fn says_back(stream: &mut TcpStream) -> std::io::Result<u8> {
    stream.write_all(&[7]).await?;
    stream.read_u8().await
}

#[tokio::test]
async fn bytes_pass_until_the_connection_is_cut() {
    let proxy = Proxy::start(echo().await).await.unwrap();
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(says_back(&mut stream).await.unwrap(), 7);
    proxy.cut();
    assert!(says_back(&mut stream).await.is_err());
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(says_back(&mut stream).await.unwrap(), 7);
    assert_eq!(proxy.connections(), 2);
}

#[tokio::test]
async fn a_stalled_proxy_passes_on_later_what_it_holds() {
    let proxy = Proxy::start(echo().await).await.unwrap();
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(says_back(&mut stream).await.unwrap(), 7);
    proxy.stall();
    assert!(timeout(Duration::from_millis(200), says_back(&mut stream)).await.is_err());
    proxy.flow();
    assert_eq!(stream.read_u8().await.unwrap(), 7);
}

#[tokio::test]
async fn a_refusing_proxy_lets_nobody_in() {
    let proxy = Proxy::start(echo().await).await.unwrap();
    proxy.refuse();
    let refused = match TcpStream::connect(proxy.address()).await {
        Ok(mut stream) => says_back(&mut stream).await.is_err(),
        Err(_) => true,
    };
    assert!(refused);
    proxy.accept();
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(says_back(&mut stream).await.unwrap(), 7);
}

#[tokio::test]
async fn the_next_reply_can_be_withheld() {
    let proxy = Proxy::start(echo().await).await.unwrap();
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(says_back(&mut stream).await.unwrap(), 7);
    proxy.cut_at_next_reply();
    assert!(says_back(&mut stream).await.is_err());
}

#[tokio::test]
async fn a_reply_can_be_withheld_on_the_connection_that_once_said_something() {
    let proxy = Proxy::start(echo().await).await.unwrap();
    let mut one = TcpStream::connect(proxy.address()).await.unwrap();
    let mut other = TcpStream::connect(proxy.address()).await.unwrap();
    one.write_all(b"marked").await.unwrap();
    let mut back = [0; 6];
    one.read_exact(&mut back).await.unwrap();
    proxy.cut_at_next_reply_where_said("marked");
    assert_eq!(says_back(&mut other).await.unwrap(), 7);
    assert!(says_back(&mut one).await.is_err());
    assert_eq!(says_back(&mut other).await.unwrap(), 7);
    assert_eq!(proxy.cuts_at_reply(), 1);
}

#[tokio::test]
async fn the_answer_to_one_question_can_be_cut_off() {
    let proxy = Proxy::start(echo().await).await.unwrap();
    let mut asking = TcpStream::connect(proxy.address()).await.unwrap();
    let mut other = TcpStream::connect(proxy.address()).await.unwrap();
    proxy.cut_at_reply_to("commit");
    assert_eq!(says_back(&mut asking).await.unwrap(), 7);
    asking.write_all(b"select 1; commit").await.unwrap();
    assert!(asking.read_u8().await.is_err(), "the answer came through");
    assert_eq!(says_back(&mut other).await.unwrap(), 7);
    other.write_all(b"commit").await.unwrap();
    assert_eq!(other.read_u8().await.unwrap(), b'c', "it is for once");
    assert_eq!(proxy.cuts_at_reply(), 1);
}

#[tokio::test]
async fn a_slow_proxy_passes_each_piece_on_later() {
    let proxy = Proxy::start(echo().await).await.unwrap();
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    proxy.delay(Duration::from_millis(150));
    let asked = std::time::Instant::now();
    assert_eq!(says_back(&mut stream).await.unwrap(), 7);
    assert!(asked.elapsed() >= Duration::from_millis(300));
    proxy.delay(Duration::ZERO);
    assert_eq!(says_back(&mut stream).await.unwrap(), 7);
}
