//! Whether the books are as they should be.

use super::order::Books;

/// Whether every customer has one order and one mail, and knows the order's number.
pub fn is_right(books: &Books) -> bool {
    let Books { customers, ordered_once, ordered_again, mailed_once, mailed_again, misinformed } =
        *books;
    (ordered_once, ordered_again) == (customers, 0)
        && (mailed_once, mailed_again) == (customers, 0)
        && misinformed == 0
}

/// A line of the table: what is counted, and how to read it from the books.
type Row = (&'static str, fn(&Books) -> i64);

/// Shows both results, and says whether the claims hold.
pub fn show(before: &Books, after: &Books) -> bool {
    println!("{:<34}{:>8}{:>8}", "", "before", "after");
    let rows: [Row; 6] = [
        ("customers", |books| books.customers),
        ("who have one order", |books| books.ordered_once),
        ("who have more than one", |books| books.ordered_again),
        ("who were mailed once", |books| books.mailed_once),
        ("who were mailed more than once", |books| books.mailed_again),
        ("who know a wrong order number", |books| books.misinformed),
    ];
    for (what, of) in rows {
        println!("{what:<34}{:>8}{:>8}", of(before), of(after));
    }
    let trouble = before.ordered_again > 0 && before.mailed_again > 0;
    let right = is_right(after);
    println!();
    println!("{}  before: what was repeated took effect again", mark(trouble));
    println!("{}  after: every order is there once, and mailed once", mark(right));
    println!("VERDICT: {}", if trouble && right { "all is well" } else { "something is wrong" });
    trouble && right
}

fn mark(holds: bool) -> &'static str {
    if holds { "ok  " } else { "FAIL" }
}
