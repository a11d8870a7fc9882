//! What is wrong, and what to do about it. Without I/O.

use pillarbox_relay::RelayStatus;

use crate::place::Unanswered;
use crate::stand::{COUNTED, Consumer, Letters, Saga, Stand};
use crate::words::{Moment, Query, age, counted, number};

/// A backlog whose oldest event is older than this is trouble, in seconds.
const LATE: f64 = 60.0;
/// An event that has been failing for longer than this is trouble, in seconds.
const FAILING: f64 = 300.0;
/// Scheduled events that are due for longer than this are trouble, in seconds.
const OVERDUE: f64 = 30.0;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Severity {
    /// Nothing moves.
    Stopped,
    /// Events wait for somebody.
    Act,
    /// It works, but less well than it could.
    Watch,
}

impl Severity {
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Act => "act",
            Self::Watch => "watch",
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug)]
pub(crate) struct Trouble {
    pub(crate) severity: Severity,
    pub(crate) place: String,
    pub(crate) what: String,
    pub(crate) since: Option<Moment>,
    pub(crate) remedy: String,
    /// The page that shows more, without the base path.
    pub(crate) page: String,
    /// The heading in the runbook.
    pub(crate) runbook: Option<&'static str>,
}

/// What is wrong at a place.
pub(crate) fn at(place: &str, stand: &Result<Stand, Unanswered>) -> Vec<Trouble> {
    let mut found = Found { place, troubles: Vec::new() };
    match stand {
        Err(Unanswered { why, remedy }) => {
            found.add(
                Severity::Stopped,
                format!("The database cannot be read: {why}"),
                *remedy,
                "/doctor",
            );
        }
        Ok(stand) if !stand.has_outbox && !stand.has_inbox => {
            let remedy = "Correct the database or the schema in the console's settings, or run pillarbox migrate.";
            found.add(
                Severity::Stopped,
                "The schema has neither an outbox nor an inbox",
                remedy,
                "/doctor",
            );
        }
        Ok(stand) => {
            stand.relays.iter().for_each(|relay| found.relay(relay));
            stand.outbox_letters.iter().for_each(|letters| found.letters(letters, "outbox"));
            stand.inbox_letters.iter().for_each(|letters| found.letters(letters, "inbox"));
            stand.consumers.iter().for_each(|consumer| found.consumer(consumer));
            stand.sagas.iter().for_each(|saga| found.saga(saga));
        }
    }
    found.troubles
}

struct Found<'a> {
    place: &'a str,
    troubles: Vec<Trouble>,
}

