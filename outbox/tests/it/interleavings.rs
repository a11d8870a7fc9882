//! Any interleaving of scheduling, cancelling and releasing, over several open transactions: what a cancel said is what
//! happens, and each event leaves once. Held against a model that has no database.

use std::time::{Duration, SystemTime};

use pillarbox_event::{EventId, RawEvent};
use pillarbox_outbox::{cancel, publish_at};
use pillarbox_testkit::{Scope, servers};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use sqlx::{PgPool, Postgres, Row, Transaction};

const TRANSACTIONS: usize = 3;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// In this transaction, an event that is due so many hours from now; below 0, it is due at once.
    Schedule {
        within: usize,
        hours: i64,
    },
    /// In this transaction, the event of this number, modulo how many there are.
    Cancel {
        within: usize,
        event: usize,
    },
    /// Under the lease, or under an old epoch.
    Release {
        leads: bool,
        most: i32,
        alone: bool,
    },
    Commit {
        which: usize,
    },
    RollBack {
        which: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0..TRANSACTIONS;
    prop_oneof![
        4 => (which.clone(), prop_oneof![3 => -1..0_i64, 1 => 1..2_i64])
            .prop_map(|(within, hours)| Step::Schedule { within, hours }),
        4 => (which.clone(), 0..100_usize).prop_map(|(within, event)| Step::Cancel { within, event }),
        3 => (prop::bool::weighted(0.8), 1..5_i32, any::<bool>())
            .prop_map(|(leads, most, alone)| Step::Release { leads, most, alone }),
        3 => which.clone().prop_map(|which| Step::Commit { which }),
        1 => which.prop_map(|which| Step::RollBack { which }),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// Written by an open transaction.
    Scheduling(usize),
    Pending,
    /// Removed by an open transaction.
    Cancelling(usize),
    /// Written and removed by the same open transaction.
    Undone(usize),
    Gone,
    Released,
}

#[derive(Debug)]
struct Known {
    id: EventId,
    due: bool,
    state: State,
}

/// Runs the steps, and asserts after each what must be.
async fn run(pool: &PgPool, steps: &[Step]) {
    sqlx::raw_sql(
        "truncate pillarbox.outbox, pillarbox.outbox_scheduled, pillarbox.relay; \
         insert into pillarbox.relay (name, cursor, holder, epoch) values ('default', '{}', 'me', 7)",
    )
    .execute(pool)
    .await
    .unwrap();
    let mut open: [Option<Transaction<'static, Postgres>>; TRANSACTIONS] = [None, None, None];
    let mut events: Vec<Known> = Vec::new();
    let mut order: Vec<usize> = Vec::new();
    for step in steps {
        match *step {
            Step::Schedule { within, hours } => {
                let tx = begun(pool, &mut open, within).await;
                let event = RawEvent::builder("t", "a.b").payload("{}").build().unwrap();
                let time = match hours {
                    ..0 => SystemTime::now() - Duration::from_secs(3600),
                    _ => SystemTime::now() + Duration::from_secs(3600),
                };
                let id = publish_at(tx, event, time).await.unwrap();
                events.push(Known { id, due: hours < 0, state: State::Scheduling(within) });
            }
            Step::Cancel { within, event } => {
                let Some(event) = event.checked_rem(events.len()) else { continue };
                let known = &mut events[event];
                // It would wait for the other transaction.
                if matches!(known.state, State::Cancelling(by) if by != within) {
                    continue;
                }
                let tx = begun(pool, &mut open, within).await;
                let cancelled = cancel(tx, &known.id).await.unwrap();
                let next = match known.state {
                    State::Pending => Some(State::Cancelling(within)),
                    State::Scheduling(by) if by == within => Some(State::Undone(within)),
                    _ => None,
                };
                assert_eq!(cancelled, next.is_some(), "{:?} in {:?}", step, known.state);
                known.state = next.unwrap_or(known.state);
            }
            Step::Release { leads, most, alone } => {
                let sql =
                    "select released from pillarbox.release_scheduled('default', $1, $2, $3, null)";
                let released: i64 = sqlx::query(sql)
                    .bind(if leads { 7_i64 } else { 6 })
                    .bind(most)
                    .bind(alone)
                    .fetch_one(pool)
                    .await
                    .unwrap()
                    .get(0);
                // In the order of their times, which is that in which they were written.
                let due = (0..events.len())
                    .filter(|at| leads && events[*at].due && events[*at].state == State::Pending);
                let due: Vec<usize> = due.take(usize::try_from(most).unwrap()).collect();
                assert_eq!(released, i64::try_from(due.len()).unwrap(), "{step:?}");
                for at in due {
                    events[at].state = State::Released;
                    order.push(at);
                }
            }
            Step::Commit { which } => {
                let Some(tx) = open[which].take() else { continue };
                tx.commit().await.unwrap();
                for known in &mut events {
                    known.state = match known.state {
                        State::Scheduling(by) if by == which => State::Pending,
                        State::Cancelling(by) | State::Undone(by) if by == which => State::Gone,
                        state => state,
                    };
                }
            }
            Step::RollBack { which } => {
                let Some(tx) = open[which].take() else { continue };
                tx.rollback().await.unwrap();
                for known in &mut events {
                    known.state = match known.state {
                        State::Scheduling(by) | State::Undone(by) if by == which => State::Gone,
                        State::Cancelling(by) if by == which => State::Pending,
                        state => state,
                    };
                }
            }
        }
    }
    for tx in open.into_iter().flatten() {
        tx.rollback().await.unwrap();
    }
    let found: Vec<String> =
        ids(pool, "select event_id::text from pillarbox.outbox order by position").await;
    let wanted: Vec<String> = order.iter().map(|at| events[*at].id.to_string()).collect();
    assert_eq!(found, wanted);
    let found = ids(
        pool,
        "select event_id::text from pillarbox.outbox_scheduled order by due_at, created_at",
    )
    .await;
    let mut left: Vec<String> = events
        .iter()
        .filter(|known| matches!(known.state, State::Pending | State::Cancelling(_)))
        .map(|known| known.id.to_string())
        .collect();
    let mut found = found;
    left.sort();
    found.sort();
    assert_eq!(found, left);
}

async fn begun<'t>(
    pool: &PgPool,
    open: &'t mut [Option<Transaction<'static, Postgres>>],
    which: usize,
) -> &'t mut Transaction<'static, Postgres> {
    if open[which].is_none() {
        open[which] = Some(pool.begin().await.unwrap());
    }
    open[which].as_mut().unwrap()
}

async fn ids(pool: &PgPool, sql: &'static str) -> Vec<String> {
    sqlx::query(sql).fetch_all(pool).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[test]
fn what_a_cancel_said_is_what_happens_in_any_interleaving() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let scope: Scope = runtime.block_on(async {
        let scope = servers().await.unwrap().scope().await.unwrap();
        pillarbox_outbox::migrate(scope.pool()).await.unwrap();
        scope
    });
    let config = Config { cases: 32, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new(config);
    let steps = prop::collection::vec(step(), 1..40);
    runner
        .run(&steps, |steps| {
            runtime.block_on(run(scope.pool(), &steps));
            Ok(())
        })
        .unwrap();
    runtime.block_on(async move { drop(scope) });
}
