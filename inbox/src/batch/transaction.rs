//! The transaction of a batch: records its events, hands them to their handlers, and undoes the records of those that
//! are not handled after all.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::future::BoxFuture;
use pillarbox_event::{Identity, RawEvent};
use pillarbox_store::limit::{limited, within};
use sqlx::PgConnection;

use super::halves::{BatchRoute, Rules};
use super::{BatchEnd, RunBatch};
use crate::delivery::{EndOnDrop, Outcome, Slot};
use crate::error::{BEGIN, HandlerError, InboxError};
use crate::store::{Begun, Fate, LONGEST, Store};

/// The batch handlers of a router.
pub(crate) struct Batches {
    pub(crate) routes: HashMap<&'static str, Arc<dyn BatchRoute>>,
    /// For the types that no handler takes.
    pub(crate) others: Option<Arc<dyn BatchRoute>>,
    /// The types that are handled one by one.
    pub(crate) singly: HashSet<&'static str>,
    pub(crate) rules: Rules,
}

impl RunBatch for Batches {
    fn takes(&self, event_type: &str) -> bool {
        self.route(event_type).is_some()
    }

    fn run<'a>(
        &'a self,
        store: &'a Store,
        events: &'a [Arc<RawEvent>],
        dead_letters: bool,
    ) -> BoxFuture<'a, Result<Vec<BatchEnd>, InboxError>> {
        Box::pin(self.run_batch(store, events, dead_letters))
    }
}

/// Events of a batch that one handler takes, as their places in the batch.
struct Group<'b> {
    route: &'b Arc<dyn BatchRoute>,
    places: Vec<usize>,
}

impl Batches {
    fn route(&self, event_type: &str) -> Option<&Arc<dyn BatchRoute>> {
        let others = || self.others.as_ref().filter(|_| !self.singly.contains(event_type));
        self.routes.get(event_type).or_else(others)
    }

