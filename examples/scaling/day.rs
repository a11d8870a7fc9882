//! A day of it, a second at a time.
//!
//! In each second events are committed as far as their database can, shipped as far as relay and stream can, and
//! handled as far as the process that holds their partition can; the rest waits. A stream's room goes to its
//! outboxes in proportion to what they have, a process's to its partitions likewise.

use crate::keys;
use crate::layout::{Layout, Rates};
use crate::load::{DAY, Load};
use crate::queue::Queue;

pub struct Day {
    pub load: Load,
    pub rates: Rates,
    pub layout: Layout,
    /// How long the broker is away at noon.
    pub broker_away: usize,
    /// How long nobody ships for an outbox whose relay was killed.
    pub lease: usize,
    /// How long nobody handles the partitions of a process that was killed; others have them after it.
    pub takeover: usize,
    pub seed: u64,
}

/// What waited at one place.
#[derive(Clone, Debug, Default)]
pub struct Stage {
    /// The most that waited at once, over all of its kind.
    pub most: f64,
    /// The longest that anything waited, in seconds.
    pub oldest: f64,
    /// For how many seconds something had waited for longer than two.
    pub late_seconds: usize,
}

impl Stage {
    fn look(&mut self, second: usize, queues: &[Queue]) {
        let length: f64 = queues.iter().map(Queue::length).sum();
        let age = queues.iter().map(|queue| queue.age(second)).max().unwrap_or(0);
        self.most = self.most.max(length);
        self.oldest = self.oldest.max(age as f64);
        self.late_seconds += usize::from(age > 2);
    }
}

#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub committed: f64,
    pub handled: f64,
    /// Left in the end, anywhere.
    pub left: f64,
    pub writers: Stage,
    pub outboxes: Stage,
    pub streams: Stage,
    /// The part of all events that the hottest key has.
    pub hottest_key: f64,
}

impl Outcome {
    /// Nothing is left, and no writer waited for its database.
    pub fn holds(&self) -> bool {
        self.left < 1.0 && self.writers.late_seconds == 0
    }
}

const NOON: usize = DAY / 2;
const KILLED: usize = NOON + 3600;
/// How long a killed consumer process is gone.
const GONE: usize = 1800;
/// After the day so much more may pass, with nothing coming, until all is handled.
const EVENING: usize = 3600;

impl Day {
    pub fn live(&self) -> Outcome {
        let Layout { outboxes, streams, .. } = self.layout;
        let partitions = self.layout.partitions();
        let keys = keys::parts(&self.load);
        let of_outbox = keys::spread(&keys, outboxes, self.seed);
        let of_partition =
            keys::spread(&keys, self.layout.partitions_per_stream(), self.seed.wrapping_add(1));
        let mut writers = vec![Queue::default(); outboxes];
        let mut unshipped = vec![Queue::default(); outboxes];
        let mut unhandled = vec![Queue::default(); partitions];
        let mut outcome =
            Outcome { hottest_key: keys.first().copied().unwrap_or(0.0), ..Outcome::default() };
        let day = self.load.day();
        for second in 0..DAY + EVENING {
            let coming = day.get(second).copied().unwrap_or(0.0);
            for (outbox, share) in of_outbox.iter().enumerate() {
                writers[outbox].put(second, coming * share);
                let committed = writers[outbox].take(self.rates.commit_rate);
                unshipped[outbox].put(second, committed);
                outcome.committed += committed;
            }
            for stream in 0..streams {
                let shipped = self.ship(second, stream, &mut unshipped);
                let first = stream * of_partition.len();
                for (partition, share) in of_partition.iter().enumerate() {
                    unhandled[first + partition].put(second, shipped * share);
                }
            }
            outcome.handled += self.handle(second, &mut unhandled);
            outcome.writers.look(second, &writers);
            outcome.outboxes.look(second, &unshipped);
            outcome.streams.look(second, &unhandled);
        }
        outcome.left =
            [&writers, &unshipped, &unhandled].into_iter().flatten().map(Queue::length).sum();
        outcome
    }

    /// What the stream stores in this second. Outbox `n` ships to stream `n mod streams`.
    fn ship(&self, second: usize, stream: usize, unshipped: &mut [Queue]) -> f64 {
        if (NOON..NOON + self.broker_away).contains(&second) {
            return 0.0;
        }
        let dead = (KILLED..KILLED + self.lease).contains(&second).then_some(0);
        let outboxes: Vec<usize> = (stream..unshipped.len())
            .step_by(self.layout.streams)
            .filter(|outbox| Some(*outbox) != dead)
            .collect();
        let wanted: Vec<f64> = outboxes
            .iter()
            .map(|outbox| unshipped[*outbox].length().min(self.rates.relay_rate))
            .collect();
        let room = proportion(self.rates.stream_rate, wanted.iter().sum());
        outboxes
            .into_iter()
            .zip(wanted)
            .map(|(outbox, wanted)| unshipped[outbox].take(wanted * room))
            .sum()
    }

    /// What is handled in this second, by all processes.
    fn handle(&self, second: usize, unhandled: &mut [Queue]) -> f64 {
        let processes = self.layout.processes_per_stream;
        let per_stream = self.layout.partitions_per_stream();
        let gone = (KILLED..KILLED + GONE).contains(&second);
        let nobody = (KILLED..KILLED + self.takeover).contains(&second);
        // A single process is started again, and has its partitions back when it would have lost them.
        let moves = gone && processes > 1;
        let mut handled = 0.0;
        for (stream, queues) in unhandled.chunks_mut(per_stream.max(1)).enumerate() {
            // Process 0 of the first stream is the one that is killed; its partitions go to the others in turn.
            let of = |partition: usize| match partition % processes {
                0 if stream == 0 && nobody => None,
                0 if stream == 0 && moves => Some(1 + (partition / processes) % (processes - 1)),
                process => Some(process),
            };
            let mut wanted = vec![0.0; processes];
            for (partition, queue) in queues.iter().enumerate() {
                if let Some(process) = of(partition) {
                    wanted[process] += queue.length();
                }
            }
            for (partition, queue) in queues.iter_mut().enumerate() {
                if let Some(process) = of(partition) {
                    let room = proportion(self.rates.process_rate, wanted[process]);
                    handled += queue.take(queue.length() * room);
                }
            }
        }
        handled
    }
}

/// The part of what is wanted that there is room for.
fn proportion(room: f64, wanted: f64) -> f64 {
    if wanted > room { room / wanted } else { 1.0 }
}
