use async_nats::jetstream::{self, stream};
use pillarbox_testkit::{Scope, servers};

use super::*;
use crate::lease::Registry;

/// A lease on the outbox of a database of its own, and a broker.
struct Led {
    scope: Scope,
    lease: Arc<Lease>,
    start: Cursor,
    jetstream: jetstream::Context,
}

impl Led {
    async fn new() -> Self {
        let scope = servers().await.unwrap().scope().await.unwrap();
        pillarbox_outbox::migrate(scope.pool()).await.unwrap();
        let connection = scope.pool().acquire().await.unwrap().detach();
        let length = Duration::from_secs(60);
        let mut registry = Registry::new(connection, "pillarbox", "default", "test", length);
        let grant = registry.ask().await.unwrap().expect("nobody else is there");
        let (lease, start) = registry.lead(grant).await.unwrap();
        let jetstream = jetstream::new(async_nats::connect(scope.nats_url()).await.unwrap());
        Self { scope, lease, start, jetstream }
    }

    fn name(&self, stream: &str) -> String {
        format!("{}_{stream}", self.scope.prefix().to_uppercase())
    }

    async fn create(&self, stream: &str) {
        let name = self.name(stream);
        let subjects = vec![format!("{name}.>")];
        let config = stream::Config { name, subjects, ..Default::default() };
        self.jetstream.create_stream(config).await.unwrap();
    }

    async fn delete(&self, stream: &str) {
        self.jetstream.delete_stream(self.name(stream)).await.unwrap();
    }

    /// Stores a message in each of these streams, and takes a checkpoint with them.
    async fn checkpoint(&self, high: i64, streams: &[&str]) {
        let mut marks = StreamMarks::new();
        for stream in streams {
            let name = self.name(stream);
            let publish = self.jetstream.publish(format!("{name}.a"), "x".into()).await.unwrap();
            publish.await.unwrap();
            let (_, mark) = self.api().stand(&name).await.unwrap().unwrap();
            marks.insert(name, mark);
        }
        let cursor = Cursor { high, ..self.start.clone() };
        self.lease.remember(&cursor, &marks, Duration::from_secs(3600)).await.unwrap();
    }

    fn api(&self) -> Api {
        Api::new(self.jetstream.clone())
    }

    /// Where the relay goes back to when this stream was found to be another one.
    async fn goes_back_for(&self, stream: &str) -> i64 {
        let what = Forgotten {
            stream: self.name(stream),
            how: "it was created anew".to_owned(),
            now_at: None,
        };
        let now = Cursor { high: 100, ..self.start.clone() };
        let back = go_back(&self.api(), &self.lease, &Acknowledged::default(), &what, &now).await;
        back.unwrap_or_else(|_| panic!("it was interrupted")).0.high
    }
}

#[tokio::test]
async fn a_stream_that_lost_something_and_is_not_shown_covers_no_checkpoint() {
    let led = Led::new().await;
    led.create("A").await;
    led.create("B").await;
    led.checkpoint(10, &["B"]).await;
    led.checkpoint(20, &["A", "B"]).await;
    led.delete("A").await;
    assert_eq!(led.goes_back_for("A").await, 10, "the newest checkpoint without it");
    // Shown again, it has lost the same, and the relay is where it went before.
    led.create("A").await;
    assert_eq!(led.goes_back_for("A").await, 10);
}

#[tokio::test]
async fn two_streams_that_are_made_anew_one_after_the_other_are_one_way_back() {
    let led = Led::new().await;
    led.create("A").await;
    led.create("B").await;
    led.checkpoint(10, &[]).await;
    led.checkpoint(20, &["B"]).await;
    led.checkpoint(30, &["A", "B"]).await;
    for stream in ["A", "B"] {
        led.delete(stream).await;
    }
    led.create("A").await;
    let again = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        led.create("B").await;
    };
    let (high, ()) = tokio::join!(led.goes_back_for("A"), again);
    assert_eq!(high, 10, "the newest that both cover");
}

#[tokio::test]
async fn a_stream_that_is_not_shown_is_no_reason_to_go_back_further_for_another_one() {
    let led = Led::new().await;
    led.create("A").await;
    led.create("B").await;
    led.checkpoint(10, &[]).await;
    led.checkpoint(20, &["B"]).await;
    led.checkpoint(30, &["A", "B"]).await;
    for stream in ["A", "B"] {
        led.delete(stream).await;
    }
    led.create("A").await;
    assert_eq!(led.goes_back_for("A").await, 20, "B is only out of sight");
}
