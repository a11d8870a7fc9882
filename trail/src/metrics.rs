//! What the trail counts and measures, through the [`metrics`](https://docs.rs/metrics) facade. Every number but
//! [`ACTIVE`] has the label `stream`.

use metrics::{counter, gauge};

pillarbox_store::metrics! {
    ACTIVE = Gauge "pillarbox_trail_active"
        "1 while this process reads the streams and its database answers, 0 while it stands by or waits.";
    RECORDED = Counter "pillarbox_trail_recorded_total"
        "Messages whose headers were recorded, by stream.";
    FOREIGN = Counter "pillarbox_trail_foreign_total"
        "Recorded messages that are no events, by stream.";
    SKIPPED = Counter "pillarbox_trail_skipped_total"
        "Messages that were not recorded: older than the trail's retention, or dated ahead, by stream.";
    LAG = Gauge "pillarbox_trail_lag_messages"
        "How many messages behind the end of the stream the trail is, by stream.";
    PROBLEM = Gauge "pillarbox_trail_problem"
        "1 while a stream cannot be read, by stream; the log and /readyz say why.";
}

pub(crate) fn active(active: bool) {
    gauge!(ACTIVE.name).set(if active { 1.0 } else { 0.0 });
}

pub(crate) fn recorded(stream: &str, recorded: usize, foreign: usize, skipped: usize) {
    for (metric, count) in [(RECORDED, recorded), (FOREIGN, foreign), (SKIPPED, skipped)] {
        counter!(metric.name, "stream" => stream.to_owned()).increment(count as u64);
    }
}

pub(crate) fn stands(stream: &str, lag: u64, problem: bool) {
    gauge!(LAG.name, "stream" => stream.to_owned()).set(lag as f64);
    gauge!(PROBLEM.name, "stream" => stream.to_owned()).set(if problem { 1.0 } else { 0.0 });
}
