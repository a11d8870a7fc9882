//! The trial of a message that the broker does not store: is it the message's fault, or the broker's?

use std::collections::HashSet;

use uuid::Uuid;

use crate::config::ShippingOrder;
use crate::cursor::Cursor;
use crate::message::Message;
use crate::reader::MessagePage;
use crate::refused::{Reason, Refused};
use crate::sink::targets::stream_of;
use crate::sink::{KeyedWindow, Sink, SinkError};

/// At most this many other messages of each kind are sent to prove that the broker stores something.
const OTHERS: usize = 8;

/// The message that is tried alone.
pub(super) struct Trial {
    message: Message,
    /// Where the relay stands once the message is stored or set aside.
    pub(super) after: Cursor,
    /// Later messages that may prove that the stream stores other messages.
    others: Vec<Message>,
    /// The last resort: later events of keys that were seen before. If one is stored, the earlier event of its key
    /// follows it.
    followers: Vec<Message>,
    /// The keys seen so far.
    keys: HashSet<String>,
}

/// What came of a trial.
pub(super) enum TrialOutcome {
    /// The message was stored after all.
    Stored,
    /// The stream stores other messages, but not this one.
    Guilty(Refused),
    /// There is no proof: no other message is stored either, or there is no other message.
    Open,
}

impl Trial {
    /// The trial of the first message of a batch. `None`: the batch has no message.
    pub(super) fn of(batch: &MessagePage, order: ShippingOrder) -> Option<Self> {
        let (first, behind) = batch.messages.split_first()?;
        let after = batch.cursor_at(first.position);
        let keys = first.key.iter().cloned().collect();
        let (others, followers) = (Vec::new(), Vec::new());
        let mut trial = Self { message: first.clone(), after, others, followers, keys };
        trial.looks_among(behind, order);
        Some(trial)
    }

    /// Whether no message of another subject was found yet. A subject may be full, and then no message of that subject
    /// proves anything.
    pub(super) fn looks_further(&self) -> bool {
        self.others.iter().all(|other| self.is_near(other))
    }

    /// Looks among these later messages for some that may prove something.
    ///
    /// A message whose key was seen before must not be stored before the earlier event of that key. So it is taken only
    /// where that event becomes a dead letter by this trial, or would by the same refusal, and only if the configured
    /// order allows it.
    pub(super) fn looks_among(&mut self, behind: &[Message], order: ShippingOrder) {
        for message in behind {
            let near = self.is_near(message);
            let follows = (message.key.as_ref()).is_some_and(|key| !self.keys.insert(key.clone()));
            if !follows {
                let alike = self.others.iter().filter(|other| self.is_near(other) == near).count();
                if alike < OTHERS {
                    self.others.push(message.clone());
                }
            } else if (near || message.key == self.message.key)
                && order == ShippingOrder::Key
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

    /// Asks the broker which stream takes the message, before it is sent again.
    pub(super) async fn ask(&self, window: &KeyedWindow) -> Result<(), SinkError> {
        let Message { position, event_id, subject, .. } = &self.message;
        stream_of(window.context(), *position, *event_id, subject).await.map(drop)
    }

    /// Looks for proof that the stream stores other messages: stores another one, and then tries this one again. Each
    /// message goes through a window of its own, which `window` opens.
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
                // That message may be at fault too.
                Err(SinkError::NotStored { refusal: Some(_), .. } | SinkError::Message { .. }) => {
                    continue;
                }
                Err(_) => return TrialOutcome::Open,
            }
            // After a later event of its key, this message must not be stored any more.
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

    /// What the dead letter says if the message is set aside.
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

    /// Whether storing the other message proves something about this one. It must go to the same stream. If there was
    /// no answer, it must also have the same subject, because a missing permission concerns a subject.
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
