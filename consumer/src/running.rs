//! What a consumer holds, and the handlers that run.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::jetstream::message::Acker;
use pillarbox_event::Partition;
use pillarbox_inbox::{Delivery, Outcome};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use super::config::Order;
use super::error::{BoxError, ConsumerError};
use super::incoming::{Content, Incoming};
use super::lanes::{Lane, Lanes};
use super::letters::{Letter, Letters};
use super::partitions::assignment::{Assignment, Step};
use super::pause::Pause;
use super::pulse::Pulse;
use super::reader::Reader;
use super::worker::{Verdict, Worker};
use crate::place::Place;

/// How long handing an acknowledgement to the connection may take. A lost one is harmless: the event comes
/// again and is skipped.
const ACK_TIMEOUT: Duration = Duration::from_secs(1);

/// How often what is kept, though nobody needs it, is looked for.
const TIDY_EVERY: Duration = Duration::from_secs(1);

/// How long an event of another number of partitions waits, before it is looked at again.
const MISFIT_WAIT: Duration = Duration::from_secs(5);

/// How long the last acknowledgements of a stop may take.
const LAST_WORDS: Duration = Duration::from_secs(2);

pub(super) struct Running<S> {
    worker: Worker<S>,
    reader: Reader,
    lanes: Lanes<Held>,
    /// Taken out of their lanes, to run with nothing beside them.
    alone: VecDeque<(Lane, Held)>,
    alone_runs: bool,
    /// Everything held of the stream, running or not.
    claims: HashMap<Place, Claim>,
    /// The partitions that this process reads no more. What runs of them ends, and nothing else begins.
    gone: HashSet<u32>,
    /// What the server is still to be told.
    answers: VecDeque<Answer>,
    handlers: JoinSet<Ran>,
    /// How many events wait in their lanes.
    waiting: usize,
    /// When a batch may start that is not full.
    batch_at: Instant,
    probes: JoinSet<bool>,
    pause: Pause,
    pulse: Pulse,
    letters: Letters,
    alive_at: Instant,
    tidy_at: Instant,
    tidying: JoinSet<()>,
}

/// What is held of the stream.
struct Claim {
    partition: u32,
    /// How to acknowledge it. `None` while its last delivery is from before the last interruption: an
    /// acknowledgement names a sequence only, and would be taken for that of another message if the stream was
    /// created anew or restored meanwhile. If it was not, the server delivers the message again.
    acker: Option<Acker>,
}

/// What ran: of each lane its events, in order, with what is to become of them.
type Ran = Vec<(Lane, Vec<(Held, Verdict)>)>;

enum Answer {
    /// This message, read as this partition, is done with.
    Final { partition: u32, acker: Box<Acker>, kind: AckKind },
    /// The message at this place is in work.
    Alive(Place),
}

#[derive(Debug)]
struct Held {
    origin: Origin,
    again: bool,
    alone: bool,
    /// Not in a batch.
    singly: bool,
    /// The partition that its sender put it in, if that is another one.
    misfit: Option<Partition>,
    content: Arc<Content>,
}

/// Where an event was taken from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    /// This place, read as this partition.
    Stream { place: Place, partition: u32 },
    /// This position among the dead letters.
    Letter(i64),
}

