//! What operators pause and limit.

use std::collections::BTreeSet;

use super::*;

fn paused_type() -> Controls {
    Controls { paused_types: BTreeSet::from(["order.refunded".to_owned()]), ..Controls::default() }
}

impl Bench {
    fn control(&mut self, controls: Option<Controls>) {
        self.scheduler.control(controls, self.now);
        self.go();
    }

    /// How many events were asked for since the last call, question by question.
    fn asked(&mut self) -> Vec<u32> {
        let taken = std::mem::take(&mut self.decided);
        let asked = taken.into_iter().filter_map(|decision| match decision {
            Decision::TakeRate(events) => Some(events),
            _ => None,
        });
        asked.collect()
    }

    fn granted(&mut self, events: u32, wait: u64, per_second: f64) {
        let wait = Duration::from_millis(wait);
        self.scheduler.granted(Some(Piece { events, wait, per_second }), self.now);
        self.go();
    }
}

#[test]
fn nothing_starts_while_it_is_paused_or_not_known_and_what_runs_ends() {
    let mut bench = Bench::new(limits());
    bench.control(None);
    bench.deliver(1, &["a", "b"]);
    assert_eq!(bench.runs().len(), 0, "it is not known");
    bench.control(Some(Controls::default()));
    assert_eq!(bench.runs(), [[1], [2]]);
    bench.control(Some(Controls { paused: true, ..Controls::default() }));
    bench.deliver(3, &["a", "c"]);
    bench.end(1, |_| Disposition::Done);
    assert_eq!(bench.acknowledge().len(), 1);
    bench.advance(LONG);
    assert_eq!(bench.runs(), [[2]]);
    let looks = |decision: &Decision| matches!(decision, Decision::LookForParked(_));
    let before = bench.decided.iter().filter(|decision| looks(decision)).count();
    bench.advance(LONG);
    let after = bench.decided.iter().filter(|decision| looks(decision)).count();
    assert_eq!(before, after, "parked events wait as well");
    bench.control(Some(Controls::default()));
    assert_eq!(bench.runs(), [[2], [4], [3]], "the lane of 4 was free before that of 3");
}

#[test]
fn an_event_of_a_paused_type_is_parked_with_all_that_waits_behind_it() {
    let mut bench = Bench::new(limits());
    bench.control(Some(paused_type()));
    bench.deliver(1, &["order.refunded of a", "a", "b", "order.refunded of "]);
    assert_eq!(bench.runs(), [vec![1, 2], vec![3], vec![4]]);
    let pauses = |work: &Work| matches!(work, Work::Park { wait: Some(_), paused: true, .. });
    assert_eq!(bench.running.iter().map(pauses).collect::<Vec<_>>(), [true, false, true]);
    let at = 0;
    bench.end_at(at, Some(Parking::Done), |_| Disposition::Parked);
    bench.deliver(5, &["a"]);
    assert_eq!(bench.runs(), [[3], [4], [5]]);
    let behind = |work: &Work| matches!(work, Work::Park { wait: None, paused: false, .. });
    assert!(behind(&bench.running[2]), "the table holds its key");
}

#[test]
fn a_parked_event_of_a_paused_type_goes_back_with_those_behind_it() {
    let mut bench = Bench::new(limits());
    bench.control(Some(paused_type()));
    let until = bench.now + LONG;
    let mut page = page(&[1, 2, 3], until);
    page.letters[1].content = content("order.refunded of parked");
    bench.scheduler.found(vec![page], true, bench.now);
    bench.go();
    assert_eq!(bench.runs(), [[-1]]);
    bench.end(-1, |_| Disposition::Done);
    assert!(matches!(bench.running[0], Work::Postpone { .. }));
    bench.end(-2, |_| Disposition::Paused);
    assert_eq!(bench.runs().len(), 0);
    let given_back = |decision: &Decision| match decision {
        Decision::GiveBack(letters) => letters.clone(),
        _ => Vec::new(),
    };
    let given_back: Vec<_> = bench.decided.iter().flat_map(given_back).collect();
    assert_eq!(given_back, [(3, false)], "the next one waits in the table, too");
}

#[test]
fn a_batch_holds_no_event_of_a_paused_type() {
    let mut bench = Bench::new(in_batches(8));
    bench.control(Some(paused_type()));
    bench.deliver(1, &["a", "order.refunded of a", "a", "b"]);
    bench.advance(Duration::from_millis(10));
    assert_eq!(bench.runs(), [[1, 4]]);
    bench.end(1, |_| Disposition::Done);
    assert_eq!(bench.runs(), [[2, 3]]);
    assert!(matches!(bench.running[0], Work::Park { paused: true, .. }));
}

#[test]
fn no_more_events_begin_than_the_rate_allows() {
    let mut bench = Bench::new(limits());
    bench.control(Some(Controls { per_second: Some(20.0), ..Controls::default() }));
    assert_eq!(bench.asked(), [0_u32; 0], "nothing waits");
    bench.deliver(1, &["a", "b", "c", "d"]);
    assert_eq!((bench.runs().len(), bench.asked()), (0, vec![2]));
    bench.granted(2, 300, 20.0);
    bench.advance(Duration::from_millis(299));
    assert_eq!(bench.runs().len(), 0, "its piece has not begun");
    bench.advance(Duration::from_millis(1));
    assert_eq!(bench.runs(), [[1], [2]]);
    assert_eq!(bench.asked(), [2]);
    // The database does not answer, and is asked again after a second.
    bench.scheduler.granted(None, bench.now);
    bench.go();
    bench.advance(Duration::from_millis(990));
    assert_eq!(bench.asked(), [0_u32; 0]);
    bench.advance(Duration::from_millis(20));
    assert_eq!(bench.asked(), [2]);
    bench.control(Some(Controls::default()));
    assert_eq!(bench.runs().len(), 4, "there is no limit any more");
}

#[test]
fn a_batch_takes_no_more_than_is_left_of_the_rate() {
    let mut bench = Bench::new(in_batches(8));
    bench.control(Some(Controls { per_second: Some(30.0), ..Controls::default() }));
    bench.deliver(1, &["a", "b", "c", "d", "e"]);
    bench.advance(Duration::from_millis(10));
    assert_eq!(bench.asked(), [3]);
    bench.granted(3, 0, 30.0);
    assert_eq!(bench.runs(), [[1, 2, 3]]);
    assert_eq!(bench.asked(), [3]);
}
