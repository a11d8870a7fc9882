//! Streams that are deleted, made anew, moved or out of sight: what the outbox still holds goes to where it belongs.

use std::time::Duration;

use crate::support::http::Endpoint;
use crate::support::{DEADLINE, Process, Shop};
use async_nats::jetstream::{self, stream};
use pillarbox_cli::doctor::{Doctor, Finding, Level};
use pillarbox_relay::{RelayConfig, config::NatsConfig};
use pillarbox_testkit::{Nats, Postgres, Servers, eventually};

const FREE: [&str; 2] = ["--http", "127.0.0.1:0"];
const LOST: &str = "the broker has lost what it had acknowledged";

fn another(shop: &Shop) -> stream::Config {
    stream::Config {
        name: format!("{}B", shop.stream),
        subjects: vec![format!("{}.>", shop.scope.prefix())],
        allow_batch_publish: true,
        ..Default::default()
    }
}

async fn until_holds(jetstream: &jetstream::Context, stream: &str, wanted: u64) {
    eventually(&format!("{wanted} messages in {stream}"), DEADLINE, async || {
        let found = jetstream.get_stream(stream).await.map_err(|error| error.to_string())?;
        match found.cached_info().state.messages {
            found if found >= wanted => Ok(Some(())),
            found => Err(format!("{found}")),
        }
    })
    .await
    .unwrap();
}

