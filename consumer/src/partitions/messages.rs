//! Reads the messages of a consumer's durables. Each durable is opened by itself, and opened again after each failure.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream;
use async_nats::jetstream::stream::{RetentionPolicy, Stream as JetStream};
use futures::Stream;
use futures::stream::{BoxStream, StreamExt, unfold};
use pillarbox_event::Partition;
use pillarbox_inbox::source::Store;
use pillarbox_store::{Backoff, full_text};
use tokio::time::sleep;

use crate::config::ConsumerConfig;
use crate::durable::{self, Durable, NotNow};
use crate::error::ConsumerError;
use crate::partitions::repartition::prepare;
use crate::reader::Reader;
use crate::status::Reporter;
use crate::subscription::{Arrival, Opening, Subscription, active_pin};
use crate::unreadable::Unreadable;

/// Everything needed to open a durable. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Opener {
    pub(crate) client: async_nats::Client,
    pub(crate) jetstream: jetstream::Context,
    pub(crate) config: Arc<ConsumerConfig>,
    pub(crate) reporter: Reporter,
    pub(crate) reader: Reader,
    /// The handlers whose events must be able to come, and their topics.
    topics: Arc<[(&'static str, &'static str)]>,
    store: Store,
    unreadable: Unreadable,
    said: Arc<Said>,
}

/// What the log has said already.
#[derive(Debug, Default)]
struct Said {
    endless: AtomicBool,
    /// Whether a durable was read already. From then on, the consumer waits whatever others change.
    begun: AtomicBool,
    old_server: AtomicBool,
}

impl Opener {
    pub(crate) fn new(
        client: async_nats::Client,
        jetstream: jetstream::Context,
        store: Store,
        config: Arc<ConsumerConfig>,
        reporter: Reporter,
        reader: Reader,
        topics: Arc<[(&'static str, &'static str)]>,
    ) -> Self {
        let unreadable =
            Unreadable::new(jetstream.clone(), store.clone(), config.clone(), reporter.clone());
        Self {
            client,
            jetstream,
            config,
            reporter,
            reader,
            topics,
            store,
            unreadable,
            said: Arc::default(),
        }
    }

    /// The stream, after checking that its settings fit the consumer's. This must be the first request, because the
    /// server's version is not known before the server has answered one.
    async fn stream(&self) -> Result<JetStream, NotNow> {
        let stream = durable::stream(&self.jetstream, &self.config).await?;
        self.check_retention(&stream)?;
        self.check_topics(&stream)?;
        Ok(stream)
    }

    /// A handler must not wait for events that cannot come.
    fn check_topics(&self, stream: &JetStream) -> Result<(), NotNow> {
        let stream = &stream.cached_info().config;
        let refused = self.topics.iter().find(|(_, topic)| {
            let come = Durable::all(&self.config.of_topic(topic));
            !come.iter().any(|durable| durable.may_take_from(stream))
        });
        match refused {
            None => Ok(()),
            Some((handler, topic)) => Err(NotNow::Never(ConsumerError::NotInStream {
                stream: self.config.stream.clone(),
                subjects: stream.subjects.join(", "),
                handler,
                topic,
            })),
        }
    }

    /// Creates the consumer's durables that are missing.
    async fn prepare(&self) -> Result<(), NotNow> {
        let stream = self.stream().await?;
        prepare(&stream, &self.config, &self.store, self.pinned()).await
    }

    /// As [`prepare`](Self::prepare), and checks all durables.
    pub(crate) async fn prepare_and_check(&self) -> Result<(), NotNow> {
        self.prepare().await?;
        let stream = self.stream().await?;
        for durable in Durable::all(&self.config) {
            durable.find(&stream, &self.config, self.pinned()).await?;
        }
        Ok(())
    }

