//! `pillarbox console` as a process: what it refuses, what it serves, and how it stops.

use std::os::unix::fs::PermissionsExt;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Process, Shop};

/// The answer to a request that is written out.
async fn ask(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.replace('\n', "\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn address(console: &Process) -> String {
    console.until_said("console: http://").await;
    let lines = console.lines.lock().unwrap();
    let line = lines.iter().find(|line| line.contains("console: http://")).unwrap();
    line.split_once("http://").unwrap().1.split('/').next().unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_show_the_page_to_everybody_does_not_start() {
    let tokens = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(tokens.path(), "operator anna 0123456789-0123456789-0123\n").unwrap();
    std::fs::set_permissions(tokens.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
    let file = tokens.path().to_str().unwrap();
    for (arguments, reason) in [
        (&["--listen", "0.0.0.0:0"][..], "everybody who reaches it could look"),
        (&["--listen", "[::]:0"], "everybody who reaches it could look"),
        (&["--show-payloads"], "without accounts the console shows no payloads"),
        (&["--token-file", file], "chmod o-rwx,g-w"),
        (&["--token-file", "/nowhere"], "cannot be read"),
        (&["--proxy-from", "10.0.0.1", "--token-file", file], "cannot be used with"),
        (&["--path", "ops"], "must begin with /"),
    ] {
        let mut all = vec!["console", "--database-url", "postgres://nobody@127.0.0.1:1/none"];
        all.extend(arguments);
        let mut console = Process::run(&all, &[]);
        assert_ne!(console.ended().await, 0, "{arguments:?}");
        // The last lines may still be on their way.
        let said = pillarbox_testkit::eventually(reason, crate::support::DEADLINE, async || {
            let said = console.lines.lock().unwrap().join("\n");
            if said.contains(reason) { Ok(Some(said)) } else { Err(said) }
        });
        let said = said.await.unwrap();
        assert!(said.contains(reason), "{arguments:?}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_serves_what_the_settings_name_and_a_slow_client_keeps_nobody_waiting() {
    let shop = Shop::open().await;
    shop.insert_one("order-1", "1").await;
    let mut console = Process::run(
        &["console", "--listen", "127.0.0.1:0", "--path", "/ops"],
        &[("DATABASE_URL", shop.scope.database_url()), ("NATS_URL", shop.scope.nats_url())],
    );
    let address = address(&console).await;
    // More clients than there are connections, none of which finishes its request.
    let mut slow = Vec::new();
    for _ in 0..300 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(b"GET /ops HTTP/1.1\r\n").await.unwrap();
        slow.push(stream);
    }
    let get = |path: &str| format!("GET {path} HTTP/1.1\nhost: {address}\n\n");
    let page = ask(&address, &get("/ops")).await;
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    assert!(page.contains("Relay default has never run; 1 event waits"), "{page}");
    let page = ask(&address, &get("/ops/doctor")).await;
    assert!(
        page.contains("<p class=\"place\">outbox.lease</p>") || page.contains("checks"),
        "{page}"
    );
    assert!(
        ask(&address, "GET /ops HTTP/1.1\nhost: evil.example\n\n")
            .await
            .starts_with("HTTP/1.1 403")
    );
    console.signal(rustix::process::Signal::TERM);
    assert_eq!(console.ended().await, 0);
}
