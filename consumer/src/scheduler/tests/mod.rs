//! A driver without I/O: it keeps what the scheduler has decided to run until a test says what becomes of it.

mod controls;
mod properties;
mod transitions;

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use pillarbox_event::{Partition, RawEvent};
use tokio::time::Instant;

use super::*;
use crate::place::Place;

/// Longer than any wait that the scheduler chooses by itself.
const LONG: Duration = Duration::from_secs(60);

fn limits() -> Limits {
    Limits {
        order: HandlingOrder::Key,
        concurrency: 4,
        prefetch: 8,
        places: 8,
        batch: None,
        ack_wait: Duration::from_secs(30),
    }
}

fn in_batches(size: usize) -> Limits {
    Limits { batch: Some(BatchLimits { size, linger: Duration::from_millis(5) }), ..limits() }
}

fn place(sequence: u64) -> Place {
    Place::new("ORDERS", sequence, UNIX_EPOCH + Duration::from_secs(sequence))
}

/// An event of this key, or of none if it is empty. A key may name another type: `order.refunded of 7`.
fn content(key: &str) -> Arc<Content> {
    let (event_type, key) = key.split_once(" of ").unwrap_or(("order.placed", key));
    let event = RawEvent::builder(event_type, "orders.placed");
    let event = if key.is_empty() { event } else { event.key(key) };
    Arc::new(Content::Event(Arc::new(event.build().unwrap())))
}

/// Parked events at these positions.
fn page(positions: &[i64], until: Instant) -> Page {
    let content = || content("parked");
    let letter =
        |&position| Letter { position, again: false, in_batches: true, content: content() };
    Page { letters: positions.iter().map(letter).collect(), until }
}

/// The sequence of an event of the stream, or the position of a parked one below zero.
fn number(held: &Held) -> i64 {
    match &held.origin {
        Origin::Stream { place, .. } => place.sequence().cast_signed(),
        Origin::Letter { position, .. } => -position,
    }
}

struct Bench {
    scheduler: Scheduler<u64>,
    now: Instant,
    running: Vec<Work>,
    /// Everything else that was decided and not looked at.
    decided: Vec<Decision>,
    news: Vec<News>,
    deliveries: u64,
}

impl Bench {
    fn new(limits: Limits) -> Self {
        let now = Instant::now();
        let scheduler = Scheduler::new(limits, now);
        let (running, decided, news) = (Vec::new(), Vec::new(), Vec::new());
        Self { scheduler, now, running, decided, news, deliveries: 0 }
    }

    /// Delivers messages of these keys, with sequences from `first` on, and starts what may start.
    fn deliver(&mut self, first: u64, keys: &[&str]) {
        for (sequence, key) in (first..).zip(keys) {
            self.deliver_one(sequence, key, 0, false);
        }
        self.go();
    }

    /// Returns what acknowledges the delivery.
    fn deliver_one(&mut self, sequence: u64, key: &str, partition: u32, again: bool) -> u64 {
        self.deliveries += 1;
        let (place, content, acker) = (place(sequence), content(key), self.deliveries);
        // One handler does not take batches.
        let in_batches = !key.starts_with("singly");
        let message =
            Delivered { place, partition, again, misfit: None, in_batches, content, acker };
        self.scheduler.delivered(message, self.now);
        acker
    }

    /// Starts what may start, and takes what was decided.
    fn go(&mut self) {
        self.scheduler.start(self.now);
        self.decide();
    }

    fn decide(&mut self) {
        while let Some(decision) = self.scheduler.decision() {
            match decision {
                Decision::Run(work) => self.running.push(work),
                Decision::Tell(news) => self.news.push(news),
                Decision::ReportProgress | Decision::Tidy => {}
                decision => self.decided.push(decision),
            }
        }
    }

    /// The time goes by, and the scheduler is woken when it wants to be.
    fn advance(&mut self, by: Duration) {
        let until = self.now + by;
        loop {
            let at = self.scheduler.wake_at(self.now);
            if at > until {
                break;
            }
            self.now = self.now.max(at);
            self.scheduler.wake(self.now);
            self.go();
            assert!(self.scheduler.wake_at(self.now) > self.now, "it wakes without an end");
        }
        self.now = until;
        self.go();
    }

    /// The numbers of what runs, work by work.
    fn runs(&self) -> Vec<Vec<i64>> {
        self.running.iter().map(|work| events(work).map(number).collect()).collect()
    }

    /// Ends the work in which this event runs, and starts what may start.
    fn end(&mut self, event: i64, becomes: impl FnMut(&Held) -> Disposition) {
        let runs = |work: &Work| events(work).any(|held| number(held) == event);
        let at = self.running.iter().position(runs).expect("it runs");
        self.end_at(at, None, becomes);
        self.go();
    }

    fn end_at(
        &mut self,
        at: usize,
        parking: Option<Parking>,
        mut becomes: impl FnMut(&Held) -> Disposition,
    ) {
        let mut with = |held: Held| {
            let disposition = becomes(&held);
            (held, disposition)
        };
        let work = self.running.remove(at);
        let looked_up = matches!(work, Work::LookUp(_));
        let lanes = match work {
            Work::One { lane, event } => vec![(lane, vec![with(event)])],
            Work::Postpone { lane, event, .. } => vec![(lane, vec![with(event)])],
            Work::Park { lane, events, .. } => {
                vec![(lane, events.into_iter().map(with).collect())]
            }
            Work::Batch(lanes) | Work::LookUp(lanes) => {
                let with = |(lane, held): (Lane, Vec<Held>)| {
                    (lane, held.into_iter().map(&mut with).collect())
                };
                lanes.into_iter().map(with).collect()
            }
        };
        self.scheduler.ran(Ran { lanes, parking, looked_up }, self.now);
    }

    /// The parking that is under way ends like this.
    fn end_parking(&mut self, parking: Parking) {
        let is_parking = |work: &Work| matches!(work, Work::Park { .. });
        let at = self.running.iter().position(is_parking).expect("events are being parked");
        let Work::Park { events, wait, .. } = &self.running[at] else { return };
        let mut dispositions = parking.dispositions(*wait, events.len()).into_iter();
        self.end_at(at, Some(parking), |_| dispositions.next().unwrap());
        self.go();
    }

    /// Gives the acknowledgements that are due.
    fn acknowledge(&mut self) -> Vec<(u64, Acknowledgement)> {
        let mut all = Vec::new();
        while let Some((acker, acknowledgement)) = self.scheduler.acknowledgement_due() {
            all.push((*acker, acknowledgement));
            self.scheduler.acknowledged();
        }
        all
    }
}

fn events(work: &Work) -> Box<dyn Iterator<Item = &Held> + '_> {
    match work {
        Work::One { event, .. } => Box::new(std::iter::once(event)),
        Work::Batch(lanes) | Work::LookUp(lanes) => {
            Box::new(lanes.iter().flat_map(|(_, events)| events))
        }
        Work::Postpone { event, .. } => Box::new(std::iter::once(event)),
        Work::Park { events, .. } => Box::new(events.iter()),
    }
}
