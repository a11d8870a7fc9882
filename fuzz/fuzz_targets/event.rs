//! A message from outside: lines `name: value`, an empty line, the payload. It is either refused, or it is an event
//! that survives the wire.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use pillarbox_event::{RawEvent, header};

fuzz_target!(|data: &[u8]| {
    let (head, payload) = match data.windows(2).position(|pair| pair == b"\n\n") {
        Some(end) => (&data[..end], &data[end + 2..]),
        None => (data, &b""[..]),
    };
    let head = String::from_utf8_lossy(head);
    let mut lines = head.lines();
    let topic = lines.next().unwrap_or_default();
    let headers = lines.map(|line| line.split_once(": ").unwrap_or((line, "")));
    let Ok(event) = RawEvent::from_wire(topic, headers, Bytes::copy_from_slice(payload)) else {
        return;
    };
    for (name, value) in event.headers() {
        header::validate(name, value).expect("an event is always valid");
    }
    let sent: Vec<_> = event.wire_headers().collect();
    for (name, value) in &sent {
        assert!(!name.contains(['\r', '\n', ':']) && !value.contains(['\r', '\n']), "{sent:?}");
    }
    let headers = sent.iter().map(|(name, value)| (*name, value.as_ref()));
    let again = RawEvent::from_wire(event.topic(), headers, event.payload().clone());
    assert_eq!(again.expect("what was sent can be read"), event);
});
