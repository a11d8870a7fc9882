//! The conditions under which the program measures.

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::contestant::{Contestant, Open};
use crate::event::HELD_KEY;
use crate::measures::drain::write_backlog;
use crate::site::Site;

/// What else happens in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Condition {
    /// Nothing.
    Idle,
    /// A transaction has locked an account and written an event, and stays open.
    Open,
    /// As above, and while the transaction was open, a million events went through the outbox. No vacuum can remove
    /// what they left behind.
    Churn,
}

impl Condition {
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Open => "open",
            Self::Churn => "churn",
        }
    }

    /// The heading of its tables.
    pub fn title(self) -> &'static str {
        match self {
            Self::Idle => "nothing else going on",
            Self::Open => "one transaction left open",
            Self::Churn => {
                "after a million rows of churn, with a transaction open since before the churn"
            }
        }
    }

    /// Sets the condition up. The transaction stays open for as long as the returned value lives.
    pub async fn bring_about(
        self,
        contestant: &dyn Contestant,
        site: &Site,
        churn: i64,
    ) -> Result<Option<Open>> {
        if self == Self::Idle {
            return Ok(None);
        }
        let open = contestant.write(site, HELD_KEY, 0).await?;
        if self == Self::Churn {
            write_backlog(contestant, site, churn).await.context("writing the churn")?;
            contestant.pass(site).await.context("passing the churn")?;
            site.settle().await?;
        }
        Ok(Some(open))
    }
}
