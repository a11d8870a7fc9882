//! The text of a snapshot, and the column `cursor`. Each is either refused or comes back unchanged.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pillarbox_relay::cursor::{Cursor, Snapshot};

fuzz_target!(|text: &str| {
    if let Ok(snapshot) = text.parse::<Snapshot>() {
        let again = snapshot.to_string().parse::<Snapshot>();
        assert_eq!(again.expect("what was printed can be read"), snapshot);
        assert!(snapshot.in_progress().iter().all(|xid| !snapshot.has_finished(*xid)));
        assert!(!snapshot.has_finished(snapshot.xmax()));
    }
    if let Ok(cursor) = serde_json::from_str::<Cursor>(text) {
        let column = serde_json::to_string(&cursor).expect("a cursor can be written");
        let again = serde_json::from_str::<Cursor>(&column);
        assert_eq!(again.expect("what was written can be read"), cursor);
        if let Some(window) = &cursor.window {
            let closed = cursor.close(&window.snapshot, Some(window.position), None);
            assert_eq!((closed.floor, closed.window), (cursor.high, None));
        }
    }
});
