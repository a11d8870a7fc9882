//! Reads one stream: from its place on, over a connection of its own, so that a message which ends the connection
//! disturbs no other stream.

use std::sync::Arc;
use std::time::Duration;

use pillarbox_relay::broker::{Begin, Connection, MessageHead, StreamLife};
use pillarbox_store::{Backoff, full_text};
use time::OffsetDateTime;
use tokio::sync::mpsc;

use crate::config::TrailConfig;
use crate::place::{Place, proven};
use crate::row::Row;

/// The most messages of a batch.
const BATCH: usize = 2_000;
/// How long to wait for the next message before the stream's life is looked at again.
const WAIT: Duration = Duration::from_secs(1);
/// The most messages that are read one by one after a failure, and how many more of them after one that cannot be
/// parsed.
const ONE_BY_ONE: usize = 200;
const BEHIND_A_FAULT: usize = 20;
/// How long to wait before a work queue or a missing stream is looked at again.
const LONG: Duration = Duration::from_secs(15);

/// What a stream's reader reports.
#[derive(Debug)]
pub(crate) enum Report {
    /// Rows of one life of a stream, in its order, and the place after them.
    Rows { stream: Arc<str>, place: Place, rows: Vec<Row> },
    /// The stream has this life, and is so far. `read_to` is the last sequence up to which nothing more is to be read.
    Stands { stream: Arc<str>, life: StreamLife, read_to: u64 },
    /// The stream cannot be read at the moment.
    Problem { stream: Arc<str>, life: Option<StreamLife>, problem: String },
}

/// Reads one stream.
pub(crate) struct Following {
    stream: Arc<str>,
    config: Arc<TrailConfig>,
    place: Option<Place>,
    reports: mpsc::Sender<Report>,
}

/// Nobody listens any more.
struct Gone;

/// Why reading stopped.
enum Stopped {
    Gone,
    /// The stream cannot be read now; to be looked at again after a while.
    Refused(String),
    Failed(String),
}

impl From<Gone> for Stopped {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

impl Following {
    pub(crate) fn new(
        stream: &str,
        config: Arc<TrailConfig>,
        place: Option<Place>,
        reports: mpsc::Sender<Report>,
    ) -> Self {
        Self { stream: stream.into(), config, place, reports }
    }

    /// Reads until nobody listens. Everything else is tried again.
    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::default();
        loop {
            let before = self.place;
            let (problem, wait) = match self.read().await {
                Ok(()) | Err(Stopped::Gone) => return,
                Err(Stopped::Refused(problem)) => (problem, LONG),
                Err(Stopped::Failed(problem)) => {
                    // Only progress resets it.
                    if self.place != before {
                        backoff = Backoff::default();
                    }
                    (problem, backoff.wait())
                }
            };
            let (stream, life) = (self.stream.clone(), None);
            if self.reports.send(Report::Problem { stream, life, problem }).await.is_err() {
                return;
            }
            tokio::time::sleep(wait).await;
        }
    }

    async fn read(&mut self) -> Result<(), Stopped> {
        let connection = Connection::open(&self.config.nats_url, &self.config.nats).await;
        let connection = connection.map_err(|error| Stopped::Failed(full_text(&error)))?;
        let stands = connection.stream_life(&self.stream).await;
        let life = stands.map_err(|error| Stopped::Failed(full_text(&error)))?;
        let life = life.ok_or_else(|| Stopped::Refused("there is no such stream".to_owned()))?;
        if life.is_work_queue {
            return Err(Stopped::Refused(
                "it is a work queue, whose messages nobody else can read along; mirror it, and read the mirror"
                    .to_owned(),
            ));
        }
        let read = self.read_life(&connection, &life).await;
        let Err(Stopped::Failed(problem)) = read else { return read };
        // A message that no client can parse ends the connection. So does much else.
        match self.one_by_one(&life).await {
            Ok(()) => Err(Stopped::Failed(problem)),
            Err(Stopped::Failed(also)) if also != problem => {
                Err(Stopped::Failed(format!("{problem}; then: {also}")))
            }
            stopped => stopped,
        }
    }

    async fn read_life(
        &mut self,
        connection: &Connection,
        life: &StreamLife,
    ) -> Result<(), Stopped> {
        let failed = |error| Stopped::Failed(full_text(&error));
        let since = OffsetDateTime::now_utc() - self.config.retention;
        let begin = self.beginning(connection, life, since).await?;
        let reader = connection.read_headers(&self.stream, life, begin).await;
        let mut reader = reader.map_err(failed)?;
        let mut life = life.clone();
        let mut read_to = self.place.map_or(0, |place| place.sequence);
        loop {
            let stands =
                Report::Stands { stream: self.stream.clone(), life: life.clone(), read_to };
            self.report(stands).await?;
            let heads = reader.next(BATCH, WAIT).await.map_err(failed)?;
            if heads.is_empty() {
                // What the stream had stored before has been read, or has left it.
                read_to = read_to.max(life.last_sequence);
                let now = connection.stream_life(&self.stream).await.map_err(failed)?;
                match now.filter(|now| now.created == life.created) {
                    Some(now) => life = now,
                    None => return Err(Stopped::Failed(ANEW.to_owned())),
                }
                continue;
            }
            if let Some(last) = heads.last() {
                life.last_sequence = life.last_sequence.max(last.sequence);
                read_to = last.sequence;
                self.send(&life, heads).await?;
            }
        }
    }

