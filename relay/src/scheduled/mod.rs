//! Releases scheduled events: moves what is due from `outbox_scheduled` into the outbox.
//!
//! The leader does this beside shipping, on a connection of its own, so neither holds up the other: while the broker is
//! away, what is due waits in the outbox like any other event; while somebody locks the scheduled events, shipping goes
//! on. Everything that must be right is in the function `release_scheduled`, which is explained in the outbox's
//! migrations: each row leaves once, not before it is due by the database's clock, and under the lease's epoch. Here
//! it is only decided when to call it ([`Pace`]).
//!
//! Anybody may schedule something that is due sooner than all the rest, and nothing tells the relay: NOTIFY would
//! cost every writer a lock at its commit. So the releaser waits until the next event is due, but no longer than
//! the relay's idle interval. A call that finds nothing reads one entry of an index and writes nothing. After a
//! release, the releaser wakes the reader, so the events do not wait for the reader's own pause.

mod count;

use std::sync::Arc;
use std::time::Duration;

use pillarbox_store::schema::in_schema;
use pillarbox_store::{Backoff, full_text};
use sqlx::{PgConnection, Row as _, SqlStr};
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::config::RelayConfig;
use crate::health::Observer;
use crate::session::{Database, Patience};

pub use self::count::Scheduled;
pub(crate) use self::count::count;

/// Rows that a call moves: some 20 ms of work.
const ROWS: i32 = 1000;
/// Rows that are tried one by one in a call.
const ROWS_ALONE: i32 = 100;
/// How often all rows are looked through for some that were due long ago.
const WHOLE: Duration = Duration::from_secs(1);
/// That takes long if many rows have left and no vacuum could remove them. So many times as long is left in between.
const REST: u32 = 20;

/// The wait after a call failed on a connection that was open before.
const RECONNECT: Duration = Duration::from_millis(300);

