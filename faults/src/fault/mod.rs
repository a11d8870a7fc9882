//! The faults, and how each is made.

mod broker_data;
mod cluster;
mod connections;
mod lease;
mod processes;
mod servers;
mod transactions;

use std::fmt;
use std::time::Duration;

use crate::event::Kind;
use crate::world::World;

/// The names of all kinds of faults.
pub const KINDS: &[&str] = &[
    "kill-relay",
    "kill-consumer",
    "kill-writer",
    "kill-postgres",
    "kill-nats",
    "pause-relay",
    "pause-consumer",
    "pause-writer",
    "pause-postgres",
    "pause-nats",
    "restart-relay",
    "restart-consumer",
    "restart-writer",
    "restart-postgres",
    "restart-nats",
    "cut-relay",
    "cut-consumer",
    "cut-writer",
    "cut-commit-relay",
    "cut-commit-consumer",
    "cut-commit-writer",
    "stall-relay",
    "stall-consumer",
    "stall-writer",
    "swallow-relay",
    "swallow-consumer",
    "slow-relay",
    "slow-consumer",
    "slow-writer",
    "steal-lease",
    "skew-lease-back",
    "skew-lease-forth",
    "wipe-stream",
    "put-back-stream",
    "fill-stream",
    "open-transaction",
    "overtake",
    "exhaust-connections",
    "poison-undecodable",
    "poison-refused",
    "poison-stubborn",
    "poison-killer",
    "poison-too-large",
    "poison-no-event",
    "poison-unreadable",
    "poison-swollen",
    "poison-ender",
    "poison-litterer",
    "poison-backend-killer",
    "foreign-rows",
    "change-cluster",
];

/// A process that a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The relay that leads, or any relay if none leads.
    Relay,
    /// One of the consumers, in turn.
    Consumer,
    /// One of the writers, in turn.
    Writer,
}

/// A server that a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// The database.
    Postgres,
    /// The broker.
    Nats,
}

/// Which connections of a process are hit. A writer has only connections to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The connections to the database.
    Database,
    /// The connection to the broker.
    Broker,
}

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// SIGKILL, and a new start after a while.
    Kill(Target, Duration),
    /// SIGSTOP, and SIGCONT after a while.
    Pause(Target, Duration),
    /// A clean stop, and a new start.
    Restart(Target),
    /// SIGKILL of a server, and a new start after a while.
    KillServer(Server, Duration),
    /// SIGSTOP of a server, and SIGCONT after a while.
    PauseServer(Server, Duration),
    /// A clean stop of a server, and a new start after a while.
    RestartServer(Server, Duration),
    /// All connections of a process are cut, and no new ones are accepted for a while.
    Cut(Target, Side, Duration),
    /// A connection is cut between a commit and its answer.
    CutCommit(Target),
    /// Nothing passes for a while, and nothing is closed.
    Stall(Target, Side, Duration),
    /// The connections that are open pass nothing on any more, and are never closed.
    Swallow(Target, Side),
    /// Every piece is delayed by this time, for a while.
    Slow(Target, Side, Duration, Duration),
    /// Somebody else takes the lease, and lets it expire after a while.
    StealLease(Duration),
    /// The time at which the lease expires is moved by this many milliseconds, as if the database's clock jumped.
    SkewLease(i64),
    /// The stream is deleted and created again.
    WipeStream,
    /// The broker's store is restored to its state of this long ago.
    PutBackStream(Duration),
    /// The stream refuses messages for a while. Then messages that were read are removed, and it accepts messages
    /// again.
    FillStream(Duration),
    /// A transaction takes its id, publishes, and commits after a while.
    OpenTransaction(Duration),
    /// Of two transactions, the one with the later id writes first, and commits this much later.
    Overtake(Duration),
    /// The database has no free connection for a while.
    ExhaustConnections(Duration),
    /// An event of this kind.
    Poison(Kind),
    /// Committed rows that carry transaction ids of another cluster. The number says how far they are ahead of this
    /// cluster's ids; if it is negative, they are behind.
    ForeignRows(i64),
    /// The rows and the cursor come from another cluster, as after a dump and a restore. The number says how far its
    /// ids are ahead of this cluster's; if it is negative, they are behind.
    ChangeCluster(i64),
}

