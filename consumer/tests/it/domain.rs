//! A consumer whose stream is in another JetStream domain than the server to which the service is connected.

use crate::support::{self, DEADLINE, Shop, record};
use async_nats::jetstream;
use pillarbox_consumer::{Consumer, ConsumerConfig};
use pillarbox_inbox::Router;
use pillarbox_testkit::{Nats, Postgres, Servers, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const EFFECTS: &str = "select count(*) from effects";
const LETTERS: &str =
    "select count(*) from pillarbox.inbox_dead_letter where reason = 'undecodable'";

/// A hub with the stream, and a leaf node with a domain of its own that the service is connected to.
struct Tree {
    shop: Shop,
    hub: Nats,
    // They end with this.
    _servers: (Servers, tempfile::TempDir),
}

impl Tree {
    async fn grow() -> Self {
        support::log();
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = async |name: &str, leafnodes: &str| {
            let store = folder.path().join(name);
            let config = format!(
                "server_name: {name}\njetstream {{ store_dir: \"{}\", domain: {name} }}\nleafnodes {{ {leafnodes} }}",
                store.display()
            );
            Nats::options().config(&config).start().await.unwrap()
        };
        let hub = server("hub", &format!("listen: \"127.0.0.1:{port}\"")).await;
        let remote = format!("remotes: [ {{ url: \"nats-leaf://127.0.0.1:{port}\" }} ]");
        let leaf = server("leaf", &remote).await;
        let servers = Servers { postgres: Postgres::start().await.unwrap(), nats: leaf };
        let scope = servers.scope().await.unwrap();
        let shop = Shop::without_stream(scope, "ORDERS").await;
        let tree = Self { shop, hub, _servers: (servers, folder) };
        let config = jetstream::stream::Config {
            name: "ORDERS".into(),
            subjects: vec![format!("{}.>", tree.shop.scope.prefix())],
            ..Default::default()
        };
        tree.jetstream().await.create_stream(config).await.unwrap();
        tree
    }

    async fn jetstream(&self) -> jetstream::Context {
        jetstream::new(async_nats::connect(self.hub.url()).await.unwrap())
    }

    /// Publishes an event, and behind it a message that the client library cannot parse.
    async fn send(&self, order: i64) {
        self.shop.send(&self.shop.event(order, 1)).await;
        let mut stream = TcpStream::connect(("127.0.0.1", self.hub.port())).await.unwrap();
        let headers = b"NATS/1.0\r\nx-name: Caf\xe9\r\n\r\n";
        let length = headers.len();
        let subject = format!("{}.placed", self.shop.scope.prefix());
        let mut said = b"CONNECT {\"verbose\":false,\"headers\":true}\r\n".to_vec();
        said.extend_from_slice(format!("HPUB {subject} {length} {length}\r\n").as_bytes());
        said.extend_from_slice(headers);
        said.extend_from_slice(b"\r\nPING\r\n");
        stream.write_all(&said).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"PONG\r\n") {
            answer.push(stream.read_u8().await.expect("the server hung up"));
        }
    }

    async fn drained(&self) {
        let jetstream = self.jetstream().await;
        eventually("everything to be acknowledged", DEADLINE, async || {
            let stream = jetstream.get_stream("ORDERS").await.map_err(|e| e.to_string())?;
            let info = stream.consumer_info("payments").await.map_err(|e| e.to_string())?;
            match (info.num_pending, info.num_ack_pending) {
                (0, 0) => Ok(Some(())),
                left => Err(format!("{left:?} are left")),
            }
        })
        .await
        .unwrap();
    }
}

/// Everything takes effect once, before and after a restart.
async fn assert_handled(through: impl FnOnce(ConsumerConfig) -> ConsumerConfig) {
    let tree = Tree::grow().await;
    let shop = &tree.shop;
    let config = through(shop.config());
    let client = shop.scope.nats().clone();
    Consumer::with_config(client, shop.pool().clone(), config.clone())
        .unwrap()
        .prepare()
        .await
        .unwrap();
    for round in 1..=2 {
        let router = Router::new().on(record);
        let (started, status) = shop.start_on(shop.pool(), config.clone(), router);
        for order in 1..=5 {
            tree.send(10 * round + order).await;
        }
        shop.until(EFFECTS, 5 * round).await;
        shop.until(LETTERS, 5 * round).await;
        tree.drained().await;
        eventually("the consumer to be well", DEADLINE, async || {
            let status = status.get();
            if status.is_well() { Ok(Some(())) } else { Err(format!("{status:?}")) }
        })
        .await
        .unwrap();
        started.stop().await;
    }
    assert_eq!(shop.number(EFFECTS).await, 10);
}

#[tokio::test]
async fn a_stream_of_another_domain_is_read_with_that_domain() {
    assert_handled(|config| ConsumerConfig { jetstream_domain: Some("hub".into()), ..config })
        .await;
}

#[tokio::test]
async fn a_stream_behind_another_prefix_is_read_with_that_prefix() {
    assert_handled(|config| ConsumerConfig { api_prefix: Some("$JS.hub.API".into()), ..config })
        .await;
}