    async fn open(&self, durable: &Durable, last: &Last) -> Result<Box<Subscription>, NotNow> {
        let pin = last.pin.as_deref();
        let stream = self.stream().await?;
        let (pinned, ordered) = (self.pinned(), self.ordered());
        if !durable.exists(&stream).await? {
            prepare(&stream, &self.config, &self.store, pinned).await?;
        }
        let info = durable.find(&stream, &self.config, pinned).await?;
        let at_least = if last.was_interrupted { Durable::places(&self.config) } else { 0 };
        let found = self.unreadable.look(durable, &info, at_least).await.map_err(NotNow::Later)?;
        let active = active_pin(&info);
        // A subscription that reads past unreadable messages keeps its pin.
        let keeps_pin = !found.is_empty();
        if !(keeps_pin && active.as_deref() == pin)
            && active.is_some()
            && (durable.partition.is_some() || active.as_deref() == pin)
        {
            // This process is to read it. Whoever is pinned for a partition has died, or does not know yet that the
            // partition was taken away. If the pin is this process's own, the server would wait for the last
            // subscription.
            stream.unpin_consumer(&durable.name, durable::GROUP).await?;
        }
        let reading = self.reader.context().await;
        let consumer = reading.get_consumer_from_stream(&durable.name, &self.config.stream).await?;
        let subscription = Subscription::open(Opening {
            stream: &stream,
            consumer: &consumer,
            reading: &reading,
            reader: &self.reader,
            answering: &self.jetstream,
            durable,
            config: &self.config,
            ordered,
            pinned,
            pin,
            unreadable: &self.unreadable,
            found,
            reporter: self.reporter.clone(),
        });
        let subscription = subscription.await.map_err(|error| NotNow::Later(error.to_string()))?;
        let said = &self.said.old_server;
        if self.config.order.keeps_keys() && !ordered && !said.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                consumer = self.config.name,
                "this nats-server is older than 2.14, so events of a key can come out of order after a crash or a \
                lost connection; upgrade it"
            );
        }
        self.said.begun.store(true, Ordering::Relaxed);
        let floor = info.ack_floor.stream_sequence;
        if !self.reporter.is_stuck_unseen(&durable.name, floor) {
            self.reporter.hindered(None);
        }
        Ok(Box::new(subscription))
    }

    /// An event must not be delivered again after the inbox has forgotten that it was handled.
    fn check_retention(&self, stream: &JetStream) -> Result<(), NotNow> {
        let config = &stream.cached_info().config;
        if config.max_age > self.config.retention {
            return Err(NotNow::Never(ConsumerError::Retention {
                name: self.config.name.clone(),
                retention_s: self.config.retention.as_secs(),
                stream: self.config.stream.clone(),
                max_age_s: config.max_age.as_millis().div_ceil(1000),
            }));
        }
        // A work queue removes what is acknowledged.
        let endless = config.max_age.is_zero() && config.retention != RetentionPolicy::WorkQueue;
        if endless && !self.said.endless.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                consumer = self.config.name,
                stream = self.config.stream,
                retention_s = self.config.retention.as_secs(),
                "the stream has no limit of age (max_age), but the inbox forgets handled events after its retention; if \
                 the durable consumer is ever deleted, this consumer will refuse to read the stream from the \
                 beginning, because it may have handled and forgotten messages there (after_loss); give the stream a \
                 max_age, or replay it under another consumer name"
            );
        }
        Ok(())
    }

    /// Why to try again later, or the error with which the consumer ends. Once it has read a durable, it waits whatever
    /// is wrong.
    fn waits_for(&self, not_now: NotNow) -> Result<String, ConsumerError> {
        match not_now {
            NotNow::Later(reason) => Ok(reason),
            NotNow::Never(error) if self.said.begun.load(Ordering::Relaxed) => {
                Ok(full_text(&error))
            }
            NotNow::Never(error) => Err(error),
        }
    }

    pub(crate) fn pinned(&self) -> bool {
        self.config.order.keeps_keys() && self.client.is_server_compatible(2, 11, 0)
    }

    fn ordered(&self) -> bool {
        self.config.order.keeps_keys() && self.client.is_server_compatible(2, 14, 0)
    }

    /// Lets another process become active in these durables at once, rather than when the pin has expired.
    pub(crate) async fn unpin(&self, durables: impl IntoIterator<Item = Durable>) {
        // Without a connection nobody would answer, and a stop would wait for nothing.
        if !self.pinned() || self.client.connection_state() != State::Connected {
            return;
        }
        let unpin = async {
            // The end of a subscription that was dropped must reach the server first.
            self.reader.flush().await;
            let stream = self.jetstream.get_stream_no_info(&self.config.stream).await?;
            let unpin = durables.into_iter().map(|durable| {
                let stream = stream.clone();
                async move {
                    let _ = stream.unpin_consumer(&durable.name, durable::GROUP).await;
                }
            });
            futures::stream::iter(unpin).buffer_unordered(32).collect::<()>().await;
            Ok::<_, jetstream::context::GetStreamError>(())
        };
        let _ = tokio::time::timeout(UNPIN_TIMEOUT, unpin).await;
    }
}

const UNPIN_TIMEOUT: Duration = Duration::from_secs(2);

