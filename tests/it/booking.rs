//! The booking example does what it says, and its verdict notices mistakes.
#![allow(dead_code, unreachable_pub)]

#[path = "../../examples/booking/books.rs"]
mod books;

use std::time::Duration;

use books::{Account, Books, Trip};
use tokio::process::Command;

/// Runs the example. `cargo test` has built it.
async fn booking(arguments: &[&str]) -> (Option<i32>, String) {
    let test = std::env::current_exe().unwrap();
    let example = test.parent().unwrap().parent().unwrap().join("examples/booking");
    assert!(
        example.exists(),
        "not built: run `cargo build --example booking`, or all of `cargo test`"
    );
    let running = Command::new(example).args(arguments).kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(180), running).await.unwrap().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

#[tokio::test]
async fn every_trip_is_whole_or_wholly_undone_whatever_goes_wrong() {
    let (code, shown) = booking(&["--trips", "60"]).await;
    assert_eq!(code, Some(0), "{shown}");
    for line in [
        "6 processes",
        "KILLED the saga",
        "KILLED the relays",
        "KILLED the hotels",
        "AWAY: the payment provider",
        "messages again",
        "VERDICT: all is well",
    ] {
        assert!(shown.contains(line), "no {line:?} in:\n{shown}");
    }
}

#[tokio::test]
async fn it_finds_out_when_the_inboxes_have_forgotten() {
    let (code, shown) = booking(&["--trips", "60", "--sabotage"]).await;
    assert_eq!(code, Some(1), "{shown}");
    assert!(shown.contains("FAIL  a completed trip is booked whole, each part once"), "{shown}");
}

/// A trip that is completed, one whose car was refused, and one whose hotel answered too late.
fn right() -> Books {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let trip = |trip, status: &str, failure: Option<&str>, asked: &[&str]| Trip {
        trip,
        status: status.into(),
        failure: failure.map(str::to_owned),
        cents: 10_000 + trip,
        asked: names(asked),
        cancels: match status {
            "failed" => names(&asked.iter().rev().copied().collect::<Vec<_>>()),
            _ => Vec::new(),
        },
        handled: names(&["a", "b", "c"]),
        ..Trip::default()
    };
    let mut books = Books {
        requested: 3,
        requested_again: 1,
        trips: vec![
            Trip {
                requested_again: 1,
                ..trip(1, "completed", None, &["flight", "hotel", "car", "payment"])
            },
            Trip {
                refused_by: Some("car"),
                ..trip(2, "failed", Some("car refused"), &["flight", "hotel", "car"])
            },
            Trip {
                late_by: Some("hotel"),
                late: 1,
                ..trip(3, "failed", Some("hotel did not answer"), &["flight", "hotel"])
            },
        ],
        ..Books::default()
    };
    let booked = |cents| Account { booked: vec![cents], cancelled: Vec::new() };
    let undone = |cents| Account { booked: vec![cents], cancelled: vec![cents] };
    for provider in ["flight", "hotel", "car", "payment"] {
        books.ledger.insert((provider.into(), 1), booked(10_001));
    }
    for (provider, trip) in [("flight", 2), ("hotel", 2), ("flight", 3), ("hotel", 3)] {
        books.ledger.insert((provider.into(), trip), undone(10_000 + trip));
    }
    books
}

/// The claims that do not hold, by their first words.
fn failing(books: &Books) -> Vec<String> {
    let findings = books::judge(books);
    let failing = findings.iter().filter(|finding| !finding.problems.is_empty());
    failing.map(|finding| finding.claim.split(' ').take(3).collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn right_books_are_found_right() {
    assert_eq!(failing(&right()), [""; 0]);
}

/// What is wrong, how the test causes it, and the claims that must not hold.
type Wrong = (&'static str, fn(&mut Books), &'static [&'static str]);

fn account<'b>(books: &'b mut Books, provider: &str, trip: i64) -> &'b mut Account {
    books.ledger.entry((provider.to_owned(), trip)).or_default()
}

#[test]
fn each_way_in_which_books_can_be_wrong_is_found() {
    let wrong: [Wrong; 14] = [
        ("a trip is missing", |b| b.requested += 1, &["every trip is"]),
        (
            "a trip is open",
            |b| b.trips[0].status = "running".into(),
            &["every trip is", "money was taken", "trips fail for", "everything that can"],
        ),
        ("a car is missing", |b| account(b, "car", 1).booked.clear(), &["a completed trip"]),
        (
            "a flight is booked twice",
            |b| account(b, "flight", 1).booked.push(1),
            &["a completed trip"],
        ),
        ("a hotel stays booked", |b| account(b, "hotel", 2).cancelled.clear(), &["a failed trip"]),
        (
            "a hotel is cancelled twice",
            |b| account(b, "hotel", 3).cancelled.push(10_003),
            &["a failed trip"],
        ),
        (
            "a refused trip is paid",
            |b| account(b, "payment", 2).booked.push(10_002),
            &["a failed trip", "money was taken"],
        ),
        ("too much is paid", |b| account(b, "payment", 1).booked[0] += 1, &["money was taken"]),
        (
            "a refusal has another reason",
            |b| b.trips[1].failure = Some("?".into()),
            &["trips fail for", "everything that can"],
        ),
        (
            "the oldest is undone first",
            |b| b.trips[1].cancels.reverse(),
            &["compensation goes from"],
        ),
        ("an event took effect twice", |b| b.trips[2].handled.push("a".into()), &["no event took"]),
        ("a trip was started twice", |b| b.trips[0].requested_again = 0, &["trips that were"]),
        ("a timer is left", |b| b.left_over.push("1 timers".into()), &["no timer, no"]),
        ("no answer came late", |b| b.trips[2].late = 0, &["everything that can"]),
    ];
    for (what, doctor, claims) in wrong {
        let mut books = right();
        doctor(&mut books);
        assert_eq!(failing(&books), claims, "{what}");
    }
}
