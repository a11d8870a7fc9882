//! A run: servers, processes, faults, rest, verdict.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use pillarbox_testkit::eventually;
use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::fault::Fault;
use crate::foreign;
use crate::gather::gather;
use crate::history::Made;
use crate::journal::now;
use crate::options::Options;
use crate::report::Report;
use crate::rest::until_at_rest;
use crate::schedule::{Planned, schedule};
use crate::world::World;

/// How many faults may be under way at a time.
const AT_A_TIME: usize = 3;
/// How often the processes are checked.
const LOOK_EVERY: Duration = Duration::from_millis(150);

/// Makes a run. `program` is this program; the processes of the run are started from it, each in a role.
///
/// Dropping the future ends the servers and processes.
///
/// # Errors
/// The reason why the run could not be made. What the run found is in the report.
pub async fn run(options: &Options, program: &Path) -> anyhow::Result<Report> {
    let seed = options.seed.unwrap_or_else(rand::random);
    let planned = schedule(options, seed);
    let own = tempfile::Builder::new().prefix("pillarbox-faults-").tempdir()?;
    let folder = match &options.keep {
        Some(folder) => {
            std::fs::create_dir_all(folder)?;
            let empty = std::fs::read_dir(folder)?.next().is_none();
            anyhow::ensure!(
                empty,
                "{} is not empty: the journals of another run?",
                folder.display()
            );
            folder.clone()
        }
        None => own.path().to_owned(),
    };
    let world = World::make(options, seed, program.to_owned(), folder).await?;
    let world = Arc::new(world);
    for process in world.all() {
        process.start().await?;
    }
    let mut guarding = JoinSet::new();
    guarding.spawn(guard(world.clone()));
    if options.saga {
        until_a_trip_is_booked(&world, Duration::from_secs(options.patience)).await?;
    }
    let (stop, pause) = (CancellationToken::new(), Duration::from_millis(options.foreign_ms));
    let foreign = async {
        match pause.is_zero() {
            true => Ok(()),
            false => foreign::produce(&world, seed, pause, &stop).await,
        }
    };
    let faults = async {
        make_faults(&world, planned, Duration::from_secs(options.seconds)).await;
        stop.cancel();
    };
    let ((), produced) = tokio::join!(faults, foreign);
    produced?;
    let stopped = join_all(world.writers.iter().map(|writer| writer.stop())).await;
    note_failures(&world, stopped);
    let left = until_at_rest(&world, Duration::from_secs(options.patience)).await;
    guarding.shutdown().await;
    let others = world.consumers.iter().chain(&world.relays);
    let stopped = join_all(others.map(|process| process.stop())).await;
    note_failures(&world, stopped);
    let history = gather(&world, left).await?;
    Ok(Report::of(seed, command(options, seed), history))
}

/// Once faults begin, a busy machine may book no trip in time any more. A run without one would not have shown what
/// faults do to trips that go well.
async fn until_a_trip_is_booked(world: &World, patience: Duration) -> anyhow::Result<()> {
    const BOOKED: &str = "select exists (select from pillarbox.saga where status = 'completed')";
    eventually("a trip to be booked before the first fault", patience, async || {
        let is_booked: bool = sqlx::query_scalar(BOOKED).fetch_one(&world.outbox).await?;
        anyhow::Ok(is_booked.then_some(()))
    })
    .await?;
    Ok(())
}

fn note_failures(world: &World, stopped: Vec<anyhow::Result<()>>) {
    let failed = stopped.into_iter().filter_map(Result::err);
    world.record().ended.extend(failed.map(|error| (now(), error.to_string())));
}

/// Makes each fault when it is due, or later if another one is in its way.
async fn make_faults(world: &World, planned: Vec<Planned>, length: Duration) {
    let begin = Instant::now();
    let mut under_way = FuturesUnordered::new();
    for Planned { at, fault } in planned {
        let most = if fault.loses_data() { 0 } else { AT_A_TIME - 1 };
        loop {
            tokio::select! {
                Some(()) = under_way.next() => {}
                () = sleep_until(begin + at), if under_way.len() <= most => break,
            }
        }
        if begin.elapsed() > length {
            break;
        }
        if fault.loses_data() {
            make(world, fault).await;
        } else {
            under_way.push(make(world, fault));
        }
    }
    while under_way.next().await.is_some() {}
    sleep_until(begin + length).await;
}

async fn make(world: &World, fault: Fault) {
    let from = now();
    let outcome = fault.make(world).await;
    let (what, hit) = match outcome {
        Ok(what) => (format!("{fault}: {what}"), true),
        Err(error) => (format!("{fault}: missed, {error:#}"), false),
    };
    tracing::info!("{what}");
    world.record().made.push(Made { kind: fault.kind(), what, from, to: now(), hit });
}

/// Restarts processes that end by themselves.
async fn guard(world: Arc<World>) {
    loop {
        sleep(LOOK_EVERY).await;
        for process in world.all() {
            let Some((status, mut life)) = process.ended_by_itself() else {
                continue;
            };
            if !killed_by_an_event(status) {
                let what = format!("{} ended with {status}", process.name);
                tracing::warn!("{what}");
                world.record().ended.push((now(), what));
            }
            if let Err(error) = process.start_as(&mut life) {
                tracing::error!("{} does not start again: {error:#}", process.name);
            }
        }
    }
}

/// Some events are meant to abort the process that handles them.
fn killed_by_an_event(status: ExitStatus) -> bool {
    status.signal() == Some(Signal::ABORT.as_raw())
}

/// The command that makes the same choices again.
fn command(options: &Options, seed: u64) -> String {
    let usual = Options::default();
    let mut command = format!(
        "cargo run --release -p pillarbox-faults -- --seed {seed} --seconds {}",
        options.seconds
    );
    if options.faults != usual.faults {
        command.push_str(&format!(" --faults {}", options.faults.text()));
    }
    for (name, value, usual) in [
        ("every-ms", options.every_ms, usual.every_ms),
        ("writers", options.writers, usual.writers),
        ("relays", options.relays, usual.relays),
        ("keys", u64::from(options.keys), u64::from(usual.keys)),
        ("pause-ms", options.pause_ms, usual.pause_ms),
        ("foreign-ms", options.foreign_ms, usual.foreign_ms),
        ("patience", options.patience, usual.patience),
        ("slow", options.slow, usual.slow),
    ] {
        if value != usual {
            command.push_str(&format!(" --{name} {value}"));
        }
    }
    for (name, on) in [
        ("strict", options.strict),
        ("pooler", options.pooler),
        ("cluster", options.cluster),
        ("saga", options.saga),
    ] {
        if on {
            command.push_str(&format!(" --{name}"));
        }
    }
    if options.partitions > 1 {
        command.push_str(&format!(" --partitions {}", options.partitions));
    }
    command
}
