//! Which subjects two filters take both, and whether one takes all that the other does.

/// Whether there is a subject that both take. Words are separated by dots; `*` takes any one, `>` the rest, at least one.
pub(super) fn overlap(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.split('.'), other.split('.'));
    loop {
        match (one.next(), other.next()) {
            (None, None) => return true,
            (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some(a), Some(b)) if a == b || a == "*" || b == "*" => {}
            _ => return false,
        }
    }
}

/// Whether the filter takes every subject that this other one does.
pub(super) fn covers(filter: &str, other: &str) -> bool {
    let (mut filter, mut other) = (filter.split('.'), other.split('.'));
    loop {
        match (filter.next(), other.next()) {
            (None, None) => return true,
            (Some(">"), Some(_)) => return true,
            (Some("*"), Some(word)) if word != ">" => {}
            (Some(a), Some(b)) if a == b => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{covers, overlap};

    #[test]
    fn a_filter_covers_another_if_it_takes_all_that_the_other_does() {
        for (filter, other, all) in [
            (">", "orders.>", true),
            ("orders.>", "orders.>", true),
            ("orders.>", "orders.placed", true),
            ("orders.*", "orders.placed", true),
            ("orders.*", "orders.*", true),
            ("orders.*", "orders.>", false),
            ("orders.placed", "orders.*", false),
            ("orders.placed", "orders.>", false),
            ("orders.>", "orders", false),
            ("orders.>", ">", false),
            ("orders.*", "orders.placed.eu", false),
        ] {
            assert_eq!(covers(filter, other), all, "{filter} {other}");
        }
    }

    #[test]
    fn filters_overlap_if_one_subject_fits_both() {
        for (one, other, both) in [
            ("orders.placed", "orders.placed", true),
            ("orders.*", "orders.placed", true),
            ("orders.*.eu", "*.placed.eu", true),
            ("orders.>", "orders.placed.eu", true),
            (">", "orders", true),
            ("orders.>", "orders", false),
            ("orders.*", "orders.placed.eu", false),
            ("orders.placed", "orders.paid", false),
        ] {
            assert_eq!(overlap(one, other), both, "{one} {other}");
            assert_eq!(overlap(other, one), both, "{other} {one}");
        }
    }
}
