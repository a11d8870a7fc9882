//! A broker loses events that it had acknowledged, and other producers fill their places before the relay looks: the
//! stream is as long as it was. The relay remembers which event lies where.

use std::path::{Path, PathBuf};

use crate::support::{DEADLINE, Process, Shop};
use async_nats::jetstream::{self, stream};
use pillarbox_testkit::{Nats, Postgres, Proxy, Servers, eventually};

const LOST: &str = "the broker has lost what it had acknowledged";

/// A shop on its own servers, and a relay that reaches the broker through a proxy. Its checkpoints are a minute apart,
/// so what is acknowledged after the first one is in none.
struct Border {
    shop: Shop,
    relay: Process,
    way: Proxy,
    servers: Servers,
}

impl Border {
    async fn open(more: &[&str]) -> Self {
        Self::with_stream(more, |config| config).await
    }

    async fn with_stream(
        more: &[&str],
        with: impl FnOnce(stream::Config) -> stream::Config,
    ) -> Self {
        let nats = Nats::options().sync_always().start().await.unwrap();
        let servers = Servers { postgres: Postgres::start().await.unwrap(), nats };
        let shop = Shop::with_stream(servers.scope().await.unwrap(), with).await;
        let way = Proxy::to_port(servers.nats.port()).await.unwrap();
        let relay = relay(&shop, &way, more);
        shop.insert_one("0", "the first").await;
        let covered = "select count(*) from pillarbox.relay_checkpoint where (cursor ->> 'high')::bigint = 1 \
                       and streams <> '{}'";
        eventually("a checkpoint", DEADLINE, async || {
            Ok::<_, String>((shop.number(covered).await > 0).then_some(()))
        })
        .await
        .unwrap();
        Self { shop, relay, way, servers }
    }

    async fn publish(&self, count: i64) {
        self.shop.insert_many(count).await;
        self.shop.shipped().await;
    }

    /// What a power cut would leave at this moment.
    fn copy(&self) -> PathBuf {
        let to = self.servers.nats.folder().join("copy");
        self.servers.nats.pause().unwrap();
        copy(&self.servers.nats.store_dir(), &to);
        self.servers.nats.resume().unwrap();
        to
    }

    /// Puts the broker back to the copy, out of the relay's sight.
    async fn lose(&mut self, from: &Path) {
        self.part();
        self.servers.nats.kill().unwrap();
        std::fs::remove_dir_all(self.servers.nats.store_dir()).unwrap();
        copy(from, &self.servers.nats.store_dir());
        self.servers.nats.restart().await.unwrap();
    }

    fn part(&self) {
        self.way.refuse();
        self.way.cut();
    }

    async fn jetstream(&self) -> jetstream::Context {
        self.shop.jetstream().await
    }

    /// Another producer stores as many messages.
    async fn fill(&self, count: u64) {
        let jetstream = self.jetstream().await;
        for _ in 0..count {
            let ack = jetstream.publish(self.shop.topic(), "foreign".into()).await.unwrap();
            ack.await.unwrap();
        }
    }

    /// Lets the relay reach the broker again. It looks at the streams before it ships one more event.
    async fn look(&self) {
        self.way.accept();
        self.shop.insert_one("0", "one more").await;
        self.shop.shipped().await;
    }

    /// Waits until the relay has noticed the loss, and the stream holds each event of the outbox.
    async fn until_whole(&self) {
        self.relay.until_said(LOST).await;
        let wanted = self.shop.number("select count(*) from pillarbox.outbox").await;
        eventually("all events in the stream", DEADLINE, async || match self.held().await {
            held if held == wanted => Ok(Some(())),
            held => Err(format!("{held} of {wanted} events")),
        })
        .await
        .unwrap();
        assert_eq!(self.relay.said(LOST), 1, "it was one loss");
    }

    /// How many events of the outbox the stream holds.
    async fn held(&self) -> i64 {
        let jetstream = self.jetstream().await;
        let mut stream = jetstream.get_stream(&self.shop.stream).await.unwrap();
        let state = stream.info().await.unwrap().state.clone();
        let mut ids = Vec::new();
        for sequence in state.first_sequence..=state.last_sequence {
            if let Ok(message) = stream.get_raw_message(sequence).await {
                ids.extend(message.headers.get("ce-id").map(|id| id.as_str().to_owned()));
            }
        }
        sqlx::query_scalar("select count(*) from pillarbox.outbox where event_id::text = any($1)")
            .bind(ids)
            .fetch_one(self.shop.pool())
            .await
            .unwrap()
    }
}

