//! The messages of a consumer's durables: each is opened, and opened again after each failure, by itself.

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

/// What it takes to open a durable. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Opener {
    pub(crate) client: async_nats::Client,
    pub(crate) jetstream: jetstream::Context,
    pub(crate) config: Arc<ConsumerConfig>,
    pub(crate) reporter: Reporter,
    pub(crate) reader: Reader,
    store: Store,
    unreadable: Unreadable,
    said: Arc<Said>,
}

/// What the log has been told.
#[derive(Debug, Default)]
struct Said {
    endless: AtomicBool,
    /// Whether a durable was read already. From then on nothing that others change ends the consumer.
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
    ) -> Self {
        let unreadable =
            Unreadable::new(jetstream.clone(), store.clone(), config.clone(), reporter.clone());
        Self {
            client,
            jetstream,
            config,
            reporter,
            reader,
            store,
            unreadable,
            said: Arc::default(),
        }
    }

    /// The stream, whose settings fit the consumer's. Asked first: before it has answered, the server's version is
    /// not known.
    async fn stream(&self) -> Result<JetStream, NotNow> {
        let stream = durable::stream(&self.jetstream, &self.config).await?;
        self.check_retention(&stream)?;
        Ok(stream)
    }

    /// Sees to it that the consumer's durables are there.
    async fn prepare(&self) -> Result<(), NotNow> {
        let stream = self.stream().await?;
        prepare(&stream, &self.config, &self.store, self.pinned()).await
    }

    /// As [`prepare`](Self::prepare), and checks all of them.
    pub(crate) async fn prepare_and_check(&self) -> Result<(), NotNow> {
        self.prepare().await?;
        let stream = self.stream().await?;
        for durable in Durable::all(&self.config) {
            durable.find(&stream, &self.config, self.pinned()).await?;
        }
        Ok(())
    }

    /// `pin`: what this process was pinned as in its last subscription.
    async fn open(
        &self,
        durable: &Durable,
        pin: Option<&str>,
    ) -> Result<Box<Subscription>, NotNow> {
        let stream = self.stream().await?;
        let (pinned, ordered) = (self.pinned(), self.ordered());
        if !durable.exists(&stream).await? {
            prepare(&stream, &self.config, &self.store, pinned).await?;
        }
        let info = durable.find(&stream, &self.config, pinned).await?;
        let found = self.unreadable.look(durable, &info).await;
        let found = found.map_err(NotNow::Later)?;
        let active = active_pin(&info);
        // With care it goes on under its pin.
        let careful = !found.is_empty();
        if !(careful && active.as_deref() == pin)
            && active.is_some()
            && (durable.partition.is_some() || active.as_deref() == pin)
        {
            // It is this process's to read: whoever was pinned for a partition has died, or does not know yet; and the
            // server would wait for this process's last subscription.
            let unpinned = stream.unpin_consumer(&durable.name, durable::GROUP).await;
            unpinned.map_err(|error| NotNow::Later(full_text(&error)))?;
        }
        let reading = self.reader.context().await;
        let consumer = reading.get_consumer_from_stream(&durable.name, &self.config.stream).await;
        let consumer = consumer.map_err(|error| NotNow::Later(full_text(&error)))?;
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

    /// An event must not come again after it is forgotten that it was handled.
    fn check_retention(&self, stream: &JetStream) -> Result<(), NotNow> {
        let config = &stream.cached_info().config;
        if config.max_age > self.config.retention() {
            return Err(NotNow::Never(ConsumerError::Retention {
                name: self.config.name.clone(),
                retention_s: self.config.retention_s,
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
                retention_s = self.config.retention_s,
                "the stream has no limit of age (max_age), but the inbox forgets handled events after retention_s; if \
                 the durable consumer is ever deleted, this consumer will refuse to read the stream from the \
                 beginning, because it may have handled and forgotten messages there (after_loss); give the stream a \
                 max_age, or replay it under another consumer name"
            );
        }
        Ok(())
    }

    /// Whether it has read already: then what is wrong is waited out.
    fn has_begun(&self) -> bool {
        self.said.begun.load(Ordering::Relaxed)
    }

    pub(crate) fn pinned(&self) -> bool {
        self.config.order.keeps_keys() && self.client.is_server_compatible(2, 11, 0)
    }

    fn ordered(&self) -> bool {
        self.config.order.keeps_keys() && self.client.is_server_compatible(2, 14, 0)
    }

    /// Lets another process be active in these durables at once, rather than when the pin has expired.
    pub(crate) async fn unpin(&self, durables: impl IntoIterator<Item = Durable>) {
        // Without a connection nobody hears of it, and a stop would wait in vain.
        if !self.pinned() || self.client.connection_state() != State::Connected {
            return;
        }
        let unpin = async {
            // A subscription that was dropped is gone first.
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

/// What comes of a durable.
enum News {
    /// It can be read.
    Opened,
    Arrived(Box<Arrival>),
    /// It cannot be read for now, and why. It is tried again.
    Away(String),
    /// It was read, and is so no more, and why. It is tried again.
    Interrupted(String),
    Never(ConsumerError),
}

type Feed = BoxStream<'static, News>;

/// What a step of all feeds was.
pub(crate) enum Fed {
    Arrived(Option<Partition>, Box<Arrival>),
    /// The messages of a durable were interrupted: what it delivered before may be of an earlier life of the stream.
    Interrupted(Option<Partition>),
    /// What was wanted of the broker before anything is read is done.
    Prepared,
}

/// The durables that are read.
pub(crate) struct Feeds {
    opener: Opener,
    feeds: Vec<(Of, Feed)>,
    /// Where to look first.
    turn: usize,
    /// Why some cannot be read.
    away: BTreeMap<Of, String>,
    trouble: Option<String>,
}

/// Whose a feed is. The order is that of importance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Of {
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

    /// Sees to it that the durables are there, until [`Fed::Prepared`].
    pub(crate) fn prepare(&mut self) {
        let opener = self.opener.clone();
        let feed = unfold(Some((Backoff::default(), Duration::ZERO)), move |at| {
            let opener = opener.clone();
            async move {
                let (mut backoff, wait) = at?;
                sleep(wait).await;
                Some(match opener.prepare().await {
                    Ok(()) => (News::Opened, None),
                    Err(NotNow::Never(error)) if !opener.has_begun() => (News::Never(error), None),
                    Err(NotNow::Never(error)) => {
                        let wait = backoff.wait();
                        (News::Away(full_text(&error)), Some((backoff, wait)))
                    }
                    Err(NotNow::Later(reason)) => {
                        let wait = backoff.wait();
                        (News::Away(reason), Some((backoff, wait)))
                    }
                })
            }
        });
        self.add(Of::Preparation, feed);
    }

    /// Reads a durable from now on.
    pub(crate) fn start(&mut self, durable: Durable) {
        let of = Of::Durable(durable.partition);
        let (opener, durable) = (self.opener.clone(), Arc::new(durable));
        let feed = unfold(At::Closed(Backoff::default(), Duration::ZERO, None), move |at| {
            let (opener, durable) = (opener.clone(), durable.clone());
            async move { at.next(&opener, &durable).await }
        });
        self.add(of, feed);
    }

    fn add(&mut self, of: Of, feed: impl Stream<Item = News> + Send + 'static) {
        self.remove(of);
        self.feeds.push((of, feed.fuse().boxed()));
    }

    /// Reads a partition no more.
    pub(crate) fn stop(&mut self, partition: Partition) {
        self.remove(Of::Durable(Some(partition)));
        self.well_again(Of::Durable(Some(partition)));
    }

    fn remove(&mut self, of: Of) {
        self.feeds.retain(|(known, _)| *known != of);
    }

    /// Processes that run with another number of partitions are waited for, or no more.
    pub(crate) fn others(&mut self, reason: Option<String>) {
        match reason {
            Some(reason) => {
                self.remove(Of::Preparation);
                self.well_again(Of::Preparation);
                self.in_trouble(Of::Others, reason);
            }
            None => self.well_again(Of::Others),
        }
    }

    /// The database does not say which partitions are to be read, and why; or it does again.
    pub(crate) fn database(&mut self, reason: Option<&str>) {
        match reason {
            Some(error) => {
                self.in_trouble(
                    Of::Database,
                    format!(
                        "the database does not say which partitions this process may \
                read: {error}"
                    ),
                );
            }
            None => self.well_again(Of::Database),
        }
    }

    /// Whether the broker is reached.
    pub(crate) fn broker(&mut self, reached: bool) {
        match reached {
            true => self.well_again(Of::Broker),
            false => self.in_trouble(
                Of::Broker,
                "this process has no connection to the broker, and leaves its partitions to other processes".into(),
            ),
        }
    }

    /// The next message of any. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Result<Fed, ConsumerError> {
        loop {
            let (of, news) = std::future::poll_fn(|cx| self.poll(cx)).await;
            match news {
                News::Arrived(arrival) => {
                    let partition = match of {
                        Of::Durable(partition) => partition,
                        _ => None,
                    };
                    return Ok(Fed::Arrived(partition, arrival));
                }
                News::Opened => {
                    self.well_again(of);
                    if self.away.is_empty() {
                        self.connected();
                    }
                    if of == Of::Preparation {
                        self.remove(of);
                        return Ok(Fed::Prepared);
                    }
                }
                News::Away(reason) => self.in_trouble(of, reason),
                News::Interrupted(reason) => {
                    self.in_trouble(of, reason);
                    if let Of::Durable(partition) = of {
                        return Ok(Fed::Interrupted(partition));
                    }
                }
                News::Never(error) => return Err(error),
            }
        }
    }

    /// Each in its turn, so that none is left out.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<(Of, News)> {
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

    fn in_trouble(&mut self, of: Of, reason: String) {
        self.away.insert(of, reason);
        self.report();
    }

    fn well_again(&mut self, of: Of) {
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
                        Some(Of::Database) => "the database",
                        Some(Of::Others) => "other processes",
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

    /// Without partitions the subscription says it, which knows who is active.
    fn connected(&self) {
        if self.opener.config.several().is_some() {
            self.opener.reporter.connected(false, None);
        }
    }
}

/// Where a durable's feed is.
enum At {
    Closed(Backoff, Duration, Option<String>),
    Open(Box<Subscription>),
    Over,
}

impl At {
    async fn next(self, opener: &Opener, durable: &Durable) -> Option<(News, Self)> {
        Some(match self {
            Self::Closed(mut backoff, wait, pin) => {
                sleep(wait).await;
                match opener.open(durable, pin.as_deref()).await {
                    Ok(subscription) => (News::Opened, Self::Open(subscription)),
                    Err(NotNow::Later(reason)) => {
                        let wait = backoff.wait();
                        (News::Away(reason), Self::Closed(backoff, wait, pin))
                    }
                    Err(NotNow::Never(error)) if !opener.has_begun() => {
                        (News::Never(error), Self::Over)
                    }
                    Err(NotNow::Never(error)) => {
                        let wait = backoff.wait();
                        (News::Away(full_text(&error)), Self::Closed(backoff, wait, pin))
                    }
                }
            }
            Self::Open(mut subscription) => match subscription.next().await {
                Ok(arrival) => (News::Arrived(Box::new(arrival)), Self::Open(subscription)),
                Err(error) if error.at_once => {
                    let pin = subscription.pin().map(str::to_owned);
                    drop(subscription);
                    let closed = Self::Closed(Backoff::default(), Duration::ZERO, pin);
                    return Box::pin(closed.next(opener, durable)).await;
                }
                Err(error) => {
                    let mut backoff = Backoff::default();
                    let wait = backoff.wait();
                    let pin = subscription.pin().map(str::to_owned);
                    (News::Interrupted(error.to_string()), Self::Closed(backoff, wait, pin))
                }
            },
            Self::Over => return None,
        })
    }
}
