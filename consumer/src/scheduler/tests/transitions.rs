//! What one thing after another leads to.

use super::*;

fn done(_: &Held) -> Disposition {
    Disposition::Done
}

fn retry(seconds: u64) -> impl Fn(&Held) -> Disposition {
    move |_| Disposition::Retry(Duration::from_secs(seconds))
}

fn is_away(_: &Held) -> Disposition {
    Disposition::Environment("the database is away".into())
}

#[test]
fn a_keys_events_run_one_after_another_and_other_keys_beside_them() {
    let mut bench = Bench::new(limits());
    bench.deliver(1, &["a", "a", "b", "", ""]);
    assert_eq!(bench.runs(), [[1], [3], [4], [5]]);
    bench.end(1, done);
    assert_eq!(bench.runs(), [[3], [4], [5], [2]]);
}

#[test]
fn no_more_handlers_run_than_may() {
    let mut bench = Bench::new(Limits { concurrency: 2, ..limits() });
    bench.deliver(1, &["a", "b", "c"]);
    assert_eq!(bench.runs(), [[1], [2]]);
    bench.end(2, done);
    assert_eq!(bench.runs(), [[1], [3]]);
}

#[test]
fn a_failed_event_waits_here_with_its_key_behind_it() {
    let mut bench = Bench::new(limits());
    bench.deliver(1, &["a", "a", "b"]);
    bench.end(1, retry(9));
    assert_eq!(bench.runs(), [[3]]);
    assert!(matches!(bench.news[..], [News::Retries]));
    assert_eq!(bench.acknowledge(), []);
    bench.advance(Duration::from_secs(8));
    assert_eq!(bench.runs(), [[3]]);
    bench.advance(Duration::from_secs(1));
    assert_eq!(bench.runs(), [[3], [1]]);
    bench.end(1, |_| Disposition::Dead);
    assert_eq!(bench.acknowledge(), [(1, Acknowledgement::GivenUp)]);
    assert_eq!(bench.runs(), [[3], [2]]);
}

#[test]
fn without_an_order_a_failed_event_waits_at_the_server() {
    let mut bench = Bench::new(Limits { order: HandlingOrder::None, ..limits() });
    bench.deliver(1, &["a", "a"]);
    assert_eq!(bench.runs(), [[1], [2]], "beside each other");
    bench.end(1, retry(9));
    let later = Acknowledgement::Later(Duration::from_secs(9));
    assert_eq!(bench.acknowledge(), [(1, later)]);
    assert_eq!(bench.scheduler.deliveries.len(), 1, "2 runs");
}

#[test]
fn an_event_that_runs_alone_lets_the_others_end_and_then_runs_with_nothing_beside_it() {
    let mut bench = Bench::new(limits());
    bench.deliver(1, &["a", "a", "b"]);
    bench.end(1, |_| Disposition::Alone);
    bench.deliver(4, &["c"]);
    assert_eq!(bench.runs(), [[3]], "nothing starts before it");
    bench.end(3, done);
    assert_eq!(bench.runs(), [[1]]);
    assert!(events(&bench.running[0]).all(Held::is_alone));
    bench.deliver(5, &["d"]);
    assert_eq!(bench.runs(), [[1]], "nothing starts beside it");
    bench.end(1, retry(1));
    assert_eq!(bench.runs(), [[4], [5]], "its attempt has failed, and its key waits");
    bench.advance(Duration::from_secs(1));
    assert_eq!(bench.runs(), [[4], [5], [1]], "as any other that has failed");
}

#[test]
fn a_suspect_that_is_held_back_waits_whatever_the_order_is() {
    for order in [HandlingOrder::Key, HandlingOrder::None] {
        let mut bench = Bench::new(Limits { order, ..limits() });
        bench.deliver_one(1, "a", 0, true);
        bench.go();
        bench.end(1, |_| Disposition::HeldBack(Duration::from_secs(10)));
        bench.advance(Duration::from_secs(9));
        assert_eq!((bench.runs().len(), bench.acknowledge()), (0, vec![]));
        bench.advance(Duration::from_secs(1));
        assert_eq!(bench.runs(), [[1]]);
    }
}

