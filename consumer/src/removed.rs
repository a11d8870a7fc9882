//! Finds events that a stream removed before it delivered them to the durable consumer: by a limit, a purge, or by
//! hand.
//!
//! Nobody tells a consumer about them. It compares what the server says of the stream and the durable consumer every
//! two seconds, and reports a loss only with proof:
//!
//! - **The stream begins after the next message.** Everything between the last delivered message and the first one that
//!   the stream still has was removed undelivered. If the durable's filters take all of the stream's subjects, each of
//!   these sequences is one of its events. Otherwise they may be those of others, and this proves nothing.
//! - **Fewer are pending than before, without having been delivered.** Of `pending` events, `delivered` have left since
//!   the last look, and new events can only have added to the rest. So at least `before − now − delivered` were
//!   removed, and no more than the stream has removed altogether. This also finds a purge, after which the server moves
//!   the durable past what was removed.
//!
//! The second proof rests on the durable's own sequence, which counts deliveries and starts again with a reset. So it
//! holds between two looks only if nobody has reset the durable: neither this process, nor another one that was active.
//! The number is a lower bound: if one event is removed and another is published between two looks, the two cancel out.
//! Events that were delivered and then removed before they were acknowledged are not among them, because the process
//! that holds them handles them.
//!
//! What is removed while no process runs is found at the next start, but only by the first proof.

use std::collections::BTreeMap;

use async_nats::jetstream::consumer::Info;
use async_nats::jetstream::stream;
use time::OffsetDateTime;

/// At least this many events were removed, between these sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) events: u64,
    pub(super) first: u64,
    pub(super) last: u64,
}

/// What the durables of a consumer were like at the last look.
#[derive(Debug, Default)]
pub(super) struct RemovedSoFar(BTreeMap<String, Seen>);

/// What the server said of a stream and one of its durables.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    created: OffsetDateTime,
    /// The last message that was delivered: its sequence in the stream, and its number among all deliveries.
    delivered: u64,
    number: u64,
    pending: u64,
    unacknowledged: u64,
    pin: Option<String>,
    /// The first message that the stream has.
    first: u64,
    /// How many messages the stream has removed in its life.
    removed: u64,
    /// The sequence up to which a loss was reported.
    told: u64,
    /// How often this process has had durables reset. `None`: a reset was under way.
    resets: Option<u64>,
}

/// Who has looked.
#[derive(Clone, Copy)]
pub(super) struct Looker<'a> {
    /// Whether a pin is, or was, this process's.
    pub(super) is_mine: &'a dyn Fn(&str) -> bool,
    /// How often it has had durables reset. `None`: a reset was under way.
    pub(super) resets: Option<u64>,
    /// Whether durables are reset at all.
    pub(super) ordered: bool,
}

impl RemovedSoFar {
    /// Looks at a durable. `takes_all`: its filters take all of the stream's subjects. `pin`: that of the process that
    /// is active.
    pub(super) fn look(
        &mut self,
        durable: &str,
        stream: &stream::State,
        info: &Info,
        pin: Option<String>,
        takes_all: bool,
        looker: Looker<'_>,
    ) -> Option<Gap> {
        let mut now = Seen {
            created: info.created,
            delivered: info.delivered.stream_sequence,
            number: info.delivered.consumer_sequence,
            pending: info.num_pending,
            unacknowledged: info.num_ack_pending as u64,
            pin,
            first: stream.first_sequence,
            removed: stream.last_sequence.saturating_sub(stream.messages),
            told: 0,
            resets: looker.resets,
        };
        let before = self.0.get(durable).filter(|before| before.created == now.created);
        now.told = before.map_or(0, |before| before.told);
        let gap = gap(before, &now, takes_all, looker);
        now.told = gap.map_or(now.told, |gap| now.told.max(gap.last));
        self.0.insert(durable.to_owned(), now);
        gap
    }
}

/// See the [module](self).
fn gap(before: Option<&Seen>, now: &Seen, takes_all: bool, looker: Looker<'_>) -> Option<Gap> {
    let next = now.delivered.max(now.told) + 1;
    let undelivered = if takes_all { now.first.saturating_sub(next) } else { 0 };
    let fewer = before.map_or(0, |before| fewer(before, now, looker));
    let events = undelivered.max(fewer);
    let from = before.map_or(now.delivered, |before| before.delivered.min(now.delivered));
    let first = from.max(now.told) + 1;
    let last = (now.first.max(now.delivered + 1) - 1).max(first);
    (events > 0).then_some(Gap { events, first, last })
}

