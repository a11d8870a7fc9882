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
    /// The stream has this life, and is so far.
    Stands { stream: Arc<str>, life: StreamLife },
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
        loop {
            self.report(Report::Stands { stream: self.stream.clone(), life: life.clone() }).await?;
            let heads = reader.next(BATCH, WAIT).await.map_err(failed)?;
            if heads.is_empty() {
                let now = connection.stream_life(&self.stream).await.map_err(failed)?;
                match now.filter(|now| now.created == life.created) {
                    Some(now) => life = now,
                    None => return Err(Stopped::Failed(ANEW.to_owned())),
                }
                continue;
            }
            if let Some(last) = heads.last() {
                life.last_sequence = life.last_sequence.max(last.sequence);
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
        let mut next = self.place.map_or(0, |place| place.sequence) + 1;
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

const ANEW: &str = "the stream was deleted or created anew meanwhile";
