//! Whether a service is ready, and if not, why.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use pillarbox_consumer::{ConsumerState, ConsumerStatus, Watch};

/// Whether a service is ready, from [`Service::readiness`](super::Service::readiness). Cheap to clone; outlives the
/// service.
#[derive(Clone)]
pub struct Readiness(Arc<Mutex<Known>>);

struct Known {
    phase: Phase,
    parts: Vec<Part>,
}

enum Phase {
    NotStarted,
    /// What is being prepared, or waited for.
    Preparing(String),
    Running,
    Stopping,
    Stopped,
}

/// A consumer or a relay.
struct Part {
    name: String,
    /// Why it is not ready.
    unready: Ask,
    /// What is to be known of it although it is ready.
    note: Ask,
}

/// Says something of a part, if there is something to say.
type Ask = Box<dyn Fn() -> Option<String> + Send>;

/// What [`Readiness::check`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ready {
    /// Why the service is not ready, a line for each part. Empty if it is.
    pub reasons: Vec<String>,
    /// What an operator should know although it does not make the service unready, a line for each: which consumers and
    /// types of events are paused, by whom and why.
    pub notes: Vec<String>,
}

impl Ready {
    /// Whether it is ready.
    pub fn is_ready(&self) -> bool {
        self.reasons.is_empty()
    }

    /// The status of an answer over HTTP: 200, or 503 if the service is not ready.
    pub fn status(&self) -> u16 {
        if self.is_ready() { 200 } else { 503 }
    }
}

/// `ready`, or the reasons, each in a line, and then the notes. It holds names and error texts, but no payloads.
impl fmt::Display for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_ready() {
            writeln!(f, "ready")?;
        } else {
            writeln!(f, "not ready")?;
        }
        let mut lines = self.reasons.iter().chain(&self.notes);
        lines.try_for_each(|line| writeln!(f, "{}", line.escape_debug()))
    }
}

impl Readiness {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Known { phase: Phase::NotStarted, parts: Vec::new() })))
    }

    /// Whether everything that was prepared, each consumer and each relay works or has nothing to do, and the service
    /// is not about to stop.
    ///
    /// A database or a broker that is away makes the service unready, because events do not move. A load balancer
    /// should ask [`check_http`](Self::check_http) instead, if requests can be answered without the broker.
    pub fn check(&self) -> Ready {
        self.with(|known| {
            let mut reasons: Vec<String> = known.not_running().into_iter().collect();
            let said = |name: &str, what: &Ask| Some(format!("{name}: {}", what()?));
            let parts = known.parts.iter();
            reasons.extend(parts.clone().filter_map(|part| said(&part.name, &part.unready)));
            let notes = parts.filter_map(|part| said(&part.name, &part.note)).collect();
            Ready { reasons, notes }
        })
    }

    /// Whether requests should come: the preparations have succeeded, and the service is not about to stop. Consumers
    /// and relays do not matter: while the broker is away, requests are answered and their events wait in the outbox.
    pub fn check_http(&self) -> Ready {
        self.with(|known| Ready {
            reasons: known.not_running().into_iter().collect(),
            notes: Vec::new(),
        })
    }

    /// Routes for probes, to merge into the service's router: `/readyz` for [`check`](Self::check), `/readyz/http` for
    /// [`check_http`](Self::check_http), and `/healthz`, which is 200 for as long as the process answers. A restart
    /// does not end an outage, so a liveness probe should ask only `/healthz`.
    #[cfg(feature = "axum")]
    pub fn routes<S: Clone + Send + Sync + 'static>(&self) -> axum::Router<S> {
        use axum::http::StatusCode;
        use axum::routing::get;
        let answer = |ready: Ready| {
            let status = StatusCode::from_u16(ready.status());
            (status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE), ready.to_string())
        };
        let (all, http) = (self.clone(), self.clone());
        axum::Router::new()
            .route("/readyz", get(move || async move { answer(all.check()) }))
            .route("/readyz/http", get(move || async move { answer(http.check_http()) }))
            .route("/healthz", get(|| async { "ok\n" }))
    }

    pub(super) fn watch_consumer(&self, name: String, watch: Watch) {
        let also = watch.clone();
        let (unready, note) = (move || unwell(&watch.get()), move || paused(&also.get()));
        self.watch(Part { name, unready: Box::new(unready), note: Box::new(note) });
    }

    #[cfg(feature = "relay")]
    pub(super) fn watch_relay(
        &self,
        name: String,
        state: tokio::sync::watch::Receiver<pillarbox_relay::RelayState>,
    ) {
        let unready = Box::new(move || state.borrow().not_ready());
        self.watch(Part { name, unready, note: Box::new(|| None) });
    }

    fn watch(&self, part: Part) {
        self.with(|known| known.parts.push(part));
    }

    pub(super) fn preparing(&self, what: String) {
        self.enter(Phase::Preparing(what));
    }

    pub(super) fn prepared(&self) {
        self.enter(Phase::Running);
    }

    pub(super) fn stopping(&self) {
        self.enter(Phase::Stopping);
    }

    pub(super) fn stopped_on_drop(&self) -> StoppedOnDrop {
        StoppedOnDrop(self.clone())
    }

    fn enter(&self, phase: Phase) {
        self.with(|known| known.phase = phase);
    }

    fn with<T>(&self, with: impl FnOnce(&mut Known) -> T) -> T {
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Known {
    fn not_running(&self) -> Option<String> {
        match &self.phase {
            Phase::NotStarted => Some("the service has not started".to_owned()),
            Phase::Preparing(what) => Some(what.clone()),
            Phase::Running => None,
            Phase::Stopping => Some("the service is stopping".to_owned()),
            Phase::Stopped => Some("the service has stopped".to_owned()),
        }
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Readiness").field(&self.check()).finish()
    }
}

/// Says that the service has stopped once this is dropped.
pub(super) struct StoppedOnDrop(Readiness);

impl Drop for StoppedOnDrop {
    fn drop(&mut self) {
        self.0.enter(Phase::Stopped);
    }
}

/// What operators have paused of a consumer.
fn paused(status: &ConsumerStatus) -> Option<String> {
    let types = status.paused_types.iter();
    let types = types.map(|paused| format!("type {} is {}", paused.event_type, paused.reason));
    let all = match &status.state {
        ConsumerState::PausedByOperator { reason } => Some(reason.clone()),
        _ => None,
    };
    let all: Vec<String> = all.into_iter().chain(types).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

/// Why a consumer is not well.
fn unwell(status: &ConsumerStatus) -> Option<String> {
    if status.is_well() {
        return None;
    }
    Some(match &status.state {
        ConsumerState::Starting => "it has not found its stream yet".to_owned(),
        ConsumerState::Paused { reason } => format!("it is paused: {reason}"),
        ConsumerState::Waiting { reason } => format!("it waits: {reason}"),
        ConsumerState::Stopped => "it has stopped".to_owned(),
        _ => "events were sent with another number of partitions; see its status".to_owned(),
    })
}
