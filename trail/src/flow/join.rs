//! Puts the rows of a flow together. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::{Bounds, FlowEvent, SagaStep, Stored};

/// The events of a flow while they are collected, by identity.
#[derive(Debug, Default)]
pub(super) struct Collected {
    events: BTreeMap<String, FlowEvent>,
    /// The identity of each event, if it is another text than its id.
    pub(super) truncated: bool,
}

impl Collected {
    /// The event of this identity, which is added if it is not there. `None` if that would be too many.
    pub(super) fn event(
        &mut self,
        identity: &str,
        id: &str,
        bounds: Bounds,
    ) -> Option<&mut FlowEvent> {
        if !self.events.contains_key(identity) && self.events.len() >= bounds.events {
            self.truncated = true;
            return None;
        }
        Some(self.events.entry(identity.to_owned()).or_insert_with(|| FlowEvent::named(id)))
    }

    /// Adds a place in a stream, and what the message there says of the event. Further messages with its identity are
    /// repeats, which consumers drop, or pretend to be it: the first one counts.
    pub(super) fn stored(&mut self, identity: &str, bounds: Bounds, said: FlowEvent, at: Stored) {
        let Some(event) = self.event(identity, &said.id, bounds) else { return };
        if event.stored.iter().all(|other| at.at < other.at) {
            let stored = std::mem::take(&mut event.stored);
            *event = FlowEvent { stored, sagas: std::mem::take(&mut event.sagas), ..said };
        }
        // What is in a stream waits no longer.
        event.waits = None;
        if !event.stored.iter().any(|other| other.is_at(&at)) && event.stored.len() < 50 {
            event.stored.push(at);
        }
    }

    /// The event of this identity, if it is there.
    pub(super) fn known(&mut self, identity: &str) -> Option<&mut FlowEvent> {
        self.events.get_mut(identity)
    }

    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    pub(super) fn identities(&self) -> Vec<String> {
        self.events.keys().cloned().collect()
    }

    pub(super) fn ids(&self) -> Vec<String> {
        let ids: BTreeSet<&String> = self.events.values().map(|event| &event.id).collect();
        ids.into_iter().cloned().collect()
    }

    pub(super) fn each(&self) -> impl Iterator<Item = (&String, &FlowEvent)> {
        self.events.iter()
    }

    /// Every id that names the flow of one of the events: its correlation id, or its own id if it began a flow.
    pub(super) fn correlations(&self) -> Vec<String> {
        let of = |event: &FlowEvent| event.correlation.clone().unwrap_or_else(|| event.id.clone());
        let ids: BTreeSet<String> = self.events.values().map(of).collect();
        ids.into_iter().collect()
    }

    /// The ids of causes that are not among the events.
    pub(super) fn missing_causes(&self) -> Vec<String> {
        let known: BTreeSet<&String> = self.events.values().map(|event| &event.id).collect();
        let causes: BTreeSet<&String> =
            self.events.values().filter_map(|event| event.causation.as_ref()).collect();
        causes.difference(&known).map(|id| (*id).clone()).collect()
    }

    pub(super) fn keys(&self) -> Vec<String> {
        let keys: BTreeSet<&String> =
            self.events.values().filter_map(|event| event.key.as_ref()).collect();
        keys.into_iter().cloned().collect()
    }

    pub(super) fn types(&self) -> Vec<String> {
        let types: BTreeSet<&String> = self
            .events
            .values()
            .filter(|event| !event.stored.is_empty())
            .filter_map(|event| event.event_type.as_ref())
            .collect();
        types.into_iter().take(50).cloned().collect()
    }

    /// The events in the order of time, each with its cause, and whether some were too deep.
    pub(super) fn finish(self, depth: usize) -> (Vec<FlowEvent>, bool) {
        let mut events: Vec<FlowEvent> = self.events.into_values().collect();
        for event in &mut events {
            event.stored.sort_by_key(|stored| (stored.at, stored.sequence));
            event.stored.dedup();
            event.handled.sort_by(|a, b| (&a.part, &a.consumer).cmp(&(&b.part, &b.consumer)));
            event.sagas.sort_by_key(|step| step.at);
        }
        events.sort_by(|a, b| {
            let unknown = |event: &FlowEvent| event.began().is_none();
            (unknown(a), a.began(), &a.id).cmp(&(unknown(b), b.began(), &b.id))
        });
        mark(&mut events);
        let too_deep = link(&mut events, depth);
        (in_order(events), too_deep || self.truncated)
    }
}