impl<S> Running<S>
where
    S: Service<Delivery, Response = Outcome, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static,
{
    pub(super) fn new(worker: Worker<S>, reader: Reader) -> Self {
        let letters = Letters::new(worker.rules.store.clone(), &worker.rules.config);
        let pulse = Pulse::new(worker.rules.store.clone());
        Self {
            letters,
            worker,
            reader,
            lanes: Lanes::new(),
            alone: VecDeque::new(),
            alone_runs: false,
            claims: HashMap::new(),
            gone: HashSet::new(),
            answers: VecDeque::new(),
            handlers: JoinSet::new(),
            waiting: 0,
            batch_at: Instant::now(),
            probes: JoinSet::new(),
            pause: Pause::new(),
            pulse,
            alive_at: Instant::now(),
            tidy_at: Instant::now() + TIDY_EVERY,
            tidying: JoinSet::new(),
        }
    }

    /// Handles what comes of this process's share, until shutdown (`Ok`) or until that cannot go on. Outages are
    /// waited out, and what is held goes on meanwhile.
    pub(super) async fn run(
        &mut self,
        share: &mut Assignment,
        shutdown: &CancellationToken,
    ) -> Result<(), ConsumerError> {
        let config = self.worker.rules.config.clone();
        loop {
            self.start_handlers();
            if share.is_leaving() && self.answers.is_empty() {
                let in_work = |partition| self.claims.values().any(|c| c.partition == partition);
                share.hand_over(in_work);
            }
            // With an order the server sends no more than may be held; without, this process must not ask. The
            // server knows nothing of what is held from an earlier life of the stream.
            let most =
                config.prefetch.saturating_mul(if config.order.keeps_keys() { 2 } else { 1 });
            let room = self.claims.len() < most;
            tokio::select! {
                step = share.next(room) => match step? {
                    Step::Arrived(partition, arrival) => {
                        if let Some(incoming) = Incoming::read(*arrival, partition) {
                            self.hold(incoming, partition);
                        }
                    }
                    Step::Moved { taken, dropped } => {
                        self.gone.retain(|partition| !taken.contains(partition));
                        taken.into_iter().for_each(|partition| self.interrupted(partition));
                        if !dropped.is_empty() {
                            self.gone.extend(dropped);
                            self.let_waiting_go();
                        }
                    }
                    Step::Interrupted(partition) => {
                        self.interrupted(partition.map_or(0, Partition::number));
                    }
                    Step::Failing(error) => self.pause(&error),
                    Step::Other => {}
                },
                () = self.go_on() => {}
                () = shutdown.cancelled() => return Ok(()),
            }
        }
    }

    /// Starts nothing more, lets the handlers finish up to the deadline, and drops the rest.
    pub(super) async fn finish(&mut self) {
        let until = Instant::now() + self.worker.rules.config.shutdown_timeout();
        while !self.handlers.is_empty() {
            tokio::select! {
                () = self.go_on() => {}
                () = sleep_until(until) => break,
            }
        }
        self.handlers.shutdown().await;
        self.worker.rules.summarise(true);
        self.worker.rules.killers.unmark_all().await;
        let _ = timeout(LAST_WORDS, self.worker.rules.store.give_back(true)).await;
        // What is not told now comes again, and is skipped.
        let _ = timeout(LAST_WORDS, async {
            for answer in self.answers.drain(..) {
                if let Answer::Final { acker, kind, .. } = answer {
                    acknowledge(&acker, kind).await;
                }
            }
            if self.worker.rules.config.order == Order::None {
                for acker in self.claims.drain().filter_map(|(_, claim)| claim.acker) {
                    acknowledge(&acker, AckKind::Nak(None)).await;
                }
            }
            self.reader.flush().await;
        })
        .await;
    }

    fn start_handlers(&mut self) {
        let concurrency = self.worker.rules.config.concurrency;
        while self.pause.is_open() && !self.alone_runs && self.handlers.len() < concurrency {
            if !self.alone.is_empty() {
                if self.handlers.is_empty()
                    && let Some((lane, held)) = self.alone.pop_front()
                {
                    self.alone_runs = true;
                    self.start(lane, held);
                }
                return;
            }
            if !self.start_next() {
                return;
            }
        }
    }

    /// Starts what is next, if anything is.
    fn start_next(&mut self) -> bool {
        let most = match self.worker.batches {
            Some(_) if self.lingers() => return false,
            Some(_) => self.worker.rules.config.batch_size,
            None => 0,
        };
        let (mut batch, mut events) = (Vec::new(), 0);
        while let Some((lane, held)) = self.lanes.take() {
            self.waiting = self.waiting.saturating_sub(1);
            if (held.alone || held.singly) && !batch.is_empty() {
                // Next time.
                self.waiting += 1;
                self.lanes.retry(lane, [held], Instant::now());
            } else if held.alone {
                self.alone.push_back((lane, held));
                return true;
            } else if held.singly || most == 0 {
                self.start(lane, held);
            } else {
                let mut together = vec![held];
                while events + together.len() < most
                    && let Some(next) =
                        self.lanes.take_also(&lane, |next| !next.singly && !next.alone)
                {
                    self.waiting = self.waiting.saturating_sub(1);
                    together.push(next);
                }
                events += together.len();
                batch.push((lane, together));
                if events < most {
                    continue;
                }
            }
            break;
        }
        let any = !batch.is_empty();
        if any {
            self.start_batch(batch);
        }
        any || self.lanes.any_ready()
    }

    /// Whether there are too few events for a batch, and others may come.
    fn lingers(&self) -> bool {
        self.waiting < self.worker.rules.config.batch_size && Instant::now() < self.batch_at
    }

    fn start_batch(&mut self, batch: Vec<(Lane, Vec<Held>)>) {
        let worker = self.worker.clone();
        self.begins();
        self.handlers.spawn(async move {
            let held = batch.iter().flat_map(|(_, held)| held);
            let contents: Vec<_> = held.map(|held| held.content.clone()).collect();
            let mut verdicts = worker.handle_batch(&contents).await.into_iter();
            let mut with_verdict = |held| (held, verdicts.next().unwrap_or(Verdict::Singly));
            let ran = batch
                .into_iter()
                .map(|(lane, held)| (lane, held.into_iter().map(&mut with_verdict).collect()));
            ran.collect()
        });
    }

    fn start(&mut self, lane: Lane, held: Held) {
        let worker = self.worker.clone();
        self.begins();
        self.handlers.spawn(async move {
            let content = held.content.clone();
            let verdict = match (&held.origin, held.misfit) {
                (Origin::Letter(_), _) => worker.handle_letter(content, held.alone).await,
                (_, Some(misfit)) => worker.handle_misfit(content, misfit).await,
                _ => worker.handle(content, held.again, held.alone).await,
            };
            vec![(lane, vec![(held, verdict)])]
        });
    }

    /// Something that needs the database is about to begin.
    fn begins(&mut self) {
        if !self.waits_for_database() {
            self.pulse.beat();
        }
    }

    fn waits_for_database(&self) -> bool {
        !self.handlers.is_empty() || self.letters.is_looking()
    }

    /// Starts nothing more until the surroundings are back.
    fn pause(&mut self, error: &str) {
        self.give_back(true);
        self.pause.environment_failed(&self.worker.rules.config.name, error);
        self.worker.rules.reporter.paused(Some(error));
    }

    fn hold(&mut self, incoming: Incoming, partition: Option<Partition>) {
        let lane = incoming.lane(self.worker.rules.config.order.keeps_keys());
        let Incoming { place, again, misfit, content, acker } = incoming;
        let partition = partition.map_or(0, Partition::number);
        self.worker.rules.reporter.holds(place.clone());
        // One that is held already has come again; only the way to acknowledge it is new.
        let claim = Claim { partition, acker: Some(acker) };
        if self.claims.insert(place.clone(), claim).is_none() {
            if self.waiting == 0 {
                self.batch_at = Instant::now() + self.worker.rules.config.batch_linger();
            }
            self.waiting += 1;
            // What was delivered before may have killed a process: it is marked, and that one by one.
            let singly = again || misfit.is_some() || content.event().is_none();
            let origin = Origin::Stream { place, partition };
            self.lanes.push(lane, Held { origin, again, alone: false, singly, misfit, content });
        }
    }

    /// The messages of this partition came to an end, and begin again: what was delivered before is acknowledged no
    /// more, unless it comes again.
    fn interrupted(&mut self, interrupted: u32) {
        for claim in self.claims.values_mut().filter(|claim| claim.partition == interrupted) {
            claim.acker = None;
        }
        self.answers.retain(|answer| match answer {
            Answer::Final { partition, .. } => *partition != interrupted,
            Answer::Alive(_) => true,
        });
    }

    /// Forgets what waits of the partitions that are gone: another process gets it.
    fn let_waiting_go(&mut self) {
        let gone = &self.gone;
        let mut waiting = self.lanes.remove(|held| held.is_of(gone));
        self.waiting = self.waiting.saturating_sub(waiting.len());
        let alone = std::mem::take(&mut self.alone);
        for (lane, held) in alone {
            if held.is_of(&self.gone) {
                self.lanes.done(lane);
                waiting.push(held);
            } else {
                self.alone.push_back((lane, held));
            }
        }
        waiting.iter().for_each(|held| self.forget(held));
    }

    /// Holds an event no more, without a word to the server.
    fn forget(&mut self, held: &Held) {
        if let Origin::Stream { place, .. } = &held.origin {
            self.claims.remove(place);
            self.worker.rules.reporter.let_go(place);
        }
    }

    fn say_misfit(&self, held: &Held, partition: Partition) {
        let rules = &self.worker.rules;
        if rules.reporter.sent_with(partition.of()) {
            let (found, wanted) = (partition.of(), rules.config.partitions);
            let event_id = held.content.id();
            let error = format!(
                "it was sent with partitions = {found}, and this consumer has {wanted}: set both to the same, by the \
                 steps in docs/guides/ordering.md; it waits, and its key behind it"
            );
            tracing::error!(
                consumer = rules.config.name,
                event_id,
                error,
                "another number of partitions"
            );
            rules.reporter.error(Some(event_id), &error);
        }
    }

    fn hold_letter(&mut self, letter: Letter) {
        let Letter { position, content } = letter;
        // Marked as begun each time, because the stream does not deliver it again.
        let origin = Origin::Letter(position);
        let held = Held { origin, again: true, alone: false, singly: true, misfit: None, content };
        self.waiting += 1;
        self.lanes.push(Lane::Letter(position), held);
    }

    /// One step of everything but the subscription. Safe to cancel: an answer stays in its queue until it is
    /// given, and nothing else is begun before an await.
    async fn go_on(&mut self) {
        let any = !self.answers.is_empty();
        while let Some(answer) = self.answers.front() {
            match answer {
                Answer::Final { acker, kind, .. } => acknowledge(acker, *kind).await,
                Answer::Alive(place) => {
                    let acker = self.claims.get(place).and_then(|claim| claim.acker.as_ref());
                    if let Some(acker) = acker {
                        acknowledge(acker, AckKind::Progress).await;
                    }
                }
            }
            self.answers.pop_front();
        }
        if any {
            // Somebody may wait for that.
            return;
        }
        let far = Instant::now() + Duration::from_secs(3600);
        let due = self.lanes.next_due().unwrap_or(far);
        let batch_at = match self.worker.batches {
            Some(_) if self.waiting > 0 && self.lingers() => self.batch_at,
            _ => far,
        };
        let look_at = self.letters.look_at().filter(|_| self.pause.is_open()).unwrap_or(far);
        let watched = self.pause.is_open() && self.waits_for_database();
        let ask_at = self.pulse.ask_at().filter(|_| watched).unwrap_or(far);
        let probe_at = self.pause.probe_at().filter(|_| self.probes.is_empty()).unwrap_or(far);
        tokio::select! {
            Some(ended) = self.handlers.join_next() => {
                self.pulse.beat();
                // A task of ours neither panics nor is cancelled, but for `finish`.
                for (lane, events) in ended.into_iter().flatten() {
                    self.settle(lane, events);
                }
            }
            Some(well) = self.probes.join_next() => {
                self.pause.probed(&self.worker.rules.config.name, well.unwrap_or(false));
                if self.pause.is_open() {
                    self.pulse.beat();
                    self.worker.rules.reporter.paused(None);
                }
            }
            away = self.pulse.answered() => {
                if let Some(error) = away.filter(|_| self.waits_for_database()) {
                    self.worker.rules.reporter.error(None, &error);
                    self.pause(&error);
                }
            }
            found = self.letters.found() => {
                self.pulse.beat();
                found.into_iter().for_each(|letter| self.hold_letter(letter));
            }
            () = sleep_until(look_at) => {
                self.begins();
                self.letters.look();
            }
            () = sleep_until(ask_at) => self.pulse.ask(),
            () = sleep_until(batch_at) => {}
            () = sleep_until(due) => self.lanes.wake(Instant::now()),
            () = sleep_until(probe_at) => {
                let store = self.worker.rules.store.clone();
                self.probes.spawn(async move { store.answers().await });
            }
            () = sleep_until(self.tidy_at) => {
                self.tidy_at = Instant::now() + TIDY_EVERY;
                self.worker.rules.summarise(false);
                self.give_back(false);
            }
            Some(_) = self.tidying.join_next() => {}
            () = sleep_until(self.alive_at) => {
                self.alive_at = Instant::now() + self.worker.rules.config.ack_wait() / 3;
                // Nobody listens without a connection, and the answers would only pile up.
                if self.reader.is_connected() {
                    self.answers.extend(self.claims.keys().cloned().map(Answer::Alive));
                }
            }
        }
    }

    /// Gives connections back to the pool that have been kept for long, or all of them.
    fn give_back(&mut self, all: bool) {
        if self.tidying.is_empty() {
            let store = self.worker.rules.store.clone();
            self.tidying.spawn(async move { store.give_back(all).await });
        }
    }

    /// The events of a lane have run.
    fn settle(&mut self, lane: Lane, events: Vec<(Held, Verdict)>) {
        let now = Instant::now();
        let (mut back, mut at) = (Vec::new(), now);
        for (mut held, verdict) in events {
            if held.alone {
                self.alone_runs = false;
            }
            match &verdict {
                Verdict::Retry(_) => self.worker.rules.reporter.meter.retry(),
                Verdict::Environment(error) => self.pause(error),
                _ => {}
            }
            if !matches!(verdict, Verdict::Done | Verdict::Dead) && held.is_of(&self.gone) {
                self.forget(&held);
                continue;
            }
            if matches!(verdict, Verdict::Alone) {
                // It ran by itself, and its lane waits for it.
                held.alone = true;
                self.alone.push_back((lane, held));
                return;
            }
            if let Verdict::HeldBack(wait) = verdict {
                // Whatever the order: another process would take this one for dead.
                at = at.max(now + wait);
                back.push(Held { alone: false, singly: true, ..held });
                continue;
            }
            let place = match &held.origin {
                Origin::Stream { place, .. } => place.clone(),
                // Whatever became of it stands in the table.
                Origin::Letter(position) => {
                    self.letters.gone(*position);
                    continue;
                }
            };
            let kind = match verdict {
                Verdict::Done => AckKind::Ack,
                Verdict::Dead => AckKind::Term,
                // Without an order it need not wait here.
                Verdict::Retry(wait) if self.worker.rules.config.order == Order::None => {
                    AckKind::Nak(Some(wait))
                }
                Verdict::Retry(wait) => {
                    at = at.max(now + wait);
                    back.push(Held { alone: false, singly: true, ..held });
                    continue;
                }
                Verdict::Singly => {
                    back.push(Held { singly: true, ..held });
                    continue;
                }
                Verdict::Misfit(partition) => {
                    at = at.max(now + MISFIT_WAIT);
                    self.say_misfit(&held, partition);
                    back.push(held);
                    continue;
                }
                // Not in a batch again: it may be what broke the connection.
                Verdict::Environment(_) => {
                    back.push(Held { singly: true, ..held });
                    continue;
                }
                Verdict::Alone | Verdict::Behind | Verdict::HeldBack(_) => {
                    back.push(held);
                    continue;
                }
            };
            if matches!(kind, AckKind::Ack) {
                self.pause.handled();
            }
            self.worker.rules.reporter.let_go(&place);
            if let Some(Claim { partition, acker: Some(acker) }) = self.claims.remove(&place) {
                self.answers.push_back(Answer::Final { partition, acker: Box::new(acker), kind });
            }
        }
        self.waiting += back.len();
        match back.is_empty() {
            true => self.lanes.done(lane),
            false => self.lanes.retry(lane, back, at),
        }
    }
}

impl Held {
    fn is_of(&self, partitions: &HashSet<u32>) -> bool {
        matches!(&self.origin, Origin::Stream { partition, .. } if partitions.contains(partition))
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
