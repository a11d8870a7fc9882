//! A running relay, and how long it takes.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use async_nats::jetstream::stream::{Config, Stream};
use async_nats::jetstream::{self, Context};
use pillarbox_relay::{Relay, RelayConfig, RelayError, Role, SinkChoice};
use pillarbox_testkit::Nats;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::backlog::Outbox;

/// The stream that takes the events of all outboxes.
pub const STREAM: &str = "shop";
/// If there is no progress for this long, something is stuck.
const PATIENCE: Duration = Duration::from_secs(120);
/// The pause between two looks at a stream.
const SHORTEST_LOOK: Duration = Duration::from_millis(2);
const LONGEST_LOOK: Duration = Duration::from_millis(100);

/// Creates the stream again, in files, with batches allowed.
///
/// # Errors
/// The error of the broker.
pub async fn new_stream(nats: &Nats) -> Result<Stream> {
    let jetstream = context(nats).await?;
    // The stream may not exist yet.
    let _ = jetstream.delete_stream(STREAM).await;
    let config = Config {
        name: STREAM.into(),
        subjects: vec![format!("{STREAM}.>")],
        max_age: Duration::from_secs(86_400),
        allow_batch_publish: true,
        ..Config::default()
    };
    Ok(jetstream.create_stream(config).await?)
}

/// A JetStream context that allows enough outstanding acknowledgements.
///
/// # Errors
/// The error of the broker.
pub async fn context(nats: &Nats) -> Result<Context> {
    let client = nats.connect().await?;
    Ok(jetstream::context::ContextBuilder::new().max_ack_inflight(100_000).build(client))
}

/// Waits until a consumer has acknowledged the stream up to this sequence, as the broker counts, and returns how far it
/// is then.
///
/// # Errors
/// It took too long.
pub async fn acknowledged(stream: &Stream, consumer: &str, last: u64) -> Result<u64> {
    let begin = Instant::now();
    loop {
        ensure!(begin.elapsed() < PATIENCE, "the consumer makes no progress");
        // The consumer may not exist yet.
        let info = stream.consumer_info(consumer).await;
        match info.map(|info| info.ack_floor.stream_sequence) {
            Ok(acknowledged) if acknowledged >= last => return Ok(acknowledged),
            _ => sleep(Duration::from_millis(5)).await,
        }
    }
}

/// A relay that runs in this process.
#[derive(Debug)]
pub struct Shipping {
    relay: JoinHandle<Result<(), RelayError>>,
    shutdown: CancellationToken,
}

impl Shipping {
    /// Starts one with the default settings.
    ///
    /// # Errors
    /// If the settings cannot be used.
    pub fn start(outbox: &Outbox, nats: &Nats, sink: SinkChoice) -> Result<Self> {
        Self::start_with(RelayConfig { sink, ..config(outbox, nats) })
    }

    /// Starts one with these settings.
    ///
    /// # Errors
    /// If the settings cannot be used.
    pub fn start_with(config: RelayConfig) -> Result<Self> {
        Ok(Self::run(Relay::new(config)?))
    }

    /// Starts one, and waits until it leads.
    ///
    /// # Errors
    /// If the settings cannot be used, or it ends.
    pub async fn start_leading(config: RelayConfig) -> Result<Self> {
        let relay = Relay::new(config)?;
        let mut state = relay.state();
        let shipping = Self::run(relay);
        state.wait_for(|state| state.role == Role::Leading).await?;
        Ok(shipping)
    }

    fn run(relay: Relay) -> Self {
        let shutdown = CancellationToken::new();
        let relay = tokio::spawn(relay.run(shutdown.clone()));
        Self { relay, shutdown }
    }

    /// Stops it, and waits for it.
    ///
    /// # Errors
    /// The error with which it ended.
    pub async fn stop(self) -> Result<()> {
        self.shutdown.cancel();
        Ok(self.relay.await??)
    }
}

/// The default settings for this outbox.
pub fn config(outbox: &Outbox, nats: &Nats) -> RelayConfig {
    RelayConfig {
        database_url: outbox.url().to_owned(),
        nats_url: nats.url(),
        ..RelayConfig::default()
    }
}

/// Lets a new relay ship the backlog of `events`, and returns its rate. The time runs from its start, including
/// connecting and taking the lease, to the last message in the stream.
///
/// # Errors
/// If no progress is made, or anything else goes wrong.
pub async fn drain(
    nats: &Nats,
    outbox: &Outbox,
    stream: &mut Stream,
    events: u64,
    sink: SinkChoice,
) -> Result<f64> {
    let before = stream.info().await?.state.messages;
    let begin = Instant::now();
    let shipping = Shipping::start(outbox, nats, sink)?;
    wait_for(stream, before + events).await?;
    let rate = events as f64 / begin.elapsed().as_secs_f64();
    shipping.stop().await?;
    let stored = stream.info().await?.state.messages - before;
    ensure!(stored == events, "{stored} messages are stored, of {events} events");
    Ok(rate)
}

/// Waits until the stream holds this many messages. While many are missing it asks seldom, because the broker that is
/// being measured has to answer.
///
/// # Errors
/// If no progress is made.
pub async fn wait_for(stream: &mut Stream, messages: u64) -> Result<()> {
    let (mut last, mut moved_at) = (0, Instant::now());
    let (mut first, begin) = (None, Instant::now());
    loop {
        let now = stream.info().await?.state.messages;
        if now >= messages {
            return Ok(());
        }
        if now > last {
            (last, moved_at) = (now, Instant::now());
        }
        ensure!(moved_at.elapsed() < PATIENCE, "no progress at {now} of {messages} messages");
        let arrived = now - *first.get_or_insert(now);
        let look_in = match arrived {
            0 => SHORTEST_LOOK,
            // Half of the time that the rest will take at the rate so far.
            _ => begin.elapsed().mul_f64((messages - now) as f64 / arrived as f64 / 2.0),
        };
        tokio::time::sleep(look_in.clamp(SHORTEST_LOOK, LONGEST_LOOK)).await;
    }
}
