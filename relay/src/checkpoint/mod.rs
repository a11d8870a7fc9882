//! Goes back when the broker has lost messages that it had acknowledged.
//!
//! An acknowledgement is not an fsync. By default, nats-server syncs its files every two minutes, so a power loss can
//! lose acknowledged messages. A stream can also be deleted, or restored from a backup. The outbox still has the
//! events. So every few seconds the relay saves a **checkpoint**: its cursor, and a [`StreamMark`] for each stream that
//! it has stored to. The mark is read *after* the cursor was reached, so everything before the cursor is at or below
//! the mark. A stream has lost something if it was created anew, if it is shorter than its mark, if the message at the
//! mark is another one, if an acknowledgement has a lower sequence than one before, if another message lies where it
//! acknowledged an event, or if it is gone and another stream takes its subjects. The relay checks this with every
//! checkpoint, and before it ships anything after a start, a
//! takeover, a failure, or a new connection. If something was lost, it goes back to the newest checkpoint that every
//! stream still covers, or to the first row that the outbox holds, and ships again from there. Going back is cheap,
//! because a cursor is only a snapshot. The cursor then says until when events are shipped again: so long, in a strict
//! order, [parked](crate::parking) events wait for the earlier ones. Streams drop what they still have as duplicates
//! within their duplicate window, and the inbox drops the rest.
//!
//! If the API does not show a stream, that proves nothing: the stream may be gone, or in another domain or account.
//! What it has acknowledged stays remembered, also in the checkpoints, and the status says that a loss there would go
//! unnoticed.
//!
//! | what happened | a loss? |
//! |---|---|
//! | subjects move from one stream to another, and both exist | no: each still holds what it acknowledged |
//! | the first of the two is deleted afterwards | yes: the other one gets again what the outbox holds |
//! | a stream is deleted, and none takes its subjects | not yet: events for it are held; the next stream that takes them gets again what the outbox holds |
//! | a stream is deleted and made anew, with whatever sequence | yes |
//! | a stream is purged, or its messages are consumed or too old | no |
//!
//! Other producers may fill a stream up before the relay looks, so that it is as long as before the loss. So the relay
//! also remembers [places](crate::places): which event lies at a sequence that was acknowledged after the last
//! checkpoint. An acknowledgement of a single message names its place. So does the end of a fast-ingest batch, which
//! names the place of the last message that the batch added to the stream, so any of its messages may lie there; and
//! after a second, or 65,536 messages, a batch is ended. If another message lies at a place, the stream has lost
//! something; if none does, nothing is proven. If a stream is looked at the first time and has something else at a
//! place, somebody else stores the events there in another form, and its places prove nothing.
//!
//! The relay does not notice the loss of messages that were acknowledged after the last checkpoint of a leader that
//! ended before the broker did, because places are not saved. Nor does it if other producers have filled up the stream,
//! and nothing else is lost than a part of a batch that the loss itself interrupted, messages that were consumed or
//! purged since, or messages over 1 MiB. The order is not kept between events that are shipped again and events that
//! were stored between the loss and its discovery.

mod compared;
mod saved;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::stream::Stream;
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};

use crate::acknowledged::{Acknowledged, Acks};
use crate::config::RelayConfig;
use crate::cursor::Cursor;
use crate::health::Observer;
use crate::interrupted::{Forgotten, Interrupted};
use crate::lease::Lease;
use crate::streams::{Api, StreamMark, StreamMarks, lost, shorter};

use self::compared::compare;

/// How often, and after which pause, a stream is asked again before it counts as shorter or gone. Just after an
/// election it may answer before it has applied all its messages, or may not be known yet.
const ASK_AGAIN: (u32, Duration) = (5, Duration::from_millis(500));
/// How much longer than the retention a stream that is gone is remembered.
const MARGIN: Duration = Duration::from_secs(60);

/// A place that the relay can go back to.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoint {
    /// When it was taken, as the database prints it.
    pub(crate) taken_at: String,
    pub(crate) cursor: Cursor,
    pub(crate) marks: StreamMarks,
}

/// Takes checkpoints, and checks whether the streams still hold what they acknowledged.
pub(crate) struct Checkpoints {
    api: Api,
    lease: Arc<Lease>,
    acknowledged: Acknowledged,
    observer: Observer,
    /// What the streams must still hold.
    marks: StreamMarks,
    /// The last checkpoint's cursor, and which streams the API showed then.
    taken: Option<(Cursor, Vec<(String, bool)>)>,
    interval: Duration,
    retention: Duration,
    due_at: Instant,
}

