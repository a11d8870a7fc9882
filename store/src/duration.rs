//! Durations in settings: a [`Duration`] in Rust, a whole number in a file. The number's name says its unit.
//!
//! ```
//! use std::time::Duration;
//!
//! #[derive(serde::Deserialize)]
//! struct Settings {
//!     #[serde(rename = "wait_ms", with = "pillarbox_store::duration::milliseconds")]
//!     wait: Duration,
//! }
//!
//! let settings: Settings = serde_json::from_str(r#"{"wait_ms": 1500}"#)?;
//! assert_eq!(settings.wait, Duration::from_millis(1_500));
//! # Ok::<(), serde_json::Error>(())
//! ```
//!
//! [`Duration`]: std::time::Duration

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident, $read:ident, $in_units:expr) => {
        $(#[$doc])*
        pub mod $name {
            use std::time::Duration;

            use serde::{Deserialize, Deserializer, Serializer};

            /// Reads a whole number.
            ///
            /// # Errors
            /// The deserializer's, if it is not one.
            pub fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Duration, D::Error> {
                u64::deserialize(from).map(Duration::$read)
            }

            /// Writes a whole number, rounded down.
            ///
            /// # Errors
            /// The serializer's.
            pub fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
                let whole: fn(&Duration) -> u64 = $in_units;
                to.serialize_u64(whole(duration))
            }
        }
    };
}

unit!(
    /// In milliseconds.
    milliseconds,
    from_millis,
    |duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
);
unit!(
    /// In seconds.
    seconds,
    from_secs,
    Duration::as_secs
);
