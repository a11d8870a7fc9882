//! Drives the [`Scheduler`]: waits for what happens, tells the scheduler, and does what it decides.

use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::jetstream::message::Acker;
use pillarbox_event::Partition;
use pillarbox_inbox::source::{DeliveryService, Store};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::config::{ConsumerConfig, HandlingOrder};
use super::durable::Durable;
use super::endings::Endings;
use super::error::ConsumerError;
use super::message;
use super::parked_events::ParkedEvents;
use super::partitions::assignment::Assignment;
use super::partitions::messages::Step;
use super::reader::Reader;
use super::scheduler::{
    Acknowledgement, BatchLimits, Controls, Decision, Leftover, Limits, News, Piece, Ran,
    Scheduler, Table,
};
use super::worker::Worker;

/// How long the connection may take to accept an acknowledgement. A lost one is harmless: the event comes again and is
/// skipped.
const ACK_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the last acknowledgements of a stop may take.
const LAST_WORDS: Duration = Duration::from_secs(2);

pub(super) struct Driver<S> {
    scheduler: Scheduler<Acker>,
    worker: Worker<S>,
    reader: Reader,
    parked: ParkedEvents,
    handlers: JoinSet<Ran>,
    /// Asks whether what all events need is back.
    probes: JoinSet<bool>,
    /// Asks whether the database is reachable, and why not.
    asking: JoinSet<Option<String>>,
    /// Takes a piece of the rate.
    taking_rate: JoinSet<Option<Piece>>,
    /// What operators have paused and limited, as far as is known.
    controls: watch::Receiver<Option<Controls>>,
    tidying: JoinSet<()>,
}

impl<S: DeliveryService> Driver<S> {
    pub(super) fn new(
        worker: Worker<S>,
        reader: Reader,
        controls: watch::Receiver<Option<Controls>>,
    ) -> Self {
        let config = &worker.endings.config;
        let now = Instant::now();
        let mut scheduler = Scheduler::new(limits(config, worker.batches.is_some()), now);
        scheduler.control(controls.borrow().clone(), now);
        Self {
            scheduler,
            parked: ParkedEvents::new(worker.endings.store.clone(), config),
            worker,
            reader,
            handlers: JoinSet::new(),
            probes: JoinSet::new(),
            asking: JoinSet::new(),
            taking_rate: JoinSet::new(),
            controls,
            tidying: JoinSet::new(),
        }
    }

    /// Handles what comes of this process's share, until shutdown (`Ok`) or until it cannot go on. It waits out
    /// outages, and what is held goes on meanwhile.
    pub(super) async fn run(
        &mut self,
        share: &mut Assignment,
        shutdown: &CancellationToken,
    ) -> Result<(), ConsumerError> {
        loop {
            self.scheduler.start(Instant::now());
            self.carry_out();
            if share.is_leaving() && !self.scheduler.any_acknowledgement_due() {
                share.hand_over(|partition| self.scheduler.holds_any_of(partition));
            }
            let has_room = self.scheduler.has_room();
            tokio::select! {
                step = share.next(has_room) => self.step(step?),
                () = self.go_on() => {}
                () = shutdown.cancelled() => return Ok(()),
            }
        }
    }

    /// Starts nothing more, lets the handlers finish up to the deadline, and drops the rest.
    pub(super) async fn finish(mut self) {
        let until = Instant::now() + self.worker.endings.config.shutdown_timeout;
        self.scheduler.stop();
        while !self.handlers.is_empty() {
            tokio::select! {
                () = self.go_on() => {}
                () = sleep_until(until) => break,
            }
        }
        self.handlers.shutdown().await;
        let endings = &self.worker.endings;
        endings.summarise(true);
        let Leftover { letters, acknowledgements, held } = self.scheduler.end();
        self.parked.give_back(letters);
        let _ = timeout(LAST_WORDS, self.parked.given_back()).await;
        endings.killers.unmark_all().await;
        let _ = timeout(LAST_WORDS, endings.store.give_back(true)).await;
        // What the server is not told now comes again, and is skipped.
        let _ = timeout(LAST_WORDS, async {
            for (acker, acknowledgement) in acknowledgements {
                acknowledge(&acker, kind(acknowledgement)).await;
            }
            if endings.config.order == HandlingOrder::None {
                for acker in held {
                    acknowledge(&acker, AckKind::Nak(None)).await;
                }
            }
            self.reader.flush().await;
        })
        .await;
    }