#[test]
fn a_pause_starts_nothing_until_the_probe_succeeds() {
    let mut bench = Bench::new(limits());
    bench.deliver(1, &["a", "b", "c", "c"]);
    bench.end(1, is_away);
    bench.end(2, is_away);
    let paused = bench.news.iter().filter_map(|news| match news {
        News::Paused { begins, .. } => Some(*begins),
        _ => None,
    });
    assert_eq!(paused.collect::<Vec<_>>(), [true, false]);
    bench.end(3, done);
    bench.deliver(5, &["d"]);
    bench.advance(LONG);
    assert_eq!(bench.runs().len(), 0);
    assert!(matches!(bench.decided[..], [Decision::Probe]), "one at a time, and nothing else");
    bench.scheduler.probed(false, bench.now);
    bench.advance(LONG);
    assert!(matches!(bench.decided[..], [Decision::Probe, Decision::Probe]));
    bench.scheduler.probed(true, bench.now);
    bench.go();
    assert!(matches!(bench.news.last(), Some(News::Resumed(lasted)) if *lasted == 2 * LONG));
    assert_eq!(bench.runs().len(), 4);
}

#[test]
fn a_batch_starts_when_it_is_full_or_has_waited() {
    let mut bench = Bench::new(in_batches(3));
    bench.deliver(1, &["a", "b"]);
    assert_eq!(bench.runs().len(), 0, "others may come");
    bench.deliver(3, &["a", "c"]);
    assert_eq!(bench.runs(), [[1, 3, 2]]);
    assert_eq!(bench.scheduler.lanes.waiting(), 1);
    bench.advance(Duration::from_millis(5));
    assert_eq!(bench.runs(), [vec![1, 3, 2], vec![4]]);
}

#[test]
fn an_event_that_was_delivered_before_runs_outside_of_batches() {
    let mut bench = Bench::new(in_batches(3));
    bench.deliver_one(1, "a", 0, false);
    bench.deliver_one(2, "b", 0, true);
    bench.deliver_one(3, "c", 0, false);
    bench.go();
    bench.advance(Duration::from_millis(5));
    assert_eq!(bench.runs(), [[1], [2], [3]]);
    assert!(matches!(bench.running[1], Work::One { .. }));
}

#[test]
fn an_event_whose_handler_takes_no_batches_runs_outside_of_them_and_at_once() {
    let mut bench = Bench::new(in_batches(3));
    bench.deliver(1, &["a"]);
    assert_eq!(bench.runs().len(), 0, "others may come");
    bench.deliver(2, &["singly"]);
    assert_eq!(bench.runs(), [[1], [2]]);
    assert!(matches!(bench.running[0], Work::Batch(_)));
    assert!(matches!(bench.running[1], Work::One { .. }));
}

#[test]
fn the_events_of_a_batch_that_was_undone_run_one_by_one_and_in_order() {
    let mut bench = Bench::new(in_batches(3));
    bench.deliver(1, &["a", "a", "b"]);
    bench.end(1, |_| Disposition::ByItself);
    bench.advance(Duration::from_millis(5));
    assert_eq!(bench.runs(), [[1], [3]]);
    bench.end(1, done);
    assert_eq!(bench.runs(), [[3], [2]]);
}

#[test]
fn of_a_batch_the_ones_behind_a_failed_event_come_again_behind_it() {
    let mut bench = Bench::new(in_batches(4));
    bench.deliver(1, &["a", "a", "a", "b"]);
    bench.end(1, |held| match number(held) {
        2 => Disposition::Retry(Duration::from_secs(1)),
        3 => Disposition::Behind,
        _ => Disposition::Done,
    });
    let done = Acknowledgement::Done;
    assert_eq!(bench.acknowledge(), [(1, done), (4, done)]);
    bench.advance(Duration::from_secs(1));
    assert_eq!(bench.runs(), [[2]]);
}

