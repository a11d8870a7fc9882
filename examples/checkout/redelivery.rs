//! Delivers events again that were handled, as it happens when an acknowledgement is lost or somebody replays a stream.

use std::time::Duration;

use async_nats::jetstream::message::StreamMessage;
use pillarbox::event::header;
use pillarbox_testkit::eventually;

use crate::service::Service;
use crate::shop::Shop;

/// What was delivered again, and when.
#[derive(Debug, Default)]
pub struct Redelivery {
    pub events: Vec<Again>,
    /// The time by the database's clock.
    pub at: String,
}

#[derive(Debug)]
pub struct Again {
    pub event_id: String,
    pub subject: String,
}

impl Again {
    fn of(message: &StreamMessage) -> Self {
        let id = message.headers.get(header::ID);
        Self {
            event_id: id.map(ToString::to_string).unwrap_or_default(),
            subject: message.subject.to_string(),
        }
    }
}

/// Picks messages from the first half of the stream, and waits until every service that receives them has handled them.
pub async fn take_handled(shop: &Shop, count: u64) -> anyhow::Result<Vec<StreamMessage>> {
    let half = shop.stream.get_info().await?.state.messages / 2;
    let mut messages = Vec::new();
    for number in 0..count {
        messages.push(shop.stream.get_raw_message(1 + number * half / count).await?);
    }
    let events: Vec<Again> = messages.iter().map(Again::of).collect();
    for service in Service::ALL {
        wait_until_handled(shop, service, &events).await?;
    }
    Ok(messages)
}

/// Publishes messages again. They keep their event ids but get new message ids, so the broker takes them for new
/// messages, and only the inboxes can recognise them.
pub async fn deliver_again(
    shop: &Shop,
    messages: Vec<StreamMessage>,
) -> anyhow::Result<Redelivery> {
    let at: String = sqlx::query_scalar("select clock_timestamp()::text")
        .fetch_one(shop.pool(Service::Orders))
        .await?;
    let events = messages.iter().map(Again::of).collect();
    for message in messages {
        let mut headers = message.headers;
        headers.insert(header::NATS_MSG_ID, format!("again-{}", message.sequence));
        let sent = shop.jetstream.publish_with_headers(message.subject, headers, message.payload);
        sent.await?.await?;
    }
    Ok(Redelivery { events, at })
}

async fn wait_until_handled(shop: &Shop, service: Service, events: &[Again]) -> anyhow::Result<()> {
    let ids: Vec<&str> = events
        .iter()
        .filter(|event| service.hears(&event.subject))
        .map(|event| event.event_id.as_str())
        .collect();
    let what = format!("{service} to handle the events to be delivered again");
    eventually(&what, Duration::from_secs(60), async || {
        let handled: i64 = sqlx::query_scalar(
            "select count(*) from pillarbox.inbox where consumer = $1 and event_id = any($2)",
        )
        .bind(service.name())
        .bind(&ids)
        .fetch_one(shop.pool(service))
        .await?;
        Ok::<_, anyhow::Error>((usize::try_from(handled)? == ids.len()).then_some(()))
    })
    .await?;
    Ok(())
}