    /// Something happened to what this process reads.
    fn step(&mut self, step: Step) {
        let number = |partition: Option<Partition>| partition.map_or(0, Partition::number);
        match step {
            Step::Arrived(partition, arrival) => {
                if let Some(mut message) = message::read(*arrival, partition) {
                    message.in_batches = self.worker.takes_in_batches(&message.content);
                    let (place, partition) = (message.place.clone(), message.partition);
                    if self.scheduler.delivered(message, Instant::now()) {
                        self.worker.endings.reporter.holds(place, partition);
                    }
                }
            }
            Step::Moved { taken, dropped } => {
                self.scheduler.takes(&taken);
                self.scheduler.gives_up(&dropped);
            }
            Step::Interrupted(partition) => self.scheduler.interrupted(number(partition)),
            Step::Failing(error) => self.scheduler.environment_failed(error, Instant::now()),
            Step::Prepared | Step::HandedOver => {}
        }
    }

    /// One step of everything but the subscription. Safe to cancel: an acknowledgement stays due until it is given, and
    /// nothing else begins before an await.
    async fn go_on(&mut self) {
        if self.acknowledge_all().await {
            // A partition may be handed over now.
            return;
        }
        let wake_at = self.scheduler.wake_at(Instant::now());
        tokio::select! {
            Some(ended) = self.handlers.join_next() => {
                // Our tasks neither panic nor are cancelled, except by `finish`.
                if let Ok(ran) = ended {
                    self.scheduler.ran(ran, Instant::now());
                }
            }
            Some(well) = self.probes.join_next() => {
                self.scheduler.probed(well.unwrap_or(false), Instant::now());
            }
            Some(away) = self.asking.join_next() => {
                self.scheduler.asked(away.ok().flatten(), Instant::now());
            }
            (mut pages, has_seen_all) = self.parked.found() => {
                for letter in pages.iter_mut().flat_map(|page| &mut page.letters) {
                    letter.in_batches = self.worker.takes_in_batches(&letter.content);
                }
                self.scheduler.found(pages, has_seen_all, Instant::now());
                self.worker.endings.reporter.waits_since(self.parked.waiting_since());
            }
            Some(piece) = self.taking_rate.join_next() => {
                self.scheduler.granted(piece.ok().flatten(), Instant::now());
            }
            // It does not end before this.
            Ok(()) = self.controls.changed() => {
                let controls = self.controls.borrow_and_update().clone();
                self.scheduler.control(controls, Instant::now());
            }
            Some(_) = self.tidying.join_next() => {}
            () = sleep_until(wake_at) => self.scheduler.wake(Instant::now()),
        }
        self.carry_out();
    }

    /// Gives the acknowledgements that are due. Returns whether there were any.
    async fn acknowledge_all(&mut self) -> bool {
        let any = self.scheduler.any_acknowledgement_due();
        while let Some((acker, acknowledgement)) = self.scheduler.acknowledgement_due() {
            acknowledge(acker, kind(acknowledgement)).await;
            self.scheduler.acknowledged();
        }
        any
    }

    /// Does what the scheduler has decided.
    fn carry_out(&mut self) {
        while let Some(decision) = self.scheduler.decision() {
            let store = &self.worker.endings.store;
            match decision {
                Decision::Run(work) => {
                    self.handlers.spawn(self.worker.clone().work(work));
                }
                Decision::LookForParked(most) => self.parked.look(most),
                Decision::GiveBack(letters) => self.parked.give_back(letters),
                Decision::AskDatabase => {
                    let store = store.clone();
                    self.asking.spawn(async move { store.unreachable().await });
                }
                Decision::Probe => {
                    let store = store.clone();
                    self.probes.spawn(async move { store.answers().await });
                }
                Decision::TakeRate(events) => {
                    let store = store.clone();
                    self.taking_rate.spawn(async move { take_rate(&store, events).await });
                }
                Decision::ReportProgress => {
                    // Nobody listens without a connection, and the acknowledgements would only pile up.
                    if self.reader.is_connected() {
                        self.scheduler.report_progress();
                    }
                }
                Decision::Tidy => {
                    self.worker.endings.summarise(false);
                    self.give_connections_back(false);
                }
                Decision::Tell(news) => self.tell(news),
            }
        }
    }

