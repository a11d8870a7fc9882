//! JSON merge patches (RFC 7396), which change some members of a JSON object and leave the others as they are.
//!
//! Members that the patch does not name keep their text, byte for byte. A number that no `f64` can hold is not rounded.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

/// A JSON object whose members are not looked into.
type Members<'a> = BTreeMap<String, &'a RawValue>;

/// A document or a patch that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// The patch is not a JSON object.
    #[error("the patch must be a JSON object, such as {{\"currency\": \"EUR\"}}")]
    Patch,
    /// The payload is not a JSON object.
    #[error(
        "the payload is not a JSON object, so it cannot be merged with a patch; replace it as a whole"
    )]
    Payload,
}

/// The document after the patch. Its members are in the order of their names.
///
/// # Errors
/// [`MergeError`] if either of them is not a JSON object.
pub fn merged(document: &[u8], patch: &str) -> Result<Vec<u8>, MergeError> {
    let patch: Members<'_> = serde_json::from_str(patch).map_err(|_| MergeError::Patch)?;
    let document: Members<'_> =
        serde_json::from_slice(document).map_err(|_| MergeError::Payload)?;
    serde_json::to_vec(&merge(document.into_iter().map(owned).collect(), patch))
        .map_err(|_| MergeError::Payload)
}

fn owned((name, value): (String, &RawValue)) -> (String, Box<RawValue>) {
    (name, value.to_owned())
}

/// Nested objects are merged as deep as the patch goes, which serde_json limits.
fn merge(
    mut document: BTreeMap<String, Box<RawValue>>,
    patch: Members<'_>,
) -> BTreeMap<String, Box<RawValue>> {
    for (name, value) in patch {
        if value.get() == "null" {
            document.remove(&name);
            continue;
        }
        let merged = serde_json::from_str::<Members<'_>>(value.get()).ok().and_then(|inner| {
            let before = document.get(&name);
            let before: Members<'_> = before
                .and_then(|before| serde_json::from_str(before.get()).ok())
                .unwrap_or_default();
            let after = merge(before.into_iter().map(owned).collect(), inner);
            serde_json::value::to_raw_value(&after).ok()
        });
        document.insert(name, merged.unwrap_or_else(|| value.to_owned()));
    }
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(document: &str, patch: &str) -> String {
        String::from_utf8(merged(document.as_bytes(), patch).unwrap()).unwrap()
    }

    /// From the appendix of RFC 7396, as far as both are objects.
    #[test]
    fn the_examples_of_the_rfc_hold() {
        for (document, patch, wanted) in [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"a":null}"#, "{}"),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
            (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#),
            (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
            (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"a":1,"e":null}"#),
            (r#"{}"#, r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
        ] {
            assert_eq!(after(document, patch), wanted, "{document} {patch}");
        }
    }

    #[test]
    fn what_the_patch_does_not_name_keeps_its_text() {
        let document = r#"{"n":12345678901234567890.123456789,"o":{"z":1.10,"a":2}}"#;
        assert_eq!(
            after(document, r#"{"currency":"EUR","o":{"b":3}}"#),
            r#"{"currency":"EUR","n":12345678901234567890.123456789,"o":{"a":2,"b":3,"z":1.10}}"#
        );
    }

    #[test]
    fn only_objects_can_be_merged() {
        assert!(matches!(merged(b"[1]", "{}"), Err(MergeError::Payload)));
        assert!(matches!(merged(b"\xff", "{}"), Err(MergeError::Payload)));
        assert!(matches!(merged(b"{}", "[1]"), Err(MergeError::Patch)));
    }
}
