//! What must hold of each trip.
//!
//! The history of an instance is played again, by rules of its own that are written here and not in the saga: each
//! entry must say what these rules say about its event, and after the last one the instance must be where they lead.
//! Then the events in the outbox must be those of the history, each once, and the services must have done what they
//! were told, each once.

use std::collections::{BTreeMap, HashMap};

use super::events::SERVICES;
use super::record::{Entry, Instance, State, TripEffect, TripEvent, Trips};

/// What is wrong, and with which trip. `may_swap` says whether a cancellation, by its id, may have come before the
/// booking that it cancels, because of a loss of the broker.
pub(crate) fn check(trips: &Trips, may_swap: impl Fn(&str) -> bool) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let books = Books::of(trips);
    for (trip, events) in &books.events {
        let Some(instance) = books.instances.get(trip) else {
            let why = format!("it has {} events and no instance", events.len());
            found.push(((*trip).to_owned(), why));
            continue;
        };
        let mut wrong = |what: String| found.push(((*trip).to_owned(), what));
        replay(instance, &books, &mut wrong);
        every_event_once(instance, events, &mut wrong);
        let none = Vec::new();
        effects(instance, books.effects.get(trip).unwrap_or(&none), &may_swap, &mut wrong);
    }
    for trip in books.instances.keys().filter(|trip| !books.events.contains_key(*trip)) {
        found.push(((*trip).to_owned(), "it has an instance, and nobody asked for it".to_owned()));
    }
    for (id, by, why) in &trips.dead {
        let trip = books.by_id.get(&**id).map_or("none", |event| &event.trip);
        found.push((trip.to_owned(), format!("its event {id} was given up by {by} ({why})")));
    }
    found
}

struct Books<'t> {
    by_id: HashMap<&'t str, &'t TripEvent>,
    events: BTreeMap<&'t str, Vec<&'t TripEvent>>,
    instances: HashMap<&'t str, &'t Instance>,
    effects: HashMap<&'t str, Vec<&'t TripEffect>>,
}

impl<'t> Books<'t> {
    fn of(trips: &'t Trips) -> Self {
        let (mut events, mut effects): (BTreeMap<_, Vec<_>>, HashMap<_, Vec<_>>) =
            Default::default();
        for event in &trips.events {
            events.entry(&*event.trip).or_default().push(event);
        }
        for effect in &trips.effects {
            effects.entry(&*effect.trip).or_default().push(effect);
        }
        Self {
            by_id: trips.events.iter().map(|event| (&*event.id, event)).collect(),
            instances: trips.instances.iter().map(|one| (&*one.trip, one)).collect(),
            events,
            effects,
        }
    }

    /// What an entry has published: type and service, or the id of what is not in the outbox.
    fn published(&self, entry: &Entry) -> Vec<String> {
        let name = |id: &String| match self.by_id.get(&**id) {
            Some(event) => said(&event.event_type, event.service.as_deref().unwrap_or_default()),
            None => format!("{id}, which is not in the outbox"),
        };
        entry.published.iter().map(name).collect()
    }
}

fn said(event_type: &str, service: &str) -> String {
    format!("{event_type} {service}")
}

/// An instance, as the rules lead it.
#[derive(Debug, Default)]
struct Rules {
    state: State,
    status: &'static str,
    step: String,
    failure: Option<String>,
    /// The timer that is set.
    timer: Option<String>,
}

/// What the rules say about an entry.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    published: Vec<String>,
    sets_a_timer: bool,
    timers_cancelled: Vec<String>,
    ignored: bool,
}

impl Rules {
    fn step(&mut self, entry: &Entry, service: &str) -> Result<Said, String> {
        let runs = self.status == "running";
        let ignored = Said { ignored: true, ..Said::default() };
        match (&*entry.event_type, self.status) {
            ("trip.requested", "") => {
                self.status = "running";
                Ok(self.ask(SERVICES[0]))
            }
            (_, "") => Err("it does not begin with a request".to_owned()),
            (_, "completed" | "failed") | ("trip.requested", _) => Ok(ignored),
            ("trip.unanswered", _) => match self.timer.take_if(|timer| *timer == entry.event_id) {
                Some(_) => Ok(self.fail(format!("{} did not answer", self.step))),
                None => Ok(ignored),
            },
            ("service.booked", _) => {
                self.state.booked.push(service.to_owned());
                match SERVICES.iter().skip_while(|name| **name != service).nth(1) {
                    _ if !runs => Ok(Said::default()),
                    Some(next) => Ok(self.ask(next)),
                    None => {
                        self.status = "completed";
                        Ok(self.cancels_its_timer())
                    }
                }
            }
            ("service.refused", _) if runs => Ok(self.fail(format!("{service} refused"))),
            ("service.refused", _) => Ok(Said::default()),
            ("service.cancelled", _) => {
                self.state.cancelled.push(service.to_owned());
                if self.state.cancelled.len() == self.state.asked.len() {
                    self.status = if runs { "completed" } else { "failed" };
                }
                Ok(Said::default())
            }
            (other, _) => Err(format!("{other} is not for it")),
        }
    }