    /// Where to read on. The place is forgotten if nothing proves it.
    async fn beginning(
        &mut self,
        connection: &Connection,
        life: &StreamLife,
        since: OffsetDateTime,
    ) -> Result<Begin, Stopped> {
        let Some(place) = self.place else { return Ok(Begin::Since(since)) };
        let at_place = connection.stored_head(&self.stream, place.sequence).await;
        let at_place = at_place.map_err(|error| Stopped::Failed(full_text(&error)))?;
        if proven(place, life, at_place.as_ref(), since) {
            return Ok(Begin::At(place.sequence + 1));
        }
        tracing::info!(
            stream = &*self.stream,
            sequence = place.sequence,
            "the last message that the trail read is not in the stream any more; it reads all that is there"
        );
        self.place = None;
        Ok(Begin::Since(since))
    }

    /// Reads the next messages where they are stored, each with a request of its own.
    async fn one_by_one(&mut self, life: &StreamLife) -> Result<(), Stopped> {
        let failed = |error| Stopped::Failed(full_text(&error));
        let connection = Connection::open(&self.config.nats_url, &self.config.nats).await;
        let connection = connection.map_err(|error| Stopped::Failed(full_text(&error)))?;
        let since = OffsetDateTime::now_utc() - self.config.retention;
        let mut next = self.place.map_or(0, |place| place.sequence) + 1;
        // Reading in batches begins at this time too. What is older would not be kept, and may be very much.
        if self.place.is_none_or(|place| place.stored < since) {
            let mut halving = Halving::new(next, life.last_sequence);
            while let Some(middle) = halving.middle() {
                let head = connection.stored_head(&self.stream, middle).await.map_err(failed)?;
                halving.found(head.is_some_and(|head| head.stored < since));
            }
            next = halving.low;
        }
        let mut heads: Vec<MessageHead> = Vec::new();
        let mut since_fault = None;
        while heads.len() < ONE_BY_ONE && since_fault.is_none_or(|since| since < BEHIND_A_FAULT) {
            let head = connection.stored_head(&self.stream, next).await.map_err(failed)?;
            let Some(head) = head else { break };
            next = head.sequence + 1;
            if head.fault.is_some() {
                tracing::warn!(
                    stream = &*self.stream,
                    sequence = head.sequence,
                    fault = head.fault,
                    "a message cannot be parsed; the trail records that it is there"
                );
                since_fault = Some(0);
            } else {
                since_fault = since_fault.map(|since| since + 1);
            }
            heads.push(head);
        }
        let now = connection.stream_life(&self.stream).await.map_err(failed)?;
        if now.is_none_or(|now| now.created != life.created) {
            return Err(Stopped::Failed(ANEW.to_owned()));
        }
        if !heads.is_empty() {
            self.send(life, heads).await?;
        }
        Ok(())
    }

    async fn send(&mut self, life: &StreamLife, heads: Vec<MessageHead>) -> Result<(), Stopped> {
        let Some(last) = heads.last() else { return Ok(()) };
        let place = Place::after(life.created, last.sequence, last.stored);
        let rows = heads.into_iter().map(Row::of).collect();
        self.report(Report::Rows { stream: self.stream.clone(), place, rows }).await?;
        self.place = Some(place);
        Ok(())
    }

    async fn report(&self, report: Report) -> Result<(), Gone> {
        self.reports.send(report).await.map_err(|_| Gone)
    }
}

/// Finds the first sequence at which a message was stored at a time or later, with one question for each halving.
struct Halving {
    low: u64,
    high: u64,
}

impl Halving {
    /// From `low` to the sequence after `last`.
    fn new(low: u64, last: u64) -> Self {
        Self { low, high: last.saturating_add(1).max(low) }
    }

    /// The next sequence to ask about. `None`: `low` is the one that was looked for.
    fn middle(&self) -> Option<u64> {
        (self.low < self.high).then(|| self.low + (self.high - self.low) / 2)
    }

    /// Takes the answer: whether the first message at the middle or after it was stored before the time.
    fn found(&mut self, is_before: bool) {
        let Some(middle) = self.middle() else { return };
        if is_before { self.low = middle + 1 } else { self.high = middle }
    }
}

const ANEW: &str = "the stream was deleted or created anew meanwhile";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_message_of_a_time_is_found_whatever_has_left_the_stream() {
        // Each message was stored at the second that is its sequence.
        for there in [vec![], vec![1], vec![7], vec![1, 2, 3, 500, 999], (1..=1_000).collect()] {
            for since in [0, 1, 2, 4, 500, 501, 999, 1_000, 2_000] {
                let (mut halving, mut asked) = (Halving::new(1, 1_000), 0);
                while let Some(middle) = halving.middle() {
                    asked += 1;
                    let first = there.iter().find(|sequence| **sequence >= middle);
                    halving.found(first.is_some_and(|sequence| *sequence < since));
                }
                let read = there.iter().filter(|sequence| **sequence >= halving.low);
                let wanted = there.iter().filter(|sequence| **sequence >= since);
                assert!(read.eq(wanted), "{there:?} since {since}: {}", halving.low);
                assert!(asked <= 11, "{asked}");
            }
        }
    }
}
