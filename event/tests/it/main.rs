//! The event: properties of its identity and its headers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod derive;
mod identity;
mod properties;
mod versions;
