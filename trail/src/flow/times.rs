//! Times and lengths of time in a flow, for people.

use pillarbox_store::shown::age;
use time::{OffsetDateTime, UtcOffset};

/// `03:04:05.678`
pub(super) fn clock(at: OffsetDateTime) -> String {
    let at = at.to_offset(UtcOffset::UTC);
    format!("{:02}:{:02}:{:02}.{:03}", at.hour(), at.minute(), at.second(), at.millisecond())
}

/// `2026-01-02 03:04:05.678 UTC`
pub(super) fn moment(at: OffsetDateTime) -> String {
    format!("{} {} UTC", at.to_offset(UtcOffset::UTC).date(), clock(at))
}

/// How long it is from one time to another. A clock may be wrong, so it may be negative.
pub(super) fn span(from: OffsetDateTime, to: OffsetDateTime) -> String {
    let seconds = (to - from).as_seconds_f64();
    match seconds {
        s if s.abs() < 10.0 => format!("{:.0} ms", s * 1_000.0),
        s if s < 0.0 => format!("-{}", age(-s)),
        s => age(s),
    }
}
