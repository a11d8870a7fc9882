//! One stretch of shipping: from a new read behind the cursor to the first thing that interrupts it.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::jetstream::Context;
use sqlx::PgConnection;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::acknowledged::Acknowledged;
use crate::checkpoint::Checkpoints;
use crate::config::RelayConfig;
use crate::cursor::Cursor;
use crate::dead_letters::Unnoted;
use crate::health::Observer;
use crate::interrupted::Interrupted;
use crate::message::Form;
use crate::parking::Parking;
use crate::reader::{self, MessagePage};
use crate::sink::{KeyedWindow, Sink, connection};
use crate::source::Source;

use super::hold::Hold;
use super::trial::Trial;
use super::under_way::UnderWay;
use super::{Shipper, Start, say_held};

/// How many pages are read ahead of the one that is being shipped.
const PAGES_AHEAD: usize = 2;
/// How long to wait for another page before the open batches are ended.
const LINGER: Duration = Duration::from_millis(1);
/// How long to wait for pages with other messages when a message is about to be judged.
const PROOF: Duration = Duration::from_millis(500);

/// A reader of the outbox, a sink, and everything between them.
pub(super) struct Stretch<'s> {
    config: &'s RelayConfig,
    observer: &'s Observer,
    progress: &'s watch::Sender<Cursor>,
    shutdown: &'s CancellationToken,
    context: Context,
    acknowledged: Acknowledged,
    /// The number of the connection to the broker when the stretch began.
    connected: u64,
    reader: JoinSet<Result<(), sqlx::Error>>,
    batches: mpsc::Receiver<MessagePage>,
    /// Pages that were read while a trial looked for proof. They come before `batches`.
    ahead: VecDeque<MessagePage>,
    checkpoints: Checkpoints,
    parking: Parking,
    sink: Box<dyn Sink + 's>,
    under_way: UnderWay<'s>,
    /// How many stored messages `Hold` has been told of.
    told: u64,
    trial: Option<Trial>,
    opened: Instant,
    /// Whether something shows that the broker works, although nothing may have been stored yet.
    looked: bool,
}

/// What the stretch does next.
// A page is moved once, from `next` to `run`.
#[allow(clippy::large_enum_variant)]
enum Next {
    /// Ship this page. `None`: the reader ended.
    Read(Option<MessagePage>),
    /// Ship parked events or take a checkpoint: one of them is due.
    Due,
    /// Stop. Everything that was given to the sink is stored.
    Stop,
}

impl<'s> Stretch<'s> {
    /// Opens everything that shipping needs, and checks first that the streams still hold what they acknowledged.
    pub(super) async fn open(
        shipper: &'s mut Shipper,
        start: &Start,
        unnoted: &mut Unnoted,
    ) -> Result<Self, Interrupted> {
        let (context, acknowledged) = (shipper.broker.context(), shipper.broker.acknowledged());
        let connected = connection(&context);
        let checkpoints = Checkpoints::open(
            &shipper.config,
            &shipper.lease,
            shipper.broker.api(),
            acknowledged.clone(),
            shipper.observer.clone(),
        )
        .await?;
        let connection = match shipper.reading.take() {
            Some(connection) => connection,
            None => shipper.database.connect().await.map_err(sqlx::Error::from)?,
        };
        let (reader, batches) = open_reader(shipper, connection).await?;
        let parking = Parking::open(
            &shipper.config,
            &shipper.lease,
            context.clone(),
            acknowledged.clone(),
            shipper.observer.clone(),
            unnoted,
        )
        .await?;
        let Shipper { config, observer, progress, shutdown, broker, .. } = shipper;
        let under_way = UnderWay::new(progress, observer.clone(), config.no_stream);
        Ok(Self {
            config,
            observer,
            progress,
            shutdown,
            context,
            acknowledged,
            connected,
            reader,
            batches,
            ahead: VecDeque::new(),
            checkpoints,
            parking,
            sink: broker.open_sink(start.after_refusal),
            under_way,
            told: 0,
            trial: None,
            opened: Instant::now(),
            looked: start.after_set_aside,
        })
    }

    /// Ships until shutdown, until the reader ends, or until something interrupts it.
    pub(super) async fn run(&mut self, hold: &mut Hold) -> Result<(), Interrupted> {
        loop {
            if self.parking.is_due() {
                self.ship_parked(hold).await?;
            }
            if self.checkpoints.is_due() {
                self.take_checkpoint().await?;
            }
            let batch = match self.next(hold).await? {
                Next::Read(batch) => batch,
                Next::Due => continue,
                Next::Stop => return Ok(()),
            };
            if self.shutdown.is_cancelled() {
                return self.flush().await;
            }
            let Some(batch) = batch else {
                return Ok(());
            };
            if connection(&self.context) != self.connected {
                return Err(Interrupted::Reconnected);
            }
            self.ship(batch, hold).await?;
        }
    }