/// Waits until the newest checkpoint tells of all that was shipped, and of this stream.
async fn until_checkpoint(shop: &Shop, stream: &str) {
    let covered = format!(
        "select count(*) from pillarbox.relay_checkpoint where streams ? '{stream}' and \
         (cursor ->> 'high')::bigint = (select max(position) from pillarbox.outbox)"
    );
    eventually("a checkpoint", DEADLINE, async || {
        Ok::<_, String>((shop.number(&covered).await > 0).then_some(()))
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_stream_that_is_deleted_while_another_takes_its_subjects_leaves_all_to_that_one() {
    let shop = Shop::open().await;
    let jetstream = shop.jetstream().await;
    let relay = Process::relay(&shop, &FREE);
    let http = Endpoint::of(&relay).await;
    shop.insert_many(10).await;
    shop.until_messages(10).await;
    shop.shipped().await;
    jetstream.delete_stream(&shop.stream).await.unwrap();
    let other = another(&shop);
    jetstream.create_stream(other.clone()).await.unwrap();
    shop.insert_one("1", "the eleventh").await;
    until_holds(&jetstream, &other.name, 11).await;
    relay.until_said(LOST).await;
    http.until(r#"pillarbox_broker_lost_data_total{relay="default"}"#, 1.0).await;
    shop.shipped().await;
    http.until_ready(200).await;
}

#[tokio::test]
async fn a_stream_that_is_replaced_while_no_relay_runs_leaves_all_to_the_next_one() {
    let shop = Shop::open().await;
    let jetstream = shop.jetstream().await;
    let mut relay = Process::relay(&shop, &[]);
    shop.insert_many(10).await;
    shop.until_messages(10).await;
    until_checkpoint(&shop, &shop.stream).await;
    relay.kill();
    jetstream.delete_stream(&shop.stream).await.unwrap();
    let other = another(&shop);
    jetstream.create_stream(other.clone()).await.unwrap();
    let _relay = Process::relay(&shop, &[]);
    until_holds(&jetstream, &other.name, 10).await;
}

#[tokio::test]
async fn a_stream_that_is_made_anew_with_a_higher_sequence_gets_everything_again() {
    let shop = Shop::open().await;
    let jetstream = shop.jetstream().await;
    let relay = shop.start(shop.config());
    shop.insert_many(10).await;
    shop.until_messages(10).await;
    until_checkpoint(&shop, &shop.stream).await;
    jetstream.delete_stream(&shop.stream).await.unwrap();
    shop.create_stream(|config| stream::Config { first_sequence: Some(1_000), ..config }).await;
    shop.insert_one("1", "the eleventh").await;
    shop.until_messages(11).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_deleted_stream_without_a_successor_holds_nothing_until_there_is_one() {
    let shop = Shop::open().await;
    let jetstream = shop.jetstream().await;
    // Events for another stream go on meanwhile.
    let second = format!("second{}.placed", shop.scope.prefix());
    let config = stream::Config {
        name: format!("{}SECOND", shop.stream),
        subjects: vec![second.clone()],
        ..Default::default()
    };
    jetstream.create_stream(config.clone()).await.unwrap();
    let relay = Process::relay(&shop, &FREE);
    let http = Endpoint::of(&relay).await;
    shop.insert_many(10).await;
    shop.until_messages(10).await;
    shop.shipped().await;
    jetstream.delete_stream(&shop.stream).await.unwrap();
    sqlx::query("insert into pillarbox.outbox (event_type, topic, payload) values ('t', $1, '')")
        .bind(&second)
        .execute(shop.pool())
        .await
        .unwrap();
    until_holds(&jetstream, &config.name, 1).await;
    http.until(r#"pillarbox_unwatched_streams{relay="default"}"#, 1.0).await;
    let ready = http.until_ready(200).await;
    assert!(ready.to_string().contains(&shop.stream), "{ready}");
    eventually("the status to tell", DEADLINE, async || {
        let told = shop.status().await.unwatched_streams;
        Ok::<_, String>((told == [shop.stream.clone()]).then_some(()))
    })
    .await
    .unwrap();
    let other = another(&shop);
    jetstream.create_stream(other.clone()).await.unwrap();
    until_holds(&jetstream, &other.name, 10).await;
    http.until(r#"pillarbox_unwatched_streams{relay="default"}"#, 0.0).await;
}

#[tokio::test]
async fn subjects_that_move_between_two_streams_are_no_loss_until_the_first_is_deleted() {
    let shop = Shop::open().await;
    let jetstream = shop.jetstream().await;
    let relay = Process::relay(&shop, &[]);
    shop.insert_many(10).await;
    shop.until_messages(10).await;
    until_checkpoint(&shop, &shop.stream).await;
    shop.create_stream(|config| stream::Config {
        subjects: vec![format!("unused{}", shop.scope.prefix())],
        ..config
    })
    .await;
    let other = another(&shop);
    jetstream.create_stream(other.clone()).await.unwrap();
    shop.insert_one("1", "the eleventh").await;
    until_holds(&jetstream, &other.name, 1).await;
    until_checkpoint(&shop, &other.name).await;
    assert_eq!(relay.said(LOST), 0, "{:#?}", relay.lines.lock().unwrap());
    jetstream.delete_stream(&shop.stream).await.unwrap();
    until_holds(&jetstream, &other.name, 11).await;
    assert_eq!(relay.said(LOST), 1);
}

#[tokio::test]
async fn a_purge_is_no_loss() {
    let shop = Shop::open().await;
    let relay = Process::relay(&shop, &[]);
    shop.insert_many(10).await;
    shop.until_messages(10).await;
    until_checkpoint(&shop, &shop.stream).await;
    let stream = shop.jetstream().await.get_stream(&shop.stream).await.unwrap();
    stream.purge().await.unwrap();
    shop.insert_one("1", "the eleventh").await;
    until_checkpoint(&shop, &shop.stream).await;
    assert_eq!((shop.messages().await, relay.said(LOST)), (1, 0));
}

/// A hub with the stream, and a leaf node with a JetStream domain of its own that the relay is connected to.
struct Tree {
    shop: Shop,
    hub: Nats,
    // They end with this.
    _servers: (Servers, tempfile::TempDir),
}

impl Tree {
    async fn grow(hub_domain: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let jetstream = |name: &str, domain: &str| {
            let store = folder.path().join(name);
            format!("jetstream {{ store_dir: \"{}\" {domain} }}", store.display())
        };
        let listen = format!("leafnodes {{ listen: \"127.0.0.1:{port}\" }}");
        let domain = match hub_domain {
            "" => String::new(),
            domain => format!(", domain: {domain}"),
        };
        let hub = Nats::options()
            .config(&format!("server_name: hub\n{}\n{listen}", jetstream("hub", &domain)))
            .start()
            .await
            .unwrap();
        let remote =
            format!("leafnodes {{ remotes: [ {{ url: \"nats-leaf://127.0.0.1:{port}\" }} ] }}");
        let leaf = Nats::options()
            .config(&format!(
                "server_name: leaf\n{}\n{remote}",
                jetstream("leaf", ", domain: leaf")
            ))
            .start()
            .await
            .unwrap();
        let servers = Servers { postgres: Postgres::start().await.unwrap(), nats: leaf };
        let scope = servers.scope().await.unwrap();
        pillarbox_outbox::migrate(scope.pool()).await.unwrap();
        let shop = Shop { stream: "ORDERS".into(), scope };
        let tree = Self { shop, hub, _servers: (servers, folder) };
        tree.create_stream().await;
        tree
    }

    async fn jetstream(&self) -> jetstream::Context {
        jetstream::new(async_nats::connect(self.hub.url()).await.unwrap())
    }

    async fn create_stream(&self) {
        let config = stream::Config {
            name: "ORDERS".into(),
            subjects: vec![format!("{}.>", self.shop.scope.prefix())],
            allow_batch_publish: true,
            ..Default::default()
        };
        self.jetstream().await.create_stream(config).await.unwrap();
    }

    async fn make_stream_anew(&self) {
        self.jetstream().await.delete_stream("ORDERS").await.unwrap();
        self.create_stream().await;
    }
}

#[tokio::test]
async fn a_stream_behind_a_leaf_node_that_is_made_anew_gets_everything_again() {
    for domain in ["", "hub"] {
        let tree = Tree::grow(domain).await;
        let relay = Process::relay(&tree.shop, &FREE);
        let http = Endpoint::of(&relay).await;
        let jetstream = tree.jetstream().await;
        tree.shop.insert_many(505).await;
        until_holds(&jetstream, "ORDERS", 505).await;
        tree.shop.shipped().await;
        // Where the hub's API can be asked under its domain, the stream is watched without a setting.
        let unwatched = if domain.is_empty() { 1.0 } else { 0.0 };
        http.until(r#"pillarbox_unwatched_streams{relay="default"}"#, unwatched).await;
        let ready = http.until_ready(200).await;
        assert_eq!(ready.to_string().contains("unwatched"), domain.is_empty(), "{ready}");
        tree.make_stream_anew().await;
        tree.shop.insert_one("1", "one more").await;
        until_holds(&jetstream, "ORDERS", 506).await;
        relay.until_said(LOST).await;
        tree.shop.shipped().await;
    }
}

#[tokio::test]
async fn a_loss_that_only_acknowledgements_can_tell_is_found_by_the_next_relay_too() {
    let tree = Tree::grow("").await;
    let mut relay = Process::relay(&tree.shop, &[]);
    let jetstream = tree.jetstream().await;
    tree.shop.insert_many(505).await;
    until_holds(&jetstream, "ORDERS", 505).await;
    until_checkpoint(&tree.shop, "ORDERS").await;
    assert_eq!(tree.shop.status().await.unwatched_streams, ["ORDERS"]);
    relay.kill();
    tree.make_stream_anew().await;
    tree.shop.insert_one("1", "one more").await;
    let _relay = Process::relay(&tree.shop, &[]);
    until_holds(&jetstream, "ORDERS", 506).await;
}

#[tokio::test]
async fn with_the_hubs_domain_a_stream_behind_a_leaf_node_is_watched_like_any_other() {
    let tree = Tree::grow("hub").await;
    let jetstream = tree.jetstream().await;
    let nats = NatsConfig { jetstream_domain: Some("hub".into()), ..NatsConfig::default() };
    let relay = tree.shop.start(RelayConfig { nats, ..tree.shop.config() });
    tree.shop.insert_many(505).await;
    until_holds(&jetstream, "ORDERS", 505).await;
    until_checkpoint(&tree.shop, "ORDERS").await;
    assert!(tree.shop.status().await.unwatched_streams.is_empty());
    tree.make_stream_anew().await;
    // Nothing new is needed for the relay to notice.
    until_holds(&jetstream, "ORDERS", 505).await;
    relay.stop().await;
}

#[tokio::test]
async fn what_the_api_cannot_see_is_no_reason_to_set_events_aside() {
    let mut tree = Tree::grow("").await;
    let relay =
        Process::relay(&tree.shop, &["--http", "127.0.0.1:0", "--no-stream", "dead-letter"]);
    let http = Endpoint::of(&relay).await;
    let jetstream = tree.jetstream().await;
    tree.shop.insert_many(10).await;
    until_holds(&jetstream, "ORDERS", 10).await;
    until_checkpoint(&tree.shop, "ORDERS").await;
    tree.hub.kill().unwrap();
    tree.shop.insert_many(10).await;
    http.until(r#"pillarbox_held{relay="default"}"#, 1.0).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    tree.hub.restart().await.unwrap();
    until_holds(&tree.jetstream().await, "ORDERS", 20).await;
    let letters = "select count(*) from pillarbox.outbox_dead_letter";
    assert_eq!(tree.shop.number(letters).await, 0);
}

async fn examined(shop: &Shop) -> Vec<Finding> {
    Doctor::new(shop.config()).examine().await
}

/// The level of a check's worst finding, and its message.
#[track_caller]
fn of_check<'f>(findings: &'f [Finding], check: &str) -> (Level, &'f str) {
    let of = findings.iter().filter(|finding| finding.check == check);
    let worst = of.max_by_key(|finding| finding.level).unwrap_or_else(|| panic!("{findings:#?}"));
    (worst.level, &worst.message)
}

#[tokio::test]
async fn doctor_knows_a_stream_behind_a_leaf_node_and_what_it_cannot_know_of_it() {
    let tree = Tree::grow("").await;
    let shop = &tree.shop;
    let relay = Process::relay(shop, &FREE);
    let http = Endpoint::of(&relay).await;
    shop.insert_many(10).await;
    until_holds(&tree.jetstream().await, "ORDERS", 10).await;
    until_checkpoint(shop, "ORDERS").await;
    let findings = examined(shop).await;
    let (level, said) = of_check(&findings, "broker.subjects");
    assert!(level == Level::Ok && said.contains("ORDERS"), "{findings:#?}");
    let (level, said) = of_check(&findings, "broker.watched");
    assert!(level == Level::Warn && said.contains("ORDERS"), "{findings:#?}");

    // A topic that nobody has acknowledged yet, and that stream may take.
    sqlx::query("insert into pillarbox.outbox (event_type, topic, payload) values ('t', $1, '')")
        .bind(format!("{}.unheard", shop.scope.prefix()))
        .execute(shop.pool())
        .await
        .unwrap();
    until_holds(&tree.jetstream().await, "ORDERS", 11).await;

    // The leader stops leading: whoever leads now knows.
    http.until(r#"pillarbox_unwatched_streams{relay="default"}"#, 1.0).await;
    let mut lease = shop.pool().acquire().await.unwrap();
    let taken = "update pillarbox.relay set holder = 'elsewhere/1/x', epoch = epoch + 1, \
                 expires_at = clock_timestamp() + interval '10 minutes'";
    sqlx::query(taken).execute(&mut *lease).await.unwrap();
    http.until(r#"pillarbox_unwatched_streams{relay="default"}"#, 0.0).await;
    eventually("a standby that knows of no stream", DEADLINE, async || {
        let ready = http.get("/readyz").await.body;
        let done = ready.contains("standing_by") && !ready.contains("unwatched");
        if done { Ok(Some(())) } else { Err(ready) }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn doctor_knows_streams_of_other_domains() {
    let tree = Tree::grow("hub").await;
    let shop = &tree.shop;
    let relay = shop.start(shop.config());
    shop.insert_many(10).await;
    until_holds(&tree.jetstream().await, "ORDERS", 10).await;
    until_checkpoint(shop, "hub.ORDERS").await;
    let findings = examined(shop).await;
    let (level, said) = of_check(&findings, "broker.subjects");
    assert!(level == Level::Ok && said.contains("hub.ORDERS"), "{findings:#?}");
    assert_eq!(of_check(&findings, "broker.watched").0, Level::Ok, "{findings:#?}");
    // It was asked in its domain.
    let (_, said) = of_check(&findings, "broker.stream");
    assert!(said.contains("stream hub.ORDERS"), "{findings:#?}");
    relay.stop().await;
}

#[tokio::test]
async fn doctor_knows_what_a_mapping_of_the_account_does() {
    let nats = Nats::options()
        .config("mappings { \"shop.placed\": \"orders.placed\", \"shop.paid\": \"orders.paid\" }")
        .start()
        .await
        .unwrap();
    let servers = Servers { postgres: Postgres::start().await.unwrap(), nats };
    let shop = Shop::with_stream(servers.scope().await.unwrap(), |config| stream::Config {
        subjects: vec!["orders.>".into()],
        ..config
    })
    .await;
    let publish = async |topic: &str| {
        sqlx::query(
            "insert into pillarbox.outbox (event_type, topic, payload) values ('t', $1, '')",
        )
        .bind(topic)
        .execute(shop.pool())
        .await
        .unwrap();
    };
    let relay = shop.start(shop.config());
    publish("shop.placed").await;
    shop.until_messages(1).await;
    until_checkpoint(&shop, &shop.stream).await;
    let findings = examined(&shop).await;
    let (level, said) = of_check(&findings, "broker.subjects");
    assert!(level == Level::Ok && said.contains(&shop.stream), "{findings:#?}");
    // Nothing maps this one, and nobody takes it.
    publish("shop.unknown").await;
    let findings = examined(&shop).await;
    let (level, said) = of_check(&findings, "broker.subjects");
    assert!(level == Level::Fail && said.contains("shop.unknown"), "{findings:#?}");
    assert!(!said.contains("shop.placed"), "{findings:#?}");
    relay.stop().await;
}

/// The streams of the account by name, and how many messages each of them has.
async fn held(jetstream: &jetstream::Context, names: &[&str]) -> Vec<u64> {
    let mut counts = Vec::new();
    for name in names {
        counts.push(jetstream.get_stream(*name).await.unwrap().cached_info().state.messages);
    }
    counts
}

#[tokio::test]
async fn a_stream_that_stores_under_other_subjects_is_shipped_to_and_watched_like_any_other() {
    let shop = Shop::open().await;
    let prefix = shop.scope.prefix();
    let transform = stream::SubjectTransform {
        source: format!("{prefix}.>"),
        destination: format!("stored.{prefix}.>"),
    };
    let with = |config| stream::Config { subject_transform: Some(transform.clone()), ..config };
    shop.create_stream(with).await;
    let relay = Process::relay(&shop, &FREE);
    let http = Endpoint::of(&relay).await;
    // More than go one by one.
    shop.insert_many(200).await;
    shop.until_messages(200).await;
    shop.shipped().await;
    assert!(shop.stored().await.iter().all(|s| s.subject == format!("stored.{prefix}.placed")));
    http.until_ready(200).await;
    let troubles: Vec<_> = (examined(&shop).await.into_iter())
        .filter(|finding| finding.check.starts_with("broker") && finding.level != Level::Ok)
        .collect();
    assert!(troubles.is_empty(), "{troubles:#?}");
    until_checkpoint(&shop, &shop.stream).await;
    shop.jetstream().await.delete_stream(&shop.stream).await.unwrap();
    shop.create_stream(with).await;
    shop.insert_one("1", "the last").await;
    shop.until_messages(201).await;
    relay.until_said(LOST).await;
    shop.shipped().await;
    http.until_ready(200).await;
    assert_eq!(shop.messages().await, 201);
}

#[tokio::test]
async fn a_mirror_is_neither_shipped_to_nor_taken_for_the_stream_that_it_copies() {
    let shop = Shop::open().await;
    let jetstream = shop.jetstream().await;
    let mirror = format!("{}MIRROR", shop.stream);
    let config = stream::Config {
        name: mirror.clone(),
        mirror: Some(stream::Source { name: shop.stream.clone(), ..Default::default() }),
        ..Default::default()
    };
    jetstream.create_stream(config).await.unwrap();
    let relay = Process::relay(&shop, &FREE);
    let http = Endpoint::of(&relay).await;
    shop.insert_many(200).await;
    until_holds(&jetstream, &mirror, 200).await;
    shop.shipped().await;
    assert_eq!(held(&jetstream, &[&shop.stream, &mirror]).await, [200, 200]);
    until_checkpoint(&shop, &shop.stream).await;
    let marks = "select count(*) from pillarbox.relay_checkpoint, jsonb_object_keys(streams) as name \
                 where name like '%MIRROR'";
    assert_eq!(shop.number(marks).await, 0, "only what acknowledges is watched");
    // The mirror takes no subjects, so it is no successor of the stream.
    jetstream.delete_stream(&shop.stream).await.unwrap();
    shop.insert_one("1", "the last").await;
    relay.until_said("no stream takes the subject").await;
    http.until_ready(503).await;
    assert_eq!(relay.said(LOST), 0, "{:#?}", relay.lines.lock().unwrap());
    shop.create_stream(|config| config).await;
    shop.until_messages(201).await;
    relay.until_said(LOST).await;
    http.until_ready(200).await;
}

#[tokio::test]
async fn what_a_stream_publishes_again_is_no_second_event_and_its_other_stream_is_not_watched() {
    let shop = Shop::open().await;
    let jetstream = shop.jetstream().await;
    let prefix = shop.scope.prefix();
    let copies = format!("{}COPIES", shop.stream);
    let config = stream::Config {
        name: copies.clone(),
        subjects: vec![format!("copies.{prefix}.>")],
        ..Default::default()
    };
    jetstream.create_stream(config).await.unwrap();
    let republish = stream::Republish {
        source: format!("{prefix}.>"),
        destination: format!("copies.{prefix}.>"),
        headers_only: false,
    };
    shop.create_stream(|config| stream::Config { republish: Some(republish.clone()), ..config })
        .await;
    let relay = Process::relay(&shop, &FREE);
    let http = Endpoint::of(&relay).await;
    shop.insert_many(200).await;
    until_holds(&jetstream, &copies, 200).await;
    shop.shipped().await;
    until_checkpoint(&shop, &shop.stream).await;
    assert_eq!(held(&jetstream, &[&shop.stream, &copies]).await, [200, 200]);
    // The copies are nobody's place: that their stream is gone, or another one, is no loss.
    jetstream.delete_stream(&copies).await.unwrap();
    shop.insert_one("1", "the last").await;
    shop.until_messages(201).await;
    shop.shipped().await;
    until_checkpoint(&shop, &shop.stream).await;
    http.until_ready(200).await;
    assert_eq!(relay.said(LOST), 0, "{:#?}", relay.lines.lock().unwrap());
    shop.assert_each_once_in_order().await;
}
