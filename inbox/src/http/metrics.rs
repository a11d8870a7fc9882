//! The metrics of HTTP commands, through the [`metrics`](https://docs.rs/metrics) facade.
//!
//! Install a recorder before you make the layer. Without one, the metrics cost next to nothing. They are those of this
//! process. Requests with a safe method are not counted.

use std::time::Instant;

use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};

/// Requests with a method that is not safe, by what came of them: the label `outcome`.
///
/// | `outcome` | what came of it |
/// |---|---|
/// | `committed` | the handler ran, and what it wrote is committed |
/// | `refused` | the handler ran and refused: what it wrote is undone, and its answer is stored |
/// | `undone` | the handler ran and failed: what it wrote is undone, and a repeat runs again |
/// | `replayed` | a repeat, which got the stored answer |
/// | `abandoned` | the handler panicked, the client went away, or a timeout outside of the layer expired: undone, unless it was about to commit |
/// | the word in the header `idempotency-problem`, such as `in-progress` | the layer answered itself |
pub const REQUESTS: &str = "pillarbox_http_commands_total";

/// How long handlers ran, from the call to the end of the transaction, in seconds. Requests for which no handler ran
/// are left out.
pub const DURATION: &str = "pillarbox_http_command_duration_seconds";

/// What came of a request for which a handler ran, or that got a stored answer.
pub(crate) mod outcome {
    pub(crate) const COMMITTED: &str = "committed";
    pub(crate) const REFUSED: &str = "refused";
    pub(crate) const UNDONE: &str = "undone";
    pub(crate) const REPLAYED: &str = "replayed";
    pub(crate) const ABANDONED: &str = "abandoned";
}

/// Describes the metrics to the recorder. Making a layer does this too.
pub fn describe() {
    describe_counter!(
        REQUESTS,
        "Requests to run a command over HTTP, by what came of them; those with a safe method are left out."
    );
    describe_histogram!(
        DURATION,
        Unit::Seconds,
        "From the call of a command's handler to the end of its transaction."
    );
    for outcome in [outcome::COMMITTED, outcome::REFUSED, outcome::UNDONE, outcome::REPLAYED] {
        // `increase` does not count the request with which a counter first appears, so it appears now.
        counter!(REQUESTS, "outcome" => outcome).increment(0);
    }
}

/// Counts one request when it is dropped, so a request whose future is dropped is counted, too.
pub(crate) struct Count {
    outcome: &'static str,
    handling_since: Option<Instant>,
}

impl Count {
    pub(crate) fn begin() -> Self {
        Self { outcome: outcome::ABANDONED, handling_since: None }
    }

    /// The handler is called now.
    pub(crate) fn handles(&mut self) {
        self.handling_since = Some(Instant::now());
    }

    pub(crate) fn end(mut self, outcome: &'static str) {
        self.outcome = outcome;
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        counter!(REQUESTS, "outcome" => self.outcome).increment(1);
        if let Some(since) = self.handling_since {
            histogram!(DURATION).record(since.elapsed());
        }
    }
}