/// Releases what is due until `stop`, or for as long as it is polled. Failures are tried again; the observer is told.
pub(crate) async fn release_due(
    config: RelayConfig,
    database: Database,
    epoch: i64,
    observer: Observer,
    released: Arc<Notify>,
    stop: CancellationToken,
) {
    let statement = in_schema(include_str!("release.sql"), &config.schema);
    let (mut connection, mut backoff, patience) = (None, Backoff::default(), Patience::default());
    let mut pace = Pace::new(config.idle_interval, Instant::now());
    loop {
        let call = pace.call(Instant::now());
        let asked = Instant::now();
        let was_open = connection.is_some();
        let answered = async {
            let open = match &mut connection {
                Some(open) => open,
                None => connection.insert(database.connect().await?),
            };
            ask(open, &statement, &config.name, epoch, &call).await
        };
        let wait = match patience.wait(answered).await {
            Ok(answer) => {
                backoff = Backoff::default();
                observer.releases(None);
                if answer.released > 0 {
                    observer.meter.released(answer.released);
                    released.notify_one();
                }
                if answer.failed > 0 {
                    tracing::error!(
                        relay = config.name,
                        events = answer.failed,
                        "scheduled events could not be released; they wait beside the others"
                    );
                }
                pace.answered(&call, &answer, asked.elapsed(), Instant::now())
            }
            Err(error) if pace.goes_alone(&call, &error) => Duration::ZERO,
            // A connection may be lost by itself. If the database is away, the leader says so meanwhile, and stops
            // this.
            Err(_) if was_open => {
                connection = None;
                RECONNECT
            }
            Err(error) => {
                connection = None;
                observer.releases(Some(full_text(&error)));
                backoff.wait()
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(wait) => {}
        }
    }
}

async fn ask(
    connection: &mut PgConnection,
    statement: &SqlStr,
    relay: &str,
    epoch: i64,
    call: &Call,
) -> Result<Answer, sqlx::Error> {
    let row = sqlx::query(statement.clone())
        .bind(relay)
        .bind(epoch)
        .bind(if call.alone { ROWS_ALONE } else { ROWS })
        .bind(call.alone)
        .bind(call.behind)
        .fetch_one(connection)
        .await?;
    let next: Option<f64> = row.try_get("next_due_in")?;
    Ok(Answer {
        leads: row.try_get("leads")?,
        released: row.try_get::<i64, _>("released")?.try_into().unwrap_or(0),
        failed: row.try_get::<i64, _>("failed")?.try_into().unwrap_or(0),
        next_due_in: next.map(|next| Duration::try_from_secs_f64(next).unwrap_or_default()),
        retries: row.try_get("retries")?,
        behind: row.try_get("behind")?,
    })
}

/// What a call asks for.
#[derive(Clone, Debug, PartialEq)]
struct Call {
    alone: bool,
    behind: Option<OffsetDateTime>,
}

/// What the function answers.
#[derive(Clone, Debug)]
struct Answer {
    leads: bool,
    released: u64,
    failed: u64,
    /// Zero: something is due, and is being cancelled. `None`: nothing is scheduled.
    next_due_in: Option<Duration>,
    retries: bool,
    behind: Option<OffsetDateTime>,
}

/// When to call, and what to ask for.
#[derive(Debug)]
struct Pace {
    idle: Duration,
    alone: bool,
    behind: Option<OffsetDateTime>,
    whole_at: Instant,
}

impl Pace {
    fn new(idle: Duration, now: Instant) -> Self {
        Self { idle, alone: false, behind: None, whole_at: now }
    }

    fn call(&self, now: Instant) -> Call {
        Call { alone: self.alone, behind: self.behind.filter(|_| now < self.whole_at) }
    }

    /// Learns from an answer, and says how long to wait.
    fn answered(&mut self, call: &Call, answer: &Answer, took: Duration, now: Instant) -> Duration {
        if call.behind.is_none() {
            self.whole_at = now + WHOLE.max(took * REST);
        }
        self.behind = answer.behind;
        self.alone = answer.retries && !call.alone;
        if !answer.leads {
            // The lease's own connection finds out what has become of it.
            return self.idle;
        }
        if answer.released > 0 || answer.failed > 0 || self.alone {
            return Duration::ZERO;
        }
        match answer.next_due_in {
            Some(next) if !next.is_zero() => next.min(self.idle),
            _ => self.idle,
        }
    }

    /// Whether a failed call is to be repeated with each row alone, because a row may be at fault.
    fn goes_alone(&mut self, call: &Call, error: &sqlx::Error) -> bool {
        let code = error.as_database_error().and_then(|error| error.code());
        let of_a_row = code.is_some_and(|code| {
            ["22", "23", "P0", "XX"].iter().any(|class| code.starts_with(class))
        });
        self.alone = of_a_row && !call.alone;
        self.alone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_millis(50);

    fn nothing() -> Answer {
        Answer {
            leads: true,
            released: 0,
            failed: 0,
            next_due_in: None,
            retries: false,
            behind: Some(OffsetDateTime::UNIX_EPOCH),
        }
    }

    fn pace() -> (Pace, Instant) {
        let now = Instant::now();
        (Pace::new(IDLE, now), now)
    }

    #[test]
    fn it_waits_until_the_next_one_is_due_and_never_longer_than_the_idle_interval() {
        let (mut pace, now) = pace();
        let call = pace.call(now);
        let mut wait = |answer: Answer| pace.answered(&call, &answer, Duration::ZERO, now);
        assert_eq!(wait(nothing()), IDLE);
        let next =
            |millis| Answer { next_due_in: Some(Duration::from_millis(millis)), ..nothing() };
        assert_eq!(wait(next(7)), Duration::from_millis(7));
        assert_eq!(wait(next(86_400_000)), IDLE);
        assert_eq!(wait(next(0)), IDLE, "it is being cancelled: no busy loop");
        assert_eq!(wait(Answer { released: 1000, ..next(0) }), Duration::ZERO);
        assert_eq!(wait(Answer { leads: false, ..next(0) }), IDLE);
    }

    #[test]
    fn rows_go_alone_after_a_failure_of_a_row_and_when_some_are_to_be_tried_again() {
        let (mut pace, now) = pace();
        let together = pace.call(now);
        assert!(!together.alone);
        let retries = Answer { retries: true, ..nothing() };
        assert_eq!(pace.answered(&together, &retries, Duration::ZERO, now), Duration::ZERO);
        let alone = pace.call(now);
        assert!(alone.alone);
        // The same ones are not tried again and again.
        assert_eq!(pace.answered(&alone, &retries, Duration::ZERO, now), IDLE);
        assert!(!pace.call(now).alone);
        assert!(!pace.goes_alone(&together, &sqlx::Error::PoolTimedOut), "it is not a row's fault");
    }

    /// What `release_scheduled` does with a table of due times, in milliseconds, some of them being cancelled.
    fn release(table: &mut Vec<i64>, call: &Call, now: i64) -> (Answer, Vec<i64>) {
        let since = call.behind.map_or(i64::MIN, at);
        let due = |time: &i64| *time >= since && *time <= now;
        let mut left: Vec<i64> = table.iter().copied().filter(due).collect();
        left.sort_unstable();
        left.truncate(3);
        for time in &left {
            table.remove(table.iter().position(|other| other == time).unwrap());
        }
        let next = table.iter().copied().filter(|time| *time >= since).min();
        let millis = |from: i64| Duration::from_millis(u64::try_from(from).unwrap_or(0));
        let behind = next.unwrap_or(i64::MAX).min(now - 2_000);
        let answer = Answer {
            released: left.len() as u64,
            next_due_in: next.map(|next| millis(next - now)),
            behind: Some(OffsetDateTime::UNIX_EPOCH + time::Duration::milliseconds(behind)),
            ..nothing()
        };
        (answer, left)
    }

    fn at(time: OffsetDateTime) -> i64 {
        i64::try_from((time - OffsetDateTime::UNIX_EPOCH).whole_milliseconds()).unwrap()
    }

    #[derive(Clone, Debug)]
    enum Act {
        /// Schedules something that is due so many milliseconds from now, or was due before.
        Schedule(i64),
        /// Cancels one of those that are there.
        Cancel(proptest::sample::Index),
        /// Nothing happens for so many milliseconds.
        Pass(i64),
    }

    fn acts() -> impl proptest::strategy::Strategy<Value = Vec<Act>> {
        use proptest::prelude::*;
        let act = prop_oneof![
            4 => (-5_000..3_000_i64).prop_map(Act::Schedule),
            1 => any::<proptest::sample::Index>().prop_map(Act::Cancel),
            3 => (0..1_500_i64).prop_map(Act::Pass),
        ];
        proptest::collection::vec(act, 1..40)
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig {
            cases: 256, failure_persistence: None, ..Default::default()
        })]

        /// Whoever schedules and cancels whatever, and whenever: each event leaves once or is cancelled, none leaves
        /// early, and each within the idle interval, or, if it was due long before it was written, within a second
        /// more.
        #[test]
        fn whatever_is_scheduled_leaves_soon_after_it_is_due(acts in acts()) {
            let begin = Instant::now();
            let (mut pace, mut table, mut next_call, mut now) = (Pace::new(IDLE, begin), Vec::new(), 0_i64, 0_i64);
            // What was scheduled: when it was due, and when it was written.
            let mut written: Vec<(i64, i64)> = Vec::new();
            let (mut scheduled, mut cancelled, mut released) = (0, 0, 0);
            for act in acts.into_iter().chain([Act::Pass(20_000)]) {
                match act {
                    Act::Schedule(ahead) => {
                        table.push(now + ahead);
                        written.push((now + ahead, now));
                        scheduled += 1;
                    }
                    Act::Cancel(which) if !table.is_empty() => {
                        let due = table.remove(which.index(table.len()));
                        written.remove(written.iter().position(|(time, _)| *time == due).unwrap());
                        cancelled += 1;
                    }
                    Act::Cancel(_) => {}
                    Act::Pass(millis) => {
                        let end = now + millis;
                        while next_call <= end {
                            now = now.max(next_call);
                            let instant = begin + Duration::from_millis(u64::try_from(now).unwrap());
                            let call = pace.call(instant);
                            let (answer, left) = release(&mut table, &call, now);
                            for due in left {
                                proptest::prop_assert!(due <= now);
                                let place = written.iter().position(|(time, _)| *time == due).unwrap();
                                let (_, at) = written.remove(place);
                                let idle = i64::try_from(IDLE.as_millis()).unwrap();
                                let most = if due < at - 1_500 { 1_000 + 2 * idle } else { idle };
                                let late = now - due.max(at);
                                proptest::prop_assert!(late <= most, "{late} ms late, written {at}, due {due}");
                                released += 1;
                            }
                            let wait = pace.answered(&call, &answer, Duration::ZERO, instant);
                            next_call = now + i64::try_from(wait.as_millis()).unwrap();
                        }
                        now = end;
                    }
                }
            }
            proptest::prop_assert_eq!(scheduled, cancelled + released);
        }
    }

    #[test]
    fn all_rows_are_looked_through_once_a_second_or_more_seldom_if_that_takes_long() {
        let (mut pace, now) = pace();
        let at = |millis| now + Duration::from_millis(millis);
        let whole = pace.call(at(0));
        assert_eq!(whole.behind, None);
        pace.answered(&whole, &nothing(), Duration::from_millis(10), at(10));
        let partly = pace.call(at(500));
        assert!(partly.behind.is_some());
        pace.answered(&partly, &nothing(), Duration::from_millis(1), at(501));
        let whole = pace.call(at(1010));
        assert_eq!(whole.behind, None);
        pace.answered(&whole, &nothing(), Duration::from_millis(200), at(1210));
        assert!(pace.call(at(5209)).behind.is_some());
        assert!(pace.call(at(5210)).behind.is_none());
    }
}
