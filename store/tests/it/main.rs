//! What needs no database: the texts of errors.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fingerprint;
