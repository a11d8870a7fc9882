//! Going back when the broker has forgotten what it had acknowledged.
//!
//! An acknowledgement is not an fsync: nats-server syncs its files every two minutes by default, so a power
//! loss can take messages that were acknowledged, and a stream can be deleted, or put back from a backup. The
//! outbox still has the events. So every few seconds the relay remembers a **checkpoint**: its cursor, and for
//! each stream it has stored to a [`Mark`], asked for *after* the cursor was reached, so that everything
//! before the cursor lies at or below the mark.
//!
//! A stream has forgotten something if it was created anew, if it is shorter than its mark, or if the message
//! at the mark is another one. This is looked for with every checkpoint, and before anything is shipped after
//! a start, a takeover, a failure, or a new connection. Then the relay goes back to the newest checkpoint that
//! every stream still covers, or to the first row that the outbox holds, and ships again from there. Going
//! back is free, a cursor is only a snapshot. What the streams have kept they drop as repeats within their
//! duplicate window; the inbox drops the rest.
//!
//! Not noticed is the loss of messages that were acknowledged after the last checkpoint by a leader that ended
//! before the broker did. Not kept is the order between what is shipped again and what was stored in the
//! moments between the loss and its discovery.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};

use crate::config::RelayConfig;
use crate::cursor::Cursor;
use crate::error::full_text;
use crate::lease::LeaseError;
use crate::letters::{Letters, Request};
use crate::shipper::Interrupted;
use crate::sink::SinkError;

/// A stream just after an election may answer before it has applied all that it holds: so often, and for so
/// long, it is asked again before it is called shorter.
const ASK_AGAIN: (u32, Duration) = (5, Duration::from_millis(500));

/// How a stream stood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// When it was created.
    #[serde(with = "time::serde::rfc3339")]
    pub created: OffsetDateTime,
    /// Its last sequence.
    pub last_sequence: u64,
    /// When that message was stored. `None` if it held no message.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_time: Option<OffsetDateTime>,
}

/// How the streams stood, by name.
pub type Marks = BTreeMap<String, Mark>;

/// A place to go back to.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoint {
    /// As the database prints it.
    pub(crate) taken_at: String,
    pub(crate) cursor: Cursor,
    pub(crate) marks: Marks,
}

/// The last sequence that was acknowledged, for each stream, as far as acknowledgements tell.
#[derive(Clone, Debug, Default)]
pub struct Acknowledged(Arc<Mutex<Memory>>);

#[derive(Debug, Default)]
struct Memory {
    streams: BTreeMap<String, u64>,
    /// The last two checkpoints that this process has seen or meant to take.
    seen: [Option<Cursor>; 2],
}

impl Acknowledged {
    /// Takes note of an acknowledgement.
    ///
    /// # Errors
    /// How far the stream was before, if it has gone back.
    pub fn note(&self, stream: &str, sequence: u64, is_repeat: bool) -> Result<(), u64> {
        let streams = &mut self.memory().streams;
        match streams.get_mut(stream) {
            Some(last) if is_repeat || sequence > *last => {
                *last = sequence.max(*last);
                Ok(())
            }
            Some(last) => Err(*last),
            None => {
                streams.insert(stream.to_owned(), sequence);
                Ok(())
            }
        }
    }

    fn all(&self) -> BTreeMap<String, u64> {
        self.memory().streams.clone()
    }

    fn forget(&self) {
        self.memory().streams.clear();
    }

    /// Takes note of a checkpoint that this process is about to take.
    fn takes(&self, cursor: &Cursor) {
        let mut memory = self.memory();
        memory.seen.swap(0, 1);
        memory.seen[0] = Some(cursor.clone());
    }

