//! What holds whatever happens, and in whichever order.
//!
//! A [`World`] plays the server, the table of dead letters and the driver, and checks after each step:
//!
//! - Of a lane only one work runs, and it has the lane's next events.
//! - Nothing is forgotten: what came in has left, or is held. At the end of each run everything can leave.
//! - No more messages are held than `prefetch`. With an order the subscription sees to that, and the world plays it.
//! - What is looked up was not looked up before, and one lookup runs at a time.
//! - While one event runs alone, nothing else runs; while the consumer pauses, nothing starts.
//! - No delivery is acknowledged that is from before an interruption.
//! - The scheduler never wants to be woken at once and for ever ([`Bench::advance`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;

use super::*;

const KEYS: [&str; 4] = ["a", "b", "c", ""];

/// Something that happens.
#[derive(Clone, Debug)]
enum Happens {
    Delivery {
        key: usize,
    },
    Parked {
        events: usize,
    },
    /// A look for parked events ends.
    Found,
    /// The work of this number ends, with this for its events, in a circle.
    End {
        work: usize,
        becomes: Vec<Becomes>,
    },
    /// A probe ends.
    Probed {
        well: bool,
    },
    Asked {
        away: bool,
    },
    Acknowledged,
    Interrupted {
        partition: u32,
    },
    /// The stream was deleted and created anew.
    NewLife,
    GivenUp {
        partition: u32,
    },
    Taken {
        partition: u32,
    },
    Time {
        milliseconds: u64,
    },
}

/// What may become of an event.
#[derive(Clone, Copy, Debug)]
enum Becomes {
    Done,
    Skipped,
    Dead,
    Fails,
    HeldBack,
    Alone,
    Environment,
    Late,
    ByItself,
}

fn happens() -> impl Strategy<Value = Happens> {
    use Becomes::*;
    let becomes = prop::sample::select(vec![
        Done,
        Done,
        Done,
        Done,
        Skipped,
        Skipped,
        Dead,
        Fails,
        Fails,
        HeldBack,
        Alone,
        Environment,
        Late,
        ByItself,
    ]);
    let partition = 0..2_u32;
    prop_oneof![
        8 => (0..KEYS.len()).prop_map(|key| Happens::Delivery { key }),
        1 => (1..4_usize).prop_map(|events| Happens::Parked { events }),
        2 => Just(Happens::Found),
        8 => (0..8_usize, prop::collection::vec(becomes, 1..4))
            .prop_map(|(work, becomes)| Happens::End { work, becomes }),
        1 => any::<bool>().prop_map(|well| Happens::Probed { well }),
        1 => any::<bool>().prop_map(|away| Happens::Asked { away }),
        2 => Just(Happens::Acknowledged),
        1 => partition.clone().prop_map(|partition| Happens::Interrupted { partition }),
        1 => Just(Happens::NewLife),
        1 => partition.clone().prop_map(|partition| Happens::GivenUp { partition }),
        1 => partition.prop_map(|partition| Happens::Taken { partition }),
        3 => (0..2_000_u64).prop_map(|milliseconds| Happens::Time { milliseconds }),
    ]
}

fn any_limits() -> impl Strategy<Value = Limits> {
    let order =
        prop::sample::select(vec![HandlingOrder::Key, HandlingOrder::Strict, HandlingOrder::None]);
    let batch = prop::option::of(1..4_usize);
    (order, 1..4_usize, 4..9_usize, batch).prop_map(|(order, concurrency, prefetch, batch)| {
        let linger = Duration::from_millis(5);
        let batch = batch.map(|size| BatchLimits { size, linger });
        Limits { order, concurrency, prefetch, places: prefetch, batch, ..limits() }
    })
}

/// The partition of a key.
fn partition(key: usize) -> u32 {
    u32::from(key % 2 == 1)
}

