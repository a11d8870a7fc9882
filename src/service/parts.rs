//! The parts of a service that run: started, watched, and stopped stage by stage.

use std::any::Any;
use std::collections::HashMap;
use std::time::Duration;

use pillarbox_store::full_text;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::prepare::{Preparation, prepare};
use super::{BoxError, BoxFuture, Readiness, ServiceError};

/// When a part is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// What lets new work in.
    First,
    Consumers,
    Relays,
}

/// The stages in the order in which they are stopped, each with the part of the time that is over when it must have
/// ended.
const STAGES: [(Stage, f64); 3] =
    [(Stage::First, 0.4), (Stage::Consumers, 0.8), (Stage::Relays, 1.0)];

pub(super) type Run = Box<dyn FnOnce(CancellationToken) -> BoxFuture<Result<(), BoxError>> + Send>;

/// A part that has not been started.
pub(super) struct Part {
    pub(super) name: String,
    pub(super) stage: Stage,
    /// Whether it may end without being told to.
    pub(super) may_end: bool,
    pub(super) run: Run,
}

/// A part that runs.
struct Started {
    name: String,
    stage: Stage,
    may_end: bool,
    handle: AbortHandle,
}

/// The parts that run. Dropping it ends them.
#[derive(Default)]
pub(super) struct Running {
    tasks: JoinSet<Result<(), BoxError>>,
    started: HashMap<Id, Started>,
    stops: [CancellationToken; 3],
}

impl Running {
    pub(super) fn start(&mut self, parts: Vec<Part>) {
        for Part { name, stage, may_end, run } in parts {
            let handle = self.tasks.spawn(run(self.stops[stage as usize].clone()));
            self.started.insert(handle.id(), Started { name, stage, may_end, handle });
        }
    }

    /// Prepares, starts the later parts, and watches all until the service is told to stop or has nothing left to run.
    /// Returns the first error of a part.
    pub(super) async fn until_stopped(
        &mut self,
        preparations: Vec<Preparation>,
        later: Vec<Part>,
        readiness: &Readiness,
        stop: &CancellationToken,
    ) -> Option<ServiceError> {
        let mut later = Some(later);
        let preparing = prepare(preparations, readiness);
        tokio::pin!(preparing);
        while later.is_some() || !self.tasks.is_empty() {
            tokio::select! {
                () = stop.cancelled() => return None,
                prepared = &mut preparing, if later.is_some() => match prepared {
                    Ok(()) => self.start(later.take().unwrap_or_default()),
                    Err(error) => return Some(error),
                },
                Some(ended) = self.tasks.join_next_with_id() => {
                    if let Some(error) = self.ended(ended, false) {
                        return Some(error);
                    }
                }
            }
        }
        None
    }

    /// Stops the parts, one stage after the other. Returns the first error.
    pub(super) async fn stop(&mut self, within: Duration) -> Option<ServiceError> {
        let (began, mut failed) = (Instant::now(), None);
        for (stage, share) in STAGES {
            self.stops[stage as usize].cancel();
            let until = began + within.mul_f64(share);
            while self.started.values().any(|part| part.stage == stage) {
                match timeout_at(until, self.tasks.join_next_with_id()).await {
                    Ok(Some(ended)) => {
                        if let Some(error) = self.ended(ended, true) {
                            let text = full_text(&error);
                            tracing::warn!(error = text, "a part failed while the service stopped");
                            failed.get_or_insert(error);
                        }
                    }
                    Ok(None) => break,
                    Err(_) => self.drop_stage(stage),
                }
            }
        }
        failed
    }

    /// Ends what has not stopped in time.
    fn drop_stage(&mut self, stage: Stage) {
        self.started.retain(|_, part| {
            if part.stage == stage {
                tracing::warn!(part = part.name, "it did not stop in time, and was dropped");
                part.handle.abort();
            }
            part.stage != stage
        });
    }

    /// The error if a part should not have ended like that. `told`: the service stops.
    fn ended(
        &mut self,
        ended: Result<(Id, Result<(), BoxError>), JoinError>,
        told: bool,
    ) -> Option<ServiceError> {
        let (id, how) = match ended {
            Ok((id, result)) => (id, Ok(result)),
            Err(error) => (error.id(), Err(error)),
        };
        // What was dropped is not here any more.
        let Started { name: part, may_end, .. } = self.started.remove(&id)?;
        match how {
            Ok(Ok(())) if told || may_end => {
                tracing::info!(part, "it has stopped");
                None
            }
            Ok(Ok(())) => Some(ServiceError::Ended { part }),
            Ok(Err(source)) => Some(ServiceError::Failed { part, source }),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => Some(ServiceError::Panicked { part, text: text_of(&*panic) }),
                Err(_) => Some(ServiceError::Ended { part }),
            },
        }
    }
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let said = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    said.unwrap_or("without a text").to_owned()
}
