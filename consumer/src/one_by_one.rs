//! Pulls one message at a time, so that a message that ends the connection takes no other with it.

use std::time::Duration;

use async_nats::jetstream::{self, Context};
use async_nats::{Request as Asked, StatusCode, Subscriber, header};
use futures::StreamExt;
use pillarbox_store::full_text;
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use super::durable::GROUP;
use super::interrupted::Interrupted;

/// How much longer than a request lasts to wait for its end.
const MARGIN: Duration = Duration::from_secs(5);

/// How long a request lasts that must get no message.
const ASKED_FOR_NOTHING: Duration = Duration::from_millis(100);

pub(super) struct OneByOne {
    /// JetStream, through the client that reads.
    context: Context,
    pull: Pull,
    inbox: String,
    answers: Subscriber,
    pin: Option<String>,
    /// Until when the request that was sent can be answered.
    asked: Option<Instant>,
}

/// What is pulled, and how.
pub(super) struct Pull {
    pub(super) stream: String,
    pub(super) consumer: String,
    pub(super) pinned: bool,
    /// How long a request lasts.
    pub(super) expires: Duration,
}

#[derive(Serialize)]
struct Request<'a> {
    batch: usize,
    expires: u128,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
}

impl Request<'_> {
    async fn send(
        &self,
        context: &Context,
        stream: &str,
        consumer: &str,
        inbox: String,
    ) -> Result<(), Interrupted> {
        let request =
            serde_json::to_vec(self).map_err(|error| Interrupted::new(error.to_string()))?;
        let request = Asked::new().payload(request.into()).inbox(inbox);
        let subject = format!("CONSUMER.MSG.NEXT.{stream}.{consumer}");
        Ok(context.send_request(subject, request).await?)
    }
}

/// Keeps this process pinned while it takes no message. Each request under a pin extends the pin. This one asks for a
/// message that is smaller than any, so it gets none.
pub(super) async fn stay_pinned(
    context: &Context,
    stream: &str,
    consumer: &str,
    pin: &str,
) -> Result<(), Interrupted> {
    let expires = ASKED_FOR_NOTHING.as_nanos();
    let request =
        Request { batch: 1, expires, max_bytes: Some(1), group: Some(GROUP), id: Some(pin) };
    // Nobody listens for the answer, because there will be none.
    request.send(context, stream, consumer, context.client().new_inbox()).await
}

impl OneByOne {
    /// `pin`: the last pin of this process.
    pub(super) async fn open(
        context: Context,
        pull: Pull,
        pin: Option<String>,
    ) -> Result<Self, Interrupted> {
        let (inbox, answers) = subscribe(&context).await?;
        Ok(Self { context, pull, inbox, answers, pin, asked: None })
    }

    /// Continues over another client, under the same pin.
    pub(super) async fn read_over(&mut self, context: Context) -> Result<(), Interrupted> {
        (self.inbox, self.answers) = subscribe(&context).await?;
        self.context = context;
        Ok(())
    }

    /// The connection was lost, and with it the answer. Whether this process may have been pinned without knowing.
    pub(super) fn lost(&mut self) -> bool {
        self.asked.take().is_some() && self.pull.pinned && self.pin.is_none()
    }

    /// The next message. Safe to cancel.
    pub(super) async fn next(&mut self) -> Result<jetstream::Message, Interrupted> {
        loop {
            let until = match self.asked {
                Some(until) => until,
                None => self.ask().await?,
            };
            let Ok(answer) = timeout_at(until, self.answers.next()).await else {
                self.asked = None;
                continue;
            };
            let Some(message) = answer else {
                return Err(Interrupted::over());
            };
            let delivered =
                message.reply.as_ref().is_some_and(|reply| reply.starts_with("$JS.ACK."));
            if delivered {
                self.asked = None;
                let headers = message.headers.as_ref();
                if let Some(pin) = headers.and_then(|headers| headers.get_last(header::NATS_PIN_ID))
                {
                    self.pin = Some(pin.as_str().to_owned());
                }
                return Ok(jetstream::Message { context: self.context.clone(), message });
            }
            match message.status {
                Some(StatusCode::TIMEOUT | StatusCode::NOT_FOUND) => self.asked = None,
                Some(StatusCode::PIN_ID_MISMATCH) => {
                    self.pin = None;
                    self.asked = None;
                }
                Some(StatusCode::IDLE_HEARTBEAT) | None => {}
                Some(status) => {
                    let said = message.description.unwrap_or_default();
                    return Err(Interrupted::new(format!(
                        "the server ended the request: {status} {said}"
                    )));
                }
            }
        }
    }

    async fn ask(&mut self) -> Result<Instant, Interrupted> {
        let request = Request {
            batch: 1,
            expires: self.pull.expires.as_nanos(),
            max_bytes: None,
            group: self.pull.pinned.then_some(GROUP),
            id: self.pin.as_deref(),
        };
        let until = Instant::now() + self.pull.expires + MARGIN;
        self.asked = Some(until);
        let Pull { stream, consumer, .. } = &self.pull;
        request.send(&self.context, stream, consumer, self.inbox.clone()).await?;
        Ok(until)
    }
}

async fn subscribe(context: &Context) -> Result<(String, Subscriber), Interrupted> {
    let client = context.client();
    let inbox = client.new_inbox();
    let answers = client.subscribe(inbox.clone()).await;
    Ok((inbox, answers.map_err(|error| Interrupted::new(full_text(&error)))?))
}