struct World {
    bench: Bench,
    limits: Limits,
    /// What is held of each lane, by its numbers, in their order.
    held: BTreeMap<Lane, Vec<i64>>,
    /// The server: what it waits for an acknowledgement of, by sequence, with its key.
    unacknowledged: BTreeMap<u64, usize>,
    /// What it delivers again.
    again: BTreeSet<u64>,
    sequence: u64,
    /// How often each partition was interrupted.
    interruptions: [u32; 2],
    given_up: BTreeSet<u32>,
    /// Of each delivery the sequence, and the partition's interruptions until then.
    deliveries: HashMap<u64, (u64, u32, u32)>,
    /// The table: parked events of each key that may be taken.
    parked: Vec<BTreeSet<i64>>,
    /// The key of each.
    key_of: HashMap<i64, usize>,
}

impl World {
    fn new(limits: Limits) -> Self {
        let bench = Bench::new(limits.clone());
        let mut world = Self {
            bench,
            limits,
            held: BTreeMap::new(),
            unacknowledged: BTreeMap::new(),
            again: BTreeSet::new(),
            sequence: 0,
            interruptions: [0; 2],
            given_up: BTreeSet::new(),
            deliveries: HashMap::new(),
            parked: Vec::new(),
            key_of: HashMap::new(),
        };
        world.bench.go();
        world
    }

    fn lane(&self, sequence: u64, key: usize) -> Lane {
        content(KEYS[key]).lane(&place(sequence), self.limits.order.keeps_keys())
    }

    fn happens(&mut self, happens: Happens) {
        let before = self.bench.running.len();
        let paused = !self.bench.scheduler.pause.is_open();
        let mut resumes = false;
        match happens {
            Happens::Delivery { key } => self.deliver(key),
            Happens::Parked { events } => {
                let first = 1 + i64::try_from(self.key_of.len()).unwrap();
                let positions: BTreeSet<_> = (first..).take(events).collect();
                self.key_of.extend(positions.iter().map(|&at| (at, self.parked.len())));
                self.parked.push(positions);
            }
            Happens::Found => self.found(),
            Happens::End { work, becomes } => {
                if !self.bench.running.is_empty() {
                    self.end(work % self.bench.running.len(), &becomes);
                    self.bench.go();
                    self.check_start(before - 1, paused);
                    return self.check();
                }
            }
            Happens::Probed { well } => {
                if self.take_decision(|it| matches!(it, Decision::Probe)).is_some() {
                    self.bench.scheduler.probed(well, self.bench.now);
                    resumes = well;
                }
            }
            Happens::Asked { away } => {
                if self.take_decision(|it| matches!(it, Decision::AskDatabase)).is_some() {
                    let away = away.then(|| "no route".to_owned());
                    self.bench.scheduler.asked(away, self.bench.now);
                }
            }
            Happens::Acknowledged => self.acknowledge(),
            Happens::Interrupted { partition } => {
                self.bench.scheduler.interrupted(partition);
                self.interrupted(partition);
            }
            Happens::NewLife => {
                self.unacknowledged.clear();
                self.again.clear();
                for partition in 0..2 {
                    self.bench.scheduler.interrupted(partition);
                    self.interrupted(partition);
                }
            }
            Happens::GivenUp { partition } => {
                self.given_up.insert(partition);
                self.bench.scheduler.gives_up(&[partition]);
            }
            Happens::Taken { partition } => {
                self.given_up.remove(&partition);
                self.bench.scheduler.takes(&[partition]);
                self.interrupted(partition);
            }
            Happens::Time { milliseconds } => {
                self.bench.advance(Duration::from_millis(milliseconds));
            }
        }
        self.bench.go();
        self.check_start(before, paused && !resumes);
        self.check();
    }

    /// Delivers what the server has to deliver again, or a new message, if the driver would ask for one.
    fn deliver(&mut self, key: usize) {
        if !self.bench.scheduler.has_room() {
            return;
        }
        let is_read = |key: usize| !self.given_up.contains(&partition(key));
        let again = self.again.iter().copied();
        let mut again = again.filter(|sequence| is_read(self.unacknowledged[sequence]));
        let (sequence, key, again) = match again.next() {
            Some(sequence) => (sequence, self.unacknowledged[&sequence], true),
            None if self.unacknowledged.len() < self.limits.prefetch && is_read(key) => {
                self.sequence += 1;
                (self.sequence, key, false)
            }
            None => return,
        };
        let number = sequence.cast_signed();
        let mut held = self.held.values().flatten().filter(|held| **held > 0);
        if self.limits.order.keeps_keys()
            && held.clone().count() >= self.limits.prefetch
            && held.all(|held| *held != number)
        {
            return;
        }
        self.again.remove(&sequence);
        self.unacknowledged.insert(sequence, key);
        let partition = partition(key);
        let acker = self.bench.deliver_one(sequence, KEYS[key], partition, again);
        let interruptions = self.interruptions[partition as usize];
        self.deliveries.insert(acker, (sequence, partition, interruptions));
        let lane = self.lane(sequence, key);
        let held = self.held.entry(lane).or_default();
        if !held.contains(&number) {
            held.push(number);
        }
    }

