//! The measurements, one file for each.

pub mod drain;
pub mod latency;
pub mod live;
pub mod writers;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;

use crate::Arguments;
use crate::condition::Condition;
use crate::contestant::Contestant;
use crate::site::Site;

/// Named values of one measurement.
pub type Values = BTreeMap<String, f64>;

pub(crate) fn values<const N: usize>(pairs: [(&str, f64); N]) -> Values {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Measure {
    /// How fast a backlog drains.
    Drain,
    /// Order and losses while others write.
    Live,
    /// Time to the stream and to a consumer.
    Latency,
    /// What writing an event costs.
    Writers,
}

impl Measure {
    pub fn name(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Live => "live",
            Self::Latency => "latency",
            Self::Writers => "writers",
        }
    }

    /// Whether it makes sense under this condition.
    pub fn applies(self, condition: Condition) -> bool {
        matches!(self, Self::Drain | Self::Latency) || condition == Condition::Idle
    }

    /// Measures a contestant.
    pub async fn of(
        self,
        contestant: &dyn Contestant,
        site: &Site,
        arguments: &Arguments,
    ) -> Result<Values> {
        let duration = Duration::from_secs(arguments.seconds);
        match self {
            Self::Drain => {
                let limit = Duration::from_secs(arguments.limit);
                drain::measure(contestant, site, arguments.events, limit).await
            }
            Self::Live => live::measure(contestant, site, duration).await,
            Self::Latency => latency::measure(contestant, site, arguments.rate, duration).await,
            Self::Writers => writers::measure(contestant, site, duration).await,
        }
    }
}
