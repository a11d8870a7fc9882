//! A message that the broker does not store, tried alone, and the question whose fault that is.

use uuid::Uuid;

use crate::config::Order;
use crate::cursor::Cursor;
use crate::message::Message;
use crate::reader::Batch;
use crate::refused::{Reason, Refused};
use crate::sink::targets::stream_of;
use crate::sink::{KeyedWindow, Sink, SinkError};

/// At most this many other messages are tried for proof that the broker stores something.
const OTHERS: usize = 8;

/// The message that is tried alone.
pub(super) struct Trial {
    message: Message,
    /// Where the relay stands once the message is stored or set aside.
    pub(super) after: Cursor,
    /// Messages behind it that may prove that its stream stores others.
    others: Vec<Message>,
}

/// What came of a trial.
pub(super) enum TrialOutcome {
    /// The message is stored after all.
    Stored,
    /// The stream stores other messages, and not this one.
    Guilty(Refused),
    /// There is no proof: nothing else is stored either, or there is nothing else.
    Open,
}

impl Trial {
    /// The trial of the first message of a batch. `None` if it has none.
    pub(super) fn of(batch: &Batch, order: Order) -> Option<Self> {
        let (first, behind) = batch.messages.split_first()?;
        let after = batch.cursor_at(first.position);
        let mut trial = Self { message: first.clone(), after, others: Vec::new() };
        trial.looks_among(behind, order);
        Some(trial)
    }

    /// Whether nothing was found yet that may prove something.
    pub(super) fn is_alone(&self) -> bool {
        self.others.is_empty()
    }

    /// Looks for messages that may prove something among these, which come behind the one that is tried.
    pub(super) fn looks_among(&mut self, behind: &[Message], order: Order) {
        let first = &self.message;
        let parted = |message: &&Message| first.key.is_none() || message.key != first.key;
        let near = |message: &&Message| message.subject == first.subject;
        self.others.extend(behind.iter().filter(near).filter(parted).take(OTHERS).cloned());
        if self.others.is_empty() {
            self.others.extend(behind.iter().filter(parted).take(OTHERS).cloned());
        }
        // The last resort: a later event of its own key, which then must not come before it.
        if self.others.is_empty() && order == Order::Key {
            self.others.extend(behind.iter().find(near).cloned());
        }
    }

    pub(super) fn position(&self) -> i64 {
        self.message.position
    }

    /// Whether this is the trial of the event at this position.
    pub(super) fn is_of(&self, position: Option<i64>) -> bool {
        position == Some(self.message.position)
    }

    /// Asks the broker for a stream before the message is sent again.
    pub(super) async fn ask(&self, window: &KeyedWindow) -> Result<(), SinkError> {
        let Message { position, event_id, subject, .. } = &self.message;
        stream_of(window.context(), *position, *event_id, subject).await.map(drop)
    }

    /// Looks for proof that the stream stores other messages: stores one, and then tries this one again.
    /// Each message goes through a window of its own, which `window` opens.
    pub(super) async fn prove(
        &self,
        window: impl Fn() -> KeyedWindow,
        refusal: Option<u64>,
        said: &str,
    ) -> TrialOutcome {
        for other in &self.others {
            if !self.is_comparable(&window(), other, refusal).await {
                continue;
            }
            let (other_id, other_key) = (other.event_id, other.key.clone());
            match store(window(), other.clone()).await {
                Ok(()) => {}
                // That one may be as bad.
                Err(SinkError::NotStored { refusal: Some(_), .. } | SinkError::Message { .. }) => {
                    continue;
                }
                Err(_) => return TrialOutcome::Open,
            }
            // Behind a later event of its key it must not be stored any more.
            let overtaken = self.message.key.is_some() && other_key == self.message.key;
            if !overtaken {
                match store(window(), self.message.clone()).await {
                    Ok(()) => return TrialOutcome::Stored,
                    Err(SinkError::NotStored { refusal: again, .. }) if again == refusal => {}
                    Err(_) => return TrialOutcome::Open,
                }
            }
            return TrialOutcome::Guilty(self.refused(Some(other_id), said));
        }
        TrialOutcome::Open
    }

    /// What is said of the message when it is set aside.
    pub(super) fn refused(&self, other: Option<Uuid>, said: &str) -> Refused {
        let proof = other.map_or_else(
            || "other messages".to_owned(),
            |other| format!("event {other} of the same stream"),
        );
        Refused {
            position: self.message.position,
            event_id: self.message.event_id,
            reason: Reason::Refused,
            error: format!(
                "tried alone several times and not stored, while the broker stored {proof}: {said}"
            ),
        }
    }

    /// Whether storing the other message says something about this one: it must go to the same stream, and if there
    /// was no answer, under the same subject, because a missing permission is a subject's.
    async fn is_comparable(
        &self,
        window: &KeyedWindow,
        other: &Message,
        refusal: Option<u64>,
    ) -> bool {
        if other.subject == self.message.subject {
            return true;
        }
        if refusal.is_none() {
            return false;
        }
        let stream = async |message: &Message| {
            stream_of(window.context(), message.position, message.event_id, &message.subject).await
        };
        match (stream(other).await, stream(&self.message).await) {
            (Ok(one), Ok(same)) => one == same,
            _ => false,
        }
    }
}

async fn store(mut window: KeyedWindow, message: Message) -> Result<(), SinkError> {
    let stored = match window.store(vec![message]).await {
        Ok(_) => window.flush().await,
        failed => failed,
    };
    stored.map(drop).map_err(|failure| failure.error)
}