    /// The server delivers again what it waits for of this partition.
    fn interrupted(&mut self, interrupted: u32) {
        self.interruptions[interrupted as usize] += 1;
        let of = self.unacknowledged.iter().filter(|(_, key)| partition(**key) == interrupted);
        self.again.extend(of.map(|(sequence, _)| *sequence));
    }

    fn acknowledge(&mut self) {
        for (acker, acknowledgement) in self.bench.acknowledge() {
            let (sequence, partition, interruptions) = self.deliveries[&acker];
            assert_eq!(interruptions, self.interruptions[partition as usize], "{sequence}");
            match acknowledgement {
                Acknowledgement::Later(_) => drop(self.again.insert(sequence)),
                Acknowledgement::InProgress => {}
                Acknowledgement::Done | Acknowledgement::GivenUp => {
                    self.unacknowledged.remove(&sequence);
                    self.again.remove(&sequence);
                }
            }
        }
    }

    fn take_decision(&mut self, is_such: impl Fn(&Decision) -> bool) -> Option<Decision> {
        let at = self.bench.decided.iter().position(is_such)?;
        Some(self.bench.decided.remove(at))
    }

    /// Of each key what may be taken, up to as many keys as were asked for.
    fn found(&mut self) {
        let asked = self.take_decision(|it| matches!(it, Decision::LookForParked(_)));
        let Some(Decision::LookForParked(most)) = asked else { return };
        let mut pages = Vec::new();
        for events in self.parked.iter_mut().filter(|events| !events.is_empty()).take(most) {
            let positions: Vec<_> = std::mem::take(events).into_iter().collect();
            let numbers = positions.iter().map(|at| -at).collect();
            self.held.insert(Lane::Page(positions[0]), numbers);
            pages.push(page(&positions, self.bench.now + LONG));
        }
        self.bench.scheduler.found(pages, true, self.bench.now);
    }

    /// Ends a work as a driver may.
    fn end(&mut self, work: usize, becomes: &[Becomes]) {
        if let Work::Park { events, wait, .. } = &self.bench.running[work] {
            let all = [Parking::Done, Parking::NotBehind, Parking::Full, Parking::Failed];
            let parking = all[becomes[0] as usize % all.len()];
            let mut dispositions = parking.dispositions(*wait, events.len()).into_iter();
            self.bench.end_at(work, Some(parking), |_| dispositions.next().unwrap());
            return;
        }
        if matches!(self.bench.running[work], Work::LookUp(_)) {
            let mut becomes = becomes.iter().cycle();
            return self.bench.end_at(work, None, |_| match becomes.next().unwrap() {
                Becomes::Done | Becomes::Skipped => Disposition::Skipped,
                _ => Disposition::Behind,
            });
        }
        let in_batch = matches!(self.bench.running[work], Work::Batch(_));
        let whole =
            becomes.iter().find(|it| matches!(it, Becomes::Environment | Becomes::ByItself));
        let mut failed = BTreeSet::new();
        let mut becomes = becomes.iter().cycle();
        let keeps_keys = self.limits.order.keeps_keys();
        let mut left = Vec::new();
        self.bench.end_at(work, None, |held| {
            let key = held.content.event().and_then(|event| event.key().map(str::to_owned));
            let letter = held.letter().map(|(position, _)| position);
            if in_batch {
                match whole {
                    Some(Becomes::Environment) => {
                        left.extend(letter.map(|position| (position, true)));
                        return Disposition::Environment("away".into());
                    }
                    Some(_) => return Disposition::ByItself,
                    None => {}
                }
                if keeps_keys && key.as_ref().is_some_and(|key| failed.contains(key)) {
                    return Disposition::Behind;
                }
            }
            let disposition = match becomes.next().unwrap() {
                Becomes::Done => Disposition::Done,
                Becomes::Skipped => Disposition::Skipped,
                Becomes::Dead => Disposition::Dead,
                Becomes::Fails => Disposition::Retry(Duration::from_millis(500)),
                Becomes::HeldBack if !in_batch => Disposition::HeldBack(Duration::from_secs(1)),
                Becomes::Alone if !in_batch && !held.is_alone() => Disposition::Alone,
                Becomes::Environment => Disposition::Environment("away".into()),
                Becomes::Late if held.letter().is_some() => Disposition::Late,
                _ => Disposition::Done,
            };
            if !matches!(disposition, Disposition::Done | Disposition::Skipped) {
                failed.extend(key);
            }
            if let Some(position) = letter
                && !matches!(disposition, Disposition::HeldBack(_) | Disposition::Alone)
            {
                let comes_again =
                    matches!(disposition, Disposition::Retry(_) | Disposition::Environment(_));
                left.push((position, comes_again));
            }
            disposition
        });
        for (position, comes_again) in left {
            self.leaves(-position);
            if comes_again {
                self.parked[self.key_of[&position]].insert(position);
            }
        }
    }

