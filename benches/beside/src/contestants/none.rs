//! No outbox: the business transaction alone, to see what writing an event costs.

use anyhow::{Result, bail};
use async_trait::async_trait;

use crate::contestant::{Contestant, Open, Running, begin};
use crate::site::Site;

pub struct NoOutbox;

#[async_trait]
impl Contestant for NoOutbox {
    fn name(&self) -> String {
        "no outbox".into()
    }

    fn outbox(&self) -> &'static str {
        "none"
    }

    fn ships(&self) -> bool {
        false
    }

    async fn prepare(&self, _site: &Site) -> Result<()> {
        Ok(())
    }

    async fn write(&self, site: &Site, key: i32, _due: i64) -> Result<Open> {
        Ok(begin(site, key).await?.0.into())
    }

    fn backlog(&self) -> &'static str {
        "select from backlog($1, $2, $3, $4)"
    }

    async fn ship(&self, _site: &Site) -> Result<Running> {
        bail!("there is no outbox")
    }

    async fn pass(&self, _site: &Site) -> Result<()> {
        bail!("there is no outbox")
    }
}
