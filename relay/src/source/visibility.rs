//! Pieces of SQL that say whether a snapshot can see a row, and more about a row. They are spliced into statements.
//!
//! `t` is the row's `txid`. `x` is its system column `xmin`, extended to 64 bits: the id under which somebody put the
//! row here. If a savepoint was used, that is a subtransaction's id. The statements call the table `outbox`.
//!
//! - If `t` is `x`, the row's transaction wrote it itself, and `t` alone decides. This is so for nearly every row.
//! - Otherwise it was written under a savepoint (then `t` is the transaction of `x`, and older), or it was loaded (then
//!   `t` is another cluster's). If `t` is above `x`, it was certainly loaded, because a transaction is never younger
//!   than its subtransactions. If `t` is below `x`, nothing distinguishes the two.
//! - `t` may be null if somebody dropped the column's constraint. Then `x` alone decides. If the rule were null, the
//!   row would be hidden from every page, and retention would remove it.
//!
//! There are two rules for rows where `t` and `x` differ. Both are exact for rows written under a savepoint, except for
//! the case below. Both assume that a snapshot has seen a row if `x` is older than everything that the snapshot knows
//! to be running.
//!
//! - [`:seen`](spliced): the snapshot also saw the row if it sees both `x` and `t`, or `x` alone if `t` is certainly
//!   another cluster's. A row that was loaded under a savepoint by a transaction that was still running is wrongly
//!   called seen.
//! - [`:surely_seen`](spliced): only if `t` could be the transaction of `x`, because it is not older than the oldest
//!   transaction that was running. A row is wrongly called unseen if its transaction had begun before the oldest
//!   running one, had ended, and wrote the row under a savepoint after that one had begun. It is then shipped once
//!   more, which at-least-once delivery allows. The first page of a window uses this rule.

/// Replaces in a statement
///
/// - `:seen(S)` by whether the snapshot `S` could see the row,
/// - `:surely_seen(S)` by the same, except that a mistake may only call a row unseen,
/// - `:covered(R, S, P)` by whether the row was shipped in another cluster: `R` is [`Before::found`], `S` and `P` are
///   arrays with the contents of [`Before::shipped`],
/// - `:awaited(X, L)` by whether the row may belong to a transaction in `X` and lies above the position where that
///   transaction began to write, which is at the same place in `L`,
/// - `:flushed()` by whether the row's commit is surely on disk: its own transaction wrote it here and had not turned
///   `synchronous_commit` off, and such a commit is flushed before anybody can see it. A loaded row says what was true
///   where it comes from, and a row that was written under a savepoint looks like a loaded one,
/// - `:own()` by whether its own transaction wrote it here. One that was written under a savepoint looks like a loaded
///   one,
/// - `:set_aside(N)` by whether the relay with this name has set the row aside, and has not shipped it since. The
///   letter is for the same event if position, id and time are the same, because positions and even ids are used again
///   when a table is emptied.
///
/// [`Before::found`]: crate::cursor::Before::found
/// [`Before::shipped`]: crate::cursor::Before::shipped
pub(crate) fn spliced(sql: &str) -> String {
    let mut text = sql.to_owned();
    for (mark, make) in [
        (":seen(", seen as fn(&[&str]) -> String),
        (":surely_seen(", surely_seen),
        (":covered(", covered),
        (":awaited(", awaited),
        (":flushed(", flushed),
        (":own(", own),
        (":set_aside(", set_aside),
    ] {
        while let Some((before, rest)) = text.split_once(mark) {
            let (arguments, after) = arguments(rest);
            text = format!("{before}{}{after}", make(&arguments));
        }
    }
    text
}

/// The arguments up to the closing bracket, and the text after it.
fn arguments(text: &str) -> (Vec<&str>, &str) {
    let (mut depth, mut from, mut found) = (0_usize, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' if depth > 0 => depth -= 1,
            ',' | ')' if depth == 0 => {
                found.push(text.get(from..at).unwrap_or_default().trim());
                from = at + 1;
                if c == ')' {
                    return (found, text.get(from..).unwrap_or_default());
                }
            }
            _ => {}
        }
    }
    (found, "")
}

/// The first id that the statement's own snapshot does not know.
const NEXT: &str = "(select pg_snapshot_xmax(pg_current_snapshot()))";

/// Whether the two ids agree, and the statement's own snapshot knows them.
const OWN: &str = "outbox.txid::xid = outbox.xmin and outbox.txid < (select pg_snapshot_xmax(pg_current_snapshot()))";

