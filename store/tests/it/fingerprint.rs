//! Errors of one kind have one fingerprint, and a line of a list shows the useful part of an error.

use pillarbox_store::dead_letters::fingerprint::{MAX_CHARS, READ_CHARS};
use pillarbox_store::dead_letters::{brief, fingerprint};
use proptest::prelude::*;

#[test]
fn numbers_ids_and_quoted_values_are_no_part_of_a_fingerprint() {
    for (error, wanted) in [
        ("order 17 costs 9.99", "order # costs #"),
        ("order 18 costs -1,234.50", "order # costs #"),
        ("no row 01927f3e-7b1c-7d11-8a55-0c1d2e3f4a5b", "no row #"),
        ("customer cust_8f3a of order-17 is unknown", "customer # of # is unknown"),
        ("key (id)=(42) exists", "key (id)=(#) exists"),
        (r#"duplicate key value violates "orders_pkey""#, "duplicate key value violates #"),
        (r#"bad value "a \"quoted\" one", expected a date"#, "bad value #, expected a date"),
        ("customer 'Müller' isn't known", "customer # isn't known"),
        ("customer 'O'Hara' isn't known", "customer # isn't known"),
        ("at 2026-11-27T17:00:00.5Z: 127.0.0.1:5432 refused", "at #: # refused"),
        ("items [1, 2, 3] are gone", "items [#] are gone"),
        ("items ['a', 'b'] are gone", "items [#] are gone"),
        ("two\n  lines\tof it", "two lines of it"),
        ("the price is negative", "the price is negative"),
        ("don't", "don't"),
        ("an open \" quote", "an open \" quote"),
        ("", ""),
    ] {
        assert_eq!(fingerprint(error), wanted, "{error}");
    }
}

#[test]
fn errors_of_two_kinds_have_two_fingerprints() {
    let kinds = ["order 1 has no price", "order 1 has no customer", "customer 1 has no order"];
    for (at, one) in kinds.iter().enumerate() {
        for other in &kinds[at + 1..] {
            assert_ne!(fingerprint(one), fingerprint(other));
        }
    }
}

#[test]
fn a_value_that_is_longer_than_what_is_read_is_a_value_all_the_same() {
    let of = |c: &str| fingerprint(&format!("cannot read \"{}\" at 7", c.repeat(READ_CHARS)));
    assert_eq!(of("x y "), "cannot read #");
    assert_eq!(of("x y "), of("ü–z "));
}

#[test]
fn the_useful_part_of_a_long_error_is_its_end() {
    let cause = "duplicate key value violates unique constraint \"orders_pkey\"";
    let error =
        format!("the handler failed: {}y: the database refused: {cause}", "far awa".repeat(20));
    assert_eq!(brief(&error, 100), format!("… the database refused: {cause}"));
    assert_eq!(brief(&error, 70), format!("… {cause}"));
    assert_eq!(brief("a short\n  one", 70), "a short one");
    let json =
        format!("cannot read {{\"a\": {}, \"bcdefghijklmnopqrstuvwxyz\": 1}}", "1".repeat(90));
    assert!(brief(&json, 50).starts_with("cannot read {\"a\": 1111"), "{}", brief(&json, 50));
}

/// Words, without digits and quotes.
const WORDS: &str = "[a-zäß]{1,8}( [a-zäß]{1,8}){0,4}";
/// What differs from letter to letter.
const VALUE: &str = "-?[0-9]{1,9}|[0-9]{1,3}\\.[0-9]{1,3}|[a-z]{1,5}-[0-9]{1,6}|[0-9a-f]{4}[0-9][0-9a-f]{3}-[0-9a-f]{4}\
                     |\"[a-z0-9 ,:.\u{e4}]{0,12}\"|'[a-z0-9 ]{0,12}'";

proptest! {
    #[test]
    fn what_differs_in_values_alone_is_of_one_kind(
        before in WORDS, between in WORDS, behind in WORDS,
        one in [VALUE, VALUE], other in [VALUE, VALUE],
    ) {
        let error = |[a, b]: &[String; 2]| format!("{before} {a} {between}: {b}, {behind}");
        prop_assert_eq!(fingerprint(&error(&one)), fingerprint(&error(&other)));
        prop_assert_eq!(fingerprint(&error(&one)), format!("{before} # {between}: #, {behind}"));
    }

    #[test]
    fn words_stay(words in WORDS) {
        prop_assert_eq!(fingerprint(&words), words);
    }

    #[test]
    fn a_fingerprint_of_anything_is_short_and_has_no_digit(error in any::<String>()) {
        let found = fingerprint(&error);
        prop_assert!(found.chars().count() <= MAX_CHARS);
        prop_assert!(!found.contains(|c: char| c.is_numeric() || c.is_control()), "{found:?}");
    }

    #[test]
    fn the_useful_part_of_anything_fits(error in "(.{0,30}: ?){0,6}", width in 1_usize..100) {
        prop_assert!(brief(&error, width).chars().count() <= width);
    }
}
