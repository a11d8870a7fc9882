//! The example add_to_axum does what it says, and its verdict notices mistakes.
#![allow(dead_code, unreachable_pub)]

#[path = "../../examples/add_to_axum/order.rs"]
mod order;
#[path = "../../examples/add_to_axum/verdict.rs"]
mod verdict;

use std::time::Duration;

use order::Books;
use tokio::process::Command;

#[tokio::test]
async fn after_it_every_order_is_there_once_and_before_it_was_not() {
    let test = std::env::current_exe().unwrap();
    let example = test.parent().unwrap().parent().unwrap().join("examples/add_to_axum");
    assert!(
        example.exists(),
        "not built: run `cargo build --example add_to_axum`, or all of `cargo test`"
    );
    let running = Command::new(example).args(["--orders", "20"]).kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(60), running).await.unwrap().unwrap();
    let shown = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(0), "{shown}");
    assert!(shown.contains("VERDICT: all is well"), "{shown}");
}

#[test]
fn each_way_in_which_books_can_be_wrong_is_found() {
    let right = || Books {
        customers: 3,
        ordered_once: 3,
        ordered_again: 0,
        mailed_once: 3,
        mailed_again: 0,
        misinformed: 0,
    };
    assert!(verdict::is_right(&right()));
    let wrong = [
        Books { ordered_once: 2, ordered_again: 1, ..right() },
        Books { ordered_once: 2, ..right() },
        Books { mailed_once: 2, mailed_again: 1, ..right() },
        Books { mailed_once: 2, ..right() },
        Books { misinformed: 1, ..right() },
    ];
    for books in wrong {
        assert!(!verdict::is_right(&books), "{books:?}");
    }
    let troubled =
        Books { ordered_once: 1, ordered_again: 2, mailed_once: 1, mailed_again: 2, ..right() };
    assert!(verdict::show(&troubled, &right()));
    assert!(!verdict::show(&right(), &right()), "trouble that did no harm proves nothing");
    assert!(!verdict::show(&troubled, &troubled));
}
