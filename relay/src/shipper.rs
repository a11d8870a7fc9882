//! Ships pages: from the source to the sink, and says how far it has come.
//!
//! Whatever goes wrong is answered in one way: everything under way is dropped, and reading starts again
//! behind the last row that is known to be stored. The broker drops what it has already. After a failure of the
//! broker the first message is stored alone before others follow: see [`hold`].
//!
//! Between two pages the parked events have their turn: see [`parking`](crate::parking).

mod hold;
mod trial;
mod under_way;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sqlx::PgConnection;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::broker::Broker;
use crate::checkpoint::{self, Checkpoints};
use crate::config::{Order, RelayConfig};
use crate::cursor::Cursor;
use crate::dead_letters::Unnoted;
use crate::health::Observer;
use crate::interrupted::{Forgotten, Interrupted};
use crate::lease::{Lease, LeaseError};
use crate::message::Form;
use crate::parking::{Parking, say_dead};
use crate::reader::{self, Batch};
use crate::refused::Refused;
use crate::session::{Database, Patience};
use crate::sink::{FirstSends, KeyedWindow, SinkError, swallowed};
use crate::source::Source;

use self::hold::{Hold, NextStep};
use self::trial::{Trial, TrialOutcome};
use self::under_way::UnderWay;

/// Pages read ahead of the one that is being shipped.
const PAGES_AHEAD: usize = 2;
/// How long to wait for a further page before the open batches are ended.
const LINGER: Duration = Duration::from_millis(1);
/// How long to wait for pages with other messages, when one is needed that proves something.
const PROOF: Duration = Duration::from_millis(500);
pub(crate) struct Shipper {
    pub(crate) config: RelayConfig,
    pub(crate) database: Database,
    /// The first connection to read on; later ones are opened when they are needed.
    pub(crate) reading: Option<PgConnection>,
    pub(crate) patience: Patience,
    pub(crate) broker: Broker,
    /// Where the relay stands; whoever holds the other end saves it.
    pub(crate) progress: watch::Sender<Cursor>,
    pub(crate) lease: Arc<Lease>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) observer: Observer,
}

/// How shipping starts, by how it ended before.
#[derive(Default)]
struct Start {
    /// The last sink failed because a batch was refused.
    after_refusal: bool,
    /// The event that was not stored has been set aside.
    after_set_aside: bool,
}

impl Shipper {
    /// Ships until shutdown, and then waits for what is under way. Ends early only with the database.
    ///
    /// Dropping the future stops it at once; what was under way is shipped again from the saved cursor.
    pub(crate) async fn run(mut self) -> Result<(), LeaseError> {
        let (first_sends, suspects) = FirstSends::above(self.progress.borrow().high);
        self.broker.first_sends = Some(first_sends);
        let mut looking = JoinSet::new();
        let (relay, observer) = (self.config.name.clone(), self.observer.clone());
        looking.spawn(swallowed::look_at(suspects, self.broker.api(), relay, observer));
        let mut hold = Hold::new();
        let mut start = Start::default();
        let mut unnoted = Unnoted::default();
        loop {
            let mut trial = None;
            let shipping = self.ship(&start, &mut hold, &mut trial, &mut unnoted);
            let interrupted = match shipping.await {
                Ok(()) => return Ok(()),
                Err(interrupted) => interrupted,
            };
            start = Start::default();
            match interrupted {
                Interrupted::Lease(error) => return Err(error),
                Interrupted::Refused(refused) => {
                    self.set_aside(refused).await?;
                    hold.set_aside();
                    start.after_set_aside = true;
                    continue;
                }
                Interrupted::Forgotten(what) => match self.go_back(what).await {
                    Ok(events) => {
                        hold.goes_back(events);
                        // The stream may have lost these as well.
                        unnoted = Unnoted::default();
                    }
                    Err(Interrupted::Lease(error)) => return Err(error),
                    Err(_) => {}
                },
                Interrupted::Reconnected => self.observer.meter.rewound("reconnected"),
                Interrupted::Broker(error) => {
                    self.broker.forget_streams();
                    self.observer.meter.rewound(error.kind());
                    let refused = matches!(error, SinkError::BatchRefused(_));
                    start.after_refusal = refused || matches!(error, SinkError::BatchSilent(_));
                    if !refused {
                        say_held(&self.config.name, &self.observer, &mut hold, &error.to_string());
                    }
                    let step = hold.failed(&error);
                    if let Some(trial) = trial.filter(|trial| trial.is_of(error.position()))
                        && self.judge(&trial, step, &error, &mut hold).await?
                    {
                        start.after_set_aside = true;
                        start.after_refusal = true;
                        continue;
                    }
                }
            }
            tokio::select! {
                () = sleep(hold.wait()) => {}
                () = self.shutdown.cancelled() => return Ok(()),
            }
        }
    }