/// What happens to a durable.
enum News {
    /// It can be read.
    Opened,
    Arrived(Box<Arrival>),
    /// It cannot be read for now, for this reason. It is tried again.
    Away(String),
    /// It was read, and is no longer read, for this reason. It is tried again.
    Interrupted(String),
    Never(ConsumerError),
}

type Feed = BoxStream<'static, News>;

/// What happened to what this process reads.
pub(crate) enum Step {
    /// A message arrived.
    Arrived(Option<Partition>, Box<Arrival>),
    /// Some partitions are read from now on, and others no longer.
    Moved { taken: Vec<u32>, dropped: Vec<u32> },
    /// The messages of a partition, or of the only durable, were interrupted. What it delivered before may be of an
    /// earlier life of the stream.
    Interrupted(Option<Partition>),
    /// The database does not answer, for this reason.
    Failing(String),
    /// The durables are there, so partitions can be read.
    Prepared,
    /// A partition was handed over.
    HandedOver,
}

/// The durables that are read.
pub(crate) struct Feeds {
    opener: Opener,
    feeds: Vec<(Concern, Feed)>,
    /// Where to look first.
    turn: usize,
    /// Why some of them cannot be read.
    away: BTreeMap<Concern, String>,
    trouble: Option<String>,
}

/// What a feed, or a reason to wait, is about. Of several reasons, the first in this order is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Concern {
    Preparation,
    Others,
    Database,
    Broker,
    Durable(Option<Partition>),
}

impl Feeds {
    pub(crate) fn new(opener: Opener) -> Self {
        Self { opener, feeds: Vec::new(), turn: 0, away: BTreeMap::new(), trouble: None }
    }

    /// Creates the durables that are missing, again and again until [`Step::Prepared`].
    pub(crate) fn prepare(&mut self) {
        let opener = self.opener.clone();
        let feed = unfold(Some((Backoff::default(), Duration::ZERO)), move |at| {
            let opener = opener.clone();
            async move {
                let (mut backoff, wait) = at?;
                sleep(wait).await;
                Some(match opener.prepare().await {
                    Ok(()) => (News::Opened, None),
                    Err(not_now) => match opener.waits_for(not_now) {
                        Ok(reason) => {
                            let wait = backoff.wait();
                            (News::Away(reason), Some((backoff, wait)))
                        }
                        Err(error) => (News::Never(error), None),
                    },
                })
            }
        });
        self.add(Concern::Preparation, feed);
    }

    /// Reads a durable from now on.
    pub(crate) fn start(&mut self, durable: Durable) {
        let of = Concern::Durable(durable.partition);
        let (opener, durable) = (self.opener.clone(), Arc::new(durable));
        let feed =
            unfold(At::Closed(Backoff::default(), Duration::ZERO, Last::default()), move |at| {
                let (opener, durable) = (opener.clone(), durable.clone());
                async move { at.next(&opener, &durable).await }
            });
        self.add(of, feed);
    }

    fn add(&mut self, of: Concern, feed: impl Stream<Item = News> + Send + 'static) {
        self.remove(of);
        self.feeds.push((of, feed.fuse().boxed()));
    }

    /// No longer reads a partition.
    pub(crate) fn stop(&mut self, partition: Partition) {
        self.remove(Concern::Durable(Some(partition)));
        self.well_again(Concern::Durable(Some(partition)));
    }

    fn remove(&mut self, of: Concern) {
        self.feeds.retain(|(known, _)| *known != of);
    }

    /// The consumer waits for processes that run with another number of partitions, or (`None`) no longer waits.
    pub(crate) fn others(&mut self, reason: Option<String>) {
        match reason {
            Some(reason) => {
                self.remove(Concern::Preparation);
                self.well_again(Concern::Preparation);
                self.in_trouble(Concern::Others, reason);
            }
            None => self.well_again(Concern::Others),
        }
    }

    /// The database does not say which partitions to read, for this reason, or (`None`) it says it again.
    pub(crate) fn database(&mut self, reason: Option<&str>) {
        match reason {
            Some(error) => {
                self.in_trouble(
                    Concern::Database,
                    format!(
                        "the database does not say which partitions this process may \
                read: {error}"
                    ),
                );
            }
            None => self.well_again(Concern::Database),
        }
    }

    /// The broker can be reached, or cannot.
    pub(crate) fn broker(&mut self, reached: bool) {
        match reached {
            true => self.well_again(Concern::Broker),
            false => self.in_trouble(
                Concern::Broker,
                "this process has no connection to the broker, and leaves its partitions to other processes".into(),
            ),
        }
    }