#[test]
fn a_delivery_from_before_an_interruption_is_not_acknowledged() {
    let mut bench = Bench::new(limits());
    bench.deliver(1, &["a", "b", "c"]);
    bench.end(1, |_| Disposition::Done);
    bench.scheduler.interrupted(0);
    bench.end(2, |_| Disposition::Done);
    bench.scheduler.report_progress();
    assert_eq!(bench.acknowledge(), []);
    let again = bench.deliver_one(3, "c", 0, true);
    bench.go();
    assert_eq!(bench.runs(), [[3]], "it is held already");
    bench.scheduler.report_progress();
    bench.end(3, |_| Disposition::Done);
    assert_eq!(
        bench.acknowledge(),
        [(again, Acknowledgement::Done)],
        "and it is in progress no more"
    );
}

#[test]
fn what_waits_of_a_partition_that_is_given_up_is_forgotten_and_what_runs_ends() {
    let mut bench = Bench::new(limits());
    for (sequence, key, partition) in [(1, "a", 0), (2, "a", 0), (3, "b", 1), (4, "c", 0)] {
        bench.deliver_one(sequence, key, partition, false);
    }
    bench.go();
    bench.end(4, |_| Disposition::Alone);
    bench.scheduler.gives_up(&[0]);
    bench.go();
    assert!(bench.scheduler.holds_any_of(0), "1 runs");
    bench.end(1, retry(1));
    assert!(!bench.scheduler.holds_any_of(0) && bench.scheduler.holds_any_of(1));
    let mut released: Vec<_> = bench
        .news
        .iter()
        .filter_map(|news| match news {
            News::Released(place) => Some(place.sequence()),
            _ => None,
        })
        .collect();
    released.sort_unstable();
    assert_eq!(released, [1, 2, 4]);
    bench.advance(LONG);
    assert_eq!(bench.runs(), [[3]]);
    assert_eq!(bench.acknowledge(), [], "another process gets them");
    bench.scheduler.takes(&[0]);
    bench.deliver_one(1, "a", 0, true);
    bench.go();
    assert_eq!(bench.runs(), [[3], [1]]);
}

#[test]
fn a_failing_key_that_takes_the_others_room_is_parked_with_all_that_waits_behind_it() {
    let mut bench = Bench::new(limits());
    bench.deliver(1, &["a", "b", "a", "a", "a", "a"]);
    bench.end(1, retry(9));
    bench.advance(Duration::from_secs(1));
    assert_eq!(bench.runs(), [vec![2], vec![1, 3, 4, 5, 6]]);
    assert!(matches!(bench.running[1], Work::Park { wait: Some(wait), .. } if wait.as_secs() == 8));
    bench.end_parking(Parking::Done);
    assert_eq!(bench.acknowledge().len(), 5);
    bench.deliver(7, &["a"]);
    assert_eq!(bench.runs(), [[2], [7]]);
    assert!(matches!(bench.running[1], Work::Park { wait: None, .. }), "behind those in the table");
    bench.end_parking(Parking::NotBehind);
    bench.advance(Duration::ZERO);
    assert!(matches!(bench.running[1], Work::One { .. }), "the table holds none any more");
}

#[test]
fn while_the_table_is_full_a_crowding_key_goes_on_waiting_here() {
    let mut bench = Bench::new(limits());
    bench.deliver(1, &["a"; 6]);
    bench.end(1, retry(9));
    bench.advance(Duration::from_secs(1));
    bench.end_parking(Parking::Full);
    assert!(matches!(bench.news.last(), Some(News::Table(Table::Full))));
    assert_eq!(bench.runs().len(), 0);
    bench.advance(Duration::from_secs(1));
    assert_eq!(bench.runs(), [[1, 2, 3, 4, 5, 6]], "it is tried again");
    bench.end_parking(Parking::Done);
    assert!(bench.news.iter().any(|news| matches!(news, News::Table(Table::HasRoom))));
}

