//! Reads the headers of a stream's messages, without their payloads, and without taking anything from other consumers.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{AckPolicy, Consumer, DeliverPolicy, pull};
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::RetentionPolicy;
use async_nats::jetstream::{self, ErrorCode};
use data_encoding::BASE64;
use futures::{StreamExt, TryStreamExt};
use pillarbox_event::raw_message::fault_in;
use pillarbox_store::limit::{Late, within};
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::timeout;

use super::connection::{AskError, Connection};
use crate::sink::connection;
use crate::streams::{API, BROKER};

/// How long the server keeps the consumer of a reader that has gone away.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);
/// How long a message that is ready may take to come, and how often the connection is looked at meanwhile.
const ANSWER: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(200);
/// The least number of bytes that one batch may have.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// The header in which the server says how long a payload is that it leaves out.
const SIZE: &str = "Nats-Msg-Size";
/// The most streams that are named.
const MOST_STREAMS: usize = 10_000;

/// One life of a stream, and how far it is. A stream that is deleted and created again has another life.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamLife {
    /// When the stream was created.
    pub created: OffsetDateTime,
    /// The sequence of the last message that was stored. 0: none was.
    pub last_sequence: u64,
    /// Whether the stream has one consumer for each message, so that nobody else can read along.
    pub is_work_queue: bool,
}

impl Default for StreamLife {
    /// A stream of 1970 that has stored nothing.
    fn default() -> Self {
        Self { created: OffsetDateTime::UNIX_EPOCH, last_sequence: 0, is_work_queue: false }
    }
}

/// Where reading begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// At this sequence, or at the first message after it.
    At(u64),
    /// At the first message that was stored at this time or later.
    Since(OffsetDateTime),
}

/// A message without its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageHead {
    /// Its sequence in the stream.
    pub sequence: u64,
    /// When the stream stored it.
    pub stored: OffsetDateTime,
    /// Its subject.
    pub subject: String,
    /// The names and values of its headers. Empty if they cannot be read.
    pub headers: Vec<(String, String)>,
    /// How many bytes its payload has.
    pub size: u64,
    /// Why its headers cannot be read. `None`: they were read.
    pub fault: Option<&'static str>,
}

/// Reads on from one place. It belongs to one life of the stream: if the stream is deleted, reading fails.
///
/// The server keeps nothing for a reader beyond a minute after it has gone, and never holds a message back for it.
#[derive(Debug)]
pub struct HeaderReader {
    consumer: Consumer<pull::Config>,
    context: Context,
    life: StreamLife,
    /// The number of the next delivery.
    delivery: u64,
    batch_bytes: usize,
    /// How often the connection had been established when this was opened. What was under way over a connection that
    /// is lost does not come any more.
    connection: u64,
}

impl HeaderReader {
    /// The life of the stream that this reads.
    pub fn life(&self) -> &StreamLife {
        &self.life
    }

    /// The next messages, at most `most`, in the stream's order. Waits up to `wait` for the first one; empty if none
    /// came. What has been delivered is not delivered again: after an error, or if this is cancelled, open another
    /// reader.
    ///
    /// # Errors
    /// [`AskError::Failed`] if the broker does not answer, the consumer is gone, or messages were lost on the way.
    pub async fn next(
        &mut self,
        most: usize,
        wait: Duration,
    ) -> Result<Vec<MessageHead>, AskError> {
        let ready = self.consumer.fetch().max_messages(most).max_bytes(self.batch_bytes);
        let asked = within(API, BROKER, ready.messages()).await;
        let found = self.collect(asked, ANSWER).await?;
        if !found.is_empty() {
            return Ok(found);
        }
        // Nothing was there. The first message ends the wait, and the next call takes those that follow.
        let first = self.consumer.batch().max_messages(1).expires(wait);
        let asked = within(API, BROKER, first.messages()).await;
        self.collect(asked, wait.saturating_add(ANSWER)).await
    }

