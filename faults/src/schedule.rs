//! Which faults are made, and when: a function of the seed.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use crate::event::Kind;
use crate::fault::{Fault, KINDS, Server, Side, Target};
use crate::options::Options;

/// A fault, and when it is due after the start.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// When it is due. It may be made later if it must wait for another fault.
    pub at: Duration,
    /// The fault.
    pub fault: Fault,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:8.3} s  {}", self.at.as_secs_f64(), self.fault)
    }
}

/// The schedule of a run. Every kind has its turn before any comes again. The order is drawn anew each time.
pub fn schedule(options: &Options, seed: u64) -> Vec<Planned> {
    let mut random = StdRng::seed_from_u64(seed);
    let end = Duration::from_secs(options.seconds);
    let mean = Duration::from_millis(options.every_ms);
    let (mut at, mut round, mut planned) = (Duration::from_millis(1_000), Vec::new(), Vec::new());
    loop {
        at += mean.mul_f64(random.random_range(0.4..1.6));
        if at >= end {
            return planned;
        }
        if round.is_empty() {
            round.clone_from(&options.faults.0);
            round.shuffle(&mut random);
        }
        let Some(kind) = round.pop() else {
            return planned;
        };
        planned.push(Planned { at, fault: draw(kind, &mut random) });
    }
}

/// Kinds of faults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kinds(Vec<&'static str>);

impl Kinds {
    /// All kinds.
    pub fn all() -> Self {
        Self(KINDS.to_vec())
    }

    /// The kinds as they are written in `--faults`.
    pub(crate) fn text(&self) -> String {
        self.0.join(",")
    }
}

impl FromStr for Kinds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut chosen: Vec<&'static str> = Vec::new();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            let mut known = false;
            for kind in KINDS.iter().copied().filter(|kind| kind.starts_with(word)) {
                known = true;
                if !chosen.contains(&kind) {
                    chosen.push(kind);
                }
            }
            if !known {
                return Err(format!(
                    "no fault begins with {word:?}; there are {}",
                    KINDS.join(", ")
                ));
            }
        }
        Ok(if chosen.is_empty() { Self::all() } else { Self(chosen) })
    }
}

/// A fault of this kind.
fn draw(kind: &str, random: &mut StdRng) -> Fault {
    let mut ms = |from: u64, to: u64| Duration::from_millis(random.random_range(from..to));
    let target = |kind: &str| match kind.rsplit('-').next() {
        Some("relay") => Target::Relay,
        Some("consumer") => Target::Consumer,
        _ => Target::Writer,
    };
    let server = |kind: &str| match kind.ends_with("postgres") {
        true => Server::Postgres,
        false => Server::Nats,
    };
    match kind {
        "kill-postgres" | "kill-nats" => Fault::KillServer(server(kind), ms(0, 1_500)),
        "pause-postgres" | "pause-nats" => Fault::PauseServer(server(kind), ms(200, 4_000)),
        "restart-postgres" | "restart-nats" => Fault::RestartServer(server(kind), ms(0, 500)),
        "steal-lease" => Fault::StealLease(ms(200, 1_500)),
        "skew-lease-back" => Fault::SkewLease(-2_000),
        "skew-lease-forth" => Fault::SkewLease(2_500),
        "wipe-stream" => Fault::WipeStream,
        "put-back-stream" => Fault::PutBackStream(ms(500, 2_500)),
        "fill-stream" => Fault::FillStream(ms(500, 2_500)),
        "open-transaction" => Fault::OpenTransaction(ms(1_500, 8_000)),
        "overtake" => Fault::Overtake(ms(80, 250)),
        "exhaust-connections" => Fault::ExhaustConnections(ms(300, 2_000)),
        "poison-undecodable" => Fault::Poison(Kind::Undecodable),
        "poison-refused" => Fault::Poison(Kind::Refused),
        "poison-stubborn" => Fault::Poison(Kind::Stubborn),
        "poison-killer" => Fault::Poison(Kind::Killer),
        "poison-too-large" => Fault::Poison(Kind::TooLarge),
        "poison-no-event" => Fault::Poison(Kind::NoEvent),
        "poison-unreadable" => Fault::Poison(Kind::Unreadable),
        "poison-swollen" => Fault::Poison(Kind::Swollen),
        "poison-ender" => Fault::Poison(Kind::Ender),
        "poison-litterer" => Fault::Poison(Kind::Litterer),
        "poison-backend-killer" => Fault::Poison(Kind::BackendKiller),
        "foreign-rows" => {
            Fault::ForeignRows(if random.random_bool(0.5) { 1_000_000 } else { -1_000_000 })
        }
        // A new cluster has given more than 500 ids before the first write.
        "change-cluster" => {
            Fault::ChangeCluster(if random.random_bool(0.5) { 1_000_000 } else { -500 })
        }
        _ if kind.starts_with("kill") => Fault::Kill(target(kind), ms(0, 1_200)),
        _ if kind.starts_with("pause") => Fault::Pause(target(kind), ms(200, 4_500)),
        _ if kind.starts_with("restart") => Fault::Restart(target(kind)),
        _ if kind.starts_with("cut-commit") => Fault::CutCommit(target(kind)),
        _ if kind.starts_with("cut") => {
            let (target, closed) = (target(kind), ms(0, 800));
            Fault::Cut(target, side(target, random), closed)
        }
        _ if kind.starts_with("stall") => {
            let (target, still) = (target(kind), ms(200, 3_000));
            Fault::Stall(target, side(target, random), still)
        }
        _ if kind.starts_with("swallow") => {
            let target = target(kind);
            Fault::Swallow(target, side(target, random))
        }
        _ => {
            let (target, each, last) = (target(kind), ms(5, 60), ms(1_000, 3_000));
            Fault::Slow(target, side(target, random), each, last)
        }
    }
}