/// `x`: the largest id below the next one that ends in the 32 bits of `xmin`.
fn put_here() -> String {
    let next = format!("{NEXT}::text::bigint");
    format!(
        "(greatest({next} - (({next} - outbox.xmin::text::bigint) & 4294967295::bigint), 0::bigint))::text::xid8"
    )
}

fn seen(arguments: &[&str]) -> String {
    let s = snapshot(arguments.first());
    let x = put_here();
    let t = format!("coalesce(outbox.txid, {x})");
    format!(
        "(case when {OWN} then pg_visible_in_snapshot(outbox.txid, {s}) \
         else {x} < pg_snapshot_xmin({s}) or (pg_visible_in_snapshot({x}, {s}) and (\
         {t} > {x} or pg_visible_in_snapshot({t}, {s}))) end)"
    )
}

fn surely_seen(arguments: &[&str]) -> String {
    let s = snapshot(arguments.first());
    let x = put_here();
    format!(
        "(case when {OWN} then pg_visible_in_snapshot(outbox.txid, {s}) \
         else {x} < pg_snapshot_xmin({s}) or coalesce(outbox.txid >= pg_snapshot_xmin({s}) \
         and pg_visible_in_snapshot({x}, {s}) and pg_visible_in_snapshot(outbox.txid, {s}), false) end)"
    )
}

fn covered(arguments: &[&str]) -> String {
    let argument = |place: usize| arguments.get(place).copied().unwrap_or("null");
    let (found, snapshots, positions) = (argument(0), argument(1), argument(2));
    let (s, x) = (snapshot(Some(&found)), put_here());
    format!(
        "({found} is not null and outbox.txid is not null and outbox.txid::xid <> outbox.xmin and pg_visible_in_snapshot({x}, {s}) \
         and exists (select from unnest({snapshots}, {positions}) as shipped (snapshot, position) \
         where outbox.position <= shipped.position \
         and pg_visible_in_snapshot(outbox.txid, shipped.snapshot::pg_snapshot)))"
    )
}

fn awaited(arguments: &[&str]) -> String {
    let argument = |place: usize| arguments.get(place).copied().unwrap_or("null");
    let (xids, lows, x) = (argument(0), argument(1), put_here());
    format!(
        "exists (select from unnest({xids}, {lows}) as in_flight (xid, low) where in_flight.xid = outbox.txid \
         and outbox.txid <= {x} and outbox.position > in_flight.low)"
    )
}

fn flushed(_: &[&str]) -> String {
    format!("({OWN} and outbox.synchronous)")
}

fn own(_: &[&str]) -> String {
    format!("({OWN})")
}

fn set_aside(arguments: &[&str]) -> String {
    let relay = arguments.first().copied().unwrap_or("null");
    // With the same values for nulls as in dead_letters/set_aside.sql.
    format!(
        "exists (select from pillarbox.outbox_dead_letter as letter where letter.position = outbox.position \
         and letter.event_id = coalesce(outbox.event_id, '00000000-0000-0000-0000-000000000000'::uuid) \
         and letter.created_at = coalesce(outbox.created_at, '-infinity'::timestamptz) \
         and letter.relay = {relay} and letter.state <> 'retried')"
    )
}

/// Read once for the statement, not once for each row.
fn snapshot(argument: Option<&&str>) -> String {
    let argument = argument.copied().unwrap_or("null");
    match argument.starts_with('$') {
        true => format!("(select {argument}::text::pg_snapshot)"),
        false => argument.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mark_is_replaced_and_the_rest_stays() {
        let text = spliced(
            "select a where not :seen($1) and :seen(horizon.snapshot) and :covered((select a from b), $3::text[], $4) \
             and not :awaited($6, $7) and not :set_aside($5) and :flushed()",
        );
        for mark in [":seen", ":covered", ":awaited", ":flushed", ":set_aside"] {
            assert!(!text.contains(mark), "{mark}: {text}");
        }
        assert!(text.contains("letter.relay = $5"), "{text}");
        assert!(text.starts_with("select a where not (case when"), "{text}");
        assert!(text.contains("unnest($3::text[], $4)"), "{text}");
        assert!(text.contains("pg_visible_in_snapshot(outbox.txid, horizon.snapshot)"), "{text}");
        assert_eq!(spliced("select 1"), "select 1");
    }
}