    /// The events at these places by their handlers, in few groups, so that those of a key are in order if the groups
    /// run one after the other. An event that no handler takes fails.
    fn groups(
        &self,
        events: &[Arc<RawEvent>],
        places: &[usize],
        ends: &mut [Option<BatchEnd>],
    ) -> Vec<Group<'_>> {
        let mut groups: Vec<Group<'_>> = Vec::new();
        let mut latest: HashMap<&str, usize> = HashMap::new();
        for &place in places {
            let event = &events[place];
            let Some(route) = self.route(event.event_type()) else {
                ends[place] = Some(BatchEnd::Failed(no_handler(event.event_type())));
                continue;
            };
            let from = event.key().and_then(|key| latest.get(key)).copied().unwrap_or(0);
            let found = groups[from..].iter().position(|group| Arc::ptr_eq(group.route, route));
            let at = found.map_or(groups.len(), |behind| from + behind);
            if at == groups.len() {
                groups.push(Group { route, places: Vec::new() });
            }
            groups[at].places.push(place);
            if let Some(key) = event.key() {
                latest.insert(key, at);
            }
        }
        groups
    }

    async fn run_batch(
        &self,
        store: &Store,
        events: &[Arc<RawEvent>],
        dead_letters: bool,
    ) -> Result<Vec<BatchEnd>, InboxError> {
        let identities: Vec<_> = events.iter().map(|event| event.identity()).collect();
        let (begun, mut ends, known) = begin(store, events, &identities, dead_letters).await?;
        let slot = Slot::new(begun);
        let _end = EndOnDrop(slot.clone());
        let claimed: Vec<usize> =
            (0..events.len()).filter(|place| ends[*place].is_none()).collect();
        let attempt = |place: usize| {
            let failed = known.get(identities[place].as_str()).copied().flatten();
            (place, failed.unwrap_or(0) + 1)
        };
        let groups = self.groups(events, &claimed, &mut ends);
        let mut handled = Ok(());
        match slot.hold().await.as_mut() {
            Some(begun) => {
                for Group { route, places } in groups {
                    let part: Vec<_> = places.into_iter().map(attempt).collect();
                    handled = route.run(self.rules, begun, &part, events, &mut ends).await;
                    if handled.is_err() {
                        break;
                    }
                }
            }
            None => handled = Err(InboxError::InUse),
        }
        if let Err(error) = handled {
            let fate = match slot.end() {
                Some(begun) => begun.undo().await,
                None => None,
            };
            return match fate {
                Some(Fate::Committed) => {
                    let comes_again = |place: &&usize| comes_again(&ends[**place]);
                    let undone = claimed.iter().filter(comes_again);
                    let undone: Vec<&str> =
                        undone.map(|place| identities[*place].as_str()).collect();
                    let undone = committed_by_handler(store, &undone, dead_letters).await;
                    undone.then(|| ends.into_iter().map(or_behind).collect()).ok_or(error)
                }
                Some(Fate::RolledBack | Fate::Prepared) => Ok(rolled_back_by_handler(ends)),
                // The batch's savepoint was gone, which proves that the handler ended the transaction.
                _ if matches!(error, InboxError::Ended { .. }) => Ok(rolled_back_by_handler(ends)),
                Some(Fate::Undone) | None => Err(error),
            };
        }
        let mut held_back = HashSet::new();
        for (event, end) in events.iter().zip(&mut ends) {
            let Some(key) = event.key().filter(|_| self.rules.keeps_keys) else {
                continue;
            };
            if matches!(end, Some(BatchEnd::Failed(_))) && held_back.contains(key) {
                *end = Some(BatchEnd::Behind);
            }
            if !matches!(end, Some(BatchEnd::Well(_))) {
                held_back.insert(key);
            }
        }
        let ends: Vec<BatchEnd> = ends.into_iter().map(or_behind).collect();
        let (mut undone, mut recovered) = (Vec::new(), Vec::new());
        for place in claimed {
            let id = identities[place].as_str();
            match ends[place] {
                BatchEnd::Well(_) if known.get(id).is_some_and(Option::is_some) => {
                    recovered.push(id)
                }
                BatchEnd::Well(_) => {}
                _ => undone.push(id),
            }
        }
        let mut begun = slot.end().ok_or(InboxError::InUse)?;
        let recorded = record(store, &mut begun, &undone, &recovered, dead_letters).await;
        if let Err(error) = recorded {
            begun.undo_behind();
            return Err(InboxError::commit(error));
        }
        store.commit(begun, None).await.map(|()| ends)
    }
}

/// An event of which nothing is said was left out.
fn or_behind(end: Option<BatchEnd>) -> BatchEnd {
    end.unwrap_or(BatchEnd::Behind)
}

/// Writes what became of the events of a batch: undoes the records of undone events, and deletes what is known of
/// failures of events that now succeeded.
async fn record(
    store: &Store,
    begun: &mut Begun,
    undone: &[&str],
    recovered: &[&str],
    dead_letters: bool,
) -> Result<(), sqlx::Error> {
    if undone.is_empty() && recovered.is_empty() {
        return Ok(());
    }
    // The statements run under the role and the settings from before the handler.
    begun.settle().await?;
    if !undone.is_empty() {
        limited(LONGEST, undo(store, &mut begun.tx, undone, dead_letters)).await?;
    }
    if !recovered.is_empty() {
        limited(LONGEST, store.forget_all(&mut *begun.tx, recovered)).await?;
    }
    Ok(())
}

/// Undoes the records of events that are not handled after all. A parked event also counts as handled, so its record
/// stays, and its letter is parked again.
async fn undo(
    store: &Store,
    connection: &mut PgConnection,
    undone: &[&str],
    dead_letters: bool,
) -> Result<(), sqlx::Error> {
    match dead_letters {
        true => store.park_again(connection, undone).await,
        false => store.unclaim(connection, undone).await,
    }
}

/// Whether an event is to be handled after a handler has committed the transaction: it was not given to a handler, or
/// failed before and was undone.
fn comes_again(end: &Option<BatchEnd>) -> bool {
    !matches!(
        end,
        Some(BatchEnd::Well(_) | BatchEnd::Failed(InboxError::Ended { committed: true }))
    )
}

