//! The process that reads the streams and fills the tables.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pillarbox_relay::broker::Connection;
use pillarbox_relay::{ConfigError, Database};
use pillarbox_store::{Backoff, Schema, full_text};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::config::TrailConfig;
use crate::following::{Following, Report};
use crate::metrics;
use crate::place::Place;
use crate::state::{StreamState, TrailState};
use crate::tables::Tables;

/// How many batches may wait to be written, over all streams.
const BATCHES: usize = 2;
/// How often the streams are listed.
const LIST_EVERY: Duration = Duration::from_secs(15);
/// How often old rows are looked for.
const FORGET_EVERY: Duration = Duration::from_secs(60);
/// How often a process that stands by tries to take over.
const STAND_BY: Duration = Duration::from_secs(2);
/// How often, at most, the state of a stream is written for each stream.
const STANDS_EVERY: Duration = Duration::from_secs(2);

/// Reads the streams' headers into the trail.
///
/// Several processes may run: one reads, the others stand by. Where each stream has been read to is written with the
/// rows, so a process that is killed goes on where it stopped, and nothing is recorded twice.
#[derive(Debug)]
pub struct Trail {
    config: Arc<TrailConfig>,
    schema: Schema,
    database: Database,
    state: watch::Sender<TrailState>,
}

impl Trail {
    /// Checks the settings. Connects to nothing.
    ///
    /// # Errors
    /// [`ConfigError`], with the first setting that cannot be used.
    pub fn new(config: TrailConfig) -> Result<Self, ConfigError> {
        let schema = config.validate()?;
        let database = Database::new(&config.database_url, "pillarbox trail");
        let database = database.map_err(|error| ConfigError {
            key: "database_url",
            value: String::new(),
            problem: full_text(&error),
        })?;
        let database = database.statement_timeout(Duration::from_secs(55));
        let state = watch::Sender::new(TrailState::default());
        metrics::describe();
        metrics::active(false);
        Ok(Self { config: Arc::new(config), schema, database, state })
    }

    /// How the trail stands, now and later.
    pub fn state(&self) -> watch::Receiver<TrailState> {
        self.state.subscribe()
    }

    /// Reads until `shutdown` is cancelled. While the database or the broker is away it waits and tries again, for
    /// ever; the log says so once for each reason. Dropping the future stops it at once, which loses nothing either.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut backoff = Backoff::default();
        let mut said = None;
        while !shutdown.is_cancelled() {
            let began = Instant::now();
            let ended = tokio::select! {
                () = shutdown.cancelled() => return,
                ended = self.once(&shutdown, &mut said) => ended,
            };
            metrics::active(false);
            let wait = match ended {
                Ok(Ended::Shutdown) => return,
                Ok(Ended::StandingBy) => STAND_BY,
                Err(error) => {
                    let error = in_words(&error);
                    self.state.send_modify(|state| {
                        (state.active, state.standing_by) = (false, false);
                        state.problem = Some(format!("the database: {error}"));
                    });
                    if said.as_ref() != Some(&error) {
                        tracing::warn!(error, "the trail waits for its database and tries again");
                        said = Some(error);
                    }
                    // A session that lasted has made progress.
                    if began.elapsed() > Duration::from_secs(30) {
                        backoff = Backoff::default();
                    }
                    backoff.wait()
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = sleep(wait) => {}
            }
        }
    }

    /// One session with the database.
    async fn once(
        &self,
        shutdown: &CancellationToken,
        said: &mut Option<String>,
    ) -> Result<Ended, sqlx::Error> {
        let opened = Tables::open(&self.database, &self.schema, self.config.retention).await?;
        let Some(mut tables) = opened else {
            self.state.send_modify(|state| {
                *state = TrailState { standing_by: true, ..TrailState::default() };
            });
            return Ok(Ended::StandingBy);
        };
        let places = tables.places().await?;
        *said = None;
        tracing::info!(streams = places.len(), "the trail reads on");
        self.state.send_modify(|state| {
            *state = TrailState { active: true, ..TrailState::default() };
        });
        metrics::active(true);
        let mut session = Session::new(self, places);
        let ended = session.run(&mut tables, shutdown).await;
        if ended.is_ok() {
            tables.close().await;
        }
        ended
    }
}

/// The error, and what to do if the tables are missing.
fn in_words(error: &sqlx::Error) -> String {
    let code = error.as_database_error().and_then(|error| error.code());
    match code.as_deref() {
        Some("42P01" | "3F000" | "42883") => format!(
            "{}; the trail's tables do not exist here: run `pillarbox migrate trail`, or give the right database or --schema",
            full_text(error)
        ),
        Some("42501") => format!(
            "{}; the role lacks a right: `pillarbox migrate trail --print-grants` prints what it needs",
            full_text(error)
        ),
        _ => full_text(error),
    }
}

