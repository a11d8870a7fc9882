//! The fault runs themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cursor_writes;
mod runs;