    /// Tells operators by metrics, status and log.
    fn tell(&mut self, news: News) {
        if let News::Paused { .. } = news {
            self.give_connections_back(true);
        }
        let endings = &self.worker.endings;
        let (consumer, reporter) = (&endings.config.name, &endings.reporter);
        match news {
            News::Released(place) => reporter.let_go(&place),
            News::Retries => reporter.meter.retry(),
            News::NoDatabase(error) => reporter.error(None, &error),
            News::Paused { error, begins } => {
                if begins {
                    tracing::warn!(
                        consumer,
                        error,
                        "the consumer pauses, because the database or something else that all \
            events need is away; no attempts are counted until it is back"
                    );
                }
                reporter.paused(Some(&error));
            }
            News::Resumed(paused) => {
                tracing::info!(consumer, ?paused, "going on");
                reporter.paused(None);
            }
            News::Misfit(content, partition) => {
                if reporter.sent_with(partition.of()) {
                    say_misfit(endings, content.id(), partition.of());
                }
            }
            News::Table(Table::Full) => tracing::warn!(
                consumer,
                "10,000 events, or 256 MiB, wait among the dead letters behind events that fail or are of a paused \
                 type, so no more are parked there; once such keys hold all places of this process, it handles \
                 nothing else; fix the cause of the failures, resume the type, or discard these events"
            ),
            News::Table(Table::HasRoom) => {
                tracing::info!(
                    consumer,
                    "events that wait behind failing ones can be parked again"
                );
            }
        }
    }

    /// Gives connections back to the pool that were kept for long, or all that are kept.
    fn give_connections_back(&mut self, all: bool) {
        if self.tidying.is_empty() {
            let store = self.worker.endings.store.clone();
            self.tidying.spawn(async move { store.give_back(all).await });
        }
    }
}

/// Takes a piece of the consumer's rate. `None`: there is no limit any more, or the database does not answer.
async fn take_rate(store: &Store, events: u32) -> Option<Piece> {
    match store.take_rate(events).await {
        Ok(taken) => taken.map(|(wait, per_second)| Piece { events, wait, per_second }),
        Err(error) => {
            tracing::debug!(consumer = store.consumer(), %error, "the rate could not be asked for");
            None
        }
    }
}

fn say_misfit(endings: &Endings, event_id: &str, found: u32) {
    let wanted = endings.config.partitions;
    let error = format!(
        "it was sent with partitions = {found}, but this consumer has {wanted}; it waits, and its key waits behind it; \
         set both to the same number by the steps in docs/guides/ordering.md"
    );
    tracing::error!(
        consumer = endings.config.name,
        event_id,
        error,
        "another number of partitions"
    );
    endings.reporter.error(Some(event_id), &error);
}

fn limits(config: &ConsumerConfig, in_batches: bool) -> Limits {
    let batch = BatchLimits { size: config.batch_size, linger: config.batch_linger };
    Limits {
        order: config.order,
        concurrency: config.concurrency,
        prefetch: config.prefetch,
        places: Durable::places(config),
        batch: in_batches.then_some(batch),
        ack_wait: config.ack_wait,
    }
}

fn kind(acknowledgement: Acknowledgement) -> AckKind {
    match acknowledgement {
        Acknowledgement::Done => AckKind::Ack,
        Acknowledgement::GivenUp => AckKind::Term,
        Acknowledgement::Later(wait) => AckKind::Nak(Some(wait)),
        Acknowledgement::InProgress => AckKind::Progress,
    }
}

async fn acknowledge(acker: &Acker, kind: AckKind) {
    match timeout(ACK_TIMEOUT, acker.ack_with(kind)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::debug!(%error, "an acknowledgement was not sent; the event will come again")
        }
        Err(_) => {
            tracing::debug!("an acknowledgement was not sent in time; the event will come again")
        }
    }
}