/// A writer has only one side. The side is drawn nevertheless, so that a seed still gives the same schedule as before.
fn side(target: Target, random: &mut StdRng) -> Side {
    let database = random.random_bool(0.5);
    if database || target == Target::Writer { Side::Database } else { Side::Broker }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_schedule_and_another_seed_another() {
        let options = Options { seconds: 120, ..Options::default() };
        let first = schedule(&options, 7);
        assert_eq!(first, schedule(&options, 7));
        assert_ne!(first, schedule(&options, 8));
        assert!(first.is_sorted_by_key(|planned| planned.at));
        assert!(first.last().unwrap().at < Duration::from_secs(120));
    }

    #[test]
    fn every_kind_has_its_turn_and_bears_its_name() {
        let options = Options { seconds: 600, ..Options::default() };
        let first: Vec<_> = schedule(&options, 1).into_iter().take(KINDS.len()).collect();
        for kind in KINDS {
            let found = first.iter().any(|planned| planned.fault.kind() == *kind);
            assert!(found, "no {kind} among {first:#?}");
        }
    }

    #[test]
    fn a_writer_has_no_connection_to_the_broker() {
        let options = Options { seconds: 2_400, ..Options::default() };
        let planned = schedule(&options, 1);
        let texts = planned.iter().map(|planned| planned.fault.to_string());
        let of_writers: Vec<_> = texts.filter(|text| text.contains("-writer")).collect();
        for begin in ["cut-writer from", "stall-writer from", "slow-writer to"] {
            let begin = format!("{begin} the database");
            assert!(of_writers.iter().any(|text| text.starts_with(&begin)), "{of_writers:#?}");
        }
        assert!(!of_writers.iter().any(|text| text.contains("broker")), "{of_writers:#?}");
    }

    #[test]
    fn kinds_are_chosen_by_name_or_by_its_beginning() {
        let kinds: Kinds = "kill-relay, cut-commit".parse().unwrap();
        assert_eq!(
            kinds.0,
            ["kill-relay", "cut-commit-relay", "cut-commit-consumer", "cut-commit-writer"]
        );
        assert!("kill-realy".parse::<Kinds>().unwrap_err().contains("kill-relay"));
        // An empty word chooses nothing, and no kind is chosen twice.
        assert_eq!("kill-relay,".parse::<Kinds>().unwrap().0, ["kill-relay"]);
        let kinds: Kinds = "kill,kill-relay,overtake".parse().unwrap();
        assert_eq!(
            kinds.0,
            [
                "kill-relay",
                "kill-consumer",
                "kill-writer",
                "kill-postgres",
                "kill-nats",
                "overtake"
            ]
        );
        for none in ["", " , "] {
            assert_eq!(none.parse::<Kinds>().unwrap(), Kinds::all());
        }
    }
}