impl Checkpoints {
    /// Checks the streams first.
    pub(crate) async fn open(
        config: &RelayConfig,
        lease: &Arc<Lease>,
        api: Api,
        acknowledged: Acknowledged,
        observer: Observer,
    ) -> Result<Self, Interrupted> {
        let last = lease.checkpoints(1).await?.pop();
        let (taken, marks) = match last {
            Some(checkpoint) => {
                acknowledged.finds(&checkpoint.cursor);
                let shown = shown(&checkpoint.marks);
                (Some((checkpoint.cursor, shown)), checkpoint.marks)
            }
            None => (None, StreamMarks::new()),
        };
        for (name, mark) in marks.iter().filter(|(_, mark)| mark.created.is_none()) {
            acknowledged.looked(name, Some(mark.last_sequence), &mark.subjects, false);
        }
        let interval = config.checkpoint_interval();
        let mut checkpoints = Self {
            api,
            lease: lease.clone(),
            acknowledged,
            observer,
            marks,
            taken,
            interval,
            retention: config.retention,
            due_at: Instant::now() + interval,
        };
        checkpoints.look().await?;
        Ok(checkpoints)
    }

    pub(crate) fn due_at(&self) -> Instant {
        self.due_at
    }

    /// Whether a checkpoint is due: by time, or because a stream has acknowledged for the first time and must be
    /// watched.
    pub(crate) fn is_due(&self) -> bool {
        self.due_at <= Instant::now() || self.acknowledged.has_new()
    }

    /// Checks the streams, and saves this cursor. Everything before it must be stored.
    pub(crate) async fn take(&mut self, cursor: &Cursor) -> Result<(), Interrupted> {
        self.due_at = Instant::now() + self.interval;
        self.look().await?;
        let taken = (cursor.clone(), shown(&self.marks));
        if self.taken.as_ref() != Some(&taken) {
            // This comes before writing, because the answer to the write may be lost.
            self.acknowledged.takes(cursor);
            self.lease.remember(cursor, &self.marks, self.retention).await?;
            self.taken = Some(taken);
            // Not earlier: a mark that was not saved is gone when shipping starts again.
            for (name, mark) in self.marks.iter().filter(|(_, mark)| mark.shown) {
                self.acknowledged.covered(name, mark.last_sequence);
            }
        }
        Ok(())
    }

    /// Checks that each stream still holds what it should, and moves its mark.
    async fn look(&mut self) -> Result<(), Interrupted> {
        let acknowledged = self.acknowledged.look();
        let mut names: Vec<String> =
            self.marks.keys().chain(acknowledged.keys()).cloned().collect();
        names.sort();
        names.dedup();
        for name in &names {
            let acks = acknowledged.get(name).cloned().unwrap_or_default();
            let mut mark = match self.look_at(name, &acks).await? {
                Some(mark) => mark,
                None => match self.out_of_sight(name, &acks, &acknowledged).await? {
                    Some(mark) => mark,
                    None => {
                        self.marks.remove(name);
                        self.acknowledged.drop(name);
                        continue;
                    }
                },
            };
            if acks.fresh {
                mark.acknowledged_at = Some(OffsetDateTime::now_utc());
            }
            mark.acknowledged(&acks.subjects);
            let never_shown = mark.created.is_none();
            let told = never_shown.then_some(mark.last_sequence);
            self.acknowledged.looked(name, told, &mark.subjects, !never_shown);
            self.marks.insert(name.clone(), mark);
        }
        let unwatched = self.marks.iter().filter(|(_, mark)| !mark.shown);
        self.observer.unwatched(unwatched.map(|(name, _)| name.clone()).collect());
        Ok(())
    }

    /// The mark of a stream, moved to its present state. `None`: the API does not show the stream.
    async fn look_at(&self, name: &str, acks: &Acks) -> Result<Option<StreamMark>, Interrupted> {
        let (mut asked, mut naming) = (0, acks.naming);
        let before = self.marks.get(name);
        loop {
            let stands = self.api.stand(name).await?;
            let how = match &stands {
                Some((stream, mark)) => {
                    let how = match before {
                        Some(before) => lost(stream, mark, before).await?,
                        None => None,
                    };
                    match how.or_else(|| shorter(mark, acks.last)) {
                        Some(how) => Some(how),
                        None => compare(name, stream, acks, &mut naming).await?,
                    }
                }
                None => None,
            };
            asked += 1;
            match (stands, how) {
                (Some((_, mut mark)), None) => {
                    self.acknowledged.compared(name, naming);
                    if let Some(before) = before {
                        mark.takes(&before.subjects);
                        mark.acknowledged_at = before.acknowledged_at;
                    }
                    return Ok(Some(mark));
                }
                (Some(_), Some(how)) if asked == ASK_AGAIN.0 => {
                    let stream = name.to_owned();
                    return Err(Interrupted::Forgotten(Forgotten { stream, how, now_at: None }));
                }
                // It was not shown before either.
                (None, _) if before.is_none_or(|before| !before.shown) => return Ok(None),
                (None, _) if asked == ASK_AGAIN.0 => return Ok(None),
                _ => sleep(ASK_AGAIN.1).await,
            }
        }
    }