#[test]
fn neither_a_suspect_nor_an_event_of_another_number_of_partitions_is_parked() {
    let mut bench = Bench::new(limits());
    bench.deliver(1, &["a"; 6]);
    bench.end(1, |_| Disposition::HeldBack(LONG));
    bench.advance(Duration::from_secs(2));
    assert_eq!(bench.runs().len(), 0);
    let mut bench = Bench::new(limits());
    let misfit = Partition::new(1, 4).ok();
    for (sequence, acker) in [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)] {
        let (place, content) = (place(sequence), content("a"));
        let message = Delivered {
            place,
            partition: 0,
            again: false,
            misfit,
            in_batches: true,
            content,
            acker,
        };
        bench.scheduler.delivered(message, bench.now);
    }
    bench.go();
    bench.end(1, |held| Disposition::Misfit(held.misfit.unwrap()));
    assert!(matches!(&bench.news[..], [News::Misfit(_, partition)] if partition.of() == 4));
    bench.advance(Duration::from_secs(4));
    assert_eq!(bench.runs().len(), 0);
    bench.advance(Duration::from_secs(1));
    assert_eq!(bench.runs(), [[1]]);
}

/// A bench on which these pages of parked events have been found.
fn with_pages(limits: Limits, pages: &[&[i64]]) -> Bench {
    let mut bench = Bench::new(limits);
    bench.advance(Duration::ZERO);
    assert!(matches!(bench.decided.pop(), Some(Decision::LookForParked(_))));
    let pages = pages.iter().map(|positions| page(positions, bench.now + LONG)).collect();
    bench.scheduler.found(pages, true, bench.now);
    bench.go();
    bench
}

#[test]
fn parked_events_run_in_their_order_and_the_next_look_comes_soon_after_the_last() {
    let mut bench = with_pages(limits(), &[&[1, 2], &[7]]);
    assert_eq!(bench.runs(), [[-1], [-7]]);
    bench.end(-1, done);
    assert_eq!(bench.runs(), [[-7], [-2]]);
    bench.end(-2, done);
    bench.advance(Duration::from_millis(5));
    assert!(matches!(bench.decided[..], [Decision::LookForParked(3)]));
}

#[test]
fn those_behind_a_parked_event_that_fails_are_given_back() {
    for (order, becomes, expected) in [
        (HandlingOrder::Key, Disposition::Retry(LONG), Some(vec![2, 3])),
        (HandlingOrder::Key, Disposition::Environment("away".into()), Some(vec![2, 3])),
        (HandlingOrder::Key, Disposition::Late, Some(vec![1, 2, 3])),
        (HandlingOrder::Key, Disposition::Dead, None),
        (HandlingOrder::Strict, Disposition::Dead, Some(vec![2, 3])),
    ] {
        let mut bench = with_pages(Limits { order, ..limits() }, &[&[1, 2, 3]]);
        bench.end(-1, |_| becomes.clone());
        let given: Option<Vec<i64>> = bench.decided.iter().find_map(|decision| match decision {
            Decision::GiveBack(letters) => Some(letters.iter().map(|(at, _)| *at).collect()),
            _ => None,
        });
        assert_eq!(given, expected, "{order:?} {becomes:?}");
        assert_eq!(bench.runs().len(), usize::from(expected.is_none()));
    }
}

/// The dead letters that were given back.
fn given_back(bench: &Bench) -> Vec<(i64, bool)> {
    let given = bench.decided.iter().filter_map(|decision| match decision {
        Decision::GiveBack(letters) => Some(letters.clone()),
        _ => None,
    });
    given.flatten().collect()
}

