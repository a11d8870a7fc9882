//! Ages on the command line.

/// Reads an age such as `90s`, `15m`, `1h` or `2d`.
pub(super) fn seconds(text: &str) -> Result<i64, String> {
    let (number, unit) = text.split_at(text.trim_end_matches(|c: char| !c.is_ascii_digit()).len());
    let unit = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err("an age must be a number followed by s, m, h or d, such as 15m".into()),
    };
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("an age must begin with a number, such as 15m".into());
    }
    let number: Option<i64> = number.parse().ok();
    number.and_then(|number| number.checked_mul(unit)).ok_or_else(|| "the age is too large".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_a_unit_or_is_in_seconds() {
        for (text, wanted) in
            [("0", 0), ("90", 90), ("90s", 90), ("15m", 900), ("1h", 3_600), ("2d", 172_800)]
        {
            assert_eq!(seconds(text), Ok(wanted), "{text}");
        }
        for text in ["", "h", "1w", "1.5h", "-1h", "1hh", "9223372036854775807d"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