    async fn collect<E, L>(
        &mut self,
        asked: Result<Result<pull::Batch, E>, L>,
        limit: Duration,
    ) -> Result<Vec<MessageHead>, AskError>
    where
        E: std::error::Error + Send + Sync + 'static,
        L: std::error::Error + Send + Sync + 'static,
    {
        let mut messages = asked.map_err(failed)?.map_err(failed)?;
        let mut heads = Vec::new();
        while let Some(message) = self.message(&mut messages, limit).await? {
            let message = match message {
                Ok(message) => message,
                // The request ended early, for example at its limit of bytes.
                Err(_) if !heads.is_empty() => break,
                Err(error) => return Err(AskError::Failed(error)),
            };
            let info = message.info().map_err(AskError::Failed)?;
            self.delivery += 1;
            if info.consumer_sequence != self.delivery {
                return Err(said("messages were lost on the way from the broker"));
            }
            let (sequence, stored) = (info.stream_sequence, info.published);
            let mut headers = Vec::new();
            let mut size = 0;
            for (name, values) in message.headers.iter().flat_map(|headers| headers.iter()) {
                if name.to_string() == SIZE {
                    size =
                        values.first().and_then(|value| value.as_str().parse().ok()).unwrap_or(0);
                    continue;
                }
                headers.extend(
                    values.iter().map(|value| (name.to_string(), value.as_str().to_owned())),
                );
            }
            let subject = message.subject.to_string();
            heads.push(MessageHead { sequence, stored, subject, headers, size, fault: None });
        }
        Ok(heads)
    }
}

impl HeaderReader {
    /// The next message of a request that was sent. `None`: the request is over.
    async fn message(
        &self,
        messages: &mut pull::Batch,
        limit: Duration,
    ) -> Result<Option<Result<jetstream::Message, async_nats::Error>>, AskError> {
        let mut waited = Duration::ZERO;
        loop {
            if let Ok(message) = timeout(LOOK, messages.next()).await {
                return Ok(message);
            }
            waited += LOOK;
            if connection(&self.context) != self.connection {
                return Err(said("the connection to the broker was lost"));
            }
            if waited >= limit {
                return Err(failed(Late::new(BROKER, limit)));
            }
        }
    }
}

impl Connection {
    /// The names of the streams that the JetStream API shows.
    ///
    /// # Errors
    /// [`AskError::Failed`].
    pub async fn streams(&self) -> Result<Vec<String>, AskError> {
        let names = self.context().stream_names().take(MOST_STREAMS).try_collect();
        within(API, BROKER, names).await.map_err(failed)?.map_err(failed)
    }

    /// The present life of a stream. `None`: the server answered that there is no such stream.
    ///
    /// # Errors
    /// [`AskError::Failed`].
    pub async fn stream_life(&self, name: &str) -> Result<Option<StreamLife>, AskError> {
        let asked = within(API, BROKER, self.context().get_stream(name)).await.map_err(failed)?;
        let stream = match asked {
            Ok(stream) => stream,
            Err(error) => match error.kind() {
                jetstream::context::GetStreamErrorKind::JetStream(said) if said.code() == 404 => {
                    return Ok(None);
                }
                _ => return Err(failed(error)),
            },
        };
        let info = stream.cached_info();
        Ok(Some(StreamLife {
            created: info.created,
            last_sequence: info.state.last_sequence,
            is_work_queue: info.config.retention == RetentionPolicy::WorkQueue,
        }))
    }

