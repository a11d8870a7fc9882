//! Headers `Idempotency-Key`, one per line. They are either refused, or they are a key that is the same in quotes.
#![no_main]

use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use pillarbox_inbox::http::key_of;

const NAME: &str = "idempotency-key";

fuzz_target!(|data: &[u8]| {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(3) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(NAME, value);
        }
    }
    let Ok(Some(key)) = key_of(&headers) else { return };
    assert!((1..=255).contains(&key.len()), "{key}");
    let quoted = format!("\"{}\"", key.replace('\\', r"\\").replace('"', r#"\""#));
    headers.clear();
    headers.insert(NAME, HeaderValue::from_str(&quoted).expect("printable ASCII"));
    assert_eq!(key_of(&headers).expect("the same key"), Some(key));
});
