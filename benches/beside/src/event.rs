//! The event that all contestants ship.

use serde::{Deserialize, Serialize};

/// The number of keys over which the events are spread.
pub const KEYS: i32 = 1000;
/// The key of the transaction that is left open. Nothing else writes to it.
pub const HELD_KEY: i32 = KEYS;
/// The size of a payload, in bytes.
pub const PAYLOAD_BYTES: usize = 256;
/// The type of the event.
pub const TYPE: &str = "placed";

/// The payload. `n` is its place in the order of its key's commits. `due` is the intended time of writing, in
/// microseconds since 1970, or 0.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Placed {
    pub key: i32,
    pub n: i64,
    pub due: i64,
    pad: String,
}

impl Placed {
    pub fn new(key: i32, n: i64, due: i64) -> Self {
        let bare = format!(r#"{{"key":{key},"n":{n},"due":{due},"pad":""}}"#).len();
        Self { key, n, due, pad: "x".repeat(PAYLOAD_BYTES.saturating_sub(bare)) }
    }

    pub fn payload(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }
}
