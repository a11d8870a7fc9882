//! What a consumer has not handled, asked at this moment: for tests that wait until nothing is left.

use async_nats::jetstream::consumer::Info;
use pillarbox_inbox::source;
use pillarbox_store::full_text;

use crate::consumer::Consumer;
use crate::durable::{Durable, NotNow, stream};
use crate::error::ConsumerError;

/// What a consumer has not handled, over all its processes and partitions, as the broker and the database say it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unhandled {
    /// Events that the broker has not delivered.
    pub pending: u64,
    /// Events that it has delivered, and that are not acknowledged.
    pub ack_pending: u64,
    /// What the database says: events in retry, parked events and dead letters.
    pub failed: source::Unhandled,
}

impl Unhandled {
    /// Whether no event waits, is in progress, in retry or parked. Dead letters do not count: they were given up.
    pub fn is_nothing(&self) -> bool {
        let Self { pending, ack_pending, failed } = self;
        (*pending, *ack_pending, failed.failing, failed.parked) == (0, 0, 0, 0)
    }
}

impl Consumer {
    /// Asks the broker and the database what this consumer has not handled. Unlike [`status`](Self::status), which
    /// gives the last measurement, this makes requests, and it does not matter which process runs the consumer. The
    /// broker is asked first.
    ///
    /// It tries once, and may take a few seconds if the broker or the database does not answer. It changes nothing.
    ///
    /// # Errors
    /// [`ConsumerError::NotKnown`] if the stream or a durable consumer does not exist yet, or if the broker or the
    /// database does not answer.
    pub async fn unhandled(&self) -> Result<Unhandled, ConsumerError> {
        let not_known = |reason: String| ConsumerError::NotKnown {
            stream: self.config.stream.clone(),
            name: self.config.name.clone(),
            reason,
        };
        let stream = stream(&self.jetstream, &self.config).await.map_err(|not| match not {
            NotNow::Later(reason) => not_known(reason),
            NotNow::Never(error) => error,
        })?;
        let mut infos: Vec<Info> = Vec::new();
        for durable in Durable::all(&self.config) {
            let info = stream.consumer_info(&durable.name).await;
            let absent =
                |error| format!("durable consumer {}: {}", durable.name, full_text(&error));
            infos.push(info.map_err(absent).map_err(&not_known)?);
        }
        let failed = self.store.unhandled().await.map_err(|error| not_known(full_text(&error)))?;
        Ok(Unhandled {
            pending: infos.iter().map(|info| info.num_pending).sum(),
            ack_pending: infos.iter().map(|info| info.num_ack_pending as u64).sum(),
            failed,
        })
    }
}