enum Ended {
    Shutdown,
    StandingBy,
}

/// What belongs to one session with the database. Dropping it stops the readers.
struct Session<'t> {
    trail: &'t Trail,
    places: BTreeMap<String, Place>,
    readers: JoinSet<()>,
    /// The reader of each stream.
    read: BTreeMap<String, AbortHandle>,
    sender: mpsc::Sender<Report>,
    reports: mpsc::Receiver<Report>,
    /// When the state of each stream was last written.
    written: BTreeMap<String, (Instant, Option<String>)>,
    no_list: Option<String>,
}

impl<'t> Session<'t> {
    fn new(trail: &'t Trail, places: BTreeMap<String, Place>) -> Self {
        let (sender, reports) = mpsc::channel(BATCHES);
        Self {
            trail,
            places,
            readers: JoinSet::new(),
            read: BTreeMap::new(),
            sender,
            reports,
            written: BTreeMap::new(),
            no_list: None,
        }
    }

    async fn run(
        &mut self,
        tables: &mut Tables,
        shutdown: &CancellationToken,
    ) -> Result<Ended, sqlx::Error> {
        let mut list = interval(LIST_EVERY);
        let mut forget = interval(FORGET_EVERY);
        list.set_missed_tick_behavior(MissedTickBehavior::Delay);
        forget.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (found, mut lists) = mpsc::channel(1);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(Ended::Shutdown),
                Some(report) = self.reports.recv() => self.take(tables, report).await?,
                Some(listed) = lists.recv() => self.listed(listed),
                _ = list.tick() => {
                    let (config, found) = (self.trail.config.clone(), found.clone());
                    self.readers.spawn(async move {
                        // If the last list is still waited for, this one is not needed.
                        if let Ok(place) = found.try_reserve() {
                            place.send(streams(&config).await);
                        }
                    });
                }
                _ = forget.tick() => {
                    for table in tables.forget(self.trail.config.max_bytes).await? {
                        tracing::info!(table, "a day of the trail was dropped");
                    }
                }
            }
            while self.readers.try_join_next().is_some() {}
        }
    }

    /// Starts a reader for each stream that has none, and ends those of streams that are not listed any more.
    fn listed(&mut self, listed: Result<Vec<String>, String>) {
        match listed {
            Ok(streams) => {
                self.no_list = None;
                self.trail.state.send_modify(|state| state.problem = None);
                self.forget_all_but(&streams);
                for stream in streams {
                    if self.read.contains_key(&stream) {
                        continue;
                    }
                    let state = StreamState::new();
                    self.trail.state.send_modify(|all| {
                        all.streams.insert(stream.clone(), state);
                    });
                    let (config, place) =
                        (self.trail.config.clone(), self.places.get(&stream).copied());
                    let following = Following::new(&stream, config, place, self.sender.clone());
                    let reader = self.readers.spawn(following.run());
                    self.read.insert(stream, reader);
                }
            }
            Err(problem) => {
                if self.no_list.as_ref() != Some(&problem) {
                    tracing::warn!(problem, "the trail cannot list the streams and tries again");
                }
                self.trail.state.send_modify(|state| {
                    state.problem = Some(format!("the broker: {problem}"));
                });
                self.no_list = Some(problem);
            }
        }
    }

    /// Stops reading what is not among `listed`: a deleted stream is no trouble of the trail.
    fn forget_all_but(&mut self, listed: &[String]) {
        let trail = self.trail;
        self.read.retain(|stream, reader| {
            let stays = listed.contains(stream);
            if !stays {
                reader.abort();
                trail.state.send_modify(|all| {
                    all.streams.remove(stream);
                });
                metrics::stands(stream, 0, false);
                tracing::info!(stream, "the broker does not list this stream any more");
            }
            stays
        });
        self.written.retain(|stream, _| listed.contains(stream));
    }

    async fn take(&mut self, tables: &mut Tables, report: Report) -> Result<(), sqlx::Error> {
        match report {
            Report::Rows { stream, place, rows } => {
                let written = tables.write(&stream, place, &rows).await?;
                metrics::recorded(&stream, written.recorded, written.foreign, written.skipped);
                self.places.insert(stream.to_string(), place);
                self.change(&stream, |state| {
                    state.sequence = place.sequence;
                    state.last_sequence = state.last_sequence.max(place.sequence);
                    state.moved = Some(Instant::now());
                    state.problem = None;
                });
            }
            Report::Stands { stream, life, read_to } => {
                let place = self.places.get(&*stream).copied();
                let mut last = life.last_sequence;
                self.change(&stream, |state| {
                    if state.moved.is_none() {
                        let of_life = place
                            .filter(|place| place.life == crate::place::microseconds(life.created));
                        state.sequence = of_life.map_or(0, |place| place.sequence);
                        state.moved = Some(Instant::now());
                    }
                    if life.last_sequence < state.sequence {
                        state.sequence = 0;
                    }
                    state.last_sequence = life.last_sequence;
                    state.read_to = read_to;
                    state.problem = None;
                    // What has left the end of the stream is not waited for.
                    if state.lag() == 0 {
                        last = state.sequence;
                    }
                });
                if self.is_due(&stream, None) {
                    tables.looked(&stream, life.created, last, None).await?;
                }
            }
            Report::Problem { stream, life, problem } => {
                if self.change(&stream, |state| state.problem = Some(problem.clone())) {
                    tracing::warn!(
                        stream = &*stream,
                        problem,
                        "the trail cannot read this stream and tries again"
                    );
                }
                if let Some(life) = life
                    && self.is_due(&stream, Some(&problem))
                {
                    let last = life.last_sequence;
                    tables.looked(&stream, life.created, last, Some(&problem)).await?;
                }
            }
        }
        Ok(())
    }

    /// Changes the state of a stream. Returns whether its problem is another one now.
    fn change(&self, stream: &str, change: impl FnOnce(&mut StreamState)) -> bool {
        let mut other = false;
        self.trail.state.send_modify(|all| {
            if let Some(state) = all.streams.get_mut(stream) {
                let before = state.problem.clone();
                change(state);
                other = state.problem != before;
                metrics::stands(stream, state.lag(), state.problem.is_some());
            }
        });
        other
    }

    fn is_due(&mut self, stream: &str, problem: Option<&str>) -> bool {
        let now = Instant::now();
        let due = self
            .written
            .get(stream)
            .is_none_or(|(at, said)| at.elapsed() >= STANDS_EVERY || said.as_deref() != problem);
        if due {
            self.written.insert(stream.to_owned(), (now, problem.map(str::to_owned)));
        }
        due
    }
}

