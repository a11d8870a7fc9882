//! A row of the outbox: lines with type, topic, key and the headers' JSON, then the payload. It is either refused, or
//! it is an event that survives the wire.
#![no_main]

use std::collections::BTreeMap;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use pillarbox_event::{EventId, RawEvent};

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.splitn(5, '\n');
    let mut next = || lines.next().unwrap_or_default().to_owned();
    let (event_type, topic, key, headers, payload) = (next(), next(), next(), next(), next());
    let Ok(headers) = serde_json::from_str::<BTreeMap<String, String>>(&headers) else { return };
    let key = (!key.is_empty()).then_some(key);
    let (id, payload) = (EventId::generate(), Bytes::from(payload));
    let Ok(event) = RawEvent::from_parts(id, event_type, topic, key, headers, payload) else {
        return;
    };
    let sent: Vec<_> = event.wire_headers().collect();
    let headers = sent.iter().map(|(name, value)| (*name, value.as_ref()));
    let again = RawEvent::from_wire(event.topic(), headers, event.payload().clone());
    assert_eq!(again.expect("what was sent can be read"), event);
});
