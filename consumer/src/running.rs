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
use super::crowding::{Crowding, Failing};
use super::durable::Durable;
use super::error::{BoxError, ConsumerError};
use super::incoming::{Content, Incoming};
use super::lanes::{Lane, Lanes};
use super::letters::{Letters, Page};
use super::partitions::assignment::{Assignment, Step};
use super::pause::Pause;
use super::pulse::Pulse;
use super::reader::Reader;
use super::worker::{Parking, Verdict, Worker};
use crate::place::Place;

/// How long handing an acknowledgement to the connection may take. A lost one is harmless: the event comes
/// again and is skipped.
const ACK_TIMEOUT: Duration = Duration::from_secs(1);

/// How often what is kept, though nobody needs it, is looked for.
const TIDY_EVERY: Duration = Duration::from_secs(1);

/// How long an event of an event was sent with another number of partitions waits, before it is looked at again.
const MISFIT_WAIT: Duration = Duration::from_secs(5);

/// How many events of a key are parked by one statement, and about how many bytes.
const MOST_PARKED: (usize, usize) = (200, 4 << 20);

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
    crowding: Crowding,
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

/// What ran.
struct Ran {
    /// Of each lane its events, in order, with what is to become of them.
    lanes: Vec<(Lane, Vec<(Held, Verdict)>)>,
    /// If they were to be parked.
    parking: Option<Parking>,
}

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
    /// It has failed, and waits for its next attempt.
    failed: bool,
    /// It is held back, because it may kill the process.
    suspect: bool,
    /// The partition that its sender put it in, if that is another one.
    misfit: Option<Partition>,
    content: Arc<Content>,
}

