//! The console as a visitor meets it: over HTTP, on a real database.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod access;
mod browser;
mod changes;
mod controls;
mod edits;
mod ends;
mod hostile;
mod pages;
mod support;