fn relay(shop: &Shop, way: &Proxy, more: &[&str]) -> Process {
    let mut arguments = vec!["relay", "--lease-ms", "2000", "--retention-s", "144000"];
    arguments.extend(more);
    let broker = format!("nats://127.0.0.1:{}", way.port());
    let environment = [("DATABASE_URL", shop.scope.database_url()), ("NATS_URL", broker.as_str())];
    Process::run(&arguments, &environment)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn a_loss_whose_place_another_producer_has_filled_is_noticed() {
    // Through a window, a batch, a forced window, and with partitions.
    for (count, more) in [
        (10, &[][..]),
        (500, &[]),
        (100, &["--sink", "keyed-window"]),
        (500, &["--partitions", "4"]),
    ] {
        let mut border = Border::open(more).await;
        let copy = border.copy();
        border.publish(count).await;
        border.lose(&copy).await;
        border.fill(count.unsigned_abs()).await;
        border.look().await;
        border.until_whole().await;
    }
}

#[tokio::test]
async fn a_loss_of_a_part_that_other_producers_have_filled_is_noticed() {
    // Each of two copies lacks the second half. The first is of messages that other producers mixed theirs into.
    for half in [5, 300] {
        let mut border = Border::open(&[]).await;
        border.publish(half).await;
        border.fill(7).await;
        let copy = border.copy();
        border.publish(half).await;
        border.lose(&copy).await;
        border.fill(half.unsigned_abs() + 20).await;
        border.look().await;
        border.until_whole().await;
    }
}

#[tokio::test]
async fn a_loss_whose_place_another_relay_has_filled_is_noticed() {
    let mut border = Border::open(&[]).await;
    let other = Shop::on(border.servers.scope().await.unwrap()).await;
    let copy = border.copy();
    border.publish(50).await;
    border.lose(&copy).await;
    let second = Process::relay(&other, &[]);
    // The other outbox ships into the same stream.
    sqlx::query(
        "insert into pillarbox.outbox (event_type, topic, key, payload) \
         select 'order.placed', $1, (i % 10)::text, '' from generate_series(1, 60) i",
    )
    .bind(border.shop.topic())
    .execute(other.pool())
    .await
    .unwrap();
    other.shipped().await;
    border.look().await;
    border.until_whole().await;
    assert_eq!(second.said(LOST), 0, "it has lost nothing");
}

#[tokio::test]
async fn a_place_without_its_message_is_no_loss_and_neither_are_duplicates() {
    let border = Border::open(&[]).await;
    // Between the events of others, with duplicates at the end of a batch.
    border.fill(5).await;
    border.publish(100).await;
    sqlx::query(
        "insert into pillarbox.outbox (event_id, event_type, topic, key, payload) \
         select coalesce(before.event_id, gen_random_uuid()), 'order.placed', $1, i::text, '' \
         from generate_series(1, 400) i \
         left join pillarbox.outbox before on i > 320 and before.position = i - 310",
    )
    .bind(border.shop.topic())
    .execute(border.shop.pool())
    .await
    .unwrap();
    border.shop.shipped().await;
    border.fill(5).await;
    border.part();
    border.look().await;
    assert_eq!(border.relay.said(LOST), 0, "duplicates are in a batch");
    // Deleted one by one, the newest first.
    border.publish(40).await;
    let mut stream = border.jetstream().await.get_stream(&border.shop.stream).await.unwrap();
    let newest = stream.info().await.unwrap().state.last_sequence;
    for sequence in newest - 3..=newest {
        stream.delete_message(sequence).await.unwrap();
    }
    border.part();
    border.look().await;
    assert_eq!(border.relay.said(LOST), 0, "somebody deleted messages");
    border.publish(40).await;
    stream.purge().await.unwrap();
    border.part();
    border.look().await;
    assert_eq!(border.relay.said(LOST), 0, "somebody purged the stream");
}