/// Where an event was taken from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    /// This place, read as this partition.
    Stream { place: Place, partition: u32 },
    /// This position among the dead letters, taken with others behind that of the first, to begin before `until`.
    Letter { position: i64, page: i64, until: Instant },
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
        let crowding = Crowding::new(Durable::places(&worker.rules.config), Instant::now());
        Self {
            letters,
            crowding,
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
        let taken = self.lanes.remove(|held| matches!(held.origin, Origin::Letter { .. }));
        self.letters.give_back(taken.iter().filter_map(Held::letter).collect());
        let _ = timeout(LAST_WORDS, self.letters.given_back()).await;
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
        self.park_what_crowds();
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
            let parks = self.crowding.is_waiting(&lane) && held.may_be_parked();
            if (held.alone || held.singly || parks) && !batch.is_empty() {
                // Next time.
                self.waiting += 1;
                self.lanes.retry(lane, [held], Instant::now());
            } else if held.alone {
                self.alone.push_back((lane, held));
                return true;
            } else if parks {
                self.start_parking(lane, held, None);
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
            let lanes = batch
                .into_iter()
                .map(|(lane, held)| (lane, held.into_iter().map(&mut with_verdict).collect()));
            Ran { lanes: lanes.collect(), parking: None }
        });
    }

    fn start(&mut self, lane: Lane, held: Held) {
        let worker = self.worker.clone();
        self.begins();
        self.handlers.spawn(async move {
            let content = held.content.clone();
            let verdict = match (&held.origin, held.misfit) {
                (Origin::Letter { until, .. }, _) => {
                    worker.handle_letter(content, held.again, held.alone, *until).await
                }
                (_, Some(misfit)) => worker.handle_misfit(content, misfit).await,
                _ => worker.handle(content, held.again, held.alone).await,
            };
            Ran { lanes: vec![(lane, vec![(held, verdict)])], parking: None }
        });
    }

    /// Parks a failing key that takes the others' room, if there is one.
    fn park_what_crowds(&mut self) {
        let now = Instant::now();
        if self.crowds_at().is_none_or(|at| at > now) {
            return;
        }
        let failing = self.lanes.resting().filter_map(|(lane, held)| {
            let partition = held.front().filter(|first| first.failed && first.may_be_parked())?;
            let Origin::Stream { partition, .. } = partition.origin else { return None };
            matches!(lane, Lane::Key(_)).then_some(Failing { lane, partition, held: held.len() })
        });
        let Some(lane) = self.crowding.next(now, failing).cloned() else { return };
        if let Some(at) = self.lanes.take_resting(&lane)
            && let Some(first) = self.lanes.take_also(&lane, |_| true)
        {
            self.waiting = self.waiting.saturating_sub(1);
            self.start_parking(lane, first, Some(at.saturating_duration_since(now)));
        }
    }

    /// When to look for such a key. `None` while none could be parked.
    fn crowds_at(&self) -> Option<Instant> {
        let may_start = self.pause.is_open()
            && !self.alone_runs
            && self.alone.is_empty()
            && self.handlers.len() < self.worker.rules.config.concurrency;
        self.crowding.look_at().filter(|_| may_start)
    }

    /// Parks an event, and what waits behind it. `wait`: for how long, if it has failed.
    fn start_parking(&mut self, lane: Lane, first: Held, wait: Option<Duration>) {
        let mut bytes = first.bytes();
        let mut events = vec![first];
        while events.len() < MOST_PARKED.0
            && bytes < MOST_PARKED.1
            && let Some(next) = self.lanes.take_also(&lane, Held::may_be_parked)
        {
            self.waiting = self.waiting.saturating_sub(1);
            bytes = bytes.saturating_add(next.bytes());
            events.push(next);
        }
        let worker = self.worker.clone();
        self.begins();
        self.handlers.spawn(async move {
            let contents: Vec<_> = events.iter().map(|held| held.content.clone()).collect();
            let again: Vec<_> = events.iter().map(|held| held.again).collect();
            let key = match &lane {
                Lane::Key(key) => key.clone(),
                _ => "".into(),
            };
            let (parking, verdicts) = worker.park(&key, &contents, &again, wait).await;
            let events = events.into_iter().zip(verdicts).collect();
            Ran { lanes: vec![(lane, events)], parking: Some(parking) }
        });
    }

    /// What became of events of this lane that were to be parked.
    fn parked(&mut self, lane: &Lane, parking: Parking) {
        let consumer = &self.worker.rules.config.name;
        match self.crowding.parked(lane, parking, Instant::now()) {
            Some(true) => tracing::warn!(
                consumer,
                "10,000 events, or 256 MiB, wait among the dead letters behind events that fail, so no more are \
                 parked there; once failing keys hold all places of this process, it handles nothing else; fix the \
                 cause of the failures, or discard the failing events"
            ),
            Some(false) => {
                tracing::info!(
                    consumer,
                    "events that wait behind failing ones can be parked again"
                );
            }
            None => {}
        }
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
            let (alone, failed, suspect) = (false, false, false);
            let held = Held { origin, again, alone, singly, failed, suspect, misfit, content };
            self.lanes.push(lane, held);
            if self.lanes.any_resting() {
                self.crowding.grew(Instant::now());
            }
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
                "it was sent with partitions = {found}, but this consumer has {wanted}; it waits, and its key waits \
                 behind it; set both to the same number by the steps in docs/guides/ordering.md"
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

    fn hold_page(&mut self, page: Page) {
        let (first, until) = (page.first(), page.until);
        for letter in page.letters {
            let origin = Origin::Letter { position: letter.position, page: first, until };
            let held = Held {
                origin,
                again: letter.again,
                alone: false,
                singly: true,
                failed: false,
                suspect: false,
                misfit: None,
                content: letter.content,
            };
            self.waiting += 1;
            self.lanes.push(Lane::Letter(first), held);
        }
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
        let crowds_at = self.crowds_at().unwrap_or(far);
        let probe_at = self.pause.probe_at().filter(|_| self.probes.is_empty()).unwrap_or(far);
        tokio::select! {
            Some(ended) = self.handlers.join_next() => {
                self.pulse.beat();
                // A task of ours neither panics nor is cancelled, but for `finish`.
                let Ok(Ran { lanes, parking }) = ended else { return };
                for (lane, events) in lanes {
                    if let Some(parking) = parking {
                        self.parked(&lane, parking);
                    }
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
                found.into_iter().for_each(|page| self.hold_page(page));
                self.worker.rules.reporter.waits_since(self.letters.waiting_since());
            }
            () = sleep_until(look_at) => {
                self.begins();
                self.letters.look();
            }
            () = sleep_until(ask_at) => self.pulse.ask(),
            () = sleep_until(batch_at) => {}
            () = sleep_until(crowds_at) => {}
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

    /// A parked event has run: whatever became of it stands in the table. Those behind it go on, unless they wait for it.
    fn settle_letter(&mut self, lane: &Lane, letter: (i64, bool), page: i64, verdict: &Verdict) {
        let strict = self.worker.rules.config.order == Order::Strict;
        let goes_on = match verdict {
            Verdict::Done | Verdict::Parked => true,
            Verdict::Dead => !strict,
            _ => false,
        };
        let mut left = 1;
        let mut back = Vec::new();
        if matches!(verdict, Verdict::Late) {
            back.push(letter);
        }
        if !goes_on {
            let others = self.lanes.abandon(lane);
            self.waiting = self.waiting.saturating_sub(others.len());
            left += others.len();
            back.extend(others.iter().filter_map(Held::letter));
        }
        self.letters.give_back(back);
        self.letters.gone(page, left);
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
            if !matches!(verdict, Verdict::Done | Verdict::Parked | Verdict::Dead)
                && held.is_of(&self.gone)
            {
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
                back.push(Held { alone: false, singly: true, suspect: true, ..held });
                continue;
            }
            let place = match held.origin {
                Origin::Stream { ref place, .. } => place.clone(),
                Origin::Letter { position, page, .. } => {
                    self.settle_letter(&lane, (position, held.again), page, &verdict);
                    continue;
                }
            };
            if matches!(verdict, Verdict::Parked) {
                self.crowding.waits(&lane);
            }
            let handled = matches!(verdict, Verdict::Done);
            let kind = match verdict {
                Verdict::Done | Verdict::Parked => AckKind::Ack,
                Verdict::Dead => AckKind::Term,
                // Without an order it need not wait here.
                Verdict::Retry(wait) if self.worker.rules.config.order == Order::None => {
                    AckKind::Nak(Some(wait))
                }
                Verdict::Retry(wait) => {
                    at = at.max(now + wait);
                    back.push(Held {
                        alone: false,
                        singly: true,
                        failed: true,
                        suspect: false,
                        ..held
                    });
                    self.crowding.grew(now);
                    continue;
                }
                Verdict::Waits(wait) => {
                    at = at.max(now + wait);
                    back.push(held);
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
                Verdict::Alone | Verdict::Behind | Verdict::HeldBack(_) | Verdict::Late => {
                    back.push(held);
                    continue;
                }
            };
            if handled {
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
    /// Whether it may wait in the table.
    fn may_be_parked(&self) -> bool {
        matches!(self.origin, Origin::Stream { .. })
            && !self.alone
            && !self.suspect
            && self.misfit.is_none()
            && self.content.event().is_some()
    }

    fn bytes(&self) -> usize {
        self.content.event().map_or(0, |event| event.payload().len())
    }

    /// Its position among the dead letters, if it was taken from there, and whether it may have been begun before.
    fn letter(&self) -> Option<(i64, bool)> {
        match self.origin {
            Origin::Letter { position, .. } => Some((position, self.again)),
            Origin::Stream { .. } => None,
        }
    }

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
