//! What a fault run takes away, to show that it would be noticed.
//!
//! Only with the feature `sabotage`, and only by a call in the caller's own code: no setting leads here.

use super::consumer::Consumer;

impl Consumer {
    /// The same consumer without its dedup: every delivery of an event is handled, again and again.
    #[doc(hidden)]
    #[must_use]
    pub fn without_dedup(mut self) -> Self {
        self.store = self.store.without_dedup();
        self
    }
}
