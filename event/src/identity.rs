//! What makes two messages the same event.
//!
//! CloudEvents tells events apart by source and id together: the ids of two producers may well be the same numbers.
//! Whoever remembers which events it has handled (the inbox) remembers one text for each, its [`Identity`]:
//!
//! | the message | its identity |
//! |---|---|
//! | shipped by a relay ([`header::OUTBOX`](crate::header::OUTBOX)) | its id, a UUID, whatever source it names |
//! | names no source; its id has at most 36 bytes and does not begin with `~` | its id |
//! | any other | `~` and 35 characters of the SHA-256 of source and id |
//!
//! Three things decided this:
//!
//! - **The source of a relay is a setting, and may change.** An event that is shipped again under another source is
//!   still the same event, so a relay says that the id is enough. That id is a UUID, which is unique by itself. A
//!   message that names no source and has a UUID for its id is taken for that event, too: nothing else is said.
//! - **Byte for byte, as sent.** `%41` and `A` decode to the same text, `%FF` and `%FE` to the same replacement
//!   character, and a header may come twice. A producer that does not encode its ids may have meant two events by
//!   them, and an event taken for another one is lost. So the digest is that of the values as they came, all of them.
//!   White space around a header's value is no part of it: clients strip it.
//! - **The inbox holds a row for each event**, and is the largest table there is. No identity is longer than a UUID.
//!   210 bits of a SHA-256 leave no collision to be found.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::wire::encoded;

/// The first character of an identity that is a digest. No other one begins with it.
const DIGEST: char = '~';

/// See the [module](self). A text of 1 to 36 bytes without control characters. A digest is safe in URLs, as a UUID is.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity(Box<str>);

impl Identity {
    /// The longest identity, in bytes.
    pub const MAX_BYTES: usize = 36;

    /// The identity of the event that this source calls by this id, if no relay shipped it.
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

    /// That of headers whose values came like this.
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

/// Each value behind its length, and their end: so no two lists are the same bytes.
fn digest_list<S: AsRef<str>>(digest: &mut Sha256, values: impl IntoIterator<Item = S>) {
    for value in values {
        let value = value.as_ref().as_bytes();
        digest.update((value.len() as u64).to_le_bytes());
        digest.update(value);
    }
    digest.update(u64::MAX.to_le_bytes());
}

/// Whether a text is a UUID as it is usually written: lower case, with hyphens.
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