    /// Takes note of the newest checkpoint there is. If another process took it, that one has looked at the streams
    /// since, and gone back if need be: what was acknowledged to this one before says nothing any more.
    fn finds(&self, newest: &Cursor) {
        let mine = self.memory().seen.iter().flatten().any(|seen| seen == newest);
        if !mine {
            self.forget();
            self.takes(newest);
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a stream has forgotten.
#[derive(Debug)]
pub(crate) struct Forgotten {
    pub(crate) stream: String,
    pub(crate) how: String,
    /// The sequence at which it stores now, if an acknowledgement told it.
    pub(crate) now_at: Option<u64>,
}

/// Takes checkpoints, and looks whether the streams still hold what they acknowledged.
pub(crate) struct Checkpoints {
    context: Context,
    letters: Letters,
    acknowledged: Acknowledged,
    /// What the streams must still hold.
    marks: Marks,
    /// The cursor of the last checkpoint.
    taken: Option<Cursor>,
    interval: Duration,
    due_at: Instant,
}

impl Checkpoints {
    /// Looks at the streams first.
    pub(crate) async fn open(
        config: &RelayConfig,
        letters: &Letters,
        context: Context,
        acknowledged: Acknowledged,
    ) -> Result<Self, Interrupted> {
        let last = letters.ask(Request::LastCheckpoint).await?;
        let (taken, marks) = match last {
            Some(checkpoint) => {
                acknowledged.finds(&checkpoint.cursor);
                (Some(checkpoint.cursor), checkpoint.marks)
            }
            None => (None, Marks::new()),
        };
        let interval = config.checkpoint_interval();
        let mut checkpoints = Self {
            context,
            letters: letters.clone(),
            acknowledged,
            marks,
            taken,
            interval,
            due_at: Instant::now() + interval,
        };
        checkpoints.look().await?;
        Ok(checkpoints)
    }

    pub(crate) fn due_at(&self) -> Instant {
        self.due_at
    }

    pub(crate) fn is_due(&self) -> bool {
        self.due_at <= Instant::now()
    }

    /// Looks at the streams, and remembers this cursor. Everything before it must have been stored.
    pub(crate) async fn take(&mut self, cursor: &Cursor) -> Result<(), Interrupted> {
        self.due_at = Instant::now() + self.interval;
        self.look().await?;
        if self.taken.as_ref() != Some(cursor) {
            // Before it is written: the answer may get lost.
            self.acknowledged.takes(cursor);
            let what = Box::new((cursor.clone(), self.marks.clone()));
            self.letters.ask(|done| Request::Checkpoint(what, done)).await?;
            self.taken = Some(cursor.clone());
        }
        Ok(())
    }

    /// Looks whether each stream still holds what it should, and moves its mark.
    async fn look(&mut self) -> Result<(), Interrupted> {
        let acknowledged = self.acknowledged.all();
        let mut names: Vec<String> =
            self.marks.keys().chain(acknowledged.keys()).cloned().collect();
        names.sort();
        names.dedup();
        for name in names {
            let least = acknowledged.get(&name).copied().unwrap_or(0);
            // A stream that is not there now may come back, and is judged then.
            if let Some(mark) = self.look_at(&name, least).await? {
                let _ = self.acknowledged.note(&name, mark.last_sequence, true);
                self.marks.insert(name, mark);
            }
        }
        Ok(())
    }

    async fn look_at(&self, name: &str, least: u64) -> Result<Option<Mark>, Interrupted> {
        let mut asked = 0;
        loop {
            let Some((stream, mark)) = stand(&self.context, name).await? else {
                return Ok(None);
            };
            let how = match self.marks.get(name) {
                Some(before) => lost(&stream, &mark, before).await?,
                None => None,
            };
            let how = how.or_else(|| shorter(&mark, least));
            let Some(how) = how else {
                return Ok(Some(mark));
            };
            asked += 1;
            if asked == ASK_AGAIN.0 {
                return Err(Interrupted::Forgotten(Forgotten {
                    stream: name.to_owned(),
                    how,
                    now_at: None,
                }));
            }
            sleep(ASK_AGAIN.1).await;
        }
    }
}

/// Goes back to where every stream still holds what was shipped. Returns the cursor to ship from.
///
/// What an acknowledgement has told counts also where the API does not show the stream: then nobody can say how much
/// is left, and no checkpoint is covered.
pub(crate) async fn go_back(
    context: &Context,
    letters: &Letters,
    acknowledged: &Acknowledged,
    what: &Forgotten,
    now: &Cursor,
) -> Result<(Cursor, Option<String>), Interrupted> {
    let checkpoints = letters.ask(Request::Checkpoints).await?;
    let mut chosen = None;
    for checkpoint in checkpoints {
        let mut covered = what.now_at.is_none() || checkpoint.marks.contains_key(&what.stream);
        for (name, mark) in &checkpoint.marks {
            if !covered {
                break;
            }
            let now_at = what.now_at.filter(|_| *name == what.stream);
            covered = match stand(context, name).await? {
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

/// How a stream stands now. `None` if there is no stream of this name.
async fn stand(context: &Context, name: &str) -> Result<Option<(Stream, Mark)>, SinkError> {
    let stream = match context.get_stream(name).await {
        Ok(stream) => stream,
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(said) if said.code() == 404 => return Ok(None),
            _ => return Err(unavailable(name, &error)),
        },
    };
    let info = stream.cached_info();
    let mark = Mark {
        created: info.created,
        last_sequence: info.state.last_sequence,
        last_time: (info.state.messages > 0).then_some(info.state.last_timestamp),
    };
    Ok(Some((stream, mark)))
}

/// What the stream has lost since `before`, if anything.
async fn lost(stream: &Stream, now: &Mark, before: &Mark) -> Result<Option<String>, SinkError> {
    if now.created != before.created {
        return Ok(Some(format!("it was created anew at {}", now.created)));
    }
    if let Some(how) = shorter(now, before.last_sequence) {
        return Ok(Some(how));
    }
    let Some(stored) = before.last_time else {
        return Ok(None);
    };
    if now.last_sequence == before.last_sequence && now.last_time == before.last_time {
        return Ok(None);
    }
    match stream.get_raw_message(before.last_sequence).await {
        Ok(message) if message.time == stored => Ok(None),
        Ok(_) => Ok(Some(format!("its message {} is another one", before.last_sequence))),
        // Past the stream's own limits, or consumed.
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(unavailable(&stream.cached_info().config.name, &error)),
    }
}

fn shorter(now: &Mark, least: u64) -> Option<String> {
    (now.last_sequence < least)
        .then(|| format!("it ends at {}, and {least} had been acknowledged", now.last_sequence))
}

fn unavailable(name: &str, error: &(dyn std::error::Error + 'static)) -> SinkError {
    SinkError::Unavailable(format!(
        "stream {name} does not tell how it stands: {}",
        full_text(error)
    ))
}

impl From<SinkError> for Interrupted {
    fn from(error: SinkError) -> Self {
        match error {
            SinkError::WentBack { stream, sequence, before } => Self::Forgotten(Forgotten {
                how: format!("it acknowledges sequence {sequence}, and had acknowledged {before}"),
                stream,
                now_at: Some(sequence),
            }),
            error => Self::Broker(error),
        }
    }
}

/// Reads what `select taken_at::text, cursor::text, streams::text` gives.
pub(crate) fn read(row: &sqlx::postgres::PgRow) -> Result<Checkpoint, LeaseError> {
    use sqlx::Row;
    let decode = |error: serde_json::Error| LeaseError::Database(sqlx::Error::Decode(error.into()));
    let (cursor, streams): (String, String) = (row.try_get(1)?, row.try_get(2)?);
    Ok(Checkpoint {
        taken_at: row.try_get(0)?,
        cursor: serde_json::from_str(&cursor).map_err(decode)?,
        marks: serde_json::from_str(&streams).map_err(decode)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledgement_that_goes_back_is_noticed_and_a_repeat_is_not_one() {
        let acknowledged = Acknowledged::default();
        assert_eq!(acknowledged.note("A", 5, false), Ok(()));
        assert_eq!(
            acknowledged.note("A", 3, true),
            Ok(()),
            "a repeat tells the first copy's sequence"
        );
        assert_eq!(acknowledged.note("B", 1, false), Ok(()));
        assert_eq!(acknowledged.note("A", 5, false), Err(5));
        assert_eq!(acknowledged.note("A", 6, false), Ok(()));
        acknowledged.forget();
        assert_eq!(acknowledged.note("A", 1, false), Ok(()));
    }

    #[test]
    fn what_was_acknowledged_before_another_process_led_is_forgotten() {
        let acknowledged = Acknowledged::default();
        let cursor = |high| Cursor { high, ..Cursor::start("1") };
        acknowledged.finds(&cursor(1));
        let _ = acknowledged.note("A", 5, false);
        acknowledged.takes(&cursor(2));
        // Whether or not the answer came.
        acknowledged.finds(&cursor(1));
        acknowledged.finds(&cursor(2));
        assert_eq!(acknowledged.all(), BTreeMap::from([("A".to_owned(), 5)]));
        acknowledged.finds(&cursor(7));
        assert!(acknowledged.all().is_empty());
    }

    #[test]
    fn a_mark_survives_its_column() {
        let mark = Mark {
            created: OffsetDateTime::UNIX_EPOCH + time::Duration::nanoseconds(123_456_789),
            last_sequence: 7,
            last_time: None,
        };
        let text = serde_json::to_string(&mark).unwrap();
        assert_eq!(serde_json::from_str::<Mark>(&text).unwrap(), mark, "{text}");
    }
}
