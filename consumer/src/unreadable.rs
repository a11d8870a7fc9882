//! Finds messages that the client library cannot parse, sets them aside, and acknowledges them, although they never
//! arrive.
//!
//! Such a message never arrives: it ends the connection that it comes over, and everything behind it on that connection
//! is lost with it. The server then delivers all of it again, without end. So the consumer looks for the message on the
//! server. It reads each message that the durable consumer has been given and has not acknowledged through the server's
//! API, which returns headers and payload in base64. What [the library would not take](fault_in) is written to the dead
//! letters with its bytes, and then acknowledged by its sequence, which is all that the server needs.
//!
//! With an order, a reset of the durable consumer delivers everything above its ack floor again. That includes such a
//! message if an earlier event is still in progress. So while there is one above the floor, messages are pulled [one by
//! one](super::one_by_one): the connection breaks once more, and nothing else is lost with it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::Info;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pillarbox_event::raw_message::fault_in;
use pillarbox_inbox::source::{LetterStored, Store};
use pillarbox_store::full_text;
use tokio::time::Instant;

use super::config::ConsumerConfig;
use super::durable::Durable;
use super::status::Reporter;
use super::stored::{self, StoredMessage};
use crate::place::Place;

/// How many messages to look at after the ack floor, and how many before the last one that was delivered. What was lost
/// on the way is at the end, and what a restarted process gets again is at the beginning.
const MOST: usize = 5_000;

/// How long to wait after a look that failed. Each further failure doubles it.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest of these pauses. A look that is not allowed takes as long as a request may.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The header under which a letter keeps the header block of a message that could not be parsed.
const RAW_HEADERS: &str = "pillarbox-raw-headers";

/// Finds messages that cannot be parsed. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Unreadable {
    jetstream: jetstream::Context,
    store: Store,
    config: Arc<ConsumerConfig>,
    reporter: Reporter,
    /// The messages that this process has set aside.
    known: Arc<Mutex<BTreeSet<Place>>>,
    /// The messages that came without their payloads.
    cut: Arc<Mutex<BTreeSet<Place>>>,
    failing: Arc<Mutex<Failing>>,
}

/// Looks that failed. Most fail because the broker is away, so the next one follows soon. Some fail because a right is
/// missing, which the server does not say, so the pauses grow.
#[derive(Debug, Default)]
struct Failing {
    /// How long the last pause was, and when it ends. `None` if the last look succeeded.
    pause: Option<(Duration, Instant)>,
}

impl Failing {
    fn waits(&self, now: Instant) -> bool {
        self.pause.is_some_and(|(_, until)| now < until)
    }

    /// Returns whether this is the first failure since a look succeeded.
    fn failed(&mut self, now: Instant) -> bool {
        let last = self.pause.map(|(pause, _)| pause);
        let pause = last.map_or(FIRST_PAUSE, |last| (last * 2).min(LONGEST_PAUSE));
        self.pause = Some((pause, now + pause));
        last.is_none()
    }

    /// Returns whether a look had failed before.
    fn succeeded(&mut self) -> bool {
        self.pause.take().is_some()
    }
}

impl Unreadable {
    pub(super) fn new(
        jetstream: jetstream::Context,
        store: Store,
        config: Arc<ConsumerConfig>,
        reporter: Reporter,
    ) -> Self {
        Self {
            jetstream,
            store,
            config,
            reporter,
            known: Arc::default(),
            cut: Arc::default(),
            failing: Arc::default(),
        }
    }

