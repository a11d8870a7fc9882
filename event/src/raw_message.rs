//! Whether a NATS client can hand a message on, judged by the message's bytes.
//!
//! A server stores the bytes of a header block as it gets them, and clients are less patient: the one that the consumer
//! reads with takes a block that it cannot parse for a lost connection, and gets the same message again over the next
//! one. So a consumer looks at a message where it is stored, and [`fault_in`] says what is wrong with it.

/// Why a client would not hand on a message with this subject and this header block. `None` if it would.
///
/// `headers` are the bytes of the whole block, with the line `NATS/1.0`; empty for a message without headers. The text
/// is for people.
///
/// ```
/// use pillarbox_event::raw_message::fault_in;
///
/// assert_eq!(fault_in("orders.placed", b"NATS/1.0\r\nce-id: 7\r\n\r\n"), None);
/// assert_eq!(fault_in("orders.placed", b"NATS/1.0\r\nname: Caf\xe9\r\n\r\n"), Some("its headers are not UTF-8"));
/// ```
pub fn fault_in(subject: &str, headers: &[u8]) -> Option<&'static str> {
    // The server tells bytes that are not UTF-8 as U+FFFD.
    if subject.contains(|c: char| c == '\u{fffd}' || c.is_whitespace()) {
        return Some("its subject is not UTF-8, or holds a blank");
    }
    if headers.is_empty() {
        return None;
    }
    let Ok(headers) = std::str::from_utf8(headers) else {
        return Some("its headers are not UTF-8");
    };
    let mut lines = headers.lines().peekable();
    let Some(status) = lines.next().and_then(|line| line.strip_prefix("NATS/1.0")) else {
        return Some("its headers do not begin with NATS/1.0");
    };
    if !status.trim().is_empty() {
        return Some("its headers begin with a status, as only the server's own messages do");
    }
    while let Some(line) = lines.next() {
        if line.is_empty() {
            continue;
        }
        let Some((name, value)) = line.split_once(':') else {
            return Some("a line of its headers has no colon");
        };
        if name.contains(|c: char| !c.is_ascii_graphic()) {
            return Some(
                "the name of a header holds a blank or another character that no name has",
            );
        }
        // As the client reads it: only the end of the last line is cut off.
        let mut value = value.trim_start().to_owned();
        while let Some(more) = lines.next_if(|line| line.starts_with(char::is_whitespace)) {
            value.push_str(more);
        }
        if value.trim_end().contains('\r') {
            return Some("the value of a header holds a carriage return");
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_fault_is_named_and_what_can_be_parsed_has_none() {
        let good: [&[u8]; 8] = [
            b"",
            b"NATS/1.0\r\n\r\n",
            b"NATS/1.0\r\na: b\r\nc:d\r\n\r\n",
            b"NATS/1.0\r\na: Caf\xc3\xa9\r\n\r\n",
            b"NATS/1.0\r\na: b\r\n more\r\n\r\n",
            b"NATS/1.0\r\na: b\r\x0b\r\n \r\n\r\n",
            b"NATS/1.0\r\n: b\r\n\r\n",
            b"NATS/1.0\r\na: b",
        ];
        for headers in good {
            assert_eq!(fault_in("orders.placed", headers), None, "{headers:?}");
        }
        let bad: [(&[u8], &str); 11] = [
            (b"NATS/1.0\r\na: Caf\xe9\r\n\r\n", "UTF-8"),
            (b"a: b\r\n\r\n", "begin with NATS/1.0"),
            (b"NATS/1.0 404\r\n\r\n", "status"),
            (b"NATS/1.0 abc\r\n\r\n", "status"),
            (b"NATS/1.0\r\nno colon\r\n\r\n", "colon"),
            (b"NATS/1.0\r\na b: c\r\n\r\n", "name"),
            (b"NATS/1.0\r\na\0b: c\r\n\r\n", "name"),
            (b"NATS/1.0\r\na: b\rc\r\n\r\n", "carriage return"),
            (b"NATS/1.0\r\na: b\r \r\n more\r\n\r\n", "carriage return"),
            (b"NATS/1.0\r\na: b\r\n\rmore\r\n\r\n", "carriage return"),
            (b"NATS/1.0\r\na: b\r\x0b\r\n\rs r:c\r\n\r\n", "carriage return"),
        ];
        for (headers, fault) in bad {
            let found = fault_in("orders.placed", headers).unwrap();
            assert!(found.contains(fault), "{headers:?}: {found}");
        }
        assert!(fault_in("orders.\u{fffd}", b"").is_some());
        assert!(fault_in("orders.\u{a0}placed", b"").is_some());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_the_bytes_are_they_have_a_fault_or_none(
            subject in any::<String>(),
            bytes in vec(any::<u8>(), 0..200),
            begins in any::<bool>(),
            pieces in vec(
                prop_oneof![
                    Just(&b"\r\n"[..]), Just(&b"\n"[..]), Just(&b"\r"[..]), Just(&b":"[..]), Just(&b" "[..]),
                    Just(&b"\t"[..]), Just(&b"a"[..]), Just(&b"\0"[..]), Just(&b"\xff"[..]), Just(&b"\xc2\xa0"[..]),
                ],
                0..30,
            ),
        ) {
            fault_in(&subject, &bytes);
            let start: &[u8] = if begins { b"NATS/1.0" } else { b"" };
            let block = [start, &pieces.concat()].concat();
            let fault = fault_in("orders.placed", &block);
            if std::str::from_utf8(&block).is_err() || (!begins && !block.is_empty()) {
                prop_assert!(fault.is_some(), "{block:?}");
            }
        }
    }
}
