//! Why a subscription ended.

use std::fmt::{Debug, Display};

use async_nats::error::Error;
use pillarbox_store::full_text;

/// The subscription cannot go on; another must be opened.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub(super) struct Interrupted {
    pub(super) reason: String,
    /// Nothing has failed.
    pub(super) at_once: bool,
    /// The client that reads is of no use any more.
    pub(super) is_over: bool,
}

impl<Kind: Clone + Debug + Display + PartialEq + 'static> From<Error<Kind>> for Interrupted {
    fn from(error: Error<Kind>) -> Self {
        Self::new(full_text(&error))
    }
}

impl Interrupted {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), at_once: false, is_over: false }
    }

    pub(super) fn at_once(reason: &str) -> Self {
        Self { reason: reason.into(), at_once: true, is_over: false }
    }

    pub(super) fn over() -> Self {
        Self { reason: "the subscription ended".into(), at_once: false, is_over: true }
    }
}