/// The handler committed the transaction, and with it the records of all events. The records of those that come again
/// are undone. Returns whether that succeeded.
async fn committed_by_handler(store: &Store, events: &[&str], dead_letters: bool) -> bool {
    if events.is_empty() {
        return true;
    }
    let undone = async {
        let mut lent = store.lend().await?;
        let undone = limited(LONGEST, undo(store, &mut lent, events, dead_letters)).await;
        lent.give_back(undone)
    };
    let Err(error) = undone.await else { return true };
    let consumer = &*store.consumer;
    match dead_letters {
        true => tracing::error!(
            consumer, ?events, %error,
            "a handler committed the transaction of its batch, and these letters count as handled, which they are \
             not: set their state to parked",
        ),
        false => tracing::error!(
            consumer, ?events, %error,
            "a handler committed the transaction of its batch, and these events count as handled, which they are \
             not: delete their rows from the inbox",
        ),
    }
    false
}

/// What became of each event if the handler rolled back the transaction, and with it all records. Events that it was
/// not given in that call come again, even if it had handled them before.
fn rolled_back_by_handler(ends: Vec<Option<BatchEnd>>) -> Vec<BatchEnd> {
    let after = |end| match end {
        Some(BatchEnd::Failed(InboxError::Ended { .. })) => {
            BatchEnd::Failed(InboxError::Ended { committed: false })
        }
        Some(BatchEnd::Failed(error)) => BatchEnd::Failed(error),
        Some(BatchEnd::Well(Outcome::Duplicate)) => BatchEnd::Well(Outcome::Duplicate),
        Some(BatchEnd::Well(_) | BatchEnd::Behind) | None => BatchEnd::Behind,
    };
    ends.into_iter().map(after).collect()
}

/// What is already decided, and what is known of failed attempts at recorded events.
type Recorded = (Vec<Option<BatchEnd>>, HashMap<String, Option<u32>>);

/// Opens a transaction and records the events in it.
async fn begin(
    store: &Store,
    events: &[Arc<RawEvent>],
    identities: &[Identity],
    dead_letters: bool,
) -> Result<(Begun, Vec<Option<BatchEnd>>, HashMap<String, Option<u32>>), InboxError> {
    let mut begun = store.begin().await.map_err(InboxError::database(BEGIN))?;
    let claimed = claim(store, &mut begun, events, identities, dead_letters);
    match within(LONGEST, "the database", claimed).await {
        Ok(claimed) => claimed.map(|(ends, known)| (begun, ends, known)),
        Err(_) => {
            begun.abandon();
            Err(InboxError::Slow { doing: "record the events" })
        }
    }
}

/// Records the events in this transaction.
async fn claim(
    store: &Store,
    begun: &mut Begun,
    events: &[Arc<RawEvent>],
    identities: &[Identity],
    dead_letters: bool,
) -> Result<Recorded, InboxError> {
    let mut ids = HashSet::with_capacity(events.len());
    // If the batch contains an event twice, the second one comes again, and is a duplicate then.
    let mut ends: Vec<Option<BatchEnd>> = identities
        .iter()
        .map(|identity| (!ids.insert(identity.as_str())).then_some(BatchEnd::Behind))
        .collect();
    let ids: Vec<&str> = ids.into_iter().collect();
    let released;
    let ids = match dead_letters {
        true => {
            let release = store.release_all(&mut *begun.tx, &ids).await;
            released = release.map_err(InboxError::database("release the events"))?;
            released.iter().map(String::as_str).collect()
        }
        false => ids,
    };
    let known =
        store.claim_all(begun, &ids).await.map_err(InboxError::database("record the events"))?;
    for (identity, end) in identities.iter().zip(&mut ends) {
        if end.is_none() && !known.contains_key(identity.as_str()) {
            *end = Some(BatchEnd::Well(Outcome::Duplicate));
        }
    }
    if dead_letters {
        // They come before the events that wait behind them.
        return Ok((ends, known));
    }
    let keys: Vec<&str> = events.iter().filter_map(|event| event.key()).collect();
    // This comes after the claim, so that it sees the transaction that made one of the duplicates a dead letter.
    let blocked = store.blocked(&mut *begun.tx, &keys).await;
    let blocked = blocked.map_err(InboxError::database("look for dead letters of the keys"))?;
    for (event, end) in events.iter().zip(&mut ends) {
        if end.is_none() && event.key().is_some_and(|key| blocked.contains(key)) {
            store.park_claimed(begun, event).await?;
            *end = Some(BatchEnd::Well(Outcome::Parked));
        }
    }
    Ok((ends, known))
}

