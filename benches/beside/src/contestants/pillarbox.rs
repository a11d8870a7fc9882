//! Pillarbox with its default settings, with fast ingest or the keyed window.

use std::time::Duration;

use anyhow::{Result, ensure};
use async_trait::async_trait;
use pillarbox_event::RawEvent;
use pillarbox_relay::{Relay, RelayConfig, RelayStatus, SinkChoice};
use tokio::time::{Instant, sleep};

use crate::contestant::{Contestant, Open, Running, begin};
use crate::event::{Placed, TYPE};
use crate::site::Site;

pub struct Pillarbox {
    sink: SinkChoice,
}

impl Pillarbox {
    pub fn all() -> impl Iterator<Item = Self> {
        [SinkChoice::Auto, SinkChoice::KeyedWindow].into_iter().map(|sink| Self { sink })
    }

    fn relay(&self, site: &Site) -> Result<Running> {
        let config = RelayConfig {
            database_url: site.database_url.clone(),
            nats_url: site.nats_url.clone(),
            sink: self.sink,
            ..RelayConfig::default()
        };
        let relay = Relay::new(config)?;
        let mut running = Running::default();
        let shutdown = running.shutdown();
        running.spawn(async { Ok(relay.run(shutdown).await?) });
        Ok(running)
    }
}

#[async_trait]
impl Contestant for Pillarbox {
    fn name(&self) -> String {
        match self.sink {
            SinkChoice::KeyedWindow => "Pillarbox, keyed window".into(),
            _ => "Pillarbox, fast ingest".into(),
        }
    }

    fn outbox(&self) -> &'static str {
        "Pillarbox"
    }

    async fn prepare(&self, site: &Site) -> Result<()> {
        pillarbox_outbox::migrate(&site.pool).await?;
        Ok(())
    }

    async fn write(&self, site: &Site, key: i32, due: i64) -> Result<Open> {
        let (mut transaction, n) = begin(site, key).await?;
        let event = RawEvent::builder(TYPE, site.topic())
            .key(key.to_string())
            .payload(Placed::new(key, n, due).payload()?)
            .build()?;
        pillarbox_outbox::publish(&mut transaction, event).await?;
        Ok(transaction.into())
    }

    fn backlog(&self) -> &'static str {
        "insert into pillarbox.outbox (event_type, topic, key, payload) \
         select 'placed', topic, key::text, convert_to(payload, 'utf8') from backlog($1, $2, $3, $4)"
    }

    async fn ship(&self, site: &Site) -> Result<Running> {
        self.relay(site)
    }

    /// Ships everything, because no statements could replace that.
    async fn pass(&self, site: &Site) -> Result<()> {
        let mut running = self.relay(site)?;
        let start = Instant::now();
        let mut connection = site.pool.acquire().await?;
        while RelayStatus::read(&mut connection, "pillarbox", "default").await?.backlog_events > 0 {
            running.check()?;
            ensure!(start.elapsed() < Duration::from_secs(120), "the relay makes no progress");
            sleep(Duration::from_millis(100)).await;
        }
        running.stop().await
    }
}
