//! The checkout example does what it says, and its verdict notices mistakes.
#![allow(dead_code, unreachable_pub)]

#[path = "../../examples/checkout/books.rs"]
mod books;
#[path = "../../examples/checkout/verdict.rs"]
mod verdict;

use std::process::Output;
use std::time::Duration;

use books::{Books, Mail, Money, Order, Outcome, Redelivered, Reservation, Stock};
use tokio::process::Command;

/// Runs the example. `cargo test` has built it.
async fn checkout(arguments: &[&str]) -> (Option<i32>, String) {
    let test = std::env::current_exe().unwrap();
    let example = test.parent().unwrap().parent().unwrap().join("examples/checkout");
    assert!(
        example.exists(),
        "not built: run `cargo build --example checkout`, or all of `cargo test`"
    );
    let running = Command::new(example).args(arguments).kill_on_drop(true).output();
    let Output { status, stdout, stderr } =
        tokio::time::timeout(Duration::from_secs(180), running).await.unwrap().unwrap();
    let shown = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    (status.code(), shown)
}

#[tokio::test]
async fn all_is_well_though_relays_and_a_service_are_killed_and_events_come_again() {
    let (code, shown) = checkout(&["--orders", "60"]).await;
    assert_eq!(code, Some(0), "{shown}");
    for line in
        ["KILLED the relays", "KILLED payments", "REDELIVERED 6 events", "VERDICT: all is well"]
    {
        assert!(shown.contains(line), "no {line:?} in:\n{shown}");
    }
    let picture = claims(include_str!("../../docs/pictures/checkout.svg"));
    assert_eq!(picture, claims(&shown), "draw it again: docs/pictures/screen.py says how");
}

/// The claims that hold, without what was counted. In the picture, each is the text of an element.
fn claims(text: &str) -> Vec<&str> {
    let claims = text.lines().filter_map(|line| line.split_once(" ok   "));
    claims.filter_map(|(_, rest)| rest.split('<').next()?.trim_end().split("  ").next()).collect()
}

#[tokio::test]
async fn it_finds_out_when_the_inboxes_have_forgotten() {
    let (code, shown) = checkout(&["--orders", "60", "--sabotage"]).await;
    assert_eq!(code, Some(1), "{shown}");
    assert!(shown.contains("FAIL  events delivered again were skipped"), "{shown}");
    assert!(shown.contains("FAIL  analytics counted everything once"), "{shown}");
}

/// Three orders, one of each outcome.
fn right() -> Books {
    let order = |id, cents, outcome| Order { id, sku: "tea".into(), quantity: 2, cents, outcome };
    let mail = |order, subject: &str| Mail { order, subject: subject.into() };
    let counted = [
        ("order.placed", 3),
        ("payment.taken", 2),
        ("payment.refused", 1),
        ("stock.reserved", 1),
        ("stock.out", 1),
        ("payment.refunded", 1),
        ("order.completed", 1),
        ("order.failed", 2),
    ];
    Books {
        placed: 3,
        orders: vec![
            order(1, 500, Outcome::Completed),
            order(2, 99_900, Outcome::PaymentRefused),
            order(3, 700, Outcome::OutOfStock),
        ],
        charges: vec![Money { order: 1, cents: 500 }, Money { order: 3, cents: 700 }],
        refunds: vec![Money { order: 3, cents: 700 }],
        stock: vec![Stock { sku: "tea".into(), delivered: 3, remaining: 1 }],
        reservations: vec![Reservation { order: 1, sku: "tea".into(), quantity: 2 }],
        shortages: vec![3],
        mails: vec![
            mail(1, "Your order is on its way"),
            mail(2, "We are sorry: payment refused"),
            mail(3, "We are sorry: out of stock"),
        ],
        counted: counted.map(|(event_type, events)| (event_type.to_owned(), events)).into(),
        redelivered: vec![Redelivered {
            service: "payments",
            event_id: "42".into(),
            skipped: true,
        }],
        left_over: Vec::new(),
        traffic: Vec::new(),
    }
}

/// The claims that do not hold, by their first words.
fn failing(books: &Books) -> Vec<&'static str> {
    let findings = verdict::judge(books);
    let failing = findings.iter().filter(|finding| !finding.problems.is_empty());
    failing.map(|finding| finding.claim.split_once(' ').unwrap().0).collect()
}

#[test]
fn right_books_are_found_right() {
    assert_eq!(failing(&right()), [""; 0]);
}

/// What is wrong, how the test causes it, and the claims that must not hold.
type Wrong = (&'static str, fn(&mut Books), &'static [&'static str]);

#[test]
fn each_way_in_which_books_can_be_wrong_is_found() {
    let wrong: [Wrong; 20] = [
        ("an order is open", |b| b.orders[1].outcome = Outcome::Open, &["every", "analytics"]),
        ("an order is missing", |b| b.placed += 1, &["every"]),
        ("a charge is there twice", |b| b.charges.push(b.charges[0].clone()), &["money"]),
        ("a charge is missing", |b| b.charges.truncate(1), &["money"]),
        ("a charge is too high", |b| b.charges[0].cents += 1, &["money"]),
        (
            "two charges are wrong, but right in sum",
            |b| {
                b.charges[0].cents += 1;
                b.charges[1].cents -= 1;
            },
            &["money"],
        ),
        (
            "a refused order is charged",
            |b| b.charges.push(Money { order: 2, cents: 99_900 }),
            &["money"],
        ),
        ("a refund is missing", |b| b.refunds.clear(), &["money", "refunds"]),
        (
            "a refund is there twice",
            |b| b.refunds.push(b.refunds[0].clone()),
            &["money", "refunds"],
        ),
        (
            "a completed order is charged again and refunded",
            |b| {
                b.charges.push(b.charges[0].clone());
                b.refunds.push(b.charges[0].clone());
            },
            &["money", "refunds"],
        ),
        ("a shortage is noted twice", |b| b.shortages.push(3), &["refunds"]),
        (
            "goods are reserved twice",
            |b| {
                b.reservations.push(b.reservations[0].clone());
                b.stock[0].remaining -= 2;
            },
            &["stock"],
        ),
        ("goods have gone without a reservation", |b| b.stock[0].remaining = 0, &["stock"]),
        ("a reservation is missing", |b| b.reservations.clear(), &["stock"]),
        ("a mail is missing", |b| b.mails.truncate(2), &["one"]),
        ("a mail is there twice", |b| b.mails.push(b.mails[0].clone()), &["one"]),
        (
            "a mail says something else",
            |b| b.mails[2].subject = b.mails[0].subject.clone(),
            &["one"],
        ),
        (
            "an event is counted twice",
            |b| *b.counted.get_mut("stock.out").unwrap() = 2,
            &["analytics"],
        ),
        (
            "a rolled-back order is charged",
            |b| b.charges.push(Money { order: -20, cents: 0 }),
            &["nothing"],
        ),
        ("an event is handled again", |b| b.redelivered[0].skipped = false, &["events"]),
    ];
    for (what, doctor, claims) in wrong {
        let mut books = right();
        doctor(&mut books);
        assert_eq!(failing(&books), claims, "{what}");
    }
    let gave_up = Books { left_over: vec!["payments gave up".into()], ..right() };
    assert_eq!(failing(&gave_up), ["no"]);
}