/// The failure of an event that nobody takes.
pub(crate) fn no_handler(event_type: &str) -> InboxError {
    let error = format!(
        "no handler takes events of type {event_type:?}; add one to the router, or call ignore_others"
    );
    InboxError::handler(HandlerError::permanent(error))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// A route that is never run.
    struct Idle;

    impl BatchRoute for Idle {
        fn run<'a>(
            &'a self,
            _: Rules,
            _: &'a mut Begun,
            _: &'a [(usize, u32)],
            _: &'a [Arc<RawEvent>],
            _: &'a mut [Option<BatchEnd>],
        ) -> BoxFuture<'a, Result<(), InboxError>> {
            Box::pin(std::future::ready(Ok(())))
        }
    }

    fn batches(types: &[&'static str]) -> Batches {
        let route = |name: &&'static str| (*name, Arc::new(Idle) as Arc<dyn BatchRoute>);
        Batches {
            routes: types.iter().map(route).collect(),
            others: None,
            singly: HashSet::new(),
            rules: Rules { longest: Duration::from_secs(1), keeps_keys: true },
        }
    }

    fn event(event_type: &str, key: Option<u8>) -> Arc<RawEvent> {
        let builder = RawEvent::builder(event_type, "topic");
        let builder = match key {
            Some(key) => builder.key(key.to_string()),
            None => builder,
        };
        Arc::new(builder.build().unwrap())
    }

    fn groups(batches: &Batches, events: &[Arc<RawEvent>]) -> (Vec<Vec<usize>>, Vec<bool>) {
        let places: Vec<usize> = (0..events.len()).collect();
        let mut ends: Vec<_> = events.iter().map(|_| None).collect();
        let groups = batches.groups(events, &places, &mut ends);
        let groups = groups.into_iter().map(|group| group.places).collect();
        (groups, ends.iter().map(Option::is_some).collect())
    }

    #[test]
    fn events_of_one_handler_are_one_group_as_far_as_their_keys_allow() {
        let batches = batches(&["a", "b"]);
        let free: Vec<_> = ["a", "b", "a", "b"].map(|name| event(name, None)).into();
        assert_eq!(groups(&batches, &free).0, [vec![0, 2], vec![1, 3]]);
        let one_key: Vec<_> = ["a", "b", "a", "b"].map(|name| event(name, Some(1))).into();
        assert_eq!(groups(&batches, &one_key).0, [vec![0], vec![1], vec![2], vec![3]]);
        let foreign = [event("a", None), event("c", None)];
        assert_eq!(groups(&batches, &foreign), (vec![vec![0]], vec![false, true]));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_event_is_in_one_group_and_each_key_is_in_order(
            drawn in prop::collection::vec((0_usize..3, prop::option::of(0_u8..4)), 0..40),
        ) {
            const TYPES: [&str; 3] = ["a", "b", "c"];
            let batches = batches(&TYPES);
            let events: Vec<_> = drawn.iter().map(|(name, key)| event(TYPES[*name], *key)).collect();
            let (groups, _) = groups(&batches, &events);
            let order: Vec<usize> = groups.concat();
            let mut sorted = order.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..events.len()).collect::<Vec<_>>());
            for group in &groups {
                prop_assert!(group.iter().all(|place| drawn[*place].0 == drawn[group[0]].0));
            }
            for key in 0..4 {
                let of_key: Vec<usize> =
                    order.iter().copied().filter(|place| drawn[*place].1 == Some(key)).collect();
                prop_assert!(of_key.is_sorted(), "{key}: {groups:?}");
            }
        }
    }
}
