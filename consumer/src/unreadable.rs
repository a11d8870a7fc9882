//! Messages that the client library cannot parse: found on the server, set aside, and acknowledged unseen.
//!
//! Such a message never arrives: it ends the connection that it comes over, and everything behind it on that connection
//! is lost with it. The server delivers all of it again, and so on without end. The message is found where it lies: among
//! what the durable consumer had been given and has not acknowledged, each of which is read through the server's API,
//! which tells headers and payload in base64. What [the library would not take](fault_in) is written to the dead letters
//! with its bytes, and then acknowledged, for which its sequence is all that the server asks for.
//!
//! With an order, a reset of the durable consumer delivers everything again that lies behind its ack floor, also such a
//! message if an earlier event is still in work. So while there is one above the floor, messages are pulled
//! [one by one](super::one_by_one): the connection breaks once more, and nothing else is lost with it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::Info;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pillarbox_event::raw_message::fault_in;
use pillarbox_inbox::source::{Store, Stored as Letter};
use pillarbox_store::full_text;
use tokio::time::Instant;

use super::config::ConsumerConfig;
use super::durable::Durable;
use super::status::Reporter;
use super::stored::{self, Stored};
use crate::place::Place;

/// How many messages are looked at from the ack floor on, and as many before the last one that was delivered. What was
/// lost on the way lies at the end; what comes again to a process that has restarted lies at the beginning.
const MOST: usize = 5_000;

/// How long nothing is looked at after a look that failed.
const PAUSE: Duration = Duration::from_secs(60);

/// The header under which a letter keeps the header block of a message that could not be parsed.
const RAW_HEADERS: &str = "pillarbox-raw-headers";

/// Finds messages that cannot be parsed. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Unreadable {
    jetstream: jetstream::Context,
    store: Store,
    config: Arc<ConsumerConfig>,
    reporter: Reporter,
    /// Those that this process has set aside.
    known: Arc<Mutex<BTreeSet<Place>>>,
    /// The messages that came without their payloads.
    cut: Arc<Mutex<BTreeSet<Place>>>,
    /// When to look again, after a look that failed.
    not_before: Arc<Mutex<Option<Instant>>>,
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
            not_before: Arc::default(),
        }
    }

    /// Whether this message came without its payload before; it has now.
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

    /// The sequences of the messages above the ack floor that cannot be parsed, of those that a durable has delivered.
    /// They are set aside, and acknowledged.
    pub(super) async fn look(
        &self,
        durable: &Durable,
        info: &Info,
    ) -> Result<BTreeSet<u64>, String> {
        let mut found = BTreeSet::new();
        let unseen = info.num_ack_pending > 0;
        if self.waits() {
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
            while next <= last {
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
                if sequence > last {
                    break;
                }
                match fault_in(&stored.subject, &stored.headers) {
                    Some(fault) => {
                        self.set_aside(&stored, fault).await?;
                        found.insert(sequence);
                    }
                    None => lost.push(sequence),
                }
                looked += 1;
                next = match looked {
                    MOST => tail.max(sequence) + 1,
                    _ => sequence + 1,
                };
            }
        }
        self.reporter.looked(&durable.name, (unseen && !known).then_some(floor));
        for sequence in &found {
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

    /// The server did not tell what the stream holds, for want of the right perhaps: then the consumer reads on without.
    fn cannot_look(&self, error: &str) {
        *self.not_before.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Instant::now() + PAUSE);
        let (consumer, stream) = (&self.config.name, &self.config.stream);
        let api = self.config.api();
        tracing::warn!(
            consumer,
            stream,
            error,
            "the consumer could not look for a message that cannot be parsed, and such a message would stop it; it will \
             look again; if the error says that a right is missing, let this user publish to \
             {api}.STREAM.MSG.GET.{stream}"
        );
    }

    fn waits(&self) -> bool {
        let not_before = *self.not_before.lock().unwrap_or_else(PoisonError::into_inner);
        not_before.is_some_and(|at| Instant::now() < at)
    }

    /// Writes it to the dead letters.
    async fn set_aside(&self, stored: &Stored, fault: &str) -> Result<(), String> {
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
            Letter::Not => Err(Letter::not_stored()),
            letter => Ok(letter == Letter::Now),
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
        // Of the two forms of this subject, the one that every server takes, whatever domain it is in.
        let (stream, name) = (&self.config.stream, &durable.name);
        let subject = format!("$JS.ACK.{stream}.{name}.1.{sequence}.{number}.0.0");
        // A lost one is sent again with the next look.
        let _ = self.jetstream.client().publish(subject, answer.into()).await;
    }
}

#[cfg(test)]
mod tests {
    use async_nats::{HeaderName, HeaderValue};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

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