    /// The mark of a stream that the API does not show. `None`: it need not be remembered any more, because the outbox
    /// holds nothing that it acknowledged.
    async fn out_of_sight(
        &self,
        name: &str,
        acks: &Acks,
        all: &BTreeMap<String, Acks>,
    ) -> Result<Option<StreamMark>, Interrupted> {
        let before = self.marks.get(name);
        let mut mark = before.cloned().unwrap_or_else(StreamMark::of_acknowledgements);
        mark.shown = false;
        mark.last_sequence = mark.last_sequence.max(acks.last);
        mark.takes(&acks.subjects);
        if before.is_none_or(|before| before.shown) {
            tracing::warn!(
                stream = name,
                "the JetStream API does not show a stream that acknowledged events: it was deleted, or it lies in \
                 another domain or account (nats.jetstream_domain, nats.api_prefix); a loss there may go unnoticed"
            );
        }
        // It still acknowledges, so it exists.
        if acks.fresh {
            return Ok(Some(mark));
        }
        let successor = match self.api.successor(name, &mark.subjects).await? {
            Some(successor) => Some(successor),
            None => self.successor_of(name, &mark, all),
        };
        if let Some(successor) = successor {
            let how = format!("it is gone, and stream {successor} takes its subjects");
            let stream = name.to_owned();
            // Nothing is left of it.
            return Err(Interrupted::Forgotten(Forgotten { stream, how, now_at: Some(0) }));
        }
        let age = mark.acknowledged_at.map(|at| OffsetDateTime::now_utc() - at);
        let kept = age.is_none_or(|age| age < self.retention + MARGIN);
        Ok(kept.then_some(mark))
    }

    /// Another stream that acknowledges subjects of this one, if the API shows neither.
    fn successor_of(
        &self,
        name: &str,
        mark: &StreamMark,
        all: &BTreeMap<String, Acks>,
    ) -> Option<String> {
        let full = mark.subjects.len() >= crate::acknowledged::SUBJECTS;
        let others = all.iter().filter(|(other, acks)| *other != name && acks.fresh);
        others
            .filter(|(other, acks)| {
                let new = full && !self.marks.contains_key(*other);
                new || acks.subjects.iter().any(|subject| mark.subjects.contains(subject))
            })
            .map(|(other, _)| other.clone())
            .next()
    }
}

/// The streams, and whether the API shows them.
fn shown(marks: &StreamMarks) -> Vec<(String, bool)> {
    marks.iter().map(|(name, mark)| (name.clone(), mark.shown)).collect()
}

/// How a stream stands. One that the API is expected to show, and does not, is asked for again.
async fn stand(
    api: &Api,
    name: &str,
    is_expected: bool,
) -> Result<Option<(Stream, StreamMark)>, Interrupted> {
    let mut asked = 0;
    loop {
        let found = api.stand(name).await?;
        asked += 1;
        if found.is_some() || !is_expected || asked == ASK_AGAIN.0 {
            return Ok(found);
        }
        sleep(ASK_AGAIN.1).await;
    }
}

/// Goes back to where every stream still holds what was shipped. Returns the cursor to ship from.
///
/// What is known of the loss counts also where the API does not show the stream any more: then nobody can say how much
/// is left, and no checkpoint with the stream is covered. Called covered, the newest checkpoint would be gone back to,
/// and the loss would be found a second time as soon as the stream is shown again.
pub(crate) async fn go_back(
    api: &Api,
    lease: &Lease,
    acknowledged: &Acknowledged,
    what: &Forgotten,
    now: &Cursor,
) -> Result<(Cursor, Option<String>), Interrupted> {
    let checkpoints = lease.checkpoints(i64::MAX).await?;
    let mut chosen = None;
    let mut stands = BTreeMap::new();
    for checkpoint in checkpoints {
        // A checkpoint without the stream is from before its first acknowledgement.
        let mut covered = true;
        for (name, mark) in &checkpoint.marks {
            if !covered {
                break;
            }
            if !stands.contains_key(name) {
                let is_expected = mark.shown || *name == what.stream;
                stands.insert(name.clone(), stand(api, name, is_expected).await?);
            }
            let now_at = what.now_at.filter(|_| *name == what.stream);
            covered = match stands.get(name).and_then(Option::as_ref) {
                Some((stream, found)) => {
                    now_at.is_none_or(|now_at| mark.last_sequence < now_at)
                        && lost(stream, found, mark).await?.is_none()
                }
                // It has lost something, and nobody can say how much is left.
                None if *name == what.stream => false,
                // That it is not shown says nothing of a loss, and nothing can be shipped to it now. If it comes back
                // and has lost something, that is noticed in its turn.
                None => true,
            };
        }
        if covered {
            chosen = Some(checkpoint);
            break;
        }
    }
    let again_until = Some(lease.snapshot().await?);
    acknowledged.forget();
    let (cursor, taken_at) = match chosen {
        Some(checkpoint) => (checkpoint.cursor, Some(checkpoint.taken_at)),
        None => (Cursor::start(now.system_identifier.clone()), None),
    };
    Ok((Cursor { again_until, ..cursor }, taken_at))
}