/// Marks timers and compensations, which the sagas tell.
fn mark(events: &mut [FlowEvent]) {
    let mut timers = BTreeMap::new();
    let mut compensations = BTreeSet::new();
    for step in events.iter().flat_map(|event| &event.sagas) {
        timers.extend(step.timers_set.iter().map(|(name, id)| (id.clone(), name.clone())));
        if matches!(step.status.as_str(), "compensating" | "failed") {
            compensations.extend(step.published.iter().cloned());
        }
    }
    for event in events {
        event.timer = timers.get(&event.id).cloned();
        event.compensates = compensations.contains(&event.id);
    }
}

/// Finds each event's cause: the event that it names as its cause, or else the one that its correlation id names, or
/// the one whose saga set it as a timer. A cause that goes back to the event itself does not count.
fn link(events: &mut [FlowEvent], most: usize) -> bool {
    let by_id: BTreeMap<String, usize> =
        events.iter().enumerate().rev().map(|(at, event)| (event.id.clone(), at)).collect();
    let mut set_by = BTreeMap::new();
    for (at, event) in events.iter().enumerate() {
        let timers = event.sagas.iter().flat_map(|step: &SagaStep| &step.timers_set);
        set_by.extend(timers.map(|(_, id)| (id.clone(), at)));
    }
    let causes: Vec<Option<usize>> = events
        .iter()
        .enumerate()
        .map(|(at, event)| {
            let named = event.causation.as_ref().or(event.correlation.as_ref());
            let found = named.and_then(|id| by_id.get(id)).or_else(|| set_by.get(&event.id));
            found.copied().filter(|found| *found != at)
        })
        .collect();
    let mut too_deep = false;
    for at in 0..events.len() {
        let (mut depth, mut next, mut seen) = (0, causes[at], BTreeSet::from([at]));
        let mut parent = causes[at];
        while let Some(cause) = next {
            if !seen.insert(cause) {
                // A circle is cut at its earliest event. An event that leads into one is not part of it.
                if cause == at && seen.iter().min() == Some(&at) {
                    parent = None;
                    depth = 0;
                }
                break;
            }
            depth += 1;
            next = causes[cause];
        }
        too_deep = too_deep || depth > most;
        events[at].parent = parent;
        events[at].depth = depth.min(most);
    }
    too_deep
}

/// The events so that each comes after its cause, and otherwise in the order that they have.
fn in_order(events: Vec<FlowEvent>) -> Vec<FlowEvent> {
    let mut children: Vec<Vec<usize>> = vec![Vec::new(); events.len()];
    let mut stack = Vec::new();
    for (at, event) in events.iter().enumerate().rev() {
        match event.parent {
            Some(parent) => children[parent].push(at),
            None => stack.push(at),
        }
    }
    let mut order = Vec::with_capacity(events.len());
    let mut place = vec![0; events.len()];
    while let Some(at) = stack.pop() {
        place[at] = order.len();
        order.push(at);
        stack.extend(children[at].iter().copied());
    }
    let mut events: Vec<Option<FlowEvent>> = events.into_iter().map(Some).collect();
    let mut depths: Vec<usize> = Vec::with_capacity(order.len());
    let mut ordered: Vec<FlowEvent> = Vec::with_capacity(order.len());
    for at in order {
        let Some(mut event) = events[at].take() else { continue };
        event.parent = event.parent.map(|parent| place[parent]);
        event.depth = event.parent.map_or(0, |parent| depths[parent] + 1);
        depths.push(event.depth);
        ordered.push(event);
    }
    ordered
}

