//! Ships pages: from the source to the sink, and says how far it has come.
//!
//! Whatever goes wrong is answered in one way: everything under way is dropped, and reading starts again
//! behind the last row that is known to be stored. The broker drops what it has already.
//!
//! Between two pages the parked events have their turn: see [`parking`](crate::parking).

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sqlx::{ConnectOptions, PgConnection};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::broker::Broker;
use crate::checkpoint::{self, Checkpoints, Forgotten};
use crate::config::{NoStream, RelayConfig};
use crate::cursor::Cursor;
use crate::health::Observer;
use crate::lease::LeaseError;
use crate::letters::{Letters, Request};
use crate::message::Form;
use crate::parking::{Parking, say_dead};
use crate::reader::{self, Batch, Refused};
use crate::sabotage::Protections;
use crate::sink::{Sink, SinkError, SinkFailure};
use crate::source::Source;

/// Pages read ahead of the one that is being shipped.
const PAGES_AHEAD: usize = 2;
/// How long to wait for a further page before the open batches are ended.
const LINGER: Duration = Duration::from_millis(1);
/// After an outage, this long without an event to ship and without a complaint of the broker ends it.
const QUIET: Duration = Duration::from_secs(1);

pub(crate) struct Shipper {
    pub(crate) config: RelayConfig,
    pub(crate) database: sqlx::postgres::PgConnectOptions,
    pub(crate) broker: Broker,
    /// Where the relay stands; whoever holds the other end saves it.
    pub(crate) progress: watch::Sender<Cursor>,
    pub(crate) letters: Letters,
    pub(crate) shutdown: CancellationToken,
    pub(crate) observer: Observer,
    pub(crate) protections: Protections,
}

pub(crate) enum Interrupted {
    /// The database failed, or the leader has ended.
    Lease(LeaseError),
    Broker(SinkError),
    Refused(Box<(Cursor, Refused)>),
    /// A stream has forgotten what it had acknowledged.
    Forgotten(Forgotten),
    /// There is a new connection to the broker; who knows what it holds.
    Reconnected,
}

impl From<sqlx::Error> for Interrupted {
    fn from(error: sqlx::Error) -> Self {
        Self::Lease(error.into())
    }
}

impl From<LeaseError> for Interrupted {
    fn from(error: LeaseError) -> Self {
        Self::Lease(error)
    }
}

impl Shipper {
    /// Ships until shutdown, and then waits for what is under way. Ends early only with the database.
    ///
    /// Dropping the future stops it at once; what was under way is shipped again from the saved cursor.
    pub(crate) async fn run(mut self) -> Result<(), LeaseError> {
        let mut backoff = Backoff::new();
        let mut held: Option<String> = None;
        let mut after_refusal = false;
        loop {
            let before = self.progress.borrow().clone();
            let interrupted = match self.ship(after_refusal, &mut held).await {
                Ok(()) => return Ok(()),
                Err(interrupted) => interrupted,
            };
            if *self.progress.borrow() != before {
                backoff = Backoff::new();
            }
            match interrupted {
                Interrupted::Lease(error) => return Err(error),
                Interrupted::Refused(refused) => {
                    self.set_aside(refused).await?;
                    // If it was what the broker was held for, nothing may come that tells.
                    self.observer.resumed(&mut held);
                }
                Interrupted::Forgotten(what) => {
                    if let Err(Interrupted::Lease(error)) = self.go_back(what).await {
                        return Err(error);
                    }
                }
                Interrupted::Reconnected => self.observer.meter.rewound("reconnected"),
                Interrupted::Broker(error) => {
                    self.broker.forget_streams();
                    after_refusal = matches!(error, SinkError::BatchRefused(_));
                    self.observer.meter.rewound(error.kind());
                    let reason = error.to_string();
                    if !after_refusal && held.as_ref() != Some(&reason) {
                        tracing::warn!(
                            relay = self.config.name,
                            reason,
                            "holding: events wait in the outbox"
                        );
                        self.observer.held(&reason);
                        held = Some(reason);
                    }
                    tokio::select! {
                        () = tokio::time::sleep(backoff.wait()) => {}
                        () = self.shutdown.cancelled() => return Ok(()),
                    }
                }
            }
        }
    }

    async fn set_aside(&mut self, what: Box<(Cursor, Refused)>) -> Result<(), LeaseError> {
        let (cursor, refused) = &*what;
        say_dead(&self.config.name, refused);
        self.observer.meter.dead_letter(refused.fault);
        let cursor = cursor.clone();
        self.letters.ask(|done| Request::SetAside(what, done)).await?;
        self.progress.send_replace(cursor);
        Ok(())
    }