impl Fault {
    /// The name of its kind.
    pub fn kind(&self) -> String {
        match self {
            Self::Kill(target, _) => format!("kill-{target}"),
            Self::Pause(target, _) => format!("pause-{target}"),
            Self::Restart(target) => format!("restart-{target}"),
            Self::KillServer(server, _) => format!("kill-{server}"),
            Self::PauseServer(server, _) => format!("pause-{server}"),
            Self::RestartServer(server, _) => format!("restart-{server}"),
            Self::Cut(target, ..) => format!("cut-{target}"),
            Self::CutCommit(target) => format!("cut-commit-{target}"),
            Self::Stall(target, ..) => format!("stall-{target}"),
            Self::Swallow(target, _) => format!("swallow-{target}"),
            Self::Slow(target, ..) => format!("slow-{target}"),
            Self::StealLease(_) => "steal-lease".into(),
            Self::SkewLease(by) if *by < 0 => "skew-lease-back".into(),
            Self::SkewLease(_) => "skew-lease-forth".into(),
            Self::WipeStream => "wipe-stream".into(),
            Self::PutBackStream(_) => "put-back-stream".into(),
            Self::FillStream(_) => "fill-stream".into(),
            Self::OpenTransaction(_) => "open-transaction".into(),
            Self::Overtake(_) => "overtake".into(),
            Self::ExhaustConnections(_) => "exhaust-connections".into(),
            Self::Poison(Kind::Undecodable) => "poison-undecodable".into(),
            Self::Poison(Kind::Refused) => "poison-refused".into(),
            Self::Poison(Kind::Stubborn) => "poison-stubborn".into(),
            Self::Poison(Kind::Killer) => "poison-killer".into(),
            Self::Poison(Kind::TooLarge) => "poison-too-large".into(),
            Self::Poison(Kind::NoEvent | Kind::Plain) => "poison-no-event".into(),
            Self::Poison(Kind::Unreadable) => "poison-unreadable".into(),
            Self::Poison(Kind::Swollen) => "poison-swollen".into(),
            Self::Poison(Kind::Ender) => "poison-ender".into(),
            Self::Poison(Kind::Litterer) => "poison-litterer".into(),
            Self::Poison(Kind::BackendKiller) => "poison-backend-killer".into(),
            Self::ForeignRows(_) => "foreign-rows".into(),
            Self::ChangeCluster(_) => "change-cluster".into(),
        }
    }

    /// Whether no other fault may be made until the relay has noticed this one. Nothing is promised about a loss that
    /// the leader cannot notice because it died within the same seconds.
    pub fn loses_data(&self) -> bool {
        matches!(self, Self::WipeStream | Self::PutBackStream(_) | Self::ChangeCluster(_))
    }

    /// Makes the fault, then repairs what it broke. Returns what it hit. An error means that it missed, because another
    /// fault was in its way.
    pub(crate) async fn make(&self, world: &World) -> anyhow::Result<String> {
        match *self {
            Self::Kill(target, down) => processes::kill(world, target, down).await,
            Self::Pause(target, still) => processes::pause(world, target, still).await,
            Self::Restart(target) => processes::restart(world, target).await,
            Self::KillServer(server, down) => servers::kill(world, server, down).await,
            Self::PauseServer(server, still) => servers::pause(world, server, still).await,
            Self::RestartServer(server, down) => servers::restart(world, server, down).await,
            Self::Cut(target, side, closed) => connections::cut(world, target, side, closed).await,
            Self::CutCommit(target) => connections::cut_commit(world, target).await,
            Self::Stall(target, side, still) => {
                connections::stall(world, target, side, still).await
            }
            Self::Swallow(target, side) => connections::swallow(world, target, side).await,
            Self::Slow(target, side, each, last) => {
                connections::slow(world, target, side, each, last).await
            }
            Self::StealLease(held) => lease::steal(world, held).await,
            Self::SkewLease(by) => lease::skew(world, by).await,
            Self::WipeStream => broker_data::wipe(world).await,
            Self::PutBackStream(age) => broker_data::put_back(world, age).await,
            Self::FillStream(full) => broker_data::fill(world, full).await,
            Self::OpenTransaction(open) => transactions::leave_open(world, open).await,
            Self::Overtake(later) => transactions::overtake(world, later).await,
            Self::ExhaustConnections(held) => transactions::exhaust(world, held).await,
            Self::Poison(kind) => transactions::poison(world, kind).await,
            Self::ForeignRows(ahead) => cluster::foreign_rows(world, ahead).await,
            Self::ChangeCluster(ahead) => cluster::change(world, ahead).await,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind())?;
        let ms = Duration::as_millis;
        match self {
            Self::Kill(_, time)
            | Self::Pause(_, time)
            | Self::KillServer(_, time)
            | Self::PauseServer(_, time)
            | Self::RestartServer(_, time)
            | Self::StealLease(time)
            | Self::PutBackStream(time)
            | Self::FillStream(time)
            | Self::OpenTransaction(time)
            | Self::Overtake(time)
            | Self::ExhaustConnections(time) => write!(f, " for {} ms", ms(time)),
            Self::Cut(_, side, time) | Self::Stall(_, side, time) => {
                write!(f, " from the {side} for {} ms", ms(time))
            }
            Self::Slow(_, side, each, last) => {
                write!(f, " to the {side} by {} ms for {} ms", ms(each), ms(last))
            }
            Self::SkewLease(by) => write!(f, " by {by} ms"),
            Self::Swallow(_, side) => write!(f, " from the {side}"),
            Self::ForeignRows(ahead) | Self::ChangeCluster(ahead) => {
                write!(f, " with ids ahead by {ahead}")
            }
            Self::Restart(_) | Self::CutCommit(_) | Self::WipeStream | Self::Poison(_) => Ok(()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Relay => "relay",
            Self::Consumer => "consumer",
            Self::Writer => "writer",
        })
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Postgres => "postgres",
            Self::Nats => "nats",
        })
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Database => "database",
            Self::Broker => "broker",
        })
    }
}
