//! A relay's state, for health endpoints, for the log of a program that embeds it, and for the metrics.
//!
//! ```text
//!                 lease free              clean stop
//!   connecting ──► standing by ──► leading ──► stopping ──► stopped
//!        ▲              │             │
//!        └── trouble ◄──┴─────────────┘
//! ```
//!
//! A relay that leads or stands by is ready, unless the broker cannot be reached or does not store messages.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::metrics::Meter;

/// What a relay does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Role {
    /// It connects, for the first time or after trouble.
    Connecting,
    /// Another process ships. This one takes over when the other one stops.
    StandingBy,
    /// It ships.
    Leading,
    /// It has been told to stop, and waits for acknowledgements.
    Stopping,
    /// It has ended.
    Stopped,
}

/// A relay's state, from [`Relay::state`](crate::Relay::state).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RelayState {
    /// The relay's name.
    pub relay: String,
    /// The outbox: database and schema.
    pub outbox: String,
    /// What it does.
    pub role: Role,
    /// The epoch of its lease, while it leads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<i64>,
    /// The process that ships, while this one stands by and knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// Why it is neither leading nor standing by: the database, the lease, or the broker at the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Whether there is a connection to the broker.
    pub broker_connected: bool,
    /// Why the broker does not store messages, while that is so. Events wait in the outbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
    /// The streams that acknowledged events and that the JetStream API does not show: they were deleted, or are in
    /// another domain or account. If one of them loses events, that may go unnoticed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unwatched_streams: Vec<String>,
    /// Why it is not known how many events wait, while that is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unmeasured: Option<String>,
    /// Set while the relay leads, events wait, none of them leaves the outbox, and the relay knows no reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stalled: Option<String>,
    /// Why scheduled events are not released, while the relay leads and that is so. Other events are shipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreleased: Option<String>,
}

impl RelayState {
    /// Clears what only the leader knows. It will have changed by the time that this process leads again.
    fn leads_no_more(&mut self, role: Role) {
        self.role = role;
        (self.epoch, self.held, self.stalled) = (None, None, None);
        self.unreleased = None;
        self.unwatched_streams.clear();
    }

    /// Whether it leads or stands by, and the database and the broker work.
    pub fn is_ready(&self) -> bool {
        self.not_ready().is_none()
    }

    /// Why it is not ready, in a few words; `None` when it is. Holds no secrets and no payloads.
    pub fn not_ready(&self) -> Option<String> {
        let is = |said: &str| Some(said.to_owned());
        let why = |what: &str, why: &Option<String>| Some(format!("{what}: {}", why.as_ref()?));
        match self.role {
            Role::Stopping => return is("it is stopping"),
            Role::Stopped => return is("it has stopped"),
            _ if self.trouble.is_some() => return self.trouble.clone(),
            Role::Connecting => return is("it is connecting"),
            _ if !self.broker_connected => return is("the connection to the broker is lost"),
            Role::StandingBy | Role::Leading => {}
        }
        why("holding", &self.held)
            .or_else(|| why("it is not known how many events wait", &self.unmeasured))
            .or_else(|| why("scheduled events are not released", &self.unreleased))
            .or_else(|| self.stalled.clone())
    }
}

/// The part that keeps a relay from leading and from standing by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TroubleWith {
    Database,
    Broker,
    Lease,
}

/// Records what happens in a relay, in its state and its metrics. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Observer {
    pub(crate) meter: Meter,
    state: watch::Sender<RelayState>,
    /// Grows with each sign that the relay does its work.
    progress: Arc<AtomicU64>,
    /// Grows when events leave the backlog.
    moved: Arc<AtomicU64>,
}

impl Observer {
    pub(crate) fn new(relay: &str, outbox: &str) -> Self {
        let state = RelayState {
            relay: relay.to_owned(),
            outbox: outbox.to_owned(),
            role: Role::Connecting,
            epoch: None,
            holder: None,
            trouble: None,
            broker_connected: false,
            held: None,
            unwatched_streams: Vec::new(),
            unmeasured: None,
            stalled: None,
            unreleased: None,
        };
        let meter = Meter::new(relay, outbox);
        let (progress, moved) = (Arc::default(), Arc::default());
        Self { meter, state: watch::Sender::new(state), progress, moved }
    }

    pub(crate) fn state(&self) -> watch::Receiver<RelayState> {
        self.state.subscribe()
    }

    /// A guard that sets the state to stopped when it is dropped.
    pub(crate) fn until_dropped(&self) -> UntilDropped {
        UntilDropped(self.clone())
    }

    pub(crate) fn leading(&self, epoch: i64) {
        self.meter.took_lease(epoch);
        self.well(Role::Leading, Some(epoch), None);
    }

