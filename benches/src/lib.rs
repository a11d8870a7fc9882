//! Compares Pillarbox with what the machine can do without it.
//!
//! Each program measures one [subject](program::Subject): several variants of the same task, in turn, on servers that
//! it starts itself with their default durability. What counts is the ratio of a variant to its ceiling in the same
//! round, because the absolute figures of one machine say little about another. A program prints a table, and writes
//! the figures of every round as JSON and a plot as SVG to `target/bench`.
//!
//! | module | concept |
//! |---|---|
//! | [`program`] | what all programs do: arguments, servers, files |
//! | [`rounds`] | variants that take turns |
//! | [`statistics`] | medians, spreads, percentiles |
//! | [`table`], [`mod@unit`] | figures in columns, comparisons between them, and their goals |
//! | [`report`] | the results of a program, as in its JSON file |
//! | [`machine`] | the machine and the versions of a measurement |
//! | [`plot`] | the SVG files |
//! | `summary` | the goals of all programs in one table |
//! | [`backlog`] | outboxes filled with events |
//! | [`shipping`] | a running relay, and how long it takes |
//! | [`relay_process`] | a relay as a process of its own |
//! | [`progress`] | how a stream fills |
//! | [`raw`] | publishing without a database |
//! | [`subjects`] | what is measured |

pub mod backlog;
mod columns;
pub mod machine;
pub mod plot;
pub mod program;
pub mod progress;
pub mod raw;
pub mod relay_process;
pub mod report;
pub mod rounds;
pub mod shipping;
pub mod statistics;
pub mod subjects;
mod summary;
pub mod table;
pub mod unit;

pub use report::Report;
