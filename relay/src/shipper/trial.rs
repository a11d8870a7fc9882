//! A message that the broker does not store, tried alone, and the question whose fault that is.

use std::collections::HashSet;

use uuid::Uuid;

use crate::config::Order;
use crate::cursor::Cursor;
use crate::message::Message;
use crate::reader::Batch;
use crate::refused::{Reason, Refused};
use crate::sink::targets::stream_of;
use crate::sink::{KeyedWindow, Sink, SinkError};

/// At most this many other messages of each kind are tried for proof that the broker stores something.
const OTHERS: usize = 8;

/// The message that is tried alone.
pub(super) struct Trial {
    message: Message,
    /// Where the relay stands once the message is stored or set aside.
    pub(super) after: Cursor,
    /// Messages behind it that may prove that its stream stores others.
    others: Vec<Message>,
    /// The last resort: later events of keys that were met before. If one is stored, the event before it comes later.
    followers: Vec<Message>,
    /// The keys met so far.
    keys: HashSet<String>,
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
        let keys = first.key.iter().cloned().collect();
        let (others, followers) = (Vec::new(), Vec::new());
        let mut trial = Self { message: first.clone(), after, others, followers, keys };
        trial.looks_among(behind, order);
        Some(trial)
    }

    /// Whether no message of another subject was found yet. A subject may be full, and then none of its own proves
    /// anything.
    pub(super) fn looks_further(&self) -> bool {
        self.others.iter().all(|other| self.is_near(other))
    }

    /// Looks for messages that may prove something among these, which come behind the one that is tried.
    ///
    /// One whose key was met before must not be stored before the event that was met. So it is only taken where that
    /// event becomes a dead letter by it, or would by the same refusal, and in an order that allows it.
    pub(super) fn looks_among(&mut self, behind: &[Message], order: Order) {
        for message in behind {
            let near = self.is_near(message);
            let follows = (message.key.as_ref()).is_some_and(|key| !self.keys.insert(key.clone()));
            if !follows {
                let alike = self.others.iter().filter(|other| self.is_near(other) == near).count();
                if alike < OTHERS {
                    self.others.push(message.clone());
                }
            } else if (near || message.key == self.message.key)
                && order == Order::Key
                && self.followers.len() < OTHERS
            {
                self.followers.push(message.clone());
            }
        }
    }

    fn is_near(&self, message: &Message) -> bool {
        message.subject == self.message.subject
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
        for other in self.others.iter().chain(&self.followers) {
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
