//! Whether a snapshot can see a row, and what else is to be known of one, as pieces of SQL that are spliced into
//! statements.
//!
//! `t` is the row's `txid`, `x` its system column `xmin` widened to 64 bits: the id under which somebody put it here,
//! a subtransaction's where a savepoint was used. Statements speak of the table as `outbox`.
//!
//! - Where `t` is `x`, the row's transaction wrote it itself, and `t` alone decides. That is nearly every row.
//! - Otherwise it was written under a savepoint (then `t` is `x`'s transaction, and older), or it was loaded, and `t` is
//!   another cluster's. Above `x` it is certainly that, since a transaction is never younger than its subtransactions.
//!   Below, nothing tells it from a savepoint's.
//! - `t` may be null, if somebody dropped the column's constraint. Then `x` alone decides. A rule that is null itself would
//!   hide the row from every page, and retention would remove it.
//!
//! So there are two rules for the rows where they differ. Both are exact for rows written under a savepoint, but for
//! the case below, and both believe a snapshot to have seen a row whose `x` is older than everything that the snapshot
//! knows to be running.
//!
//! - [`:seen`](spliced): it also saw the row if it sees both `x` and `t`, or `x` alone where `t` is certainly
//!   another's. A row loaded under a savepoint by a transaction that was still running then is called seen, wrongly.
//! - [`:surely_seen`](spliced): only if `t` could be the transaction of `x`, being no older than the oldest one that
//!   was running. A row is called unseen, wrongly, if its transaction had begun before the oldest one that was running,
//!   had ended, and wrote it under a savepoint after that one had begun. It is then shipped once more, which is what
//!   is promised; the first page of a window uses this rule.

/// Replaces in a statement
///
/// - `:seen(S)` by whether the snapshot `S` could see the row,
/// - `:surely_seen(S)` by the same where a mistake may only be made to the other side,
/// - `:covered(R, S, P)` by whether the row was shipped in another cluster: `R` is [`Before::found`], `S` and `P`
///   are arrays with what is in [`Before::shipped`],
/// - `:awaited(X, L)` by whether the row may be of a transaction in `X` and lies above where that began to write, which
///   is at the same place in `L`,
/// - `:set_aside(N)` by whether the relay of this name has set the row aside, and it has not been shipped since. It is
///   the same event if position, id and time are the same: positions and even ids come again when a table is emptied.
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
        (":set_aside(", set_aside),
    ] {
        while let Some((before, rest)) = text.split_once(mark) {
            let (arguments, after) = arguments(rest);
            text = format!("{before}{}{after}", make(&arguments));
        }
    }
    text
}

/// The arguments up to the closing bracket, and what follows it.
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

/// Where the two ids agree, and the statement's own snapshot knows them.
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

fn set_aside(arguments: &[&str]) -> String {
    let relay = arguments.first().copied().unwrap_or("null");
    // Nulls as dead_letters/set_aside.sql writes them.
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
             and not :awaited($6, $7) and not :set_aside($5)",
        );
        for mark in [":seen", ":covered", ":awaited", ":set_aside"] {
            assert!(!text.contains(mark), "{mark}: {text}");
        }
        assert!(text.contains("letter.relay = $5"), "{text}");
        assert!(text.starts_with("select a where not (case when"), "{text}");
        assert!(text.contains("unnest($3::text[], $4)"), "{text}");
        assert!(text.contains("pg_visible_in_snapshot(outbox.txid, horizon.snapshot)"), "{text}");
        assert_eq!(spliced("select 1"), "select 1");
    }
}
