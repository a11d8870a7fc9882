use super::alone::{Sizes, problem, too_large_to_copy};
use super::entry::time_of;
use crate::refused::Reason;

fn sizes() -> Sizes {
    Sizes {
        event_id: Some(uuid::Uuid::max()),
        event_type: Some(10),
        topic: Some(10),
        key: None,
        payload: Some(100),
        headers: Some(5),
        created_at: Some(0),
    }
}

#[test]
fn a_row_is_judged_by_its_sizes_before_it_is_read() {
    let said = |sizes: Sizes| {
        problem(&sizes, 1_000)
            .map(|(reason, error)| (reason, error.split(' ').take(3).collect::<Vec<_>>().join(" ")))
    };
    assert_eq!(said(sizes()), None);
    for (found, reason, start) in [
        (Sizes { event_id: None, ..sizes() }, Reason::Unreadable, "its event_id is"),
        (Sizes { topic: None, ..sizes() }, Reason::Unreadable, "its topic is"),
        (Sizes { headers: None, ..sizes() }, Reason::Unreadable, "its headers are"),
        (Sizes { created_at: None, ..sizes() }, Reason::Unreadable, "its created_at is"),
        (Sizes { created_at: Some(i64::MAX), ..sizes() }, Reason::Unreadable, "its created_at is"),
        (Sizes { key: Some(70_000), ..sizes() }, Reason::Invalid, "its key has"),
        (Sizes { headers: Some(200_000), ..sizes() }, Reason::TooLarge, "its headers take"),
        (Sizes { payload: Some(1_001), ..sizes() }, Reason::TooLarge, "the payload alone"),
    ] {
        assert_eq!(said(found), Some((reason, start.to_owned())));
    }
}

#[test]
fn what_would_not_fit_the_memory_of_the_database_is_not_copied() {
    assert!(too_large_to_copy(&sizes()).is_empty());
    let large = Sizes { payload: Some(100_000_000), topic: Some(2_000_000), ..sizes() };
    assert_eq!(too_large_to_copy(&large), ["topic", "payload"]);
}

#[test]
fn a_time_that_cannot_be_one_is_an_error_and_no_panic() {
    assert_eq!(time_of(Some(0)).unwrap().unix_timestamp(), 946_684_800);
    for microseconds in
        [None, Some(i64::MAX), Some(i64::MIN), Some(i64::MAX - 1), Some(568_971_820_800_000_000)]
    {
        assert!(time_of(microseconds).is_err(), "{microseconds:?}");
    }
}
