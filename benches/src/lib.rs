//! Measures Pillarbox against the ceiling of the machine it runs on.
//!
//! Each program of this folder measures one [subject](program::Subject): several ways of doing the same thing, in turn,
//! on servers that it starts itself with their default durability. What counts is the ratio of a way to its ceiling
//! in the same round; a machine's absolute figures say little about another machine. A program prints a
//! table, and writes the figures of every round as JSON and a plot as SVG to `target/bench`.
//!
//! | module | concept |
//! |---|---|
//! | [`program`] | what all programs do: arguments, servers, files |
//! | [`rounds`] | ways that take turns |
//! | [`statistics`] | medians, spreads, percentiles |
//! | [`table`], [`mod@unit`] | figures in columns, comparisons between them, and their goals |
//! | [`report`] | all that a program found, as its JSON file holds it |
//! | [`machine`] | where and with what was measured |
//! | [`plot`] | the SVG files |
//! | `summary` | the goals of all programs in one table |
//! | [`backlog`] | outboxes filled with events |
//! | [`shipping`] | a relay at work, and how long it takes |
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
pub mod report;
pub mod rounds;
pub mod shipping;
pub mod statistics;
pub mod subjects;
mod summary;
pub mod table;
pub mod unit;

pub use report::Report;