#[test]
fn parked_events_run_in_batches_of_their_own_and_in_their_order() {
    let mut bench = with_pages(in_batches(3), &[&[1, 2, 3, 4], &[7], &[8]]);
    assert_eq!(bench.runs(), [vec![-1, -2, -3], vec![-7, -8]]);
    assert!(bench.running.iter().all(|work| matches!(work, Work::Batch(_))));
    bench.end(-1, done);
    assert_eq!(bench.runs(), [[-7, -8].as_slice(), &[-4]]);
    let mut bench = with_pages(Limits { concurrency: 1, ..in_batches(4) }, &[]);
    bench.deliver(1, &["a", "b"]);
    bench.scheduler.found(vec![page(&[1, 2], bench.now + LONG)], true, bench.now);
    bench.advance(Duration::from_millis(5));
    assert_eq!(bench.runs(), [[1, 2]], "none that is parked beside them");
    bench.end(1, done);
    assert_eq!(bench.runs(), [[-1, -2]]);
}

#[test]
fn a_parked_event_that_may_have_been_begun_or_has_another_handler_runs_outside_of_batches() {
    for (again, in_batches_too) in [(true, true), (false, false)] {
        let mut bench = with_pages(in_batches(3), &[]);
        let mut page = page(&[1, 2, 3, 4], bench.now + LONG);
        (page.letters[1].again, page.letters[1].in_batches) = (again, in_batches_too);
        bench.scheduler.found(vec![page], true, bench.now);
        bench.go();
        for expected in [[-1].as_slice(), &[-2], &[-3, -4]] {
            assert_eq!(bench.runs(), [expected]);
            assert_eq!(matches!(bench.running[0], Work::One { .. }), expected == [-2]);
            bench.end(expected[0], done);
        }
    }
}

#[test]
fn of_a_batch_of_parked_events_those_behind_one_that_fails_follow_it_or_are_given_back() {
    let retry = Disposition::Retry(LONG);
    for (order, fails, runs) in [
        (HandlingOrder::Key, Disposition::Dead, true),
        (HandlingOrder::Strict, Disposition::Dead, false),
        (HandlingOrder::Key, retry.clone(), false),
        (HandlingOrder::Strict, retry, false),
    ] {
        let mut bench = with_pages(Limits { order, ..in_batches(3) }, &[&[1, 2, 3, 4]]);
        bench.end(-1, |held| match number(held) {
            -1 => Disposition::Done,
            -2 => fails.clone(),
            _ => Disposition::Behind,
        });
        bench.advance(Duration::ZERO);
        let (expected, given): (&[&[i64]], &[_]) = match runs {
            true => (&[&[-3, -4]], &[]),
            false => (&[], &[(3, false), (4, false)]),
        };
        assert_eq!(bench.runs(), expected, "{order:?} {fails:?}");
        assert_eq!(given_back(&bench), given, "{order:?} {fails:?}");
    }
}

#[test]
fn a_batch_of_parked_events_that_was_undone_runs_one_by_one_and_one_that_is_late_or_met_an_outage_leaves()
 {
    let mut bench = with_pages(in_batches(3), &[&[1, 2, 3, 4]]);
    bench.end(-1, |_| Disposition::ByItself);
    bench.advance(Duration::ZERO);
    for event in [-1, -2, -3, -4] {
        assert_eq!(bench.runs(), [[event]]);
        assert_eq!(matches!(bench.running[0], Work::One { .. }), event != -4);
        bench.end(event, done);
    }
    assert_eq!(given_back(&bench), []);
    let mut bench = with_pages(in_batches(3), &[&[1, 2, 3, 4]]);
    bench.end(-1, |_| Disposition::Late);
    assert_eq!(given_back(&bench).len(), 4);
    let mut bench = with_pages(in_batches(3), &[&[1, 2, 3, 4]]);
    bench.end(-1, is_away);
    assert_eq!(given_back(&bench), [(4, false)], "the worker gives the others back");
    assert_eq!(bench.scheduler.lanes.waiting(), 0);
}

