//! Tells the database about once a second how this process is, and learns what operators have paused and limited.
//!
//! Events of a paused type wait in the table. When a process learns that a type is no longer paused, it makes them due.
//! It does so again with the next beats, because it may just have put some back, and at its start, because the process
//! that learned it may have died.
//!
//! The scheduler begins nothing before the first answer: no answer does not mean that nothing is paused. Later, while
//! the database does not answer, what was learned last stays in force.

use std::time::Duration;

use pillarbox_inbox::source::{Beat, BeatLag, Store, Told};
use pillarbox_store::full_text;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::config::ConsumerConfig;
use crate::scheduler::Controls;
use crate::status::{ConsumerState, Reporter};

/// How often the database is told and asked.
const EVERY: Duration = Duration::from_secs(1);

/// How many beats after a change the events of types that are not paused are made due.
const MAKE_DUE: u32 = 4;

/// How much longer than the handler's time limit a process takes a parked event for, at the most.
const LEASE_MARGIN: Duration = Duration::from_secs(20);

/// How long leaving may take.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// One process of a consumer, as operators see it.
pub(super) struct Member {
    store: Store,
    stream: String,
    process: String,
    host: String,
    lease: Duration,
    reporter: Reporter,
    controls: watch::Sender<Option<Controls>>,
}

impl Member {
    pub(super) fn new(store: Store, config: &ConsumerConfig, reporter: Reporter) -> Self {
        Self {
            store,
            stream: config.stream.clone(),
            process: pillarbox_event::EventId::generate().as_str().to_owned(),
            host: format!("{}/{}", host(), std::process::id()),
            lease: config.handler_timeout + LEASE_MARGIN,
            reporter,
            controls: watch::Sender::new(None),
        }
    }

    /// What operators have paused and limited. `None` until it is known.
    pub(super) fn controls(&self) -> watch::Receiver<Option<Controls>> {
        self.controls.subscribe()
    }

    /// Tells and learns for as long as it is polled.
    pub(super) async fn beat(&self) -> std::convert::Infallible {
        let (mut due_beats, mut is_heard) = (0, true);
        loop {
            match self.beat_once().await {
                Ok(told) => {
                    if !is_heard {
                        tracing::info!(
                            consumer = self.store.consumer(),
                            "the database says again what operators have paused"
                        );
                    }
                    is_heard = true;
                    let paused: Vec<String> = told
                        .pauses
                        .iter()
                        .map(|pause| pause.event_type.clone())
                        .filter(|event_type| !event_type.is_empty())
                        .collect();
                    if self.learn(told) {
                        due_beats = MAKE_DUE;
                    }
                    if due_beats > 0 {
                        due_beats -= 1;
                        self.make_due(&paused).await;
                    }
                }
                Err(error) => {
                    let error = full_text(&error);
                    let is_unknown = self.controls.borrow().is_none();
                    if is_heard {
                        self.say_not_heard(&error, is_unknown);
                    }
                    is_heard = false;
                    if is_unknown {
                        self.reporter.controls_unknown(&format!(
                            "the database does not say what operators have paused: {error}"
                        ));
                    }
                }
            }
            sleep(EVERY).await;
        }
    }

    /// Says, once for each time that it begins, that the database cannot be told and asked.
    fn say_not_heard(&self, error: &str, is_unknown: bool) {
        let means = match is_unknown {
            true => "nothing begins until it is known what operators have paused",
            false => {
                "what operators pause now is learned late, and after half a minute they see this process as gone"
            }
        };
        tracing::warn!(
            consumer = self.store.consumer(),
            error,
            means,
            "the database could not be told how this process is"
        );
    }

    async fn beat_once(&self) -> Result<Told, sqlx::Error> {
        let status = self.reporter.watch().get();
        let reason = match &status.state {
            ConsumerState::Paused { reason } | ConsumerState::Waiting { reason } => Some(&**reason),
            _ => None,
        };
        let lag = status.lag.as_ref().map(|lag| BeatLag {
            pending: lag.pending,
            ack_pending: lag.ack_pending,
            oldest_age_seconds: lag.oldest_age_seconds,
            measured_at: lag.measured_at.into(),
        });
        let beat = Beat {
            process: &self.process,
            stream: &self.stream,
            host: &self.host,
            state: status.state.name(),
            reason,
            lag,
        };
        self.store.beat(&beat).await
    }

    /// Makes the events due that waited because of a pause which has ended.
    async fn make_due(&self, paused: &[String]) {
        if let Err(error) = self.store.end_pauses(paused, self.lease).await {
            tracing::debug!(
                consumer = self.store.consumer(),
                %error,
                "parked events of a type that is no longer paused could not be made due"
            );
        }
    }

    /// Returns whether it is news.
    fn learn(&self, told: Told) -> bool {
        let all = |event_type: &str| event_type.is_empty();
        let types = told.pauses.iter().map(|pause| pause.event_type.clone());
        let controls = Controls {
            paused: told.pauses.iter().any(|pause| all(&pause.event_type)),
            paused_types: types.filter(|event_type| !all(event_type)).collect(),
            per_second: told.per_second,
        };
        let is_news = self.controls.borrow().as_ref() != Some(&controls);
        self.reporter.controlled(told);
        if is_news {
            let Controls { paused, paused_types, per_second } = &controls;
            // At the start this is worth a line only if something differs from the usual.
            if self.controls.borrow().is_some() || controls != Controls::default() {
                tracing::info!(
                    consumer = self.store.consumer(),
                    paused,
                    ?paused_types,
                    ?per_second,
                    "what operators have paused and limited"
                );
            }
            self.controls.send_replace(Some(controls));
        }
        is_news
    }

    /// Tells operators that this process is gone.
    pub(super) async fn leave(&self) {
        let left = timeout(LEAVE_TIMEOUT, self.store.leave(&self.process)).await;
        if !matches!(left, Ok(Ok(()))) {
            tracing::debug!(
                consumer = self.store.consumer(),
                "this process could not say that it is gone; it counts as gone when it was silent for half a minute"
            );
        }
    }
}

/// The host's name, as far as it can be had without a call of the system.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .or_else(|_| std::env::var("HOSTNAME"))
        .unwrap_or_default();
    let name: String = name.trim().chars().filter(|c| !c.is_control()).take(255).collect();
    if name.is_empty() { "unknown".to_owned() } else { name }
}