    fn ask(&mut self, service: &str) -> Said {
        self.state.asked.push(service.to_owned());
        self.step = service.to_owned();
        Said {
            published: vec![said("service.book", service)],
            sets_a_timer: true,
            ..self.cancels_its_timer()
        }
    }

    fn fail(&mut self, why: String) -> Said {
        self.status = "compensating";
        self.failure = Some(why);
        let asked = self.state.asked.iter().rev();
        let published = asked.map(|service| said("service.cancel", service)).collect();
        Said { published, ..self.cancels_its_timer() }
    }

    fn cancels_its_timer(&mut self) -> Said {
        Said { timers_cancelled: self.timer.take().into_iter().collect(), ..Said::default() }
    }
}

/// Plays a history again, and compares each entry, and then the instance, with the rules.
fn replay(instance: &Instance, books: &Books<'_>, wrong: &mut impl FnMut(String)) {
    let mut rules = Rules { step: "started".to_owned(), ..Rules::default() };
    for (entry, number) in instance.entries.iter().zip(1..) {
        let mut differs =
            |what: String| wrong(format!("entry {} of its history: {what}", entry.seq));
        if entry.seq != number {
            return differs(format!("it should be entry {number}"));
        }
        if entry.before != rules.step {
            differs(format!(
                "it begins at {:?}, and the one before ended at {:?}",
                entry.before, rules.step
            ));
        }
        let service = match books.by_id.get(&*entry.event_id) {
            Some(event) if event.event_type == entry.event_type && event.trip == instance.trip => {
                event.service.as_deref().unwrap_or_default()
            }
            _ => return differs(format!("its event {} is not in the outbox", entry.event_id)),
        };
        let said = match rules.step(entry, service) {
            Ok(said) => said,
            Err(problem) => return differs(problem),
        };
        if said.sets_a_timer {
            rules.timer = entry.timers_set.first().cloned();
        }
        let is = Said {
            published: books.published(entry),
            sets_a_timer: entry.timers_set.len() == 1,
            timers_cancelled: entry.timers_cancelled.clone(),
            ignored: entry.is_ignored(),
        };
        if is != said || entry.timers_set.len() > 1 {
            differs(format!("{} {service} should do {said:?}, and did {is:?}", entry.event_type));
        }
        if (&*entry.status, &entry.after) != (rules.status, &rules.step) {
            let (status, step) = (&entry.status, &entry.after);
            differs(format!("it ends {status} at {step}, not {} at {}", rules.status, rules.step));
        }
    }
    let is = (&*instance.status, &instance.state, &instance.failure);
    if is != (rules.status, &rules.state, &rules.failure) {
        wrong(format!("its history does not explain that it is {is:?}"));
    }
    if instance.version != i64::try_from(instance.entries.len()).unwrap_or(i64::MAX) {
        wrong(format!("{} entries, version {}", instance.entries.len(), instance.version));
    }
    if !matches!(&*instance.status, "completed" | "failed") {
        wrong(format!("it is {} at the end", instance.status));
    }
    if instance.timers != 0 {
        wrong(format!("{} timers are left", instance.timers));
    }
}

/// Everything that the outbox has for the saga is in the history once, and everything that it has from the saga was
/// published by one entry.
fn every_event_once(instance: &Instance, events: &[&TripEvent], wrong: &mut impl FnMut(String)) {
    let mut times: HashMap<&str, (usize, usize)> = HashMap::new();
    for event in events {
        times.entry(&event.id).or_default().0 += 1;
    }
    let handled = instance.entries.iter().map(|entry| &entry.event_id);
    for id in handled.chain(instance.entries.iter().flat_map(|entry| &entry.published)) {
        times.entry(id).or_default().1 += 1;
    }
    let mut differ: Vec<_> = times.into_iter().filter(|(_, times)| *times != (1, 1)).collect();
    differ.sort_unstable();
    for (id, (there, told)) in differ {
        wrong(format!(
            "event {id} is {there} times in the outbox, and {told} times in the history"
        ));
    }
}

