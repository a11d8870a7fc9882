//! Who has logged in. Sessions are kept in memory: a restart ends them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::Visitor;

/// How long a session lasts.
pub(crate) const LASTS: Duration = Duration::from_secs(12 * 3_600);
/// The most sessions. One more ends the oldest.
const MOST: usize = 1_000;

/// The sessions, by the digest of their id, so that looking one up tells nothing about the ids of others.
#[derive(Default)]
pub(crate) struct Sessions(Mutex<HashMap<[u8; 32], (Visitor, Instant)>>);

impl Sessions {
    /// Begins a session, and returns its id, which is a secret.
    pub(crate) fn begin(&self, visitor: Visitor, now: Instant) -> String {
        let id = hex(&rand::random::<[u8; 32]>());
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, (_, since)| now.saturating_duration_since(*since) < LASTS);
        if sessions.len() >= MOST
            && let Some(oldest) =
                sessions.iter().min_by_key(|(_, (_, since))| *since).map(|(id, _)| *id)
        {
            sessions.remove(&oldest);
        }
        sessions.insert(Sha256::digest(&id).into(), (visitor, now));
        id
    }

    /// Whose session this is.
    pub(crate) fn visitor(&self, id: &str, now: Instant) -> Option<Visitor> {
        let id: [u8; 32] = Sha256::digest(id).into();
        let sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (visitor, since) = sessions.get(&id)?;
        (now.saturating_duration_since(*since) < LASTS).then(|| visitor.clone())
    }

    pub(crate) fn end(&self, id: &str) {
        let id: [u8; 32] = Sha256::digest(id).into();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Role;
    use super::*;

    #[test]
    fn a_session_ends_by_itself_by_hand_or_when_there_are_too_many() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let anna = || Visitor { name: "anna".into(), role: Role::Operator };
        let id = sessions.begin(anna(), now);
        assert_eq!(sessions.visitor(&id, now), Some(anna()));
        assert_eq!(sessions.visitor(&id, now + LASTS), None);
        assert_eq!(sessions.visitor("", now), None);
        sessions.end(&id);
        assert_eq!(sessions.visitor(&id, now), None);
        let first = sessions.begin(anna(), now);
        for second in 1..=1_000 {
            sessions.begin(anna(), now + Duration::from_secs(second));
        }
        let later = now + Duration::from_secs(1_000);
        assert_eq!(sessions.visitor(&first, later), None);
        assert_eq!(sessions.0.lock().unwrap().len(), 1_000);
    }
}
