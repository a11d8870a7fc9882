//! Whether two filters take a subject in common.

/// Whether there is a subject that both take. Words are separated by dots; `*` takes any one, `>` the rest, at least
/// one.
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

#[cfg(test)]
mod tests {
    use super::overlap;

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