    /// The next message of any. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Result<Step, ConsumerError> {
        loop {
            let (of, news) = std::future::poll_fn(|cx| self.poll(cx)).await;
            match news {
                News::Arrived(arrival) => {
                    let partition = match of {
                        Concern::Durable(partition) => partition,
                        _ => None,
                    };
                    return Ok(Step::Arrived(partition, arrival));
                }
                News::Opened => {
                    self.well_again(of);
                    if self.away.is_empty() {
                        self.connected();
                    }
                    if of == Concern::Preparation {
                        self.remove(of);
                        return Ok(Step::Prepared);
                    }
                }
                News::Away(reason) => self.in_trouble(of, reason),
                News::Interrupted(reason) => {
                    self.in_trouble(of, reason);
                    if let Concern::Durable(partition) = of {
                        return Ok(Step::Interrupted(partition));
                    }
                }
                News::Never(error) => return Err(error),
            }
        }
    }

    /// Asks the feeds in turn, so that none is left out.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<(Concern, News)> {
        let feeds = self.feeds.len();
        for step in 0..feeds {
            let at = (self.turn + step) % feeds;
            let (of, feed) = &mut self.feeds[at];
            if let Poll::Ready(Some(news)) = Pin::new(feed).poll_next(cx) {
                self.turn = at + 1;
                return Poll::Ready((*of, news));
            }
        }
        Poll::Pending
    }

    fn in_trouble(&mut self, of: Concern, reason: String) {
        self.away.insert(of, reason);
        self.report();
    }

    fn well_again(&mut self, of: Concern) {
        if self.away.remove(&of).is_some() {
            self.report();
        }
    }

    fn report(&mut self) {
        let consumer = &self.opener.config.name;
        match self.away.values().next() {
            Some(reason) => {
                self.opener.reporter.away(reason);
                if self.trouble.as_ref() != Some(reason) {
                    let surroundings = match self.away.keys().next() {
                        Some(Concern::Database) => "the database",
                        Some(Concern::Others) => "other processes",
                        _ => "the broker",
                    };
                    tracing::warn!(consumer, reason, "waiting for {surroundings}");
                    self.opener.reporter.error(None, reason);
                    self.trouble = Some(reason.clone());
                }
            }
            None => {
                tracing::info!(consumer, "connected again");
                self.trouble = None;
                self.connected();
            }
        }
    }

    /// Without partitions, the subscription reports this itself, because it knows which process is active.
    fn connected(&self) {
        if self.opener.config.several().is_some() {
            self.opener.reporter.connected(false, None);
        }
    }
}

/// What is known of the last subscription of a durable, if there was one.
#[derive(Debug, Default)]
struct Last {
    /// The pin of this process.
    pin: Option<String>,
    /// Whether it ended by an interruption, so that what was delivered over it may be lost.
    was_interrupted: bool,
}

/// The state of a durable's feed.
enum At {
    Closed(Backoff, Duration, Last),
    Open(Box<Subscription>),
    Over,
}

impl At {
    async fn next(self, opener: &Opener, durable: &Durable) -> Option<(News, Self)> {
        Some(match self {
            Self::Closed(mut backoff, wait, last) => {
                sleep(wait).await;
                match opener.open(durable, &last).await {
                    Ok(subscription) => (News::Opened, Self::Open(subscription)),
                    Err(not_now) => match opener.waits_for(not_now) {
                        Ok(reason) => {
                            let wait = backoff.wait();
                            (News::Away(reason), Self::Closed(backoff, wait, last))
                        }
                        Err(error) => (News::Never(error), Self::Over),
                    },
                }
            }
            Self::Open(mut subscription) => match subscription.next().await {
                Ok(arrival) => (News::Arrived(Box::new(arrival)), Self::Open(subscription)),
                Err(error) if error.at_once => {
                    let last =
                        Last { pin: subscription.pin().map(str::to_owned), was_interrupted: false };
                    drop(subscription);
                    let closed = Self::Closed(Backoff::default(), Duration::ZERO, last);
                    return Box::pin(closed.next(opener, durable)).await;
                }
                Err(error) => {
                    let mut backoff = Backoff::default();
                    let wait = backoff.wait();
                    let pin = subscription.pin().map(str::to_owned);
                    let last = Last { pin, was_interrupted: true };
                    (News::Interrupted(error.to_string()), Self::Closed(backoff, wait, last))
                }
            },
            Self::Over => return None,
        })
    }
}