    /// Finds out whose fault it is that a message was not stored alone. `true` if shipping goes on without a pause:
    /// the message was set aside, or stored.
    async fn judge(
        &mut self,
        trial: &Trial,
        step: NextStep,
        error: &SinkError,
        hold: &mut Hold,
    ) -> Result<bool, LeaseError> {
        let SinkError::NotStored { refusal, error: said, .. } = error else {
            return Ok(false);
        };
        let outcome = match step {
            NextStep::Wait => return Ok(false),
            NextStep::Proven => TrialOutcome::Guilty(trial.refused(None, said)),
            NextStep::AskForProof => {
                let window = || KeyedWindow::new(self.broker.context(), self.broker.acknowledged());
                tokio::select! {
                    outcome = trial.prove(window, *refusal, said) => outcome,
                    () = self.shutdown.cancelled() => return Ok(false),
                }
            }
        };
        match outcome {
            TrialOutcome::Open => return Ok(false),
            TrialOutcome::Stored => {
                hold.stored(1);
                self.progress.send_replace(trial.after.clone());
            }
            TrialOutcome::Guilty(refused) => {
                if step == NextStep::AskForProof {
                    hold.proves(*refusal);
                }
                self.set_aside(Box::new((trial.after.clone(), refused))).await?;
                hold.set_aside();
            }
        }
        Ok(true)
    }

    async fn set_aside(&mut self, what: Box<(Cursor, Refused)>) -> Result<(), LeaseError> {
        let (cursor, refused) = *what;
        if self.lease.give_up(&cursor, refused.clone()).await? {
            say_dead(&self.config.name, &refused);
            self.observer.meter.dead_letter(refused.reason);
        }
        self.observer.moved();
        self.progress.send_replace(cursor);
        Ok(())
    }

    /// Goes back, and returns about how many events are shipped again.
    async fn go_back(&mut self, what: Forgotten) -> Result<u64, Interrupted> {
        let Forgotten { stream, how, .. } = &what;
        let relay = &self.config.name;
        tracing::error!(relay, stream, how, "the broker has lost what it had acknowledged");
        let now = self.progress.borrow().clone();
        let (api, acknowledged) = (self.broker.api(), self.broker.acknowledged());
        let (cursor, taken_at) =
            checkpoint::go_back(&api, &self.lease, &acknowledged, &what, &now).await?;
        let since = taken_at.as_deref().unwrap_or("the first event in the outbox");
        tracing::warn!(relay, since, from = now.high, to = cursor.high, "shipping again");
        let again = now.high.saturating_sub(cursor.high);
        self.observer.meter.broker_lost_data(again);
        // First this, so that nobody saves the old one after the new.
        self.progress.send_replace(cursor.clone());
        self.lease.go_back(&cursor, taken_at.as_deref()).await?;
        Ok(u64::try_from(again).unwrap_or(0))
    }

