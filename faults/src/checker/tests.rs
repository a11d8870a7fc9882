//! Tests the checker with histories made by hand: it finds each violation, and nothing else.

use super::*;
use crate::event::Drawn;
use crate::history::{
    Cancel, Committed, CursorWrite, Dead, Foreign, Loss, Scheduled, Stored, Written,
};

const LEDGER: &str = "ledger";

/// A history without a violation: one consumer that keeps order, and events `a1` to `a4` of one key.
pub(crate) fn well() -> History {
    let mut history = History { consumers: vec![(LEDGER, true)], ..History::default() };
    for number in 1..=4 {
        let id = format!("a{number}");
        history.written.push(Written {
            event: Drawn { id: id.clone(), key: Some("a".into()), number, kind: Kind::Plain },
            by: "writer-0".into(),
            at: number * 10,
            told: Told::Committed,
            told_at: number * 10 + 1,
        });
        history.committed.push(Committed {
            id: id.clone(),
            position: number,
            txid: number.to_string(),
        });
        history.stored.push(Stored {
            id: id.clone(),
            look: 0,
            sequence: number.unsigned_abs(),
            at: number * 10 + 2,
        });
        history.effects.push(Effect {
            seq: number,
            at: number * 10 + 3,
            consumer: LEDGER.into(),
            process: "ledger-0".into(),
            id,
            key: Some("a".into()),
            number,
            previous: (number > 1).then_some(number - 1),
        });
    }
    history
}

/// The effects in this order. Each one sees those before it.
pub(crate) fn reorder(history: &mut History, order: &[usize]) {
    let before = history.effects.clone();
    let mut highest = None;
    history.effects = order
        .iter()
        .zip(1..)
        .map(|(place, seq)| {
            let effect = Effect { seq, previous: highest, ..before[*place].clone() };
            highest = highest.max(Some(effect.number));
            effect
        })
        .collect();
}

fn id(text: &str) -> String {
    text.to_owned()
}

#[test]
fn a_history_that_is_well_is_found_well() {
    assert_eq!(check(&well()), []);
    assert_eq!(check(&History::default()), []);
}

#[test]
fn an_event_without_an_effect_is_lost() {
    let mut history = well();
    history.effects.pop();
    assert_eq!(check(&history), [Violation::Lost { id: id("a4"), consumer: Some(id(LEDGER)) }]);
}

#[test]
fn a_scheduled_event_comes_once_and_not_too_early_unless_it_was_cancelled() {
    let after = |cancels: &[bool], released: &[i64]| {
        let mut history = well();
        // `a1` comes from the outbox like any other event.
        let (id, released) = (id("a1"), released.to_vec());
        history.scheduled.push(Scheduled { id: id.clone(), due: 100, released });
        let answer = |cancelled: &bool| Cancel { id: id.clone(), cancelled: *cancelled };
        history.cancels = cancels.iter().map(answer).collect();
        check(&history)
    };
    let wrong = |what| [Violation::WronglyReleased { id: id("a1"), what }];
    assert_eq!(after(&[], &[100]), []);
    assert_eq!(after(&[false, false], &[101]), []);
    assert_eq!(after(&[true, false], &[]), []);
    assert_eq!(after(&[], &[99]), wrong("it came before it was due"));
    assert_eq!(after(&[], &[]), wrong("it was not cancelled, and never came"));
    assert_eq!(after(&[false], &[]), wrong("it was not cancelled, and never came"));
    assert_eq!(after(&[], &[100, 101]), wrong("it came more than once"));
    assert_eq!(after(&[true], &[100]), wrong("it was cancelled, and came"));
    assert_eq!(after(&[true, true], &[]), wrong("it was cancelled more than once"));
    let mut history = well();
    history.cancels.push(Cancel { id: id("a1"), cancelled: true });
    assert_eq!(check(&history), wrong("it was cancelled, and never scheduled"));
}

#[test]
fn a_second_effect_is_a_repeat() {
    let mut history = well();
    let again = Effect { seq: 9, previous: Some(4), ..history.effects[1].clone() };
    history.effects.push(again);
    let repeated = Violation::Repeated { id: id("a2"), consumer: id(LEDGER), times: 2 };
    assert_eq!(check(&history), [repeated]);
}

#[test]
fn an_effect_of_what_is_not_committed_is_found() {
    let mut history = well();
    history.committed.pop();
    history.written[3].told = Told::RolledBack;
    let wrong = Violation::NotCommitted { id: id("a4"), consumer: id(LEDGER) };
    assert_eq!(check(&history), [wrong]);
}