impl Found<'_> {
    fn add(
        &mut self,
        severity: Severity,
        what: impl Into<String>,
        remedy: impl Into<String>,
        page: impl Into<String>,
    ) -> &mut Trouble {
        let at = self.troubles.len();
        self.troubles.push(Trouble {
            severity,
            place: self.place.to_owned(),
            what: what.into(),
            since: None,
            remedy: remedy.into(),
            page: page.into(),
            runbook: None,
        });
        &mut self.troubles[at]
    }

    fn relay(&mut self, relay: &RelayStatus) {
        let name = &relay.relay;
        let waiting = counted(relay.backlog_events, "event waits", "events wait");
        let page = "/outboxes";
        if !relay.leading {
            let what = match (&relay.holder, relay.epoch) {
                (_, None) => format!("Relay {name} has never run; {waiting}"),
                (Some(_), _) => format!("Relay {name} has lost its lease: nobody ships; {waiting}"),
                (None, _) => format!("Relay {name} is not running; {waiting}"),
            };
            let remedy = "Start a relay with this name (pillarbox relay). Events are late, not lost. If one runs \
                          already, pillarbox doctor says why it does not lead.";
            let trouble = self.add(Severity::Stopped, what, remedy, page);
            trouble.runbook = Some("relay-down");
            trouble.since = relay.heartbeat_age_seconds.map(Moment::ago);
        } else if relay.oldest_age_seconds > LATE {
            let what = format!("Relay {name} is behind: {waiting}, the oldest");
            let remedy =
                "See whether the broker takes events (Doctor), and whether the number still grows.";
            let trouble = self.add(Severity::Act, what, remedy, page);
            trouble.runbook = Some("backlog-growing");
            trouble.since = Some(Moment::ago(relay.oldest_age_seconds));
        }
        if relay.held_events > 0 {
            let what = format!(
                "Relay {name} cannot set aside {}",
                counted(relay.held_events, "bad event", "bad events")
            );
            let remedy = "Remove what makes the table outbox_dead_letter refuse rows: a trigger, a rule or a constraint.";
            self.add(Severity::Act, what, remedy, page).runbook = Some("dead-letters-refused");
        }
        if let Some(scheduled) = &relay.scheduled {
            if scheduled.overdue_seconds > OVERDUE {
                let what = format!(
                    "Scheduled events are late: the oldest has been due for {}",
                    age(scheduled.overdue_seconds)
                );
                let remedy = "They leave when a relay leads and its database has time for it.";
                self.add(Severity::Act, what, remedy, "/scheduled").runbook =
                    Some("scheduled-events-overdue");
            }
            if scheduled.held > 0 {
                let what = counted(
                    scheduled.held,
                    "scheduled event could not be released",
                    "scheduled events could not be released",
                );
                let remedy =
                    "Each has the error of its row: mend what it names, or cancel the event.";
                self.add(Severity::Act, what, remedy, "/scheduled?held=on").runbook =
                    Some("scheduled-events-overdue");
            }
        }
        if !relay.unwatched_streams.is_empty() {
            let what = format!("Streams out of sight: {}", relay.unwatched_streams.join(", "));
            let remedy = "A loss there may go unnoticed. If they are in another domain or account, set it; if they were \
                          deleted, do nothing.";
            self.add(Severity::Watch, what, remedy, "/doctor").runbook =
                Some("streams-out-of-sight");
        }
        if let Some(table) = &relay.left_table {
            let what = format!("{table} was the outbox before, and still exists");
            let remedy = "Copy what had not been shipped from it, then drop it.";
            self.add(Severity::Watch, what, remedy, "/doctor").runbook = Some("table-replaced");
        }
        for notice in &relay.notices {
            let what = format!("{} says: {}", notice.holder, notice.notice);
            self.add(
                Severity::Watch,
                what,
                "Mend what it names. Events are shipped meanwhile.",
                page,
            );
        }
    }

    fn letters(&mut self, letters: &Letters, side: &str) {
        let Letters { owner, dead, parked } = letters;
        if *dead == 0 {
            return;
        }
        let count = match dead + parked > COUNTED {
            true => format!("more than {}", number(COUNTED)),
            false => number(*dead),
        };
        let noun = if *dead == 1 { "dead letter" } else { "dead letters" };
        let who = if side == "inbox" { "Consumer" } else { "Relay" };
        let what = format!("{who} {owner} has {count} {noun}");
        let remedy = "Read the errors by kind. When the cause is mended, retry a kind; discard what must not be handled.";
        let query =
            Query::default().with("place", self.place).with("side", side).with("owner", owner);
        self.add(Severity::Act, what, remedy, format!("/dead-letters?{query}")).runbook =
            Some("dead-letters-rising");
    }

    fn consumer(&mut self, consumer: &Consumer) {
        let Consumer { name, failing, away, failing_seconds, .. } = consumer;
        let Some(since) = failing_seconds.filter(|since| *failing > 0 && *since > FAILING) else {
            return;
        };
        let events = counted(*failing, "event", "events");
        let (what, remedy) = match away {
            0 => (
                format!("Consumer {name} tries {events} again and again"),
                "Read the errors. Events that cannot be handled become dead letters after their last attempt.",
            ),
            _ => (
                format!("Consumer {name} waits for a provider with {events}"),
                "See whether the provider that its handler asks is well. It goes on by itself once it is.",
            ),
        };
        let query = Query::default().with("place", self.place).with("consumer", name);
        self.add(Severity::Act, what, remedy, format!("/retries?{query}")).since =
            Some(Moment::ago(since));
    }

    fn saga(&mut self, saga: &Saga) {
        let query = Query::default().with("place", self.place).with("saga", &saga.name);
        if saga.overdue > 0 {
            let what = format!(
                "Saga {}: {} past the deadline",
                saga.name,
                counted(saga.overdue, "instance is", "instances are")
            );
            let remedy =
                "See in which step they wait, and whether the service that must answer is well.";
            self.add(Severity::Act, what, remedy, format!("/sagas?{query}&overdue=on")).runbook =
                Some("sagas-overdue");
        }
        if saga.failed > 0 {
            let what = format!(
                "Saga {}: {} failed",
                saga.name,
                counted(saga.failed, "instance has", "instances have")
            );
            let remedy = "Each says why. Their compensations were published.";
            self.add(Severity::Watch, what, remedy, format!("/sagas?{query}&status=failed"))
                .runbook = Some("sagas-failing");
        }
    }
}