    /// Ships from where the relay stands, until shutdown or something happens.
    ///
    /// After a failure the first message goes alone; `trial` is then what is needed to judge it.
    async fn ship(
        &mut self,
        start: &Start,
        hold: &mut Hold,
        trial: &mut Option<Trial>,
        unnoted: &mut Unnoted,
    ) -> Result<(), Interrupted> {
        let connected = self.broker.connections();
        let mut checkpoints = Checkpoints::open(
            &self.config,
            &self.lease,
            self.broker.api(),
            self.broker.acknowledged(),
            self.observer.clone(),
        )
        .await?;
        let connection = match self.reading.take() {
            Some(connection) => connection,
            None => self.database.connect().await.map_err(sqlx::Error::from)?,
        };
        let (mut reader, mut batches) = self.open_reader(connection).await?;
        let mut parking = Parking::open(
            &self.config,
            &self.lease,
            self.broker.context(),
            self.broker.acknowledged(),
            self.observer.clone(),
            unnoted,
        )
        .await?;
        let mut under_way =
            UnderWay::new(&self.progress, self.observer.clone(), self.config.no_stream);
        let connections = self.broker.connections.clone();
        let (opened, mut looked) = (Instant::now(), start.after_set_aside);
        let (context, acknowledged) = (self.broker.context(), self.broker.acknowledged());
        let mut sink = self.broker.open_sink(start.after_refusal);
        let mut counted = 0;
        let mut ahead: VecDeque<Batch> = VecDeque::new();
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
                        if let Some(reason) = parking.trouble() {
                            say_held(&self.config.name, &self.observer, hold, reason);
                        }
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
            let received = match ahead.pop_front() {
                Some(batch) => Ok(Some(batch)),
                None => tokio::time::timeout(LINGER, batches.recv()).await,
            };
            let batch = match received {
                Ok(batch) => batch,
                Err(_) => {
                    let flushed = sink.flush().await;
                    if let Err(interrupted) = under_way.stored(flushed) {
                        break Err(interrupted);
                    }
                    // With nothing to ship, a while without a complaint has to do.
                    let well = under_way.has_stored() || looked;
                    if well && parking.trouble().is_none() && hold.is_over(opened.elapsed()) {
                        self.observer.resumed();
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
            let alone = hold.is_alone();
            if alone {
                *trial = Trial::of(&batch, self.config.order);
            }
            if let Some(trial) = trial.as_mut().filter(|_| alone) {
                let window = KeyedWindow::new(context.clone(), acknowledged.clone());
                let order = self.config.order;
                match prepare(trial, order, hold, &mut batches, &mut parking, &window).await {
                    Ok(next) => ahead.extend(next),
                    Err(interrupted) => break Err(interrupted),
                }
            }
            if let Err(interrupted) = under_way.ship(&mut *sink, batch, alone).await {
                break Err(interrupted);
            }
            hold.stored(under_way.stored - counted);
            counted = under_way.stored;
            if under_way.has_stored()
                && parking.trouble().is_none()
                && hold.is_over(opened.elapsed())
            {
                self.observer.resumed();
            }
        };
        *unnoted = parking.into_unnoted();
        hold.stored(under_way.stored.saturating_sub(counted) + under_way.parked);
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
        let largest = self.broker.context().client().max_payload();
        let from = Source::open(connection, schema, name, cursor, *page_rows, largest).await?;
        let (sender, batches) = mpsc::channel(PAGES_AHEAD);
        let mut reader = JoinSet::new();
        reader.spawn(reader::read(
            from,
            Form::of(&self.config),
            self.config.idle_interval(),
            sender,
            self.observer.clone(),
            self.patience.clone(),
        ));
        Ok((reader, batches))
    }
}

/// Gathers what a message that goes alone is judged by, before it goes: others that may prove something, and that a stream
/// takes it. Returns the pages behind it, if those were waited for.
async fn prepare(
    trial: &mut Trial,
    order: Order,
    hold: &Hold,
    batches: &mut mpsc::Receiver<Batch>,
    parking: &mut Parking,
    window: &KeyedWindow,
) -> Result<VecDeque<Batch>, Interrupted> {
    let mut ahead = VecDeque::new();
    if hold.needs_proof(trial.position()) {
        // What came later is in other pages. How many of them are in memory at a time is limited where they are read.
        let until = Instant::now() + PROOF;
        while trial.looks_further()
            && let Ok(Some(mut next)) = tokio::time::timeout_at(until, batches.recv()).await
        {
            parking.hold_back(&mut next).await?;
            trial.looks_among(&next.messages, order);
            ahead.push_back(next);
        }
    }
    if hold.asks_first(trial.position()) {
        trial.ask(window).await?;
    }
    Ok(ahead)
}

/// Tells the log and the state why messages are not stored.
fn say_held(relay: &str, observer: &Observer, hold: &mut Hold, reason: &str) {
    if hold.holds(reason) {
        tracing::warn!(relay, reason, "holding: events wait in the outbox");
    }
    observer.held(reason);
}