    /// An event is not held any more.
    fn leaves(&mut self, number: i64) -> bool {
        self.held.iter_mut().any(|(_, held)| {
            let at = held.iter().position(|held| *held == number);
            at.map(|at| held.remove(at)).is_some()
        })
    }

    /// What has started may start, after `before` works went on.
    fn check_start(&self, before: usize, paused: bool) {
        let started = &self.bench.running[before.min(self.bench.running.len())..];
        assert!(!paused || started.is_empty(), "it starts in a pause: {started:?}");
    }

    fn check(&mut self) {
        for news in std::mem::take(&mut self.bench.news) {
            if let News::Released(place) = news {
                let number = place.sequence().cast_signed();
                assert!(self.leaves(number), "{number} leaves and was not held");
            }
        }
        while let Some(Decision::GiveBack(letters)) =
            self.take_decision(|it| matches!(it, Decision::GiveBack(_)))
        {
            for (position, _) in letters {
                self.leaves(-position);
                self.parked[self.key_of[&position]].insert(position);
            }
        }
        self.held.retain(|_, held| !held.is_empty());
        let alone = |work: &Work| events(work).any(Held::is_alone);
        let running = &self.bench.running;
        assert!(running.len() == 1 || !running.iter().any(alone), "beside one that is alone");
        assert!(running.len() <= self.limits.concurrency);
        let lookups: Vec<_> =
            running.iter().filter(|work| matches!(work, Work::LookUp(_))).collect();
        assert!(lookups.len() <= 1, "{lookups:?}");
        assert!(!lookups.iter().any(|work| events(work).any(|held| held.looked_up)));
        let mut lanes = BTreeSet::new();
        for work in running {
            let of_lane: Vec<(&Lane, Vec<i64>)> = match work {
                Work::One { lane, event } => vec![(lane, vec![number(event)])],
                Work::Postpone { lane, event, .. } => vec![(lane, vec![number(event)])],
                Work::Park { lane, events, .. } => {
                    vec![(lane, events.iter().map(number).collect())]
                }
                Work::Batch(lanes) | Work::LookUp(lanes) => {
                    let numbers = |held: &Vec<Held>| held.iter().map(number).collect();
                    lanes.iter().map(|(lane, held)| (lane, numbers(held))).collect()
                }
            };
            for (lane, numbers) in of_lane {
                assert!(lanes.insert(lane.clone()), "{lane:?} runs twice");
                let held = self.held.get(lane).map_or(&[][..], Vec::as_slice);
                assert!(held.starts_with(&numbers), "{lane:?} has {held:?}, and {numbers:?} runs");
            }
        }
        let held = self.held.values().flatten().filter(|number| **number > 0).count();
        assert_eq!(self.bench.scheduler.deliveries.len(), held, "in is not out and held");
        let most = self.limits.prefetch;
        assert!(held <= most, "{held} are held, and {most} may be");
    }