    /// Opens a reader of this life of a stream.
    ///
    /// # Errors
    /// [`AskError::Failed`], also if the stream has another life by now.
    pub async fn read_headers(
        &self,
        name: &str,
        life: &StreamLife,
        begin: Begin,
    ) -> Result<HeaderReader, AskError> {
        let context = self.context();
        let connection = connection(&context);
        let config = pull::Config {
            description: Some("pillarbox trail".into()),
            deliver_policy: match begin {
                Begin::At(sequence) => {
                    DeliverPolicy::ByStartSequence { start_sequence: sequence.max(1) }
                }
                Begin::Since(time) => DeliverPolicy::ByStartTime { start_time: time },
            },
            ack_policy: AckPolicy::None,
            headers_only: true,
            inactive_threshold: FORGOTTEN_AFTER,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let made = context.create_consumer_on_stream(config, name);
        let consumer = within(API, BROKER, made).await.map_err(failed)?.map_err(failed)?;
        // The stream may have been made anew before the consumer was. A later life would show now.
        match self.stream_life(name).await? {
            Some(now) if now.created == life.created => {}
            _ => return Err(said("the stream was deleted or created anew meanwhile")),
        }
        let largest = context.client().server_info().max_payload;
        let batch_bytes = BATCH_BYTES.max(largest.saturating_mul(2));
        let life = life.clone();
        Ok(HeaderReader { consumer, context, life, delivery: 0, batch_bytes, connection })
    }

    /// The first message of a stream at this sequence or after it, read where it is stored: also one whose headers no
    /// client can parse. It moves the payload too. `None`: the server answered that there is none.
    ///
    /// # Errors
    /// [`AskError::Failed`].
    pub async fn stored_head(
        &self,
        stream: &str,
        from: u64,
    ) -> Result<Option<MessageHead>, AskError> {
        let question = serde_json::json!({ "seq": from.max(1), "next_by_subj": ">" });
        let context = self.context();
        let asked = context.request(format!("STREAM.MSG.GET.{stream}"), &question);
        let answer: Response<Answer> =
            within(API, BROKER, asked).await.map_err(failed)?.map_err(failed)?;
        let message = match answer {
            Response::Ok(Answer { message }) => message,
            Response::Err { error } if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => {
                return Ok(None);
            }
            Response::Err { error } => return Err(failed(error)),
        };
        message.head().map(Some)
    }
}

#[derive(Deserialize)]
struct Answer {
    message: StoredMessage,
}

#[derive(Deserialize)]
struct StoredMessage {
    subject: String,
    seq: u64,
    hdrs: Option<String>,
    data: Option<String>,
    time: String,
}

impl StoredMessage {
    fn head(self) -> Result<MessageHead, AskError> {
        let block = BASE64.decode(self.hdrs.unwrap_or_default().as_bytes()).map_err(failed)?;
        let stored = OffsetDateTime::parse(&self.time, &Rfc3339).map_err(failed)?;
        let fault = fault_in(&self.subject, &block);
        let headers = match fault {
            Some(_) => Vec::new(),
            None => pairs(&String::from_utf8_lossy(&block)),
        };
        let size = self.data.map_or(0, |data| length_of_base64(&data));
        Ok(MessageHead { sequence: self.seq, stored, subject: self.subject, headers, size, fault })
    }
}

/// The headers of a block in which [`fault_in`] finds no fault.
fn pairs(block: &str) -> Vec<(String, String)> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    for line in block.lines().skip(1).filter(|line| !line.is_empty()) {
        match (line.starts_with(char::is_whitespace), pairs.last_mut(), line.split_once(':')) {
            (true, Some((_, value)), _) => {
                value.push(' ');
                value.push_str(line.trim());
            }
            (_, _, Some((name, value))) => pairs.push((name.to_owned(), value.trim().to_owned())),
            _ => {}
        }
    }
    pairs
}

fn length_of_base64(text: &str) -> u64 {
    let padding = text.bytes().rev().take_while(|byte| *byte == b'=').count();
    (text.len() / 4 * 3).saturating_sub(padding) as u64
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> AskError {
    AskError::Failed(Box::new(error))
}

fn said(text: &'static str) -> AskError {
    AskError::Failed(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(headers: &[u8], payload: &[u8]) -> MessageHead {
        StoredMessage {
            subject: "orders.placed".into(),
            seq: 7,
            hdrs: Some(BASE64.encode(headers)),
            data: Some(BASE64.encode(payload)),
            time: "2026-01-02T03:04:05.000000006Z".into(),
        }
        .head()
        .unwrap()
    }

    #[test]
    fn a_stored_message_tells_its_headers_its_size_and_its_fault() {
        let head = stored(b"NATS/1.0\r\nce-id: 7\r\na: b\r\n c\r\na:d\r\n\r\n", b"12345");
        let pairs: Vec<_> = head.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(pairs, [("ce-id", "7"), ("a", "b c"), ("a", "d")]);
        assert_eq!((head.size, head.fault, head.sequence), (5, None, 7));
        assert_eq!(head.stored.nanosecond(), 6);
        for (length, payload) in [&b""[..], b"1", b"12", b"123"].into_iter().enumerate() {
            assert_eq!(stored(b"", payload).size, length as u64);
        }
        let bad = stored(b"NATS/1.0\r\na: Caf\xe9\r\n\r\n", b"1");
        assert_eq!((bad.fault, bad.headers.len()), (Some("its headers are not UTF-8"), 0));
    }
}
