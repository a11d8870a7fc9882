//! What makes two messages the same event.
//!
//! CloudEvents tells events apart by source and id together, because two producers may use the same ids. The inbox,
//! which remembers the events that were handled, remembers one text for each event, its [`Identity`]:
//!
//! | the message | its identity |
//! |---|---|
//! | was shipped by a relay ([`header::OUTBOX`](crate::header::OUTBOX)) | its id, a UUID, whatever source it names |
//! | names no source, and its id has at most 36 bytes and does not begin with `~` | its id |
//! | any other | `~` and 35 characters of the SHA-256 of source and id |
//!
//! Three reasons led to these rules:
//!
//! - **The source of a relay is a setting and may change.** An event that is shipped again with another source is still
//!   the same event. So a relay marks its events: for them the id is enough, because it is a UUID, which is unique by
//!   itself. A message that names no source and has a UUID as its id counts as that event too, because nothing tells
//!   the two apart.
//! - **Values are compared byte for byte, as they were sent.** `%41` and `A` decode to the same text, `%FF` and `%FE`
//!   decode to the same replacement character, and a header may come twice. A producer that does not encode its ids may
//!   mean two different events by them, and an event that is mistaken for another one is lost. So the digest covers all
//!   values as they came. White space around a header's value does not count, because clients strip it.
//! - **The inbox holds a row for each event** and is the largest table of all, so no identity is longer than a UUID.
//!   With 210 bits of a SHA-256, nobody will find a collision.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::header::encoded;

/// The first character of an identity that is a digest. No other identity begins with it.
const DIGEST: char = '~';

/// A text that identifies an event: see the [module](self). It has 1 to 36 bytes and no control characters, and a
/// digest is as safe in URLs as a UUID.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity(Box<str>);

impl Identity {
    /// The longest identity, in bytes.
    pub const MAX_BYTES: usize = 36;

    /// The identity of the event with this id from this source, if no relay shipped it.
    pub fn of(source: Option<&str>, id: &str) -> Self {
        match source {
            None if id.len() <= Self::MAX_BYTES && !id.starts_with(DIGEST) => Self(id.into()),
            _ => Self::as_sent(source.map(encoded), [encoded(id)]),
        }
    }

    /// An identity that was stored as text.
    pub fn stored(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// The identity of a message whose headers had these values.
    pub(crate) fn as_sent<S: AsRef<str>>(
        sources: impl IntoIterator<Item = S>,
        ids: impl IntoIterator<Item = S>,
    ) -> Self {
        let mut digest = Sha256::new_with_prefix("pillarbox event");
        digest_list(&mut digest, sources);
        digest_list(&mut digest, ids);
        let text = BASE64URL_NOPAD.encode(&digest.finalize());
        let text = text.get(..Self::MAX_BYTES - DIGEST.len_utf8()).unwrap_or(&text);
        Self(format!("{DIGEST}{text}").into())
    }

    /// The identity as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Digests the length before each value, and a mark at the end, so that no two lists give the same bytes.
fn digest_list<S: AsRef<str>>(digest: &mut Sha256, values: impl IntoIterator<Item = S>) {
    for value in values {
        let value = value.as_ref().as_bytes();
        digest.update((value.len() as u64).to_le_bytes());
        digest.update(value);
    }
    digest.update(u64::MAX.to_le_bytes());
}

/// Whether a text is a UUID in its usual form: lower case, with hyphens.
pub(crate) fn is_uuid(text: &str) -> bool {
    let mut written = Uuid::encode_buffer();
    Uuid::try_parse(text).is_ok_and(|id| *id.hyphenated().encode_lower(&mut written) == *text)
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}