    /// Everything is well from now on, until all has left.
    fn settle(&mut self) {
        for partition in 0..2 {
            self.happens(Happens::Taken { partition });
        }
        for _ in 0..500 {
            if self.unacknowledged.is_empty()
                && self.held.is_empty()
                && self.parked.iter().all(BTreeSet::is_empty)
            {
                assert_eq!(self.bench.scheduler.lanes.waiting(), 0);
                assert!(self.bench.running.is_empty());
                return;
            }
            if !self.again.is_empty() {
                self.happens(Happens::Delivery { key: 0 });
            }
            self.happens(Happens::Time { milliseconds: 1_000 });
            self.happens(Happens::Asked { away: false });
            self.happens(Happens::Probed { well: true });
            self.happens(Happens::Found);
            while !self.bench.running.is_empty() {
                self.happens(Happens::End { work: 0, becomes: vec![Becomes::Done] });
            }
            self.happens(Happens::Acknowledged);
        }
        panic!(
            "not all leaves: {:?} is held, the server waits for {:?}, {:?} is parked",
            self.held, self.unacknowledged, self.parked
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn keys_run_in_order_nothing_is_forgotten_and_all_bounds_hold(
        limits in any_limits(),
        skips in any::<bool>(),
        all in prop::collection::vec(happens(), 1..120),
    ) {
        let mut world = World::new(limits);
        for _ in 0..if skips { skipping::ENOUGH } else { 0 } {
            world.bench.scheduler.skipping.ran(true);
        }
        for happens in all {
            world.happens(happens);
        }
        world.settle();
    }

    /// Failing keys, as long as they leave room at all, and events that are held back.
    #[test]
    fn a_failing_key_delays_nothing_but_itself(
        limits in any_limits(),
        keys in prop::collection::vec(0..KEYS.len(), 1..9),
        failing in 0..KEYS.len() - 1,
        held_back in any::<bool>(),
    ) {
        let mut bench = Bench::new(Limits { prefetch: 8, places: 100, ..limits });
        let is_failing = |held: &Held| {
            let key = held.content.event().and_then(|event| event.key().map(str::to_owned));
            key.as_deref() == Some(KEYS[failing])
        };
        for (sequence, key) in (1..).zip(&keys) {
            bench.deliver_one(sequence, KEYS[*key], 0, false);
        }
        bench.go();
        // No longer than a batch waits for others.
        bench.advance(Duration::from_millis(5));
        while !bench.running.is_empty() {
            let mut failed = false;
            bench.end_at(0, None, |held| match is_failing(held) {
                true if failed => Disposition::Behind,
                true if held_back => {
                    failed = true;
                    Disposition::HeldBack(LONG)
                }
                true => {
                    failed = true;
                    Disposition::Retry(LONG)
                }
                false => Disposition::Done,
            });
            bench.go();
            bench.advance(Duration::ZERO);
        }
        let well = keys.iter().filter(|key| **key != failing).count();
        let done = bench.acknowledge().into_iter().filter(|(_, how)| *how == Acknowledgement::Done);
        prop_assert_eq!(done.count(), well);
    }

    /// Whatever fails, and however often, and whatever else is asked meanwhile.
    #[test]
    fn a_pause_ends_once_the_surroundings_are_back(
        failures in 1..4_usize,
        probes in prop::collection::vec(any::<bool>(), 0..6),
        keys in prop::collection::vec(0..KEYS.len(), 1..8),
    ) {
        let mut world = World::new(limits());
        for key in keys {
            world.happens(Happens::Delivery { key });
        }
        for _ in 0..failures {
            world.happens(Happens::End { work: 0, becomes: vec![Becomes::Environment] });
        }
        for well in probes.into_iter().chain([true]) {
            world.happens(Happens::Time { milliseconds: 5_000 });
            world.happens(Happens::Probed { well });
            if world.bench.scheduler.pause.is_open() {
                world.happens(Happens::End { work: 0, becomes: vec![Becomes::Environment] });
            }
        }
        world.happens(Happens::Time { milliseconds: 5_000 });
        world.happens(Happens::Probed { well: true });
        prop_assert!(world.bench.scheduler.pause.is_open());
        prop_assert!(!world.bench.running.is_empty());
        world.settle();
    }
}
