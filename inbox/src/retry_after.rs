//! How long a provider asks to wait: the header `Retry-After`.

use std::time::{Duration, SystemTime};

/// The wait that a `Retry-After` header asks for, which is a number of seconds or an HTTP date. `None`: it has neither
/// form, or the time is over.
pub(crate) fn wait_of(header: &str, now: SystemTime) -> Option<Duration> {
    let header = header.trim();
    if !header.is_empty() && header.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number that does not fit means the longest wait.
        return Some(Duration::from_secs(header.parse().unwrap_or(u64::MAX)));
    }
    httpdate::parse_http_date(header).ok()?.duration_since(now).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_three_forms_of_an_http_date_are_read() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:00 GMT")
            .unwrap_or(SystemTime::UNIX_EPOCH);
        for date in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            assert_eq!(wait_of(date, now), Some(Duration::from_secs(37)), "{date}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_header_is_read_or_ignored(header in ".{0,40}|[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT") {
            wait_of(&header, SystemTime::now());
        }

        #[test]
        fn seconds_are_seconds(seconds in any::<u64>()) {
            prop_assert_eq!(wait_of(&format!(" {seconds} "), SystemTime::now()), Some(Duration::from_secs(seconds)));
        }
    }
}