#[test]
fn a_page_that_comes_again_runs_in_order_also_while_all_handlers_are_busy() {
    let mut bench = with_pages(Limits { concurrency: 1, ..limits() }, &[]);
    bench.deliver(1, &["a", "b", "c"]);
    bench.scheduler.found(vec![page(&[1, 2], bench.now + LONG)], true, bench.now);
    for event in [1, 2, 3] {
        bench.end(event, done);
    }
    bench.deliver(4, &["a", "b"]);
    // Given back while the others take their turn, and found again before its lane had one.
    bench.end(-1, |_| Disposition::Late);
    bench.scheduler.found(vec![page(&[1, 2], bench.now + LONG)], true, bench.now);
    bench.scheduler.limits.concurrency = 4;
    bench.go();
    assert_eq!(bench.runs(), [[4], [5], [-1]]);
}

#[test]
fn no_parked_events_are_looked_for_while_as_many_pages_are_here_as_handlers() {
    let mut bench = with_pages(limits(), &[&[1], &[2], &[3], &[4]]);
    bench.advance(LONG);
    assert!(!bench.decided.iter().any(|it| matches!(it, Decision::LookForParked(_))));
}

#[test]
fn the_database_is_asked_once_something_waits_for_it_and_nothing_ends() {
    let mut bench = Bench::new(limits());
    bench.advance(Duration::ZERO);
    bench.decided.clear();
    assert!(bench.scheduler.waits_for_database(), "it looks for parked events");
    bench.scheduler.found(vec![], true, bench.now);
    bench.deliver(1, &["a"]);
    bench.advance(Duration::from_millis(999));
    assert!(bench.decided.is_empty());
    bench.advance(Duration::from_millis(1));
    assert!(bench.decided.iter().any(|it| matches!(it, Decision::AskDatabase)));
    bench.scheduler.asked(Some("no route".into()), bench.now);
    bench.decide();
    assert!(matches!(&bench.news[..], [News::NoDatabase(_), News::Paused { begins: true, .. }]));
}

#[test]
fn an_answer_that_comes_when_nothing_waits_any_more_pauses_nothing() {
    let mut bench = Bench::new(limits());
    bench.advance(Duration::ZERO);
    bench.deliver(1, &["a"]);
    bench.advance(Duration::from_secs(1));
    bench.end(1, done);
    bench.scheduler.found(vec![], true, bench.now);
    bench.scheduler.asked(Some("no route".into()), bench.now);
    bench.decide();
    assert!(bench.scheduler.pause.is_open());
}

#[test]
fn a_stop_starts_nothing_more_and_leaves_what_is_held_to_others() {
    let mut bench = with_pages(Limits { concurrency: 2, ..limits() }, &[&[1, 2]]);
    bench.deliver(1, &["a", "a", "a", "a", "a", "a"]);
    bench.end(1, retry(9));
    bench.scheduler.stop();
    bench.advance(LONG);
    assert_eq!(bench.runs(), [[-1]]);
    bench.end(-1, |_| Disposition::Alone);
    bench.advance(LONG);
    assert_eq!(bench.runs().len(), 0);
    let Leftover { mut letters, acknowledgements, held } = bench.scheduler.end();
    letters.sort_unstable();
    assert_eq!(letters, [(1, false), (2, false)]);
    assert_eq!((acknowledgements.len(), held.len()), (0, 6));
}

#[test]
fn the_server_is_told_what_is_in_work_every_third_of_the_time_that_it_waits() {
    let now = Instant::now();
    let mut scheduler = Scheduler::<()>::new(limits(), now);
    let mut signs = Vec::new();
    for second in 0..=30 {
        scheduler.wake(now + Duration::from_secs(second));
        while let Some(decision) = scheduler.decision() {
            if matches!(decision, Decision::ReportProgress) {
                signs.push(second);
            }
        }
    }
    assert_eq!(signs, [0, 10, 20, 30]);
}

#[test]
fn without_an_order_no_more_is_asked_for_than_may_be_held_and_with_one_the_subscription_decides() {
    for (order, has_room) in
        [(HandlingOrder::Key, true), (HandlingOrder::Strict, true), (HandlingOrder::None, false)]
    {
        let mut bench = Bench::new(Limits { order, ..limits() });
        for sequence in 1..=8 {
            assert!(bench.scheduler.has_room());
            bench.deliver_one(sequence, "a", 0, false);
        }
        assert_eq!(bench.scheduler.has_room(), has_room);
    }
}

