//! Going back when the broker has forgotten what it had acknowledged.
//!
//! An acknowledgement is not an fsync: nats-server syncs its files every two minutes by default, so a power
//! loss can take messages that were acknowledged, and a stream can be deleted, or put back from a backup. The
//! outbox still has the events. So every few seconds the relay remembers a **checkpoint**: its cursor, and for
//! each stream it has stored to a [`Mark`], asked for *after* the cursor was reached, so that everything
//! before the cursor lies at or below the mark.
//!
//! A stream has forgotten something if it was created anew, if it is shorter than its mark, if the message at the
//! mark is another one, if an acknowledgement tells a lower sequence than one before, or if it is gone and another
//! stream takes its subjects. This is looked for with every checkpoint, and before anything is shipped after a start,
//! a takeover, a failure, or a new connection. Then the relay goes back to the newest checkpoint that
//! every stream still covers, or to the first row that the outbox holds, and ships again from there. Going
//! back is free, a cursor is only a snapshot. What the streams have kept they drop as repeats within their
//! duplicate window; the inbox drops the rest.
//!
//! That the API does not show a stream is no evidence. It may be gone, or lie in another domain or account. What it
//! has acknowledged stays remembered, in the checkpoints too, and the status says that nobody watches it for loss.
//!
//! | what happened | a loss? |
//! |---|---|
//! | subjects move from one stream to another, and both live | no: each still holds what it acknowledged |
//! | the first of the two is deleted afterwards | yes: the other one gets again what the outbox holds |
//! | a stream is deleted, and none takes its subjects | not yet: events for it are held; the next stream that takes them gets again what the outbox holds |
//! | a stream is deleted and made anew, with whatever sequence | yes |
//! | a stream is purged, or its messages are consumed or too old | no |
//!
//! Not noticed is the loss of messages that were acknowledged after the last checkpoint by a leader that ended
//! before the broker did. Not kept is the order between what is shipped again and what was stored in the
//! moments between the loss and its discovery.

mod saved;

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::{Instant, sleep};

use crate::acknowledged::{Acknowledged, Acks};
use crate::config::RelayConfig;
use crate::cursor::Cursor;
use crate::health::Observer;
use crate::interrupted::{Forgotten, Interrupted};
use crate::lease::Lease;
use crate::streams::{Api, Mark, Marks, lost, shorter};

/// A stream just after an election may answer before it has applied all that it holds, or not be known yet: so often,
/// and for so long, it is asked again before it is called shorter, or gone.
const ASK_AGAIN: (u32, Duration) = (5, Duration::from_millis(500));
/// How long a stream that is gone is remembered past the retention.
const MARGIN: Duration = Duration::from_secs(60);

/// A place to go back to.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoint {
    /// As the database prints it.
    pub(crate) taken_at: String,
    pub(crate) cursor: Cursor,
    pub(crate) marks: Marks,
}

/// Takes checkpoints, and looks whether the streams still hold what they acknowledged.
pub(crate) struct Checkpoints {
    api: Api,
    lease: Arc<Lease>,
    acknowledged: Acknowledged,
    observer: Observer,
    /// What the streams must still hold.
    marks: Marks,
    /// The last checkpoint's cursor, and which streams were shown then.
    taken: Option<(Cursor, Vec<(String, bool)>)>,
    interval: Duration,
    retention: Duration,
    due_at: Instant,
}

