//! A day, simulated second by second.
//!
//! In each second the databases commit events, the relays and streams ship them, and the processes that hold the
//! partitions handle them, each up to its capacity. The rest waits. The capacity of a stream is divided among its
//! outboxes in proportion to what waits in them, and that of a process among its partitions in the same way.

use super::keys;
use super::layout::{Layout, Rates};
use super::load::{DAY, Load};
use super::queue::Queue;

pub struct Day {
    pub load: Load,
    pub rates: Rates,
    pub layout: Layout,
    /// How long the broker is away at noon.
    pub broker_away: usize,
    /// How long an outbox is not shipped after its relay was killed.
    pub lease: usize,
    /// How long the partitions of a killed process wait before other processes take them.
    pub takeover: usize,
    pub seed: u64,
}

/// What waited in one kind of place.
#[derive(Clone, Debug, Default)]
pub struct Stage {
    /// The largest number of events that waited at the same time, over all places of this kind.
    pub most: f64,
    /// The longest time that any event waited, in seconds.
    pub oldest: f64,
    /// For how many seconds some event had waited for longer than two seconds.
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
    /// Events that are left at the end, in any place.
    pub left: f64,
    pub writers: Stage,
    pub outboxes: Stage,
    pub streams: Stage,
    /// The share of the hottest key in all events.
    pub hottest_key: f64,
}

impl Outcome {
    /// Whether nothing is left and no writer had to wait for its database.
    pub fn holds(&self) -> bool {
        self.left < 1.0 && self.writers.late_seconds == 0
    }
}

const NOON: usize = DAY / 2;
const KILLED: usize = NOON + 3600;
/// How long a killed consumer process is gone.
const GONE: usize = 1800;
/// How long after the day, without new events, everything must be handled.
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

    /// Ships what the streams can store in this second. Outbox `n` ships to stream `n mod streams`.
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

    /// Handles what all processes can handle in this second.
    fn handle(&self, second: usize, unhandled: &mut [Queue]) -> f64 {
        let processes = self.layout.processes_per_stream;
        let per_stream = self.layout.partitions_per_stream();
        let gone = (KILLED..KILLED + GONE).contains(&second);
        let nobody = (KILLED..KILLED + self.takeover).contains(&second);
        // A single process is restarted, and gets its partitions back at the time at which it would have lost them.
        let moves = gone && processes > 1;
        let mut handled = 0.0;
        for (stream, queues) in unhandled.chunks_mut(per_stream.max(1)).enumerate() {
            // Process 0 of the first stream is killed, and its partitions go to the others in turn.
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

/// The share of the demand for which there is capacity.
fn proportion(room: f64, wanted: f64) -> f64 {
    if wanted > room { room / wanted } else { 1.0 }
}