/// How many pending events are gone that were not delivered, at least.
fn fewer(before: &Seen, now: &Seen, looker: Looker<'_>) -> u64 {
    let reset_by_me = now.resets.is_none() || before.resets != now.resets;
    // Whoever stands by resets what nobody works on.
    let reset_by_others = match &now.pin {
        pin if *pin != before.pin => true,
        None => looker.ordered && before.unacknowledged > 0,
        Some(pin) => !(looker.is_mine)(pin),
    };
    if reset_by_me || reset_by_others || now.number < before.number {
        return 0;
    }
    let delivered = now.number - before.number;
    let gone = before.pending.saturating_sub(now.pending).saturating_sub(delivered);
    gone.min(now.removed.saturating_sub(before.removed))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A durable that was given 10 messages of 100, all of which the stream has, and acknowledged them.
    fn seen() -> Seen {
        Seen {
            created: OffsetDateTime::UNIX_EPOCH,
            delivered: 10,
            number: 10,
            pending: 90,
            unacknowledged: 0,
            pin: Some("me".into()),
            first: 1,
            removed: 0,
            told: 0,
            resets: Some(2),
        }
    }

    const NONE: Option<Gap> = None;

    fn found(before: Option<&Seen>, now: &Seen, takes_all: bool) -> Option<Gap> {
        let looker = Looker { is_mine: &|pin| pin == "me", resets: now.resets, ordered: true };
        gap(before, now, takes_all, looker)
    }

    #[test]
    fn a_stream_that_begins_behind_the_next_message_has_removed_what_lies_between() {
        let now = Seen { first: 31, removed: 30, pending: 70, ..seen() };
        let gap = Gap { events: 20, first: 11, last: 30 };
        assert_eq!(found(None, &now, true), Some(gap), "at the start");
        assert_eq!(found(Some(&seen()), &now, true), Some(gap), "while it runs");
        assert_eq!(found(None, &now, false), NONE, "they may be those of others");
        assert_eq!(found(Some(&seen()), &now, false), Some(gap), "fewer are pending");
        for first in [1, 5, 11] {
            assert_eq!(found(None, &Seen { first, ..seen() }, true), NONE, "handled, or there");
        }
    }

    #[test]
    fn what_was_told_is_not_told_again_and_what_follows_is() {
        let told = Seen { first: 31, removed: 30, pending: 70, told: 30, ..seen() };
        assert_eq!(found(Some(&told), &told, true), NONE);
        let now = Seen { first: 36, removed: 35, pending: 65, ..told.clone() };
        assert_eq!(found(Some(&told), &now, true), Some(Gap { events: 5, first: 31, last: 35 }));
    }

    #[test]
    fn a_purge_is_found_though_the_server_moves_the_durable_behind_it() {
        let now = Seen { delivered: 100, pending: 0, first: 101, removed: 100, ..seen() };
        let gap = Gap { events: 90, first: 11, last: 100 };
        assert_eq!(found(Some(&seen()), &now, false), Some(gap));
        let some = Seen { number: 14, delivered: 100, pending: 6, first: 101, ..now };
        let gap = Gap { events: 80, first: 11, last: 100 };
        assert_eq!(found(Some(&seen()), &some, false), Some(gap), "four were delivered before");
    }

    #[test]
    fn what_is_delivered_handled_and_then_removed_is_no_loss() {
        let before = seen();
        for (delivered, first) in [(50, 1), (50, 40), (100, 101)] {
            let now = Seen {
                delivered,
                number: delivered,
                pending: 100 - delivered,
                first,
                removed: first - 1,
                ..seen()
            };
            assert_eq!(found(Some(&before), &now, true), NONE, "{delivered} {first}");
        }
        // Fewer are pending, and the stream has removed nothing: that is no proof.
        assert_eq!(found(Some(&before), &Seen { pending: 3, ..seen() }, true), NONE);
    }

    #[test]
    fn nothing_is_concluded_where_somebody_may_have_reset_the_durable() {
        let before = seen();
        let purged = Seen { delivered: 100, pending: 0, first: 101, removed: 100, ..seen() };
        assert!(found(Some(&before), &purged, false).is_some());
        for now in [
            Seen { resets: Some(4), ..purged.clone() },
            Seen { resets: None, ..purged.clone() },
            Seen { number: 3, ..purged.clone() },
            Seen { pin: Some("other".into()), ..purged.clone() },
            Seen { pin: None, ..purged.clone() },
        ] {
            assert_eq!(found(Some(&before), &now, false), NONE, "{now:?}");
        }
        let another = |seen: &Seen| Seen { pin: Some("other".into()), ..seen.clone() };
        let told = found(Some(&another(&before)), &another(&purged), false);
        assert_eq!(told, NONE, "that process tells it");
        let nobodys = |seen: &Seen| Seen { pin: None, unacknowledged: 1, ..seen.clone() };
        let told = found(Some(&nobodys(&before)), &nobodys(&purged), false);
        assert_eq!(told, NONE, "whoever stands by may reset it");
    }
}
