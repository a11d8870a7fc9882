//! A hand-written publisher: it sends a message id, and awaits every acknowledgement.

use anyhow::Result;
use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::{ContextBuilder, PublishAckFuture};
use futures::stream::{FuturesOrdered, StreamExt};

use crate::site::Site;

/// The largest number of messages that wait for their acknowledgements.
const OUTSTANDING: usize = 4096;

/// Publishes to the topic of a site, over a connection of its own.
pub struct Publisher {
    jetstream: Context,
    topic: String,
}

impl Publisher {
    pub async fn connect(site: &Site) -> Result<Self> {
        let client = async_nats::connect(&site.nats_url).await?;
        let jetstream = ContextBuilder::new().max_ack_inflight(2 * OUTSTANDING).build(client);
        Ok(Self { jetstream, topic: site.topic() })
    }

    async fn send(&self, id: &str, payload: Vec<u8>) -> Result<PublishAckFuture> {
        let mut headers = HeaderMap::new();
        headers.insert(async_nats::header::NATS_MESSAGE_ID, id);
        Ok(self.jetstream.publish_with_headers(self.topic.clone(), headers, payload.into()).await?)
    }

    /// Publishes an event and waits until it is stored.
    pub async fn publish(&self, id: &str, payload: Vec<u8>) -> Result<()> {
        self.send(id, payload).await?.await?;
        Ok(())
    }

    /// Publishes each event after the acknowledgement of the previous one.
    pub async fn one_by_one(&self, events: Vec<(String, Vec<u8>)>) -> Result<()> {
        for (id, payload) in events {
            self.publish(&id, payload).await?;
        }
        Ok(())
    }

    /// Publishes all events, and then awaits the acknowledgements.
    pub async fn pipelined(&self, events: Vec<(String, Vec<u8>)>) -> Result<()> {
        let mut outstanding = FuturesOrdered::new();
        for (id, payload) in events {
            outstanding.push_back(self.send(&id, payload).await?.into_future());
            if outstanding.len() >= OUTSTANDING
                && let Some(acknowledged) = outstanding.next().await
            {
                acknowledged?;
            }
        }
        while let Some(acknowledged) = outstanding.next().await {
            acknowledged?;
        }
        Ok(())
    }
}
