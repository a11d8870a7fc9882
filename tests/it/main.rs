//! The whole way from the writer to the effect, the examples, and the rules for the code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod add_to_axum;
mod arrows;
mod book;
mod booking;
mod checkout;
mod compile_errors;
mod forgetful_broker;
mod other_languages;
mod patterns;
mod programs;
mod scaling;
mod service;
mod settle;
mod trace;
mod versions;