    /// Whether this message came without its payload before. It counts as one that did from now on.
    pub(super) fn came_cut_before(&self, place: Place) -> bool {
        let mut cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner);
        if cut.contains(&place) {
            return true;
        }
        if cut.len() >= MOST {
            cut.pop_first();
        }
        cut.insert(place);
        false
    }

    /// The sequences of the messages above the ack floor that cannot be parsed, of those that a durable has delivered,
    /// and of the first `at_least`, delivered or not. They are set aside, and acknowledged.
    ///
    /// After an interruption, `at_least` is as many as can have been under way: a reset of the durable consumer may
    /// have come in between, and then the server says that nothing above the ack floor was delivered.
    pub(super) async fn look(
        &self,
        durable: &Durable,
        info: &Info,
        at_least: usize,
    ) -> Result<BTreeSet<u64>, String> {
        let mut found = BTreeSet::new();
        let unseen = info.num_ack_pending > 0;
        if self.failing().waits(Instant::now()) {
            self.reporter.looked(&durable.name, unseen.then_some(info.ack_floor.stream_sequence));
            return Ok(found);
        }
        let (floor, last) = (info.ack_floor.stream_sequence, info.delivered.stream_sequence);
        let mut lost = Vec::new();
        let mut known = true;
        'filters: for filter in durable.all_filters() {
            let tail = last.saturating_sub(MOST as u64).max(floor);
            let mut next = floor + 1;
            let mut looked = 0;
            while next <= last || looked < at_least {
                let stored =
                    match stored::first(&self.jetstream, &self.config.stream, next, filter).await {
                        Ok(Some(stored)) => stored,
                        Ok(None) => break,
                        Err(error) => {
                            self.cannot_look(&error);
                            known = false;
                            break 'filters;
                        }
                    };
                let sequence = stored.place.sequence();
                if sequence > last && looked >= at_least {
                    break;
                }
                match fault_in(&stored.subject, &stored.headers) {
                    Some(fault) => {
                        self.set_aside(&stored, fault).await?;
                        found.insert(sequence);
                    }
                    None if sequence <= last => lost.push(sequence),
                    None => {}
                }
                looked += 1;
                next = match looked {
                    MOST => tail.max(sequence) + 1,
                    _ => sequence + 1,
                };
            }
        }
        if known && self.failing().succeeded() {
            let consumer = &self.config.name;
            tracing::info!(
                consumer,
                "the consumer can look for messages that cannot be parsed again"
            );
        }
        self.reporter.looked(&durable.name, (unseen && !known).then_some(floor));
        for sequence in found.range(..=last) {
            self.acknowledge(durable, info, *sequence, "+TERM").await;
        }
        if !found.is_empty() && !self.config.order.keeps_keys() {
            // Without an order, what was lost with them would come again only when `ack_wait` is over.
            for sequence in lost {
                self.acknowledge(durable, info, sequence, "-NAK").await;
            }
        }
        if !found.is_empty() {
            // An acknowledgement that is on its way counts with the questions that follow.
            let _ = self.jetstream.client().flush().await;
        }
        Ok(found)
    }

    /// The server did not say what the stream holds. The consumer reads on without looking.
    fn cannot_look(&self, error: &str) {
        if !self.failing().failed(Instant::now()) {
            return;
        }
        let (consumer, stream) = (&self.config.name, &self.config.stream);
        let api = self.config.api();
        tracing::warn!(
            consumer,
            stream,
            error,
            "the consumer could not look for a message that cannot be parsed, and such a message would stop it; it looks \
             again within a minute; if this lasts though the broker is well, a right is missing: let this user publish \
             to {api}.STREAM.MSG.GET.{stream}"
        );
    }

    fn failing(&self) -> MutexGuard<'_, Failing> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes it to the dead letters.
    async fn set_aside(&self, stored: &StoredMessage, fault: &str) -> Result<(), String> {
        let place = &stored.place;
        if self.known.lock().unwrap_or_else(PoisonError::into_inner).contains(place) {
            return Ok(());
        }
        let (stream, sequence) = (place.stream(), place.sequence());
        let error = format!(
            "the message of stream {stream} at sequence {sequence} cannot be parsed: {fault}; its headers are kept \
             unchanged, in base64, in {RAW_HEADERS}; let its sender correct them and send it again"
        );
        let headers = [(RAW_HEADERS.to_owned(), STANDARD.encode(&stored.headers))];
        let letter = place.unreadable(&stored.subject, &headers, &stored.payload, &error);
        let letter = self.store.set_aside(&letter).await.and_then(|letter| match letter {
            LetterStored::Not => Err(LetterStored::not_stored()),
            letter => Ok(letter == LetterStored::Now),
        });
        let new = letter.map_err(|error| {
            let error = full_text(&error);
            format!("the message at sequence {sequence} cannot be parsed, and could not be stored as a dead letter: \
            {error}")
        })?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.pop_first();
        }
        known.insert(place.clone());
        drop(known);
        if new {
            let consumer = &self.config.name;
            tracing::error!(
                consumer,
                stream,
                sequence,
                fault,
                "a message cannot be parsed; it is a dead letter now"
            );
            self.reporter.meter.dead_letter("undecodable");
            self.reporter.error(None, &error);
        }
        Ok(())
    }

    async fn acknowledge(
        &self,
        durable: &Durable,
        info: &Info,
        sequence: u64,
        answer: &'static str,
    ) {
        // The server ignores a -NAK whose number of the delivery lies at or below the acknowledged floor or above what
        // it has delivered. The last number that it has delivered is always between them while something is pending.
        let number = info.delivered.consumer_sequence;
        // This is the form of the subject that every server takes, whatever its domain.
        let (stream, name) = (&self.config.stream, &durable.name);
        let subject = format!("$JS.ACK.{stream}.{name}.1.{sequence}.{number}.0.0");
        // If it is lost, the next look sends it again.
        let _ = self.jetstream.client().publish(subject, answer.into()).await;
    }
}

#[cfg(test)]
mod tests {
    use async_nats::{HeaderName, HeaderValue};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn looks_that_fail_follow_sooner_than_those_that_fail_again_and_again() {
        let (mut failing, start) = (Failing::default(), Instant::now());
        assert!(!failing.waits(start));
        assert!(!failing.succeeded(), "nothing had failed");
        assert!(failing.failed(start), "the first time");
        assert!(failing.waits(start) && !failing.waits(start + FIRST_PAUSE));
        for _ in 0..80 {
            assert!(!failing.failed(start), "it failed before");
            assert!(failing.waits(start + FIRST_PAUSE) && !failing.waits(start + LONGEST_PAUSE));
        }
        assert!(failing.succeeded());
        assert!(!failing.waits(start));
        assert!(failing.failed(start));
        assert!(!failing.waits(start + FIRST_PAUSE), "it begins anew");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn headers_that_the_client_library_takes_have_no_fault(
            headers in vec(("[!-9;-~]{1,20}", "\\PC{0,40}"), 0..10),
        ) {
            let mut block = String::from("NATS/1.0\r\n");
            for (name, value) in &headers {
                prop_assert!(name.parse::<HeaderName>().is_ok() && value.parse::<HeaderValue>().is_ok());
                block += &format!("{name}: {value}\r\n");
            }
            block += "\r\n";
            prop_assert_eq!(fault_in("orders.placed", block.as_bytes()), None);
        }
    }
}