    pub(crate) fn standing_by(&self, holder: Option<String>) {
        self.well(Role::StandingBy, None, holder);
        // Standing by is all that it has to do.
        self.progressed();
    }

    /// Events were stored or set aside, or there are none, or another process leads. Only this ends trouble. Leading
    /// alone does not, because a leader may fail at its first step each time.
    pub(crate) fn progressed(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
        if self.state.borrow().trouble.is_none() {
            return;
        }
        {
            let RelayState { relay, role, epoch, .. } = &*self.state.borrow();
            tracing::info!(relay, "the trouble is over");
            // Logged only now, so that a leader that fails each time does not log it each time.
            if *role == Role::Leading {
                tracing::info!(relay, epoch, "leading");
            }
        }
        self.meter.database_up(true);
        self.change(|state| state.trouble = None);
    }

    /// Events have left the backlog: stored, or set aside.
    pub(crate) fn moved(&self) {
        self.moved.fetch_add(1, Ordering::Relaxed);
        self.progressed();
    }

    /// How often events have left the backlog.
    pub(crate) fn moves(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Sets the text that says that events wait and none leaves the outbox; `None` if that is not so.
    pub(crate) fn stalled(&self, text: Option<String>) {
        if let Some(text) = text.as_ref().filter(|_| self.state.borrow().stalled.is_none()) {
            tracing::error!(relay = self.state.borrow().relay, error = text, "nothing is shipped");
        }
        self.change(|state| state.stalled = text);
    }

    /// Scheduled events are released, or cannot be released for this reason.
    pub(crate) fn releases(&self, failed: Option<String>) {
        let relay = &self.state.borrow().relay.clone();
        match (self.state.borrow().unreleased.as_ref(), &failed) {
            (None, Some(error)) => {
                tracing::warn!(relay, error, "scheduled events are not released");
            }
            (Some(_), None) => tracing::info!(relay, "scheduled events are released again"),
            _ => {}
        }
        self.change(|state| state.unreleased = failed);
    }

    /// Whether the relay leads and knows of nothing that keeps events from going.
    pub(crate) fn leads_well(&self) -> bool {
        let state = self.state.borrow();
        state.role == Role::Leading && state.trouble.is_none() && state.held.is_none()
    }

    /// A number that grows with each progress.
    pub(crate) fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    pub(crate) fn in_trouble(&self) -> bool {
        self.state.borrow().trouble.is_some()
    }

    /// Whether the relay is still connecting, or cannot connect.
    pub(crate) fn is_connecting(&self) -> bool {
        self.state.borrow().role == Role::Connecting
    }

    /// The backlog was measured, or could not be measured for this reason.
    pub(crate) fn measured(&self, failed: Option<String>) {
        self.meter.backlog_known(failed.is_none());
        self.change(|state| state.unmeasured = failed);
    }

    /// The relay waits, and will connect again.
    pub(crate) fn trouble(&self, with: TroubleWith, text: String) {
        if self.state.borrow().trouble.as_ref() != Some(&text) {
            let relay = &self.state.borrow().relay;
            tracing::warn!(relay, error = text, "waiting: events stay in the outbox");
        }
        self.meter.leads_no_more();
        match with {
            TroubleWith::Broker => self.meter.broker_up(false),
            TroubleWith::Lease => {}
            TroubleWith::Database => self.meter.database_up(false),
        }
        self.change(|state| {
            state.leads_no_more(Role::Connecting);
            state.holder = None;
            state.trouble = Some(text);
        });
    }

    pub(crate) fn broker_connected(&self, connected: bool) {
        self.meter.broker_up(connected);
        self.change(|state| state.broker_connected = connected);
    }

    /// Whether there is a connection to the broker.
    pub(crate) fn reaches_broker(&self) -> bool {
        self.state.borrow().broker_connected
    }

    /// The broker does not store messages.
    pub(crate) fn held(&self, reason: &str) {
        self.meter.held(true);
        self.change(|state| state.held = Some(reason.to_owned()));
    }

    /// The broker stores again.
    pub(crate) fn resumed(&self) {
        tracing::info!(relay = self.state.borrow().relay, "the broker stores messages again");
        self.meter.held(false);
        self.change(|state| state.held = None);
    }

    /// These streams cannot be watched for loss.
    pub(crate) fn unwatched(&self, streams: Vec<String>) {
        self.meter.unwatched(streams.len());
        self.change(|state| state.unwatched_streams = streams);
    }

    pub(crate) fn stopping(&self) {
        self.change(|state| state.role = Role::Stopping);
    }

    /// All of a page is stored. `created` are the times of some of its events.
    pub(crate) fn page_stored(&self, created: &[OffsetDateTime], given: Instant) {
        self.moved();
        self.meter.published(given.elapsed());
        let now = OffsetDateTime::now_utc();
        for created in created {
            self.meter.commit_to_ack((now - *created).as_seconds_f64());
        }
    }

    fn well(&self, role: Role, epoch: Option<i64>, holder: Option<String>) {
        if !self.in_trouble() {
            self.meter.database_up(true);
        }
        match role {
            Role::Leading => self.meter.leader(true),
            _ => self.meter.leads_no_more(),
        }
        self.change(|state| {
            if role != Role::Leading {
                state.leads_no_more(role);
            }
            (state.role, state.epoch) = (role, epoch);
            // If another process took the lease first, its name may not be known yet.
            if holder.is_some() || role == Role::Leading {
                state.holder = holder;
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut RelayState)) {
        self.state.send_if_modified(|state| {
            let before = state.clone();
            change(state);
            *state != before
        });
    }
}

/// See [`Observer::until_dropped`].
pub(crate) struct UntilDropped(Observer);

impl Drop for UntilDropped {
    fn drop(&mut self) {
        let observer = &self.0;
        observer.meter.leads_no_more();
        observer.change(|state| {
            state.leads_no_more(Role::Stopped);
            state.holder = None;
        });
    }
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observer").field("state", &*self.state.borrow()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready() -> RelayState {
        RelayState {
            relay: "default".into(),
            outbox: "shop/pillarbox".into(),
            role: Role::Leading,
            epoch: Some(1),
            holder: None,
            trouble: None,
            broker_connected: true,
            held: None,
            unwatched_streams: Vec::new(),
            unmeasured: None,
            stalled: None,
            unreleased: None,
        }
    }

    #[test]
    fn a_relay_is_ready_when_it_leads_or_stands_by_and_nothing_is_wrong() {
        assert!(ready().is_ready());
        assert!(RelayState { role: Role::StandingBy, ..ready() }.is_ready());
        for (state, reason) in [
            (RelayState { role: Role::Connecting, ..ready() }, "connecting"),
            (RelayState { role: Role::Stopping, ..ready() }, "stopping"),
            (RelayState { role: Role::Stopped, ..ready() }, "stopped"),
            (RelayState { broker_connected: false, ..ready() }, "broker"),
            (RelayState { held: Some("full".into()), ..ready() }, "holding: full"),
            (RelayState { trouble: Some("no database".into()), ..ready() }, "no database"),
            (RelayState { unmeasured: Some("no answer".into()), ..ready() }, "no answer"),
            (RelayState { stalled: Some("none goes".into()), ..ready() }, "none goes"),
            (RelayState { unreleased: Some("a lock".into()), ..ready() }, "not released: a lock"),
        ] {
            let said = state.not_ready().unwrap();
            assert!(said.contains(reason), "{said}");
        }
    }

    #[tokio::test]
    async fn a_trouble_lasts_until_there_is_progress_and_not_until_the_next_lease() {
        let observer = Observer::new("default", "shop/pillarbox");
        let state = observer.state();
        observer.trouble(TroubleWith::Database, "the database failed".into());
        observer.leading(2);
        assert!(!state.borrow().is_ready() && state.borrow().trouble.is_some());
        let before = observer.progress();
        observer.progressed();
        assert!(state.borrow().trouble.is_none() && observer.progress() > before);
        observer.trouble(TroubleWith::Database, "the database failed".into());
        observer.standing_by(Some("a".into()));
        assert!(state.borrow().trouble.is_none(), "whoever stands by has nothing else to do");
    }

    #[tokio::test]
    async fn what_only_a_leader_knows_ends_with_its_leading_however_that_ends() {
        let endings: [fn(&Observer); 4] = [
            |observer| observer.standing_by(None),
            |observer| observer.standing_by(Some("a".into())),
            |observer| observer.trouble(TroubleWith::Database, "the database failed".into()),
            |observer| drop(observer.until_dropped()),
        ];
        for ends in endings {
            let observer = Observer::new("default", "shop/pillarbox");
            let state = observer.state();
            observer.leading(2);
            observer.held("the stream is full");
            observer.unwatched(vec!["ORDERS".into()]);
            ends(&observer);
            let state = state.borrow();
            assert!(state.held.is_none() && state.epoch.is_none(), "{state:?}");
            assert!(state.unwatched_streams.is_empty(), "{state:?}");
        }
    }

    #[tokio::test]
    async fn a_state_that_does_not_change_wakes_nobody() {
        let observer = Observer::new("default", "shop/pillarbox");
        let mut state = observer.state();
        observer.standing_by(Some("a".into()));
        assert!(state.has_changed().unwrap());
        state.mark_unchanged();
        observer.standing_by(Some("a".into()));
        assert!(!state.has_changed().unwrap());
        drop(observer.until_dropped());
        assert_eq!(state.borrow_and_update().role, Role::Stopped);
    }
}
