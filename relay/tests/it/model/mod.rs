//! The cursor, the lease and scheduled events as state machines: every order of their steps, for small numbers of
//! everything.
//!
//! [`stateright`] visits all states that can be reached, tells them apart by 64-bit fingerprints, and asks of each
//! whether the promises hold. A rule that looks right and is not must be refuted by the same model: the test then
//! prints the shortest story. `docs/model.md` tells what is proved, at which sizes, and what is left out.
//!
//! ```sh
//! cargo test --test relay model:: -- --nocapture                       # counts of states, and the stories
//! cargo test --release --test relay model:: -- --nocapture --ignored   # larger numbers of everything
//! ```
//!
//! | module | concept |
//! |---|---|
//! | [`cursor`] | the model of the cursor: writers, a relay, what must hold |
//! | [`postgres`] | transaction ids, snapshots, positions, row locks |
//! | [`relay`] | reading page by page, on the [`Cursor`](pillarbox_relay::cursor::Cursor) that is shipped |
//! | [`rule`] | the rule that the cursor goes by, and the wrong ones |
//! | [`lease`] | the model of the lease: relays, clocks, what must hold |
//! | [`database`] | the row in `pillarbox.relay` |
//! | [`broker`] | a stream that drops repeats |
//! | [`scheduled`] | the model of scheduled events: releases, takeovers, cancels |
//! | [`check`] | running a check, printing what came of it |

mod broker;
mod check;
mod cursor;
mod database;
mod lease;
mod postgres;
mod relay;
mod rule;
mod scheduled;

use check::{proved, refuted};
use cursor::{LOST, Outbox, SHIPPED_RIGHT};
use lease::{FORMER_WRITES_NOTHING, FORWARD, LeaseRule, ONE_SENDS, Relays, STORED};
use postgres::Carried;
use rule::Rule;
use scheduled::{FALSE_HAS_LEFT, FENCED, NOT_EARLY, ONCE, ReleaseRule, Releases, TRUE_IS_GONE};

fn outbox(rule: Rule) -> Outbox {
    Outbox {
        rule,
        transactions: 3,
        rows: 3,
        keys: 2,
        page_sizes: &[1, 2],
        crashes: 0,
        foreign: 0,
        carried: &[],
        moved: false,
    }
}

fn relays(rule: LeaseRule) -> Relays {
    Relays { rule, relays: 2, events: 2, epochs: 3, lease: 2, slow_clocks: false, forgets: false }
}

#[test]
fn the_cursor_loses_nothing_and_keeps_keys_in_order() {
    proved(Outbox { rows: 4, ..outbox(Rule::Shipped) });
}

#[test]
fn so_it_does_when_the_relay_dies_in_a_window() {
    proved(Outbox { transactions: 2, crashes: 1, ..outbox(Rule::Shipped) });
    proved(Outbox { rows: 2, crashes: 1, ..outbox(Rule::Shipped) });
}

#[test]
#[ignore = "takes minutes, and wants --release"]
fn so_it_does_in_a_larger_world() {
    proved(Outbox { transactions: 4, rows: 4, ..outbox(Rule::Shipped) });
    proved(Outbox { crashes: 1, ..outbox(Rule::Shipped) });
    proved(Outbox { rows: 2, crashes: 2, ..outbox(Rule::Shipped) });
}

#[test]
fn a_floor_that_does_not_lag_loses_a_row() {
    refuted(outbox(Rule::FloorIsHigh), LOST);
}

#[test]
fn without_an_id_spent_between_windows_a_row_is_lost() {
    refuted(outbox(Rule::NoIdSpent), LOST);
}

#[test]
fn a_scan_from_the_floor_alone_loses_a_row_that_was_in_flight() {
    refuted(outbox(Rule::InFlightIgnored), LOST);
}

#[test]
fn judging_what_has_finished_by_an_earlier_snapshot_loses_a_row() {
    refuted(outbox(Rule::FinishedJudgedEarlier), LOST);
}

#[test]
fn the_snapshot_of_another_statement_repeats_a_row() {
    refuted(outbox(Rule::SnapshotOfAnotherStatement), SHIPPED_RIGHT);
}

#[test]
fn position_above_last_loses_a_row() {
    refuted(outbox(Rule::PositionAboveLast), LOST);
}

#[test]
fn the_order_of_ids_turns_a_key_around() {
    refuted(Outbox { page_sizes: &[4], ..outbox(Rule::OrderedById) }, SHIPPED_RIGHT);
}

#[test]
fn the_snapshots_word_alone_ships_what_was_rolled_back() {
    refuted(outbox(Rule::RolledBackSeen), SHIPPED_RIGHT);
}

/// With a row that somebody loads.
fn loading(rule: Rule) -> Outbox {
    let carried = &[Carried::Behind, Carried::Ahead, Carried::Own, Carried::Running];
    Outbox { transactions: 2, rows: 2, keys: 1, foreign: 1, carried, ..outbox(rule) }
}

/// Enough for a transaction that runs for long and loads a row then.
fn with_a_long_load(rule: Rule) -> Outbox {
    Outbox { transactions: 3, rows: 3, carried: &[Carried::Own], page_sizes: &[4], ..loading(rule) }
}