impl Stored {
    /// Whether another place is the same.
    pub(super) fn is_at(&self, other: &Self) -> bool {
        (&self.stream, self.life, self.sequence, self.at)
            == (&other.stream, other.life, other.sequence, other.at)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use time::{Duration, OffsetDateTime};

    use super::super::Waits;
    use super::*;

    fn collect(events: &[(&str, Option<&str>, i64)]) -> Collected {
        let mut collected = Collected::default();
        for (id, cause, second) in events {
            let event = collected.event(id, id, Bounds::default()).unwrap();
            event.causation = cause.map(str::to_owned);
            event.written = Some(OffsetDateTime::UNIX_EPOCH + Duration::seconds(*second));
        }
        collected
    }

    fn shape(events: &[FlowEvent]) -> Vec<(&str, Option<&str>, usize)> {
        let parent = |event: &FlowEvent| event.parent.map(|at| events[at].id.as_str());
        events.iter().map(|event| (event.id.as_str(), parent(event), event.depth)).collect()
    }

    #[test]
    fn each_event_comes_after_its_cause_whatever_the_clocks_say() {
        let collected = collect(&[
            ("a", None, 5),
            ("b", Some("a"), 6),
            ("c", Some("b"), 1),
            ("d", Some("a"), 7),
            ("e", Some("gone"), 2),
        ]);
        assert_eq!(collected.missing_causes(), ["gone"]);
        let (events, more) = collected.finish(64);
        assert_eq!(
            shape(&events),
            [
                ("e", None, 0),
                ("a", None, 0),
                ("b", Some("a"), 1),
                ("c", Some("b"), 2),
                ("d", Some("a"), 1)
            ]
        );
        assert!(!more);
    }

    #[test]
    fn circles_are_cut_and_every_event_is_told_once() {
        for circle in [
            vec![("a", Some("a"), 1)],
            vec![("a", Some("b"), 1), ("b", Some("a"), 2)],
            vec![
                ("a", Some("c"), 3),
                ("b", Some("a"), 1),
                ("c", Some("b"), 2),
                ("d", Some("c"), 0),
            ],
        ] {
            let (events, _) = collect(&circle).finish(64);
            let mut ids: Vec<_> = events.iter().map(|event| event.id.as_str()).collect();
            ids.sort_unstable();
            assert_eq!(ids.len(), circle.len(), "{circle:?}");
            ids.dedup();
            assert_eq!(ids.len(), circle.len(), "{circle:?}");
            assert_eq!(events.iter().filter(|event| event.parent.is_none()).count(), 1);
        }
    }

    #[test]
    fn what_is_too_much_or_too_deep_is_said() {
        let chain: Vec<(String, String)> =
            (0..100).map(|n| (format!("e{n:03}"), format!("e{:03}", n - 1))).collect();
        let chain: Vec<_> = chain.iter().map(|(id, cause)| (&**id, Some(&**cause), 0)).collect();
        let (events, more) = collect(&chain).finish(64);
        assert!(more && events.len() == 100);
        let mut collected = Collected::default();
        let bounds = Bounds { events: 2, ..Bounds::default() };
        for id in ["a", "b"] {
            assert!(collected.event(id, id, bounds).is_some());
        }
        assert!(collected.event("c", "c", bounds).is_none());
        assert!(collected.event("a", "a", bounds).is_some());
        assert!(collected.finish(64).1);
    }

    fn message(event_type: &str, second: i64) -> (FlowEvent, Stored) {
        let at = OffsetDateTime::UNIX_EPOCH + Duration::seconds(second);
        let mut said = FlowEvent::named("a");
        said.event_type = Some(event_type.to_owned());
        let stored = Stored {
            stream: "S".into(),
            life: OffsetDateTime::UNIX_EPOCH,
            sequence: second.unsigned_abs(),
            at,
            size: 0,
        };
        (said, stored)
    }

    #[test]
    fn the_first_message_of_an_event_says_what_it_is_whoever_repeats_it() {
        for order in [[5, 7, 9], [9, 7, 5], [7, 5, 9]] {
            let mut collected = Collected::default();
            for second in order {
                let name = if second == 5 { "order.placed" } else { "forged" };
                let (said, stored) = message(name, second);
                collected.stored("a", Bounds::default(), said, stored);
            }
            let (events, _) = collected.finish(64);
            assert_eq!(events[0].event_type.as_deref(), Some("order.placed"), "{order:?}");
            assert_eq!(events[0].stored.len(), 3);
        }
    }

    #[test]
    fn an_event_that_a_stream_has_got_meanwhile_waits_no_longer() {
        let mut collected = collect(&[("a", None, 1)]);
        collected.known("a").unwrap().waits =
            Some(Waits::Outbox { part: "shop".into(), since: OffsetDateTime::UNIX_EPOCH });
        let (said, stored) = message("order.placed", 5);
        collected.stored("a", Bounds::default(), said, stored);
        let (events, _) = collected.finish(64);
        assert_eq!(events[0].waits, None);
    }

    #[test]
    fn sagas_tell_timers_and_compensations() {
        let mut collected = collect(&[("a", None, 1), ("t", None, 2), ("u", Some("a"), 3)]);
        let step = SagaStep {
            part: "shop".into(),
            saga: "trip".into(),
            id: "1".into(),
            at: OffsetDateTime::UNIX_EPOCH,
            before: "x".into(),
            after: "y".into(),
            status: "compensating".into(),
            published: vec!["u".into()],
            timers_set: vec![("deadline".into(), "t".into())],
            timers_cancelled: Vec::new(),
            note: None,
        };
        collected.known("a").unwrap().sagas.push(step);
        let (events, _) = collected.finish(64);
        let of = |id: &str| events.iter().find(|event| event.id == id).unwrap();
        assert_eq!(of("t").timer.as_deref(), Some("deadline"));
        assert_eq!(of("t").parent, Some(0), "the timer belongs to the event that set it");
        assert!(of("u").compensates && !of("a").compensates);
    }
}
