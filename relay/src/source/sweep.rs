//! Searches for rows that appeared at positions that the scan has already passed.
//!
//! A page of the scan begins at the cursor's floor. The scan never finds a row that somebody puts below the floor with
//! a position of its own. This happens in a load while the relay runs, or if a sequence was set back and has passed the
//! floor again before the relay looked. So a sweep goes through the whole table again and again, one part at a time
//! between two pages. [`FloorMark`] explains what is new at a low position. Late rows are shipped as pages of their
//! own, and once they are stored, the next sweep begins where this one began.
//!
//! Other ways fail. A new `txid` for the row would make the row new for every other relay name of this outbox, which
//! would do the same. Comparing a count of the table with what was shipped takes as long and says less.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use sqlx::Row as _;
use tokio::time::Instant;

use super::sql::Statements;
use super::{Answer, Page, Source, State, Taken};
use crate::cursor::{Cursor, FloorMark};
use crate::rows::{Entry, Room};

/// The shortest pause between two sweeps.
const SHORTEST_PAUSE: Duration = Duration::from_secs(5);
/// A pause is this many times as long as the sweep before it has worked, without its own pauses, so that sweeping takes a
/// few per cent of the time. With its pauses, a busy database would delay late rows by minutes.
const PAUSE_TO_SWEEP: u32 = 20;
/// The same for the pause between two steps of a sweep.
const PAUSE_TO_STEP: u32 = 5;

/// The progress of the sweeps.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    /// The sweep under way.
    under_way: Option<SweepUnderWay>,
    /// When the next step is due.
    pub(super) next: Option<Instant>,
}

#[derive(Debug)]
struct SweepUnderWay {
    /// How long its steps took together.
    worked: Duration,
    /// The cursor's mark when the sweep began. Rows that appear later are for the next sweep.
    mark: FloorMark,
    /// The marks whose positions have not all been looked at.
    against: VecDeque<FloorMark>,
    /// All positions up to this one have been looked at.
    position: i64,
    /// Whether it was said that the sequence was set back.
    has_warned: bool,
}

/// What a step of the sweep found.
pub(super) enum Late {
    Nothing,
    /// Late rows, or a page without rows that carries the sweep's end.
    Page(Box<Page>),
    /// Another table, or positions that begin again: the source is at another place now.
    Settled,
}

impl Source {
    /// A step of the sweep, if one is due.
    pub(super) async fn late_page(&mut self, cursor: &Arc<Cursor>) -> Result<Late, sqlx::Error> {
        let now = Instant::now();
        if self.sweep.next.is_some_and(|next| now < next) {
            return Ok(Late::Nothing);
        }
        let begin = || SweepUnderWay {
            worked: Duration::ZERO,
            mark: cursor.mark(),
            against: cursor.marks.clone().into(),
            position: 0,
            has_warned: false,
        };
        let under_way = self.sweep.under_way.get_or_insert_with(begin);
        let Some(mark) = under_way.against.front() else {
            let pause = SHORTEST_PAUSE.max(under_way.worked * PAUSE_TO_SWEEP);
            let after = match cursor.marks.is_empty() {
                true => {
                    self.sweep.end(now + pause);
                    return Ok(Late::Nothing);
                }
                false => cursor.swept(under_way.mark.clone()),
            };
            self.sweep.end(now + pause);
            self.state = State::Between { cursor: Arc::new(after.clone()), spent: None };
            return Ok(Late::Page(Box::new(late_page(cursor, after))));
        };
        let (mark, position) = (mark.clone(), under_way.position);
        let mut room = Room::of_a_page(&self.all).await;
        let late = |statements: &Statements, size| statements.late(cursor, &mark, position, size);
        let answer = self.ask(late).await?;
        let Answer { head, reach, entries } = Answer::read(&answer)?;
        drop(answer);
        if !head.is_of(cursor) {
            self.settle(cursor, head.reached).await?;
            return Ok(Late::Settled);
        }
        let positions: Vec<i64> = entries.iter().map(Entry::position).collect();
        let Taken { rows, bad, largest, full } = self.take(entries, &mut room).await?;
        if let Some(under_way) = &mut self.sweep.under_way {
            under_way.worked += now.elapsed();
            under_way.position = largest.filter(|_| full).unwrap_or(reach.upto);
            let nothing_behind = !full && !reach.ends_before_the_last();
            if nothing_behind || under_way.position >= mark.floor {
                under_way.position = mark.floor;
                under_way.against.pop_front();
            }
        }
        self.sweep.next = Some(now + now.elapsed() * PAUSE_TO_STEP);
        if positions.is_empty() {
            return Ok(Late::Nothing);
        }
        self.say_late(positions).await?;
        self.until_on_disk(&head).await?;
        let max_payload = self.reading.largest();
        let page = late_page(cursor, Cursor::clone(cursor));
        Ok(Late::Page(Box::new(Page { rows, bad, room, max_payload, ..page })))
    }

    /// Says that rows were found at these positions. If writers of this cluster put some there, they did not get the
    /// positions in their order, and that is said once in a sweep, with what to do.
    async fn say_late(&mut self, positions: Vec<i64>) -> Result<(), sqlx::Error> {
        let (rows, first, last) = (positions.len(), positions.first(), positions.last());
        let (first, last) = (first.copied(), last.copied());
        tracing::info!(
            rows,
            first,
            last,
            "found rows that came to positions behind the cursor; shipping them"
        );
        let has_warned = self.sweep.under_way.as_ref().is_some_and(|sweep| sweep.has_warned);
        if has_warned {
            return Ok(());
        }
        let written_here = self.statements.written_here(positions);
        let written_here: i64 = written_here.fetch_one(&mut self.connection).await?.try_get(0)?;
        if written_here > 0 {
            tracing::warn!(
                first,
                last,
                remedy = "nothing is lost, and no row is to be mended; find out who called setval on the sequence or \
                          inserts positions of their own, and look at what consumers made of these keys: select key \
                          from the outbox, where the rows stay until the retention is over",
                "events were written at positions behind those that were shipped: the sequence of positions was set \
                 back and has passed its old place since, or writers choose positions themselves; they are shipped \
                 now, and later than events of their keys that were written after them"
            );
            if let Some(sweep) = &mut self.sweep.under_way {
                sweep.has_warned = true;
            }
        }
        Ok(())
    }
}

impl Sweep {
    fn end(&mut self, next: Instant) {
        *self = Self { under_way: None, next: Some(next) };
    }
}

fn late_page(base: &Arc<Cursor>, after: Cursor) -> Page {
    let (rows, bad, room) = (Vec::new(), Vec::new(), Room::default());
    let window = Arc::new(base.snapshot.clone());
    let max_payload = usize::MAX;
    Page { rows, bad, room, max_payload, base: base.clone(), window, after, late: true }
}
