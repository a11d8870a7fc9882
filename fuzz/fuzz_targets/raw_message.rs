//! A message as a stream stores it: the subject, a line feed, the header block with its empty line, the payload. A
//! fault is named, or it is read as the client that hands it on reads it, and then it is an event or refused.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use pillarbox_event::RawEvent;
use pillarbox_event::raw_message::fault_in;

fuzz_target!(|data: &[u8]| {
    let (subject, rest) = match data.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&data[..end], &data[end + 1..]),
        None => (data, &b""[..]),
    };
    let (block, payload) = match rest.windows(4).position(|four| four == b"\r\n\r\n") {
        Some(end) => rest.split_at(end + 4),
        None => (&b""[..], rest),
    };
    let subject = String::from_utf8_lossy(subject);
    if fault_in(&subject, block).is_some() {
        return;
    }
    assert!(!subject.chars().any(char::is_whitespace));
    let text = std::str::from_utf8(block).expect("what has no fault is UTF-8");
    let mut lines = text.lines().peekable();
    let version = lines.next().unwrap_or("NATS/1.0");
    assert_eq!(version.strip_prefix("NATS/1.0").map(str::trim), Some(""));
    let mut headers = Vec::new();
    while let Some(line) = lines.next() {
        if line.is_empty() {
            continue;
        }
        let (name, value) = line.split_once(':').expect("each header has a colon");
        assert!(name.bytes().all(|byte| byte.is_ascii_graphic()), "{name:?}");
        let mut value = value.trim_start().to_owned();
        while let Some(more) = lines.next_if(|line| line.starts_with(char::is_whitespace)) {
            value.push_str(more);
        }
        let value = value.trim_end();
        assert!(!value.contains(['\r', '\n']), "{value:?}");
        headers.push((name, value.to_owned()));
    }
    let headers = headers.iter().map(|(name, value)| (*name, value.as_str()));
    // An event or an error, and no panic.
    let _ = RawEvent::from_wire(&subject, headers, Bytes::copy_from_slice(payload));
});