#[test]
fn an_unknown_commit_is_decided_by_the_outbox() {
    let mut history = well();
    history.written[3].told = Told::Unknown;
    assert_eq!(check(&history), []);
    history.committed.pop();
    history.effects.pop();
    assert_eq!(check(&history), []);
}

#[test]
fn a_writer_that_was_told_wrong_is_believed_rather_than_the_outbox() {
    let mut history = well();
    history.written[0].told = Told::RolledBack;
    assert_eq!(check(&history), [Violation::ToldWrong { id: id("a1"), told: "rolled back" }]);
    let mut history = well();
    history.committed.pop();
    history.effects.pop();
    assert_eq!(check(&history), [Violation::ToldWrong { id: id("a4"), told: "committed" }]);
}

#[test]
fn an_effect_behind_a_later_one_of_its_key_is_out_of_order() {
    let mut history = well();
    reorder(&mut history, &[0, 2, 1, 3]);
    let wrong = Violation::OutOfOrder { id: id("a2"), behind: id("a3"), consumer: id(LEDGER) };
    assert_eq!(check(&history), [wrong]);
    history.consumers = vec![(LEDGER, false)];
    assert_eq!(check(&history), [], "nobody promised an order");
}

#[test]
fn what_was_stored_between_a_loss_and_its_discovery_may_come_first_and_nothing_else() {
    let mut history = well();
    reorder(&mut history, &[0, 2, 1, 3]);
    // a3 was stored at 32.
    let loss = Loss { began: 31, discovered: Some(33), how: id("wiped") };
    history.losses = vec![loss.clone()];
    assert_eq!(check(&history), []);
    history.losses = vec![Loss { began: 33, discovered: Some(60), ..loss.clone() }];
    assert_eq!(check(&history).len(), 1);
    // a3 is allowed, and a4 is not.
    history.losses = vec![loss];
    reorder(&mut history, &[0, 1, 3, 2]);
    let behind = check(&history);
    assert!(
        matches!(&behind[..], [Violation::OutOfOrder { behind, .. }] if behind == "a4"),
        "{behind:?}"
    );
}

#[test]
fn a_handler_that_ran_beside_another_of_its_key_is_found() {
    let mut history = well();
    history.effects[2].previous = Some(1);
    let wrong = Violation::SideBySide { id: id("a3"), consumer: id(LEDGER) };
    assert_eq!(check(&history), [wrong]);
}

#[test]
fn poison_belongs_to_the_dead_letters_and_to_those_of_its_kind() {
    let dead = |consumer: Option<&str>, id: &str| Dead {
        consumer: consumer.map(str::to_owned),
        id: id.to_owned(),
        reason: "permanent".into(),
        error: String::new(),
        at: 50,
    };
    let mut history = well();
    history.written[1].event.kind = Kind::Refused;
    history.written[2].event.kind = Kind::TooLarge;
    history.effects.drain(1..3);
    history.effects[1].previous = Some(1);
    let lost = |consumer: Option<&str>, id: &str| Violation::Lost {
        id: id.to_owned(),
        consumer: consumer.map(str::to_owned),
    };
    assert_eq!(check(&history), [lost(Some(LEDGER), "a2"), lost(None, "a3")]);
    history.dead = vec![dead(Some(LEDGER), "a2"), dead(None, "a3")];
    assert_eq!(check(&history), []);
    history.dead.push(dead(None, "a4"));
    assert!(matches!(&check(&history)[..], [Violation::WronglyDead { id, .. }] if id == "a4"));
    let mut history = well();
    history.dead = vec![dead(Some(LEDGER), "a1")];
    assert!(matches!(&check(&history)[..], [Violation::WronglyDead { id, .. }] if id == "a1"));
}

/// Adds two foreign messages to the events. The first took effect. The second cannot be read, and is a dead letter.
fn with_foreign() -> History {
    let mut history = well();
    for (number, readable) in [(1, true), (2, false)] {
        history.foreign.push(Foreign {
            name: format!("foreign-{number}"),
            habit: "Odd".into(),
            readable,
            at: 20,
            told_at: Some(21),
        });
    }
    history.effects.push(Effect {
        seq: 5,
        id: id("foreign-1"),
        key: None,
        ..history.effects[0].clone()
    });
    history.dead.push(Dead {
        consumer: Some(id(LEDGER)),
        id: id("foreign-2"),
        reason: "undecodable".into(),
        error: String::new(),
        at: 25,
    });
    assert_eq!(check(&history), []);
    history
}

