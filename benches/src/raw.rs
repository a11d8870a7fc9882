//! Publishing without a database: the ceilings of a relay.
//!
//! The messages are the same as those that the relay makes from the rows of a [`backlog`](crate::backlog), with the
//! same headers. They are in memory before the clock starts. Both variants are the fastest that JetStream has for
//! messages that must be stored: with one acknowledgement per message, many of them awaited at a time, or in a
//! fast-ingest batch.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats_relay::jetstream::message::OutboundMessage;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use jetstream_extra::batch_publish_fast::{FastPublishExt, GapMode};
use pillarbox::event::RawEvent;
use pillarbox_testkit::Nats;

use crate::backlog::{EVENT_TYPE, PAYLOAD_BYTES, SUBJECT};

/// How many acknowledgements are awaited at a time.
const OUTSTANDING: usize = 4096;
/// How many messages one acknowledgement of a batch covers, and how many acknowledgements may be outstanding, as in the
/// relay.
const FLOW: u16 = 500;
const OUTSTANDING_FLOWS: u16 = 3;

/// The event of a row of the backlog.
///
/// # Errors
/// The error of the event's builder.
pub fn event(number: u64, keys: u64) -> Result<RawEvent> {
    let event = RawEvent::builder(EVENT_TYPE, SUBJECT)
        .key((number % keys).to_string())
        .source("/pillarbox")
        .header("ce-time", "2026-01-02T03:04:05.678901Z")
        .payload(vec![b'x'; usize::try_from(PAYLOAD_BYTES)?])
        .build()?;
    Ok(event)
}

/// The headers and the payload of an event.
pub fn message(event: &RawEvent) -> (HeaderMap, Bytes) {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", event.id().as_str());
    for (name, value) in event.wire_headers() {
        headers.insert(name, value.as_ref());
    }
    (headers, event.payload().clone())
}

/// Plain pipelined publishing with acknowledgements. Returns its rate, up to the last acknowledgement.
///
/// # Errors
/// The first error of the broker.
pub async fn plain(jetstream: &Context, events: u64, keys: u64) -> Result<f64> {
    let messages = (0..events)
        .map(|number| event(number, keys).map(|event| message(&event)))
        .collect::<Result<Vec<_>>>()?;
    let begin = Instant::now();
    let mut outstanding = FuturesOrdered::new();
    for (headers, payload) in messages {
        let sent = jetstream.publish_with_headers(SUBJECT, headers, payload).await?;
        outstanding.push_back(sent.into_future());
        if outstanding.len() >= OUTSTANDING {
            outstanding.next().await.transpose()?;
        }
    }
    while let Some(acknowledged) = outstanding.next().await {
        acknowledged?;
    }
    Ok(events as f64 / begin.elapsed().as_secs_f64())
}

/// One fast-ingest batch, by the client that the relay uses. Returns its rate, up to the end of the batch.
///
/// # Errors
/// The first error of the broker.
pub async fn fast_ingest(nats: &Nats, events: u64, keys: u64) -> Result<f64> {
    let messages = (0..events).map(|number| outbound(number, keys)).collect::<Result<Vec<_>>>()?;
    let begin = Instant::now();
    batch(nats, messages.into_iter().map(Ok), events).await?;
    Ok(events as f64 / begin.elapsed().as_secs_f64())
}

/// The same with messages that are generated on the way, for more messages than memory holds.
///
/// # Errors
/// The first error of the broker.
pub async fn fast_ingest_made_on_the_way(nats: &Nats, events: u64, keys: u64) -> Result<()> {
    batch(nats, (0..events).map(|number| outbound(number, keys)), events).await
}

fn outbound(number: u64, keys: u64) -> Result<OutboundMessage> {
    let event = event(number, keys)?;
    let mut headers = async_nats_relay::HeaderMap::new();
    headers.insert("Nats-Msg-Id", event.id().as_str());
    for (name, value) in event.wire_headers() {
        headers.insert(name, value.as_ref());
    }
    let payload = event.payload().clone();
    Ok(OutboundMessage { subject: SUBJECT.into(), headers: Some(headers), payload })
}

async fn batch(
    nats: &Nats,
    messages: impl Iterator<Item = Result<OutboundMessage>>,
    events: u64,
) -> Result<()> {
    let client = async_nats_relay::connect(nats.url()).await?;
    let mut publisher = async_nats_relay::jetstream::new(client)
        .fast_publish()
        .flow(FLOW)
        .max_outstanding_acks(OUTSTANDING_FLOWS)
        .ack_timeout(Duration::from_secs(30))
        .gap_mode(GapMode::Fail)
        .build()?;
    for message in messages {
        publisher.add_message(message?).await.context("adding to the batch")?;
    }
    let ack = publisher.close().await.context("ending the batch")?;
    ensure!(ack.batch_size >= events, "the batch ended at {}", ack.batch_size);
    Ok(())
}
