//! Changes of many dead letters, which take a while: they show their progress, and can be stopped.
//!
//! The letters that match are found first. Then a hundred of them at a time are changed and recorded in one
//! transaction, so a stop leaves each letter either as it was or changed and recorded. If the process ends, so does the
//! job.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use pillarbox_store::actions::Operator;
use pillarbox_store::dead_letters::{
    Changed, DeadLetters, Filter, LetterState, RetryOutcome, Side,
};
use tokio_util::sync::CancellationToken;

use crate::place::{Place, Unanswered, in_time};

/// The most letters that one job changes.
pub(crate) const MOST: i64 = 50_000;
/// As many are changed in one transaction.
const AT_ONCE: usize = 100;
/// The most jobs that run at a time.
const RUNNING: usize = 4;
/// The most jobs that are remembered.
const KEPT: usize = 20;

/// What a job does to its letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Retry,
    Discard,
    Restore,
}

impl Verb {
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "retry" => Some(Self::Retry),
            "discard" => Some(Self::Discard),
            "restore" => Some(Self::Restore),
            _ => None,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Discard => "discard",
            Self::Restore => "restore",
        }
    }

    /// The state of the letters that it changes. `None`: unresolved.
    fn of_state(self) -> Option<LetterState> {
        match self {
            Self::Retry => Some(LetterState::Dead),
            Self::Discard => None,
            Self::Restore => Some(LetterState::Discarded),
        }
    }
}

/// What is to be done.
pub(crate) struct Order {
    pub(crate) verb: Verb,
    pub(crate) place: String,
    pub(crate) side: Side,
    pub(crate) filter: Filter,
    pub(crate) operator: Operator,
}

/// A job, running or ended.
pub(crate) struct Job {
    pub(crate) id: String,
    pub(crate) order: Order,
    pub(crate) began: Instant,
    progress: Mutex<Progress>,
    stop: CancellationToken,
}

/// How far a job is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// How many letters matched. `None`: they are being looked for.
    pub(crate) matched: Option<usize>,
    /// How many of them were looked at.
    pub(crate) looked_at: usize,
    /// The numbers of those that were changed.
    pub(crate) changed: Vec<i64>,
    /// How many were refused, and why the first one was.
    pub(crate) refused: usize,
    pub(crate) refusal: Option<String>,
    pub(crate) end: Option<End>,
}

/// How a job ended.
#[derive(Clone, Debug)]
pub(crate) enum End {
    Done,
    Stopped,
    Failed(Unanswered),
}

impl Job {
    pub(crate) fn progress(&self) -> Progress {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks it to stop after the letters that it is changing now.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    fn note(&self, what: impl FnOnce(&mut Progress)) {
        what(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// What has become of the letters that were retried.
    pub(crate) async fn outcome(&self, places: &[Place]) -> Option<RetryOutcome> {
        let changed = self.progress().changed;
        if self.order.verb != Verb::Retry || changed.is_empty() {
            return None;
        }
        let place = places.iter().find(|place| place.name() == self.order.place)?;
        let letters = place.letters(self.order.side).await.ok()?;
        in_time(letters.outcome(&changed)).await.ok()
    }

    async fn run(&self, places: &[Place]) {
        let end = self.work(places).await.unwrap_or_else(End::Failed);
        self.note(|progress| progress.end = Some(end));
    }

    async fn work(&self, places: &[Place]) -> Result<End, Unanswered> {
        let Some(place) = places.iter().find(|place| place.name() == self.order.place) else {
            return Ok(End::Done);
        };
        let letters = place.letters(self.order.side).await?;
        let filter = Filter { state: self.order.verb.of_state(), ..self.order.filter.clone() };
        let numbers = in_time(letters.numbers(&filter, MOST)).await?;
        self.note(|progress| progress.matched = Some(numbers.len()));
        for some in numbers.chunks(AT_ONCE) {
            if self.stop.is_cancelled() {
                return Ok(End::Stopped);
            }
            let Changed { letters: changed, refused, .. } = self.change(&letters, some).await?;
            self.note(|progress| {
                progress.looked_at += some.len();
                progress.changed.extend(changed);
                progress.refused += refused.len();
                if let (None, Some(first)) = (&progress.refusal, refused.first()) {
                    progress.refusal = Some(first.to_string());
                }
            });
        }
        Ok(End::Done)
    }

    async fn change(&self, letters: &DeadLetters, some: &[i64]) -> Result<Changed, Unanswered> {
        let state = self.order.verb.of_state();
        let filter = Filter { letters: Some(some.to_vec()), state, ..Filter::default() };
        let found = in_time(letters.list(&filter, i64::MAX)).await?;
        match self.order.verb {
            Verb::Retry => in_time(letters.retry(&found, &self.order.operator)).await,
            Verb::Discard => in_time(letters.discard(&found, &self.order.operator)).await,
            Verb::Restore => in_time(letters.restore(&found, &self.order.operator)).await,
        }
    }
}

/// The jobs of this process, the newest first.
#[derive(Default)]
pub(crate) struct Jobs(Mutex<VecDeque<Arc<Job>>>);

impl Jobs {
    /// Begins a job. `None`: as many as may run are running.
    pub(crate) fn begin(&self, order: Order, places: Arc<Vec<Place>>) -> Option<Arc<Job>> {
        let job = Arc::new(Job {
            id: crate::access::hex(&rand::random::<[u8; 8]>()),
            order,
            began: Instant::now(),
            progress: Mutex::default(),
            stop: CancellationToken::new(),
        });
        {
            let mut jobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if jobs.iter().filter(|job| job.progress().end.is_none()).count() >= RUNNING {
                return None;
            }
            jobs.push_front(job.clone());
            if jobs.len() > KEPT
                && let Some(at) = jobs.iter().rposition(|job| job.progress().end.is_some())
            {
                jobs.remove(at);
            }
        }
        let running = job.clone();
        tokio::spawn(async move { running.run(&places).await });
        Some(job)
    }

    pub(crate) fn get(&self, id: &str) -> Option<Arc<Job>> {
        let jobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.iter().find(|job| job.id == id).cloned()
    }
}
