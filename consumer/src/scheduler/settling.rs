//! What follows when events have run.

use std::time::Duration;

use tokio::time::Instant;

use super::deliveries::Acknowledgement;
use super::disposition::{Disposition, Parking};
use super::held::{Held, Origin};
use super::lanes::Lane;
use super::{Decision, News, Ran, Running, Scheduler};
use crate::config::HandlingOrder;

/// How long an event whose sender uses another number of partitions waits before it is looked at again.
const MISFIT_WAIT: Duration = Duration::from_secs(5);

impl<A> Scheduler<A> {
    /// What a [`Decision::Run`] asked for has ended.
    pub(crate) fn ran(&mut self, ran: Ran, now: Instant) {
        self.silence.broken(now);
        self.running = match self.running {
            Running::BesideOthers(running) => Running::BesideOthers(running.saturating_sub(1)),
            Running::Alone => Running::BesideOthers(0),
        };
        if ran.looked_up {
            return self.looked_up(ran.lanes, now);
        }
        for (lane, events) in ran.lanes {
            if let Some(parking) = ran.parking {
                self.parked(&lane, parking, now);
            }
            self.settle(lane, events, now);
        }
    }

    fn parked(&mut self, lane: &Lane, parking: Parking, now: Instant) {
        if let Some(table) = self.crowding.parked(lane, parking, now) {
            self.tell(News::Table(table));
        }
    }

    /// The events of a lane have run: some leave, and the others come back in their order.
    fn settle(&mut self, lane: Lane, events: Vec<(Held, Disposition)>, now: Instant) {
        let (mut back, mut longest) = (Vec::new(), Duration::ZERO);
        let page_ends =
            events.iter().any(|(held, became)| held.is_letter() && self.ends_page(became));
        let mut given_back = page_ends.then(Vec::new);
        for (held, disposition) in events {
            self.tell_skipping(&held, &disposition);
            let settled = self.settle_one(&lane, held, disposition, given_back.as_mut(), now);
            if let Some((held, wait)) = settled {
                back.push(held);
                longest = longest.max(wait);
            }
        }
        if let Some(given_back) = given_back {
            self.end_page(&lane, given_back, now);
        }
        match back.pop_if(|held| held.is_alone() && longest.is_zero()) {
            // Its lane stays a running one.
            Some(held) if back.is_empty() => self.alone.push_back((lane, held)),
            Some(held) => {
                back.push(held);
                self.lanes.retry(lane, back, now);
            }
            None if back.is_empty() => self.lanes.done(lane),
            None => self.lanes.retry(lane, back, now + longest),
        }
    }

    /// Counts the events of the stream that have run, and those of them that were handled already.
    fn tell_skipping(&mut self, held: &Held, disposition: &Disposition) {
        match disposition {
            _ if held.is_letter() => {}
            Disposition::Skipped => self.skipping.ran(true),
            Disposition::Done
            | Disposition::Parked
            | Disposition::Dead
            | Disposition::Retry(_)
            | Disposition::Environment(_) => self.skipping.ran(false),
            _ => {}
        }
    }

    /// Returns the event and how long it waits, if it comes back. `given_back` collects the parked events that have not
    /// run, if their page ends.
    pub(super) fn settle_one(
        &mut self,
        lane: &Lane,
        mut held: Held,
        disposition: Disposition,
        given_back: Option<&mut Vec<(i64, bool)>>,
        now: Instant,
    ) -> Option<(Held, Duration)> {
        match &disposition {
            Disposition::Retry(_) => self.tell(News::Retries),
            Disposition::Environment(error) => self.environment_failed(error.clone(), now),
            _ => {}
        }
        if !disposition.is_final() && held.is_of(&self.given_up) {
            self.forget(&held);
            return None;
        }
        held.manner = held.manner.after(&disposition);
        match disposition {
            // Whatever the order and the origin: another process would conclude that the suspect had killed this one.
            Disposition::Alone => return Some((held, Duration::ZERO)),
            Disposition::HeldBack(wait) => return Some((held, wait)),
            _ => {}
        }
        let place = match &held.origin {
            Origin::Stream { place, .. } => place.clone(),
            Origin::Letter { position, page, .. } => {
                let (letter, page) = ((*position, held.again), *page);
                match (disposition, given_back) {
                    (Disposition::Behind | Disposition::ByItself, None) => {
                        return Some((held, Duration::ZERO));
                    }
                    (
                        Disposition::Behind | Disposition::ByItself | Disposition::Late,
                        Some(given_back),
                    ) => given_back.push(letter),
                    // The table knows what became of it.
                    _ => {}
                }
                self.pages.left(page, 1, now);
                return None;
            }
        };
        let acknowledgement = match disposition {
            Disposition::Done | Disposition::Skipped => {
                self.pause.handled();
                Acknowledgement::Done
            }
            Disposition::Parked => {
                self.crowding.waits(lane);
                Acknowledgement::Done
            }
            Disposition::Dead => Acknowledgement::GivenUp,
            // Without an order it need not wait here.
            Disposition::Retry(wait) if self.limits.order == HandlingOrder::None => {
                Acknowledgement::Later(wait)
            }
            Disposition::Retry(wait) => {
                self.crowding.grew(now);
                return Some((held, wait));
            }
            Disposition::Waits(wait) => return Some((held, wait)),
            Disposition::Misfit(partition) => {
                let content = held.content.clone();
                self.tell(News::Misfit(content, partition));
                return Some((held, MISFIT_WAIT));
            }
            Disposition::Alone
            | Disposition::HeldBack(_)
            | Disposition::Environment(_)
            | Disposition::Behind
            | Disposition::Late
            | Disposition::Paused
            | Disposition::ByItself => return Some((held, Duration::ZERO)),
        };
        self.deliveries.acknowledge(&place, acknowledgement);
        self.tell(News::Released(place));
        None
    }

    /// Whether what became of a parked event ends its page here: those behind it have to wait for it in the table.
    fn ends_page(&self, disposition: &Disposition) -> bool {
        match disposition {
            Disposition::Dead => self.limits.order == HandlingOrder::Strict,
            Disposition::Done
            | Disposition::Skipped
            | Disposition::Parked
            | Disposition::Alone
            | Disposition::HeldBack(_)
            | Disposition::Behind
            | Disposition::ByItself => false,
            _ => true,
        }
    }

    /// Lets other processes take these parked events, and those of their lane that still wait here.
    fn end_page(&mut self, lane: &Lane, mut given_back: Vec<(i64, bool)>, now: Instant) {
        let others = self.lanes.abandon(lane);
        given_back.extend(others.iter().filter_map(Held::letter));
        if !given_back.is_empty() {
            self.decisions.push_back(Decision::GiveBack(given_back));
        }
        if let Lane::Page(page) = lane {
            self.pages.left(*page, others.len(), now);
        }
    }
}