/// A process that does not read any more says nothing of the streams. Another one may read them.
impl Drop for Session<'_> {
    fn drop(&mut self) {
        for stream in self.read.keys() {
            metrics::stands(stream, 0, false);
        }
    }
}

/// The streams to read.
async fn streams(config: &TrailConfig) -> Result<Vec<String>, String> {
    if !config.streams.is_empty() {
        return Ok(config.streams.clone());
    }
    let connection = Connection::open(&config.nats_url, &config.nats).await;
    let connection = connection.map_err(|error| full_text(&error))?;
    let mut found = Vec::new();
    for name in connection.streams().await.map_err(|error| full_text(&error))? {
        // Those of key-value buckets and object stores.
        if name.starts_with("KV_") || name.starts_with("OBJ_") {
            continue;
        }
        match connection.stream_life(&name).await {
            Ok(Some(life)) if !life.is_work_queue => found.push(name),
            // A work queue, or one that was deleted meanwhile.
            Ok(_) => {}
            Err(error) => return Err(full_text(&error)),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_that_is_not_listed_any_more_is_no_trouble() {
        let (database_url, nats_url) = ("postgres://127.0.0.1:1/none", "nats://127.0.0.1:1");
        let config = TrailConfig {
            database_url: database_url.to_owned(),
            nats_url: nats_url.to_owned(),
            ..TrailConfig::default()
        };
        let trail = Trail::new(config).unwrap();
        let mut session = Session::new(&trail, BTreeMap::new());
        session.listed(Ok(vec!["orders".to_owned(), "old".to_owned()]));
        session.change("old", |state| state.problem = Some("it was deleted".to_owned()));
        assert_eq!(trail.state().borrow().streams.len(), 2);

        session.listed(Ok(vec!["orders".to_owned()]));
        let state = trail.state().borrow().clone();
        assert_eq!(state.streams.keys().collect::<Vec<_>>(), ["orders"]);
        assert_eq!(session.read.keys().collect::<Vec<_>>(), ["orders"]);
        // The reader of the other stream ends; that of the first one goes on.
        let ended = session.readers.join_next().await.unwrap();
        assert!(ended.unwrap_err().is_cancelled());

        session.listed(Err("away".to_owned()));
        assert_eq!(trail.state().borrow().streams.len(), 1, "an unknown list ends no reader");
    }
}