impl Checkpoints {
    /// Looks at the streams first.
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
            None => (None, Marks::new()),
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
            retention: Duration::from_secs(config.retention_s),
            due_at: Instant::now() + interval,
        };
        checkpoints.look().await?;
        Ok(checkpoints)
    }

    pub(crate) fn due_at(&self) -> Instant {
        self.due_at
    }

    /// Also when a stream has acknowledged for the first time: from then on it must be watched.
    pub(crate) fn is_due(&self) -> bool {
        self.due_at <= Instant::now() || self.acknowledged.has_new()
    }

    /// Looks at the streams, and remembers this cursor. Everything before it must have been stored.
    pub(crate) async fn take(&mut self, cursor: &Cursor) -> Result<(), Interrupted> {
        self.due_at = Instant::now() + self.interval;
        self.look().await?;
        let taken = (cursor.clone(), shown(&self.marks));
        if self.taken.as_ref() != Some(&taken) {
            // Before it is written: the answer may get lost.
            self.acknowledged.takes(cursor);
            self.lease.remember(cursor, &self.marks, self.retention).await?;
            self.taken = Some(taken);
        }
        Ok(())
    }

    /// Looks whether each stream still holds what it should, and moves its mark.
    async fn look(&mut self) -> Result<(), Interrupted> {
        let acknowledged = self.acknowledged.look();
        let mut names: Vec<String> =
            self.marks.keys().chain(acknowledged.keys()).cloned().collect();
        names.sort();
        names.dedup();
        for name in &names {
            let acks = acknowledged.get(name).cloned().unwrap_or_default();
            let mut mark = match self.look_at(name, acks.last).await? {
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

    /// The mark of a stream, moved to where it stands now. `None` if the API does not show it.
    async fn look_at(&self, name: &str, least: u64) -> Result<Option<Mark>, Interrupted> {
        let mut asked = 0;
        let before = self.marks.get(name);
        loop {
            let stands = self.api.stand(name).await?;
            let how = match &stands {
                Some((stream, mark)) => {
                    let how = match before {
                        Some(before) => lost(stream, mark, before).await?,
                        None => None,
                    };
                    how.or_else(|| shorter(mark, least))
                }
                None => None,
            };
            asked += 1;
            match (stands, how) {
                (Some((_, mut mark)), None) => {
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
                // It is not shown, and that is not new.
                (None, _) if before.is_none_or(|before| !before.shown) => return Ok(None),
                (None, _) if asked == ASK_AGAIN.0 => return Ok(None),
                _ => sleep(ASK_AGAIN.1).await,
            }
        }
    }

    /// The mark of a stream that the API does not show. `None` if there is no need to remember it any more: the
    /// outbox holds nothing that it had acknowledged.
    async fn out_of_sight(
        &self,
        name: &str,
        acks: &Acks,
        all: &std::collections::BTreeMap<String, Acks>,
    ) -> Result<Option<Mark>, Interrupted> {
        let before = self.marks.get(name);
        let mut mark = before.cloned().unwrap_or_else(Mark::of_acknowledgements);
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
        // It lives.
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
            // Nothing of it is left.
            return Err(Interrupted::Forgotten(Forgotten { stream, how, now_at: Some(0) }));
        }
        let age = mark.acknowledged_at.map(|at| OffsetDateTime::now_utc() - at);
        let kept = age.is_none_or(|age| age < self.retention + MARGIN);
        Ok(kept.then_some(mark))
    }

    /// Another stream that acknowledges subjects of this one, where the API shows neither.
    fn successor_of(
        &self,
        name: &str,
        mark: &Mark,
        all: &std::collections::BTreeMap<String, Acks>,
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

/// Which streams there are, and whether the API shows them.
fn shown(marks: &Marks) -> Vec<(String, bool)> {
    marks.iter().map(|(name, mark)| (name.clone(), mark.shown)).collect()
}

/// Goes back to where every stream still holds what was shipped. Returns the cursor to ship from.
///
/// What an acknowledgement has told counts also where the API does not show the stream: then nobody can say how much
/// is left, and no checkpoint is covered.
pub(crate) async fn go_back(
    api: &Api,
    lease: &Lease,
    acknowledged: &Acknowledged,
    what: &Forgotten,
    now: &Cursor,
) -> Result<(Cursor, Option<String>), Interrupted> {
    let checkpoints = lease.checkpoints(i64::MAX).await?;
    let mut chosen = None;
    for checkpoint in checkpoints {
        // One without the stream is from before its first acknowledgement.
        let mut covered = true;
        for (name, mark) in &checkpoint.marks {
            if !covered {
                break;
            }
            let now_at = what.now_at.filter(|_| *name == what.stream);
            covered = match api.stand(name).await? {
                Some((stream, found)) => {
                    now_at.is_none_or(|now_at| mark.last_sequence < now_at)
                        && lost(&stream, &found, mark).await?.is_none()
                }
                None if now_at.is_some() => false,
                // Nothing can be shipped to it now. If it comes back, that is noticed in its turn.
                None => true,
            };
        }
        if covered {
            chosen = Some(checkpoint);
            break;
        }
    }
    acknowledged.forget();
    Ok(match chosen {
        Some(checkpoint) => (checkpoint.cursor, Some(checkpoint.taken_at)),
        None => (Cursor::start(now.system_identifier.clone()), None),
    })
}