#[test]
fn rows_that_are_loaded_at_any_time_are_not_lost() {
    proved(loading(Rule::Shipped));
}

#[test]
fn so_it_is_when_the_outbox_has_come_from_another_cluster() {
    proved(Outbox { moved: true, rows: 1, ..loading(Rule::Shipped) });
}

#[test]
#[ignore = "takes minutes, and wants --release"]
fn so_it_is_with_more_that_is_loaded_and_a_relay_that_dies() {
    proved(with_a_long_load(Rule::Shipped));
    proved(Outbox { transactions: 3, ..loading(Rule::Shipped) });
    proved(Outbox { foreign: 2, rows: 1, ..loading(Rule::Shipped) });
    proved(Outbox { crashes: 1, rows: 1, ..loading(Rule::Shipped) });
}

#[test]
fn a_carried_id_that_is_believed_hides_a_row() {
    refuted(loading(Rule::CarriedIdBelieved), LOST);
    refuted(loading(Rule::CarriedIdBelieved), SHIPPED_RIGHT);
}

#[test]
fn without_a_sweep_a_row_at_a_low_position_is_lost() {
    refuted(loading(Rule::NoSweep), LOST);
}

#[test]
fn a_sweep_that_leaves_out_what_was_in_flight_loses_a_row() {
    refuted(with_a_long_load(Rule::SweepLeavesInFlightOut), LOST);
}

#[test]
fn what_an_old_snapshot_sees_was_not_shipped_if_it_came_later() {
    refuted(Outbox { moved: true, ..loading(Rule::CoveredWheneverItCame) }, LOST);
}

#[test]
fn one_relay_moves_the_cursor_and_a_former_leader_can_only_repeat() {
    proved(Relays { events: 3, epochs: 4, ..relays(LeaseRule::Shipped) });
}

#[test]
fn so_it_is_when_their_clocks_go_slow() {
    proved(Relays { slow_clocks: true, events: 1, ..relays(LeaseRule::Shipped) });
}

#[test]
fn so_it_is_when_the_broker_forgets_what_it_has_seen() {
    proved(Relays { forgets: true, ..relays(LeaseRule::Shipped) });
}

#[test]
fn so_it_is_with_three_relays() {
    proved(Relays { relays: 3, ..relays(LeaseRule::Shipped) });
}

#[test]
#[ignore = "takes minutes, and wants --release"]
fn so_it_is_in_a_larger_world() {
    let all = Relays { slow_clocks: true, forgets: true, ..relays(LeaseRule::Shipped) };
    proved(Relays { relays: 3, ..all.clone() });
    proved(Relays { epochs: 4, lease: 3, ..all });
}

#[test]
fn without_the_epoch_a_former_leader_moves_the_cursor() {
    refuted(relays(LeaseRule::NoEpoch), FORMER_WRITES_NOTHING);
    refuted(relays(LeaseRule::NoEpoch), FORWARD);
}

#[test]
fn without_a_look_at_its_clock_a_former_leader_sends() {
    refuted(relays(LeaseRule::NoClock), ONE_SENDS);
}

#[test]
fn a_cursor_saved_before_the_event_is_stored_loses_it() {
    refuted(relays(LeaseRule::SavedBeforeStored), STORED);
}

fn releases(rule: ReleaseRule) -> Releases {
    Releases { rule, events: 1, cancels: 2, epochs: 2, releases: 3, jumps: false }
}

#[test]
fn a_scheduled_event_leaves_once_when_it_is_due_or_is_cancelled() {
    proved(Releases { events: 2, epochs: 3, ..releases(ReleaseRule::Shipped) });
}

#[test]
fn so_it_does_when_the_clock_jumps() {
    proved(Releases { events: 2, jumps: true, ..releases(ReleaseRule::Shipped) });
}

#[test]
fn a_lease_that_is_looked_at_before_the_lock_lets_a_former_leader_release() {
    refuted(releases(ReleaseRule::LeaseSeenEarlier), FENCED);
}

#[test]
fn a_lease_that_is_not_locked_lets_a_former_leader_release() {
    refuted(releases(ReleaseRule::LeaseNotLocked), FENCED);
}

#[test]
fn a_row_that_is_read_without_a_lock_leaves_although_it_was_cancelled() {
    refuted(releases(ReleaseRule::NotLocked), TRUE_IS_GONE);
}

#[test]
fn a_row_that_is_deleted_later_leaves_twice_or_after_its_cancel() {
    refuted(releases(ReleaseRule::DeletedLater), ONCE);
    refuted(releases(ReleaseRule::DeletedLater), TRUE_IS_GONE);
}

#[test]
fn by_a_clock_of_the_relays_own_an_event_leaves_early() {
    refuted(releases(ReleaseRule::OwnClock), NOT_EARLY);
}

#[test]
fn a_cancel_that_does_not_wait_says_no_and_the_event_stays() {
    refuted(releases(ReleaseRule::CancelDoesNotWait), FALSE_HAS_LEFT);
}