    async fn go_back(&mut self, what: Forgotten) -> Result<(), Interrupted> {
        let Forgotten { stream, how } = what;
        let relay = &self.config.name;
        tracing::error!(relay, stream, how, "the broker has lost what it had acknowledged");
        let now = self.progress.borrow().clone();
        let (context, acknowledged) = (self.broker.context(), self.broker.acknowledged());
        let (cursor, taken_at) =
            checkpoint::go_back(&context, &self.letters, &acknowledged, &now).await?;
        let since = taken_at.as_deref().unwrap_or("the first event in the outbox");
        tracing::warn!(relay, since, from = now.high, to = cursor.high, "shipping again");
        self.observer.meter.broker_lost_data(now.high.saturating_sub(cursor.high));
        // First this, so that nobody saves the old one after the new.
        self.progress.send_replace(cursor.clone());
        self.letters.ask(|done| Request::GoBack(Box::new((cursor, taken_at)), done)).await?;
        Ok(())
    }

    /// Ships from where the relay stands, until shutdown or something happens.
    async fn ship(
        &mut self,
        after_refusal: bool,
        held: &mut Option<String>,
    ) -> Result<(), Interrupted> {
        let connected = self.broker.connections();
        let mut checkpoints = Checkpoints::open(
            &self.config,
            &self.letters,
            self.broker.context(),
            self.broker.acknowledged(),
        )
        .await?;
        let connection = self.database.connect().await?;
        let (mut reader, mut batches) = self.open_reader(connection).await?;
        let mut parking = Parking::open(
            &self.config,
            &self.letters,
            self.broker.context(),
            self.broker.acknowledged(),
        )
        .await?;
        let mut under_way =
            UnderWay::new(&self.progress, self.observer.clone(), self.config.no_stream);
        let connections = self.broker.connections.clone();
        let (opened, mut looked) = (Instant::now(), false);
        let mut sink = self.broker.open_sink(after_refusal);
        let outcome = loop {
            if parking.is_due() {
                let outcome = match under_way.stored(sink.flush().await) {
                    Ok(()) => parking.ship().await,
                    Err(interrupted) => Err(interrupted),
                };
                match outcome {
                    Ok(parked) => {
                        self.observer.meter.shipped(parked);
                        under_way.parked += parked;
                    }
                    Err(interrupted) => break Err(interrupted),
                }
            }
            if checkpoints.is_due() {
                let reached = self.progress.borrow().clone();
                if let Err(interrupted) = checkpoints.take(&reached).await {
                    break Err(interrupted);
                }
                self.observer.meter.checkpoint();
                looked = true;
            }
            let batch = match tokio::time::timeout(LINGER, batches.recv()).await {
                Ok(batch) => batch,
                Err(_) => {
                    let flushed = sink.flush().await;
                    if let Err(interrupted) = under_way.stored(flushed) {
                        break Err(interrupted);
                    }
                    // With nothing to ship, a while without a complaint has to do.
                    let quiet = looked && opened.elapsed() >= QUIET;
                    if under_way.has_stored() || quiet {
                        self.observer.resumed(held);
                    }
                    tokio::select! {
                        batch = batches.recv() => batch,
                        () = sleep_until(parking.due_at()) => continue,
                        () = sleep_until(checkpoints.due_at()) => continue,
                        () = self.shutdown.cancelled() => break Ok(()),
                    }
                }
            };
            if self.shutdown.is_cancelled() {
                break under_way.stored(sink.flush().await);
            }
            let Some(mut batch) = batch else {
                break Ok(());
            };
            if connections.load(Ordering::Relaxed) != connected {
                break Err(Interrupted::Reconnected);
            }
            if let Err(error) = parking.hold_back(&mut batch).await {
                break Err(error.into());
            }
            if let Err(interrupted) = under_way.ship(&mut *sink, batch).await {
                break Err(interrupted);
            }
            if under_way.has_stored() {
                self.observer.resumed(held);
            }
        };
        if outcome.is_err() {
            self.observer.meter.given_up(under_way.count.saturating_sub(under_way.stored));
        }
        drop(sink);
        drop(batches);
        match outcome {
            Ok(()) if self.shutdown.is_cancelled() => Ok(()),
            // The reader ended first; it says why.
            Ok(()) => match reader.join_next().await {
                Some(Ok(Err(error))) => Err(error.into()),
                _ => Err(sqlx::Error::WorkerCrashed.into()),
            },
            Err(interrupted) => Err(interrupted),
        }
    }

    async fn open_reader(
        &self,
        connection: PgConnection,
    ) -> Result<(JoinSet<Result<(), sqlx::Error>>, mpsc::Receiver<Batch>), sqlx::Error> {
        let cursor = self.progress.borrow().clone();
        let RelayConfig { schema, name, page_rows, .. } = &self.config;
        let from = Source::open(connection, schema, name, cursor, *page_rows).await?;
        let from = from.under(self.protections);
        let (sender, batches) = mpsc::channel(PAGES_AHEAD);
        let mut reader = JoinSet::new();
        reader.spawn(reader::read(
            from,
            Form::of(&self.config),
            self.config.idle_interval(),
            sender,
            self.observer.clone(),
        ));
        Ok((reader, batches))
    }
}

/// The pages given to the sink and not yet known to be stored.
struct UnderWay<'p> {
    progress: &'p watch::Sender<Cursor>,
    observer: Observer,
    pages: VecDeque<Given>,
    /// Messages given to the sink so far.
    count: u64,
    /// Messages known to be stored.
    stored: u64,
    /// Parked messages shipped in between.
    parked: u64,
    no_stream: NoStream,
}

