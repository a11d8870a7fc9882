//! Messages where they are stored, read through the server's API, which tells headers and payload in base64: also those
//! that the client library cannot parse.

use std::time::SystemTime;

use async_nats::jetstream::response::Response;
use async_nats::jetstream::{self, ErrorCode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pillarbox_store::full_text;
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::place::Place;

/// A message as the stream stores it.
pub(super) struct StoredMessage {
    pub(super) place: Place,
    pub(super) subject: String,
    pub(super) headers: Vec<u8>,
    pub(super) payload: Vec<u8>,
}

/// The first message of a filter from this sequence on. `None` if the server says that there is none.
pub(super) async fn first(
    jetstream: &jetstream::Context,
    stream: &str,
    from: u64,
    filter: &str,
) -> Result<Option<StoredMessage>, String> {
    let subject = format!("STREAM.MSG.GET.{stream}");
    let question = serde_json::json!({ "seq": from, "next_by_subj": filter });
    let answer: Response<Answer> =
        jetstream.request(subject, &question).await.map_err(|error| full_text(&error))?;
    let message = match answer {
        Response::Ok(Answer { message }) => message,
        Response::Err { error } if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => {
            return Ok(None);
        }
        Response::Err { error } => return Err(full_text(&error)),
    };
    let read = |text: Option<String>| STANDARD.decode(text.unwrap_or_default());
    let (headers, payload) = (read(message.hdrs), read(message.data));
    let time = OffsetDateTime::parse(&message.time, &Rfc3339);
    let (Ok(headers), Ok(payload), Ok(time)) = (headers, payload, time) else {
        return Err(format!("the server returned message {} in an unknown form", message.seq));
    };
    let place = Place::new(stream, message.seq, SystemTime::from(time));
    Ok(Some(StoredMessage { place, subject: message.subject, headers, payload }))
}

#[derive(Deserialize)]
struct Answer {
    message: Message,
}

#[derive(Deserialize)]
struct Message {
    subject: String,
    seq: u64,
    hdrs: Option<String>,
    data: Option<String>,
    time: String,
}
