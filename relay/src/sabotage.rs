//! Protections that a fault run takes away, one at a time, to show that it finds what they prevent.
//!
//! They hold, always, without the feature `sabotage`. With it they hold unless
//! [`Relay::without`](crate::Relay::without) is called: a value in the caller's own code. No setting, flag or
//! variable leads there, so the `pillarbox` program cannot, whatever features it was built with.

/// Something that keeps a relay from losing events or from disturbing its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// The floor of the [cursor](crate::cursor) lags by a window.
    Floor,
    /// Writes name the epoch, and a leader stops when its lease has run out by its own clock.
    Fence,
}

/// Which protections hold.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Protections {
    #[cfg(feature = "sabotage")]
    without: Option<Protection>,
}

impl Protections {
    #[cfg(feature = "sabotage")]
    pub(crate) fn without(protection: Protection) -> Self {
        Self { without: Some(protection) }
    }

    #[cfg(feature = "sabotage")]
    pub(crate) fn hold(self, protection: Protection) -> bool {
        self.without != Some(protection)
    }

    #[cfg(not(feature = "sabotage"))]
    pub(crate) fn hold(self, _: Protection) -> bool {
        true
    }
}
