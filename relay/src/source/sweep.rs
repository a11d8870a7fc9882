//! The search for rows that came to positions which the scan has left behind.
//!
//! A page of the scan begins at the cursor's floor. A row that somebody puts below it, with a position of its own, is
//! never met: a load while the relay runs, or a sequence that was set back and has passed the floor again before the
//! relay looked. So the whole table is gone through again and again, a piece at a time between two pages; see
//! [`Mark`] for what is new at a low position. What is found is shipped as pages of their own, and the next sweep
//! begins where this one did once they are stored.
//!
//! Other ways fail: giving the row a new `txid` makes it new for every other relay name of this outbox, too, which
//! then does the same; and a count of the table, compared with what was shipped, takes as long and says less.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::sql::Statements;
use super::{Answer, Page, Source, State, Taken};
use crate::cursor::{Cursor, Mark};
use crate::rows::{Entry, Room};

/// The shortest pause between two sweeps.
const SHORTEST_PAUSE: Duration = Duration::from_secs(5);
/// A pause is so many times as long as the sweep before it, so that sweeping takes a few per cent of the time.
const PAUSE_TO_SWEEP: u32 = 20;
/// The same between two steps of a sweep.
const PAUSE_TO_STEP: u32 = 5;

/// How far the sweep is.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    /// The one under way.
    under_way: Option<UnderWay>,
    /// When the next step may be made.
    next: Option<Instant>,
}

#[derive(Debug)]
struct UnderWay {
    begun: Instant,
    /// The cursor's when it began: what is new after that is the next sweep's.
    mark: Mark,
    /// What it compares with, and has not come to the end of yet.
    against: VecDeque<Mark>,
    /// All positions up to this one have been looked at.
    position: i64,
}

impl Source {
    /// A step of the sweep, if one is due: late rows, or a page without rows that carries the sweep's end.
    pub(super) async fn late_page(
        &mut self,
        cursor: &Arc<Cursor>,
    ) -> Result<Option<Page>, sqlx::Error> {
        let now = Instant::now();
        if self.sweep.next.is_some_and(|next| now < next) {
            return Ok(None);
        }
        let begin = || UnderWay {
            begun: now,
            mark: cursor.mark(),
            against: cursor.marks.clone().into(),
            position: 0,
        };
        let under_way = self.sweep.under_way.get_or_insert_with(begin);
        let Some(mark) = under_way.against.front() else {
            let pause = SHORTEST_PAUSE.max(under_way.begun.elapsed() * PAUSE_TO_SWEEP);
            let after = match cursor.marks.is_empty() {
                true => return Ok(self.sweep.end(now + pause)),
                false => cursor.swept(under_way.mark.clone()),
            };
            self.sweep.end(now + pause);
            self.state = State::Between { cursor: Arc::new(after.clone()), spent: None };
            return Ok(Some(late_page(cursor, after)));
        };
        let (mark, position) = (mark.clone(), under_way.position);
        let mut room = Room::of_a_page(&self.all).await;
        let late = |statements: &Statements, size| statements.late(cursor, &mark, position, size);
        let answer = self.ask(late).await?;
        let Answer { head, reach, entries } = Answer::read(&answer)?;
        drop(answer);
        let first = entries.first().map(Entry::position);
        let Taken { rows, bad, largest, full } = self.take(entries, &mut room).await?;
        if let Some(under_way) = &mut self.sweep.under_way {
            under_way.position = largest.filter(|_| full).unwrap_or(reach.upto);
            let nothing_behind = !full && !reach.ends_before_the_last();
            if nothing_behind || under_way.position >= mark.floor {
                under_way.position = mark.floor;
                under_way.against.pop_front();
            }
        }
        self.sweep.next = Some(now + now.elapsed() * PAUSE_TO_STEP);
        if first.is_none() {
            return Ok(None);
        }
        tracing::info!(
            rows = rows.len() + bad.len(),
            first,
            last = largest,
            "found rows that came to positions behind the cursor; shipping them"
        );
        if !head.flushed {
            self.wait_for_flush(&head.wal).await?;
        }
        let max_payload = self.reading.largest();
        Ok(Some(Page { rows, bad, room, max_payload, ..late_page(cursor, Cursor::clone(cursor)) }))
    }
}

impl Sweep {
    fn end(&mut self, next: Instant) -> Option<Page> {
        *self = Self { under_way: None, next: Some(next) };
        None
    }
}

fn late_page(base: &Arc<Cursor>, after: Cursor) -> Page {
    let (rows, bad, room) = (Vec::new(), Vec::new(), Room::default());
    let window = Arc::new(base.snapshot.clone());
    let max_payload = usize::MAX;
    Page { rows, bad, room, max_payload, base: base.clone(), window, after, late: true }
}