/// Lets enough events in a row turn out to be handled already.
fn begins_to_skip(bench: &mut Bench) {
    for sequence in 1_001..1_001 + u64::from(skipping::ENOUGH) {
        bench.deliver(sequence, &["before"]);
        assert!(!matches!(bench.running[..], [Work::LookUp(_)]), "not enough yet");
        bench.end(sequence.cast_signed(), |_| Disposition::Skipped);
    }
    bench.acknowledge();
}

fn skipped(numbers: &[i64]) -> impl Fn(&Held) -> Disposition {
    move |held| match numbers.contains(&number(held)) {
        true => Disposition::Skipped,
        false => Disposition::Behind,
    }
}

#[test]
fn after_many_that_were_handled_already_what_waits_is_looked_up_together_and_keeps_its_order() {
    let mut bench = Bench::new(limits());
    begins_to_skip(&mut bench);
    bench.deliver(1, &["a"]);
    assert!(matches!(bench.running[..], [Work::LookUp(_)]));
    bench.deliver(2, &["a", "b", "a", "", "b", "a"]);
    assert_eq!(
        bench.runs(),
        [[1]],
        "one lookup at a time, and nothing runs that was not looked up"
    );
    bench.end(1, skipped(&[1]));
    assert_eq!(bench.runs(), [[3, 6, 5, 2, 4, 7]]);
    bench.end(2, skipped(&[2, 4, 3, 5]));
    assert_eq!(bench.runs(), [[6], [7]], "new ones run as any other");
    assert_eq!(bench.acknowledge().len(), 5);
    bench.deliver(8, &["a", "b"]);
    bench.end(7, done);
    assert_eq!(bench.runs(), [[6], [8]], "what comes after is looked up when its key is free");
    assert!(matches!(bench.running[1], Work::LookUp(_)));
}

#[test]
fn once_most_of_what_is_looked_up_is_new_events_run_as_they_come_again() {
    let mut bench = Bench::new(limits());
    begins_to_skip(&mut bench);
    bench.deliver(1, &["a", "a", "b"]);
    bench.end(1, |_| Disposition::Behind);
    assert_eq!(bench.runs(), [[1], [3]]);
    assert!(matches!(bench.running[..], [Work::One { .. }, Work::One { .. }]));
    bench.end(1, done);
    assert_eq!(bench.runs(), [[3], [2]]);
    assert!(matches!(bench.running[..], [Work::One { .. }, Work::One { .. }]));
}

#[test]
fn a_batch_has_no_event_that_is_still_to_be_looked_up() {
    let mut bench = Bench::new(in_batches(3));
    for _ in 0..skipping::ENOUGH {
        bench.scheduler.skipping.ran(true);
    }
    bench.deliver(1, &["a", "b", "c", "d"]);
    assert!(matches!(bench.running[..], [Work::LookUp(_)]), "it does not linger");
    bench.deliver(5, &["e"]);
    bench.end(1, skipped(&[1, 2]));
    assert_eq!(bench.runs(), [vec![3, 4], vec![5]]);
    assert!(matches!(bench.running[..], [Work::Batch(_), Work::LookUp(_)]));
}

#[test]
fn what_a_lost_partition_has_is_forgotten_when_its_lookup_ends() {
    let mut bench = Bench::new(limits());
    begins_to_skip(&mut bench);
    bench.deliver_one(1, "a", 0, true);
    bench.deliver_one(2, "a", 0, true);
    bench.go();
    bench.scheduler.gives_up(&[0]);
    bench.end(1, skipped(&[1]));
    assert_eq!((bench.runs().len(), bench.acknowledge().len()), (0, 1));
    assert!(!bench.scheduler.holds_any_of(0));
}