struct Given {
    batch: Batch,
    /// Where the relay stands when the page is stored: not behind a row that cannot be sent, nor behind what follows
    /// it.
    after: Option<Cursor>,
    /// Messages given before this page.
    first: u64,
    given: Instant,
}

impl<'p> UnderWay<'p> {
    fn new(progress: &'p watch::Sender<Cursor>, observer: Observer, no_stream: NoStream) -> Self {
        Self {
            progress,
            observer,
            pages: VecDeque::new(),
            count: 0,
            stored: 0,
            parked: 0,
            no_stream,
        }
    }

    async fn ship(&mut self, sink: &mut dyn Sink, mut batch: Batch) -> Result<(), Interrupted> {
        let messages = std::mem::take(&mut batch.messages);
        let first = self.count;
        self.count += messages.len() as u64;
        let after = batch.after();
        let refused =
            batch.refused.take().map(|refused| (batch.cursor_at(refused.position), refused));
        if refused.is_none() || !messages.is_empty() {
            self.pages.push_back(Given { batch, after, first, given: Instant::now() });
        }
        self.stored(sink.store(messages).await)?;
        if let Some((cursor, refused)) = refused {
            self.stored(sink.flush().await)?;
            return Err(Interrupted::Refused(Box::new((cursor, refused))));
        }
        Ok(())
    }

    fn has_stored(&self) -> bool {
        self.stored + self.parked > 0
    }

    /// Takes note of what is stored, and of why no more is.
    fn stored(&mut self, result: Result<u64, SinkFailure>) -> Result<(), Interrupted> {
        let (stored, error) = match result {
            Ok(stored) => (stored, None),
            Err(failure) => (failure.stored, Some(failure.error)),
        };
        self.observer.meter.shipped(stored.saturating_sub(self.stored));
        self.stored = stored;
        let mut reached = None;
        while let Some(page) = self.pages.front() {
            if page.first + page.batch.positions.len() as u64 > stored {
                break;
            }
            reached = page.after.clone().or(reached);
            if !page.batch.positions.is_empty() {
                self.observer.page_stored(&page.batch.created, page.given);
            }
            self.pages.pop_front();
        }
        let Some(error) = error else {
            if let Some(cursor) = reached {
                self.progress.send_replace(cursor);
            }
            return Ok(());
        };
        // Part of a page counts only when it matters: here, where reading starts again.
        let mut behind = None;
        if let Some(page) = self.pages.front() {
            let part = usize::try_from(stored.saturating_sub(page.first)).unwrap_or(usize::MAX);
            if let Some(position) =
                part.checked_sub(1).and_then(|last| page.batch.positions.get(last))
            {
                reached = Some(page.batch.cursor_at(*position));
            }
            behind = error.refused(self.no_stream).map(|refused| {
                let cursor = page.batch.cursor_at(refused.position);
                Box::new((cursor, refused))
            });
        }
        if let Some(cursor) = reached {
            self.progress.send_replace(cursor);
        }
        Err(behind.map_or(Interrupted::Broker(error), Interrupted::Refused))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures::future::{BoxFuture, ready};
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;
    use crate::message::{Form, Message, Row};
    use crate::source::Page;

    /// Has stored what it is given at once.
    struct AtOnce(u64);

    impl Sink for AtOnce {
        fn store(&mut self, messages: Vec<Message>) -> BoxFuture<'_, Result<u64, SinkFailure>> {
            self.0 += messages.len() as u64;
            self.flush()
        }

        fn flush(&mut self) -> BoxFuture<'_, Result<u64, SinkFailure>> {
            Box::pin(ready(Ok(self.0)))
        }
    }

    fn row(position: i64, topic: &str) -> Row {
        Row {
            position,
            event_id: Uuid::now_v7(),
            event_type: "t".into(),
            topic: topic.into(),
            key: None,
            headers: None,
            payload: Bytes::new(),
            created_at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[tokio::test]
    async fn the_cursor_stays_behind_a_row_that_cannot_be_sent_until_that_is_set_aside() {
        let rows = vec![row(1, "a"), row(2, "no topic"), row(3, "a")];
        let page = Page::only("10:10:".parse().unwrap(), rows);
        let batch = reader::batch(page, &Form::new("/shop".into(), 1));
        let (progress, reached) = watch::channel(Cursor::start("x"));
        let observer = Observer::new("default", "shop");
        let mut under_way = UnderWay::new(&progress, observer, NoStream::Hold);
        let shipped = under_way.ship(&mut AtOnce(0), batch).await;
        let Err(Interrupted::Refused(refused)) = shipped else { panic!("it was not refused") };
        let position = |cursor: &Cursor| cursor.window.as_ref().map(|window| window.position);
        assert_eq!(refused.1.position, 2);
        assert_eq!(position(&refused.0), Some(2), "behind it once it is set aside");
        assert_eq!(position(&reached.borrow()), Some(1), "and before that, in front of it");
    }
}