/// Each service has done what it was told, once, and is booked exactly if the trip is completed.
fn effects(
    instance: &Instance,
    effects: &[&TripEffect],
    may_swap: &impl Fn(&str) -> bool,
    wrong: &mut impl FnMut(String),
) {
    for service in SERVICES {
        let of: Vec<_> = effects.iter().filter(|effect| effect.service == service).collect();
        let is_asked = instance.state.asked.iter().any(|asked| asked == service);
        let did: Vec<&str> = of.iter().map(|effect| &*effect.what).collect();
        let is_right = match (&*instance.status, is_asked, &did[..]) {
            (_, false, []) | ("completed", true, ["booked"]) => true,
            ("failed", true, ["booked" | "refused", "cancelled"]) => true,
            ("failed", true, ["cancelled", "declined"]) => may_swap(&of[0].event_id),
            _ => false,
        };
        if !is_right {
            wrong(format!("it is {}, and {service} did {did:?}", instance.status));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A trip, as the services and the saga leave it behind. Each line is an event for the saga, what it published, and
    /// the status and step after it.
    fn trip(
        lines: &[(&str, &str, &[&str], &str, &str)],
        state: State,
        failure: Option<&str>,
        effects: &[(&str, &str)],
    ) -> Trips {
        let (mut trips, mut number) = (Trips::default(), 0);
        let mut add = |trips: &mut Trips, event_type: &str, service: &str| {
            number += 1;
            let service = (!service.is_empty()).then(|| service.to_owned());
            let id = format!("e{number}");
            let event_type = event_type.to_owned();
            trips.events.push(TripEvent { id: id.clone(), event_type, trip: "t".into(), service });
            id
        };
        let (mut entries, mut before, mut timer) = (Vec::new(), "started", None::<String>);
        for ((event_type, service, published, status, step), seq) in lines.iter().zip(1..) {
            let asks = published.iter().any(|name| name.starts_with("service.book "));
            let event_id = match (*event_type, &timer) {
                ("trip.unanswered", Some(timer)) => {
                    let event = (timer.clone(), (*event_type).to_owned());
                    let (id, event_type) = event;
                    trips.events.push(TripEvent {
                        id: id.clone(),
                        event_type,
                        trip: "t".into(),
                        service: None,
                    });
                    id
                }
                _ => add(&mut trips, event_type, service),
            };
            let published = published.iter().map(|name| {
                let (event_type, service) = name.split_once(' ').unwrap();
                add(&mut trips, event_type, service)
            });
            let published = published.collect();
            let ends = *status != "running";
            let fired = timer.take_if(|timer| *timer == event_id).is_some();
            let cancelled = if asks || ends { timer.take() } else { None };
            let timers_set: Vec<_> = asks.then(|| format!("timer{seq}")).into_iter().collect();
            timer = timers_set.first().cloned().or(timer);
            assert!(!(fired && cancelled.is_some()));
            entries.push(Entry {
                seq,
                at: seq,
                event_id,
                event_type: (*event_type).to_owned(),
                before: before.to_owned(),
                after: (*step).to_owned(),
                status: (*status).to_owned(),
                published,
                timers_set,
                timers_cancelled: cancelled.into_iter().collect(),
                note: None,
            });
            before = step;
        }
        let last = entries.last().unwrap();
        trips.instances.push(Instance {
            trip: "t".into(),
            status: last.status.clone(),
            version: last.seq,
            failure: failure.map(str::to_owned),
            state,
            timers: 0,
            entries,
        });
        for ((service, what), seq) in effects.iter().zip(1..) {
            trips.effects.push(TripEffect {
                seq,
                at: seq,
                service: (*service).to_owned(),
                trip: "t".into(),
                what: (*what).to_owned(),
                event_id: format!("command{seq}"),
            });
        }
        trips
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn completed() -> Trips {
        let all = names(&SERVICES);
        trip(
            &[
                ("trip.requested", "", &["service.book flight"], "running", "flight"),
                ("service.booked", "flight", &["service.book hotel"], "running", "hotel"),
                ("service.booked", "hotel", &["service.book payment"], "running", "payment"),
                ("service.booked", "payment", &[], "completed", "payment"),
            ],
            State { asked: all.clone(), booked: all, cancelled: Vec::new() },
            None,
            &[("flight", "booked"), ("hotel", "booked"), ("payment", "booked")],
        )
    }

    fn failed() -> Trips {
        let cancels = &["service.cancel hotel", "service.cancel flight"];
        trip(
            &[
                ("trip.requested", "", &["service.book flight"], "running", "flight"),
                ("service.booked", "flight", &["service.book hotel"], "running", "hotel"),
                ("trip.unanswered", "", cancels, "compensating", "hotel"),
                ("service.booked", "hotel", &[], "compensating", "hotel"),
                ("service.cancelled", "hotel", &[], "compensating", "hotel"),
                ("service.cancelled", "flight", &[], "failed", "hotel"),
            ],
            State {
                asked: names(&["flight", "hotel"]),
                booked: names(&["flight", "hotel"]),
                cancelled: names(&["hotel", "flight"]),
            },
            Some("hotel did not answer"),
            &[
                ("flight", "booked"),
                ("hotel", "booked"),
                ("hotel", "cancelled"),
                ("flight", "cancelled"),
            ],
        )
    }

    fn wrong(trips: &Trips) -> Vec<String> {
        check(trips, |_| false).into_iter().map(|(_, what)| what).collect()
    }

    /// That something is found, and that it says this.
    fn finds(trips: &Trips, words: &str) {
        let found = wrong(trips);
        assert!(found.iter().any(|what| what.contains(words)), "{words:?} is not in {found:#?}");
    }

    #[test]
    fn trips_that_are_booked_or_undone_are_found_well() {
        assert_eq!(wrong(&completed()), Vec::<String>::new());
        assert_eq!(wrong(&failed()), Vec::<String>::new());
        assert_eq!(wrong(&Trips::default()), Vec::<String>::new());
    }

    #[test]
    fn a_second_booking_and_a_second_cancellation_are_found() {
        let mut trips = completed();
        trips.effects.push(TripEffect { seq: 9, ..trips.effects[0].clone() });
        finds(&trips, r#"flight did ["booked", "booked"]"#);
        let mut trips = failed();
        trips.effects.push(TripEffect { seq: 9, ..trips.effects[2].clone() });
        finds(&trips, r#"hotel did ["booked", "cancelled", "cancelled"]"#);
        let mut trips = failed();
        trips.effects.pop();
        finds(&trips, r#"flight did ["booked"]"#);
    }

    #[test]
    fn a_cancellation_comes_first_only_after_a_loss() {
        let mut trips = failed();
        trips.effects[1].what = "cancelled".into();
        trips.effects[2].what = "declined".into();
        finds(&trips, "hotel did [\"cancelled\", \"declined\"]");
        assert_eq!(check(&trips, |id| id == "command2"), []);
        // A booking that stays is never right.
        trips.effects[2].what = "booked".into();
        assert_ne!(check(&trips, |_| true), []);
    }

    #[test]
    fn a_history_that_does_not_explain_the_instance_is_found() {
        let mut trips = completed();
        trips.instances[0].status = "failed".into();
        finds(&trips, "its history does not explain");
        let mut trips = failed();
        trips.instances[0].state.booked.pop();
        finds(&trips, "its history does not explain");
        let mut trips = failed();
        trips.instances[0].entries.remove(3);
        finds(&trips, "it should be entry 4");
        let mut trips = failed();
        trips.instances[0].entries[2].published.swap(0, 1);
        finds(&trips, "service.cancel flight");
        let mut trips = completed();
        trips.instances[0].entries[1].timers_cancelled.clear();
        finds(&trips, "timers_cancelled: []");
        let mut trips = completed();
        trips.instances[0].entries[2].before = "payment".into();
        finds(&trips, "the one before ended");
    }

    #[test]
    fn an_instance_that_is_open_or_has_a_timer_is_found() {
        let mut trips = completed();
        trips.instances[0].entries.pop();
        trips.instances[0].status = "running".into();
        finds(&trips, "it is running at the end");
        let mut trips = completed();
        trips.instances[0].timers = 1;
        finds(&trips, "1 timers are left");
    }

    #[test]
    fn an_event_that_the_saga_missed_or_handled_twice_is_found() {
        let mut trips = completed();
        let lost = TripEvent { id: "lost".into(), ..trips.events[0].clone() };
        trips.events.push(lost);
        finds(&trips, "event lost is 1 times in the outbox, and 0 times in the history");
        let mut trips = failed();
        let again = trips.instances[0].entries[3].clone();
        trips.instances[0].entries.insert(4, again);
        assert_ne!(wrong(&trips), Vec::<String>::new());
        let mut trips = completed();
        trips.events.remove(1);
        finds(&trips, "which is not in the outbox");
    }

    #[test]
    fn a_trip_without_an_instance_and_an_instance_without_a_request_are_found() {
        let mut trips = completed();
        trips.instances.clear();
        finds(&trips, "events and no instance");
        let mut trips = completed();
        trips.events.clear();
        finds(&trips, "nobody asked for it");
        let mut trips = completed();
        trips.dead.push(("e1".into(), "trips".into(), "permanent".into()));
        finds(&trips, "its event e1 was given up by trips (permanent)");
    }
}
