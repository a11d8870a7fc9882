//! Numbers, sizes and times for people.

use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use pillarbox_store::shown;
use time::format_description::well_known::Rfc3339;
use time::{Date, OffsetDateTime, Time};

/// An age, from seconds.
pub(crate) fn age(seconds: f64) -> String {
    match seconds.max(0.0) {
        s if s < 1.0 => "under 1 s".to_owned(),
        s if s < 172_800.0 => shown::age(s),
        s => format!("{:.0} days", s / 86_400.0),
    }
}

/// A whole number in groups of three.
pub(crate) fn number(count: i64) -> String {
    let digits = count.unsigned_abs().to_string();
    let mut shown = String::from(if count < 0 { "-" } else { "" });
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

/// A number and what it counts, in the singular or the plural.
pub(crate) fn counted(count: i64, one: &str, many: &str) -> String {
    format!("{} {}", number(count), if count == 1 { one } else { many })
}

/// A size in bytes.
pub(crate) fn bytes(size: u64) -> String {
    match size {
        0..1_024 => counted(i64::try_from(size).unwrap_or(i64::MAX), "byte", "bytes"),
        1_024..1_048_576 => format!("{:.1} KiB", size as f64 / 1_024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", size as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", size as f64 / 1_073_741_824.0),
    }
}

/// A moment, shown as how long ago it was, and when exactly.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Moment {
    ago: f64,
}

impl Moment {
    /// That many seconds ago. A negative number is ahead.
    pub(crate) fn ago(seconds: f64) -> Self {
        Self { ago: if seconds.is_finite() { seconds } else { 0.0 } }
    }

    /// In words, for example `3 min ago` or `in 2 h`.
    pub(crate) fn words(&self) -> String {
        match self.ago {
            ago if ago < 0.0 => format!("in {}", age(-ago)),
            ago => format!("{} ago", age(ago)),
        }
    }

    /// How long it has lasted since then.
    pub(crate) fn lasted(&self) -> String {
        age(self.ago)
    }

    /// The absolute time, to the second, in UTC.
    pub(crate) fn absolute(&self) -> String {
        let at = self.at();
        let whole = at.replace_nanosecond(0).unwrap_or(at);
        whole.format(&Rfc3339).unwrap_or_else(|_| "too far away for a calendar".to_owned())
    }

    fn at(&self) -> OffsetDateTime {
        let now = OffsetDateTime::now_utc();
        let span = Duration::try_from_secs_f64(self.ago.abs()).unwrap_or_default();
        let far = if self.ago < 0.0 {
            time::Duration::try_from(span).ok().and_then(|span| now.checked_add(span))
        } else {
            time::Duration::try_from(span).ok().and_then(|span| now.checked_sub(span))
        };
        far.unwrap_or(OffsetDateTime::new_utc(Date::MIN, Time::MIDNIGHT))
    }
}

/// Names and values for the part of a URL behind `?`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(String);

impl Query {
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        if !self.0.is_empty() {
            self.0.push('&');
        }
        self.0 += name;
        self.0.push('=');
        self.0.extend(utf8_percent_encode(value, NON_ALPHANUMERIC));
        self
    }

    /// The same, unless the value is empty.
    pub(crate) fn with_some(self, name: &str, value: &str) -> Self {
        if value.is_empty() { self } else { self.with(name, value) }
    }
}

impl std::fmt::Display for Query {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_units_and_groups() {
        assert_eq!(number(0), "0");
        assert_eq!(number(-1_234), "-1,234");
        assert_eq!(number(100), "100");
        assert_eq!(number(1_234_567), "1,234,567");
        assert_eq!(counted(1, "event", "events"), "1 event");
        assert_eq!(counted(3_010, "event", "events"), "3,010 events");
        assert_eq!((bytes(1), bytes(1_536)), ("1 byte".to_owned(), "1.5 KiB".to_owned()));
        assert_eq!(age(7_200.0), "2 h");
    }

    #[test]
    fn a_moment_tells_both_times_and_none_is_too_far_away() {
        assert_eq!(Moment::ago(65.0).words(), "65 s ago");
        assert_eq!(Moment::ago(-7_300.0).words(), "in 2 h");
        assert!(Moment::ago(1.0).absolute().ends_with('Z'));
        assert_eq!(Moment::ago(1e12).absolute(), "too far away for a calendar");
        assert_eq!(Moment::ago(f64::NAN).words(), "under 1 s ago");
        for far in [f64::MAX, -f64::MAX, f64::INFINITY, 1e15] {
            assert!(!Moment::ago(far).absolute().is_empty(), "{far}");
        }
    }

    #[test]
    fn what_is_in_a_link_stays_in_its_place() {
        let query = Query::default().with("type", "a&b=\"<c>/?#").with_some("group", "");
        assert_eq!(query.to_string(), "type=a%26b%3D%22%3Cc%3E%2F%3F%23");
    }
}