#[test]
fn a_foreign_event_takes_effect_once_and_an_unreadable_message_is_one_dead_letter() {
    let mut history = with_foreign();
    history.effects.push(Effect { seq: 6, ..history.effects[4].clone() });
    history.dead.push(history.dead[0].clone());
    let found = check(&history);
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(
        found[0],
        Violation::Repeated { id: id("foreign-1"), consumer: id(LEDGER), times: 2 }
    );
    assert!(
        matches!(&found[1], Violation::WronglyDead { id, what, .. } if id == "foreign-2" && what == "2 dead letters"),
        "{found:?}"
    );

    let mut history = with_foreign();
    (history.dead[0].id, history.effects[4].id) = (id("foreign-1"), id("foreign-2"));
    let found = check(&history);
    assert!(
        matches!(&found[..], [Violation::WronglyDead { .. }, Violation::WronglyDead { .. }]),
        "{found:?}"
    );

    let mut history = with_foreign();
    history.dead[0].id = id("foreign-3");
    let found = check(&history);
    assert_eq!(found.len(), 2, "what nobody sent, and what is missing: {found:?}");
}

#[test]
fn a_foreign_message_is_lost_only_with_the_stream() {
    let mut history = with_foreign();
    history.effects.pop();
    history.dead.pop();
    let lost = |name: &str| Violation::Lost { id: id(name), consumer: Some(id(LEDGER)) };
    assert_eq!(check(&history), [lost("foreign-1"), lost("foreign-2")]);
    // A message that the broker never acknowledged need not be there.
    history.foreign[0].told_at = None;
    assert_eq!(check(&history), [lost("foreign-2")]);
    history.losses = vec![Loss { began: 19, discovered: Some(20), how: id("wiped") }];
    assert_eq!(check(&history), [lost("foreign-2")], "that was before");
    history.losses[0].discovered = Some(30);
    assert_eq!(check(&history), []);
    // A message that the stream still holds must be there.
    history.stored.push(Stored { id: id("foreign-1"), look: 0, sequence: 9, at: 21 });
    assert_eq!(check(&history), [lost("foreign-1")]);
}

/// The lease is taken over connection 1, which then moves the cursor, and then over connection 2, which moves it too.
pub(crate) fn cursor_of_two() -> History {
    let write = |at, backend, took, epoch, high| CursorWrite {
        at,
        backend,
        took,
        epoch,
        holder: id("somebody"),
        high,
        back: false,
    };
    let mut history = well();
    history.cursor = vec![
        write(1, 1, true, 1, 0),
        write(2, 1, false, 1, 2),
        write(3, 2, true, 2, 2),
        write(4, 2, false, 2, 4),
    ];
    assert_eq!(check(&history), []);
    history
}

#[test]
fn a_cursor_moved_by_who_no_longer_leads_is_found() {
    let mut history = cursor_of_two();
    history.cursor[3].backend = 1;
    assert_eq!(check(&history), [Violation::Unfenced { epoch: 2, at: 4 }]);
}

#[test]
fn a_cursor_goes_back_for_a_loss_and_for_nothing_else() {
    let mut history = cursor_of_two();
    // Also within a window, where the highest position does not change.
    for high in [1, 2] {
        history.cursor[3] = CursorWrite { high, back: true, ..history.cursor[3].clone() };
        assert_eq!(check(&history), [Violation::MovedBack { from: 2, to: high, at: 4 }]);
    }
    history.losses = vec![Loss { began: 4, discovered: Some(4), how: id("wiped") }];
    assert_eq!(check(&history), []);
    history.losses[0].discovered = None;
    let unnoticed = Violation::Unnoticed { at: 4, how: id("wiped") };
    assert_eq!(check(&history), [unnoticed]);
}

#[test]
fn what_still_waits_or_died_by_itself_is_told() {
    let mut history = well();
    history.left = vec![(id("events in the backlog"), 3)];
    history.ended = vec![(7, id("relay-0 with signal 6"))];
    assert_eq!(
        check(&history),
        [
            Violation::Stuck { what: id("events in the backlog"), count: 3 },
            Violation::Ended { what: id("relay-0 with signal 6"), at: 7 },
        ]
    );
}