    /// Tells `hold` what was stored, hands over what outlives the stretch, and returns what came of it.
    pub(super) async fn end(
        self,
        outcome: Result<(), Interrupted>,
        hold: &mut Hold,
        trial: &mut Option<Trial>,
        unnoted: &mut Unnoted,
    ) -> Result<(), Interrupted> {
        let Self { under_way, told, mut reader, batches, .. } = self;
        *trial = self.trial;
        *unnoted = self.parking.into_unnoted();
        hold.stored(under_way.stored.saturating_sub(told) + under_way.parked);
        if outcome.is_err() {
            self.observer.meter.given_up(under_way.count.saturating_sub(under_way.stored));
        }
        drop(self.sink);
        drop(batches);
        outcome?;
        if self.shutdown.is_cancelled() {
            return Ok(());
        }
        // The reader ended first, and says why.
        match reader.join_next().await {
            Some(Ok(Err(error))) => Err(error.into()),
            _ => Err(sqlx::Error::WorkerCrashed.into()),
        }
    }

    async fn flush(&mut self) -> Result<(), Interrupted> {
        self.under_way.stored(self.sink.flush().await)
    }

    /// Ships the parked events that are due, once everything before them is stored.
    async fn ship_parked(&mut self, hold: &mut Hold) -> Result<(), Interrupted> {
        self.flush().await?;
        let reached = self.progress.borrow().clone();
        let parked = self.parking.ship(&reached).await?;
        self.observer.meter.shipped(parked);
        self.under_way.parked += parked;
        if let Some(reason) = self.parking.trouble() {
            // A leader that fails in each session would log this in each. It logs it once the trouble is over.
            if self.observer.in_trouble() {
                hold.holds_unreported();
                self.observer.held(reason);
            } else {
                say_held(&self.config.name, self.observer, hold, reason);
            }
        }
        Ok(())
    }

    async fn take_checkpoint(&mut self) -> Result<(), Interrupted> {
        let reached = self.progress.borrow().clone();
        self.checkpoints.take(&reached).await?;
        self.observer.meter.checkpoint();
        self.looked = true;
        Ok(())
    }

    /// The next page. If none comes within [`LINGER`], everything that is under way is stored first.
    async fn next(&mut self, hold: &mut Hold) -> Result<Next, Interrupted> {
        if let Some(batch) = self.ahead.pop_front() {
            return Ok(Next::Read(Some(batch)));
        }
        if let Ok(batch) = timeout(LINGER, self.batches.recv()).await {
            return Ok(Next::Read(batch));
        }
        self.flush().await?;
        // With nothing to ship, a while without a complaint has to do.
        if self.under_way.has_stored() || self.looked {
            self.say_resumed(hold);
        }
        tokio::select! {
            batch = self.batches.recv() => Ok(Next::Read(batch)),
            () = sleep_until(self.parking.due_at()) => Ok(Next::Due),
            () = sleep_until(self.checkpoints.due_at()) => Ok(Next::Due),
            () = self.shutdown.cancelled() => Ok(Next::Stop),
        }
    }

    /// Gives a page to the sink, without what must be set aside. After a failure its first message goes alone.
    async fn ship(&mut self, mut batch: MessagePage, hold: &mut Hold) -> Result<(), Interrupted> {
        self.parking.hold_back(&mut batch).await?;
        let alone = hold.is_alone();
        if alone {
            self.trial = Trial::of(&batch, self.config.order);
            self.prepare(hold).await?;
        }
        self.under_way.ship(&mut *self.sink, batch, alone).await?;
        hold.stored(self.under_way.stored - self.told);
        self.told = self.under_way.stored;
        if self.under_way.has_stored() {
            self.say_resumed(hold);
        }
        Ok(())
    }

    /// Gathers what the message that goes alone is judged by, before it is sent: other messages that may prove
    /// something, and that a stream takes it.
    async fn prepare(&mut self, hold: &Hold) -> Result<(), Interrupted> {
        let Some(trial) = &mut self.trial else {
            return Ok(());
        };
        if hold.needs_proof(trial.position()) {
            // Later messages are in other pages. The reader limits how many pages are in memory at a time.
            let until = Instant::now() + PROOF;
            while trial.looks_further()
                && let Ok(Some(mut next)) = timeout_at(until, self.batches.recv()).await
            {
                self.parking.hold_back(&mut next).await?;
                trial.looks_among(&next.messages, self.config.order);
                self.ahead.push_back(next);
            }
        }
        if hold.asks_first(trial.position()) {
            let window = KeyedWindow::new(self.context.clone(), self.acknowledged.clone());
            trial.ask(&window).await?;
        }
        Ok(())
    }

    /// Reports the end of an outage, if messages have been stored for long enough.
    fn say_resumed(&self, hold: &mut Hold) {
        if self.parking.trouble().is_none() && hold.is_over(self.opened.elapsed()) {
            self.observer.resumed();
        }
    }
}

/// Starts to read where the relay stands.
async fn open_reader(
    shipper: &Shipper,
    connection: PgConnection,
) -> Result<(JoinSet<Result<(), sqlx::Error>>, mpsc::Receiver<MessagePage>), sqlx::Error> {
    let cursor = shipper.progress.borrow().clone();
    let RelayConfig { schema, name, page_rows, .. } = &shipper.config;
    let largest = shipper.broker.context().client().max_payload();
    let from = Source::open(connection, schema, name, cursor, *page_rows, largest).await?;
    let (sender, batches) = mpsc::channel(PAGES_AHEAD);
    let mut reader = JoinSet::new();
    reader.spawn(reader::read(
        from,
        Form::of(&shipper.config),
        shipper.config.idle_interval,
        sender,
        shipper.observer.clone(),
        shipper.patience.clone(),
        shipper.released.clone(),
    ));
    Ok((reader, batches))
}
