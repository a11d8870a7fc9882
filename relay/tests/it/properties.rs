//! What holds for every cursor, whatever somebody wrote.

use std::collections::BTreeSet;

use pillarbox_relay::cursor::{Before, Cursor, FloorMark, Snapshot, TableId, Window};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;

fn properties() -> ProptestConfig {
    ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() }
}

fn snapshot() -> impl Strategy<Value = Snapshot> {
    let ids = prop_oneof![3 => 1..60_u64, 1 => 1..u64::MAX];
    (ids.clone(), ids.clone(), btree_set(ids, 0..6)).prop_map(|(a, b, listed)| {
        let (xmin, xmax) = (a.min(b), a.max(b));
        let listed: Vec<String> = listed
            .into_iter()
            .filter(|id| (xmin..xmax).contains(id))
            .map(|id| id.to_string())
            .collect();
        format!("{xmin}:{xmax}:{}", listed.join(",")).parse().unwrap()
    })
}

fn cursor() -> impl Strategy<Value = Cursor> {
    (
        any::<String>(),
        snapshot(),
        (any::<i64>(), any::<i64>()),
        btree_map(any::<u64>(), any::<i64>(), 0..4),
        option::of((snapshot(), any::<i64>())),
        option::of((snapshot(), vec((snapshot(), any::<i64>()), 0..3))),
        vec((snapshot(), any::<i64>(), btree_map(any::<u64>(), any::<i64>(), 0..3)), 0..3),
        option::of((any::<i64>(), option::of(any::<i64>()), option::of(any::<i64>()))),
    )
        .prop_map(
            |(cluster, snapshot, (high, floor), in_flight, window, before, marks, table)| {
                let table =
                    table.map(|(relation, sequence, file)| TableId { relation, sequence, file });
                let again_until = window.as_ref().map(|(snapshot, _)| snapshot.clone());
                Cursor {
                    system_identifier: cluster,
                    snapshot,
                    high,
                    top: high,
                    floor,
                    in_flight,
                    window: window.map(|(snapshot, position)| Window { snapshot, position }),
                    before: before.map(|(found, shipped)| Before { found, shipped }),
                    marks: marks
                        .into_iter()
                        .map(|(snapshot, floor, in_flight)| FloorMark {
                            snapshot,
                            floor,
                            in_flight,
                        })
                        .collect(),
                    table,
                    left_table: table.map(|table| table.relation),
                    again_until,
                }
            },
        )
}

proptest! {
    #![proptest_config(properties())]

    #[test]
    fn a_snapshot_comes_back_from_its_text(snapshot in snapshot()) {
        prop_assert_eq!(&snapshot.to_string().parse::<Snapshot>().unwrap(), &snapshot);
    }

    #[test]
    fn a_text_is_a_snapshot_or_refused_in_few_words(
        text in prop_oneof![any::<String>(), "[0-9:,+ -]{0,30}", "[1-9]{1,25}:[1-9]{1,25}:([1-9],?){0,200}"]
    ) {
        match text.parse::<Snapshot>() {
            Ok(snapshot) => {
                let printed = snapshot.to_string();
                prop_assert_eq!(printed.parse::<Snapshot>().unwrap(), snapshot);
            }
            Err(error) => prop_assert!(error.to_string().chars().count() < 1_200, "{}", error),
        }
    }

    #[test]
    fn a_transaction_has_finished_if_it_is_below_xmax_and_not_listed(snapshot in snapshot(), xid in 1..70_u64) {
        let listed = snapshot.in_progress().contains(&xid);
        prop_assert_eq!(snapshot.has_finished(xid), xid < snapshot.xmax() && !listed);
    }

    #[test]
    fn a_cursor_comes_back_from_its_column(cursor in cursor()) {
        let text = serde_json::to_string(&cursor).unwrap();
        prop_assert_eq!(serde_json::from_str::<Cursor>(&text).unwrap(), cursor);
    }

    #[test]
    fn a_cursor_column_of_any_text_is_read_or_refused(
        cursor in cursor(),
        text in any::<String>(),
        (at, with) in (any::<proptest::sample::Index>(), any::<char>()),
    ) {
        let _ = serde_json::from_str::<Cursor>(&text);
        let mut column: Vec<char> = serde_json::to_string(&cursor).unwrap().chars().collect();
        let at = at.index(column.len());
        column[at] = with;
        let column: String = column.into_iter().collect();
        if let Ok(cursor) = serde_json::from_str::<Cursor>(&column) {
            let text = serde_json::to_string(&cursor).unwrap();
            prop_assert_eq!(serde_json::from_str::<Cursor>(&text).unwrap(), cursor);
        }
    }

    /// Whatever windows follow each other: the floor is the `high` of the window before, neither goes back, and
    /// exactly those in progress are remembered, with lows that they had from the first.
    #[test]
    fn windows_move_a_cursor_forward(windows in vec((snapshot(), option::of(1..1_000_i64)), 1..8)) {
        let mut cursor = Cursor::start("x");
        for (window, largest) in windows {
            let next = cursor.close(&window, largest, Some(i64::MAX));
            prop_assert_eq!(&next.snapshot, &window);
            prop_assert_eq!(next.floor, cursor.high);
            prop_assert_eq!(next.high, cursor.high.max(largest.unwrap_or(0)));
            let in_flight: BTreeSet<_> = next.in_flight.keys().copied().collect();
            prop_assert_eq!(&in_flight, &window.in_progress().iter().copied().collect());
            for (xid, low) in &next.in_flight {
                prop_assert_eq!(low, cursor.in_flight.get(xid).unwrap_or(&cursor.floor));
            }
            cursor = next;
        }
    }
}
