//! What a metric is, and how a crate declares its metrics.

/// The kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, from 0 at the start of the process.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts observations by size, in seconds.
    Histogram,
}

/// A metric's name and meaning.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// The name, as Prometheus shows it.
    pub name: &'static str,
    /// What kind it is.
    pub kind: Kind,
    /// What it means; the HELP line.
    pub help: &'static str,
}

/// Declares metrics, each as `CONSTANT = Kind "name" "help";`.
///
/// For each it makes a constant of type [`Metric`], and for all of them the slice `ALL` and a function `describe`,
/// which tells the recorder of the crate `metrics` what they mean. The calling crate depends on `metrics`.
#[macro_export]
macro_rules! metrics {
    ($($constant:ident = $kind:ident $name:literal $help:literal;)*) => {
        $(#[doc = $help] pub const $constant: $crate::metric::Metric = $crate::metric::Metric {
            name: $name,
            kind: $crate::metric::Kind::$kind,
            help: $help,
        };)*
        /// All metrics.
        pub const ALL: &[$crate::metric::Metric] = &[$($constant),*];

        /// Tells the recorder what the metrics mean. Whoever counts them does this by itself.
        pub fn describe() {
            for $crate::metric::Metric { name, kind, help } in ALL {
                match kind {
                    $crate::metric::Kind::Counter => ::metrics::describe_counter!(*name, *help),
                    $crate::metric::Kind::Gauge => ::metrics::describe_gauge!(*name, *help),
                    $crate::metric::Kind::Histogram => {
                        ::metrics::describe_histogram!(*name, ::metrics::Unit::Seconds, *help)
                    }
                }
            }
        }
    };
}
