//! Why a subscription ended.

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
