//! What a transaction left open, and the dead rows of a million events, cost a relay.
//!
//! - *fresh*: a new outbox with a backlog, and nothing else.
//! - *transaction open*: the same, while a transaction is open that began before the backlog, has an id, and has
//!   written an event.
//! - *after churn*: an outbox that has shipped and removed a million events since a transaction was left open, so no
//!   vacuum can remove the dead rows. After each round, the rows of that round are removed too.

use anyhow::Result;
use async_nats::jetstream::stream::Stream;
use clap::Args;
use pillarbox_relay::SinkChoice;
use pillarbox_testkit::Servers;
use serde::Serialize;
use sqlx::PgConnection;

use crate::backlog::Outbox;
use crate::plot::Plot;
use crate::program::{Findings, Subject};
use crate::shipping::{drain, new_stream};
use crate::table::Table;
use crate::unit::{Goal, Unit, count};

const KEYS: Option<u64> = Some(1000);
const WAYS: [&str; 3] = ["fresh", "transaction open", "after churn"];

/// The arguments.
#[derive(Args, Clone, Debug, Serialize)]
pub struct RelayBloat {
    /// Events in each round.
    #[arg(default_value_t = 200_000)]
    events: u64,
    /// Rounds that count.
    #[arg(default_value_t = 5)]
    rounds: usize,
    /// Events shipped and removed beforehand.
    #[arg(long, default_value_t = 1_000_000)]
    churn: u64,
}

/// An outbox full of dead rows, and the transaction that keeps them.
struct Churned {
    outbox: Outbox,
    _open: PgConnection,
}

impl Subject for RelayBloat {
    const NAME: &'static str = "relay_bloat";

    fn quick() -> Self {
        Self { events: 1_000, rounds: 0, churn: 5_000 }
    }

    async fn measure(&self, servers: &Servers) -> Result<Findings> {
        // All use one stream, because the relay of the churned outbox would notice if it were created again.
        let mut stream = new_stream(&servers.nats).await?;
        let churned = self.churn(servers, &mut stream).await?;
        let title =
            format!("Draining {} events; churn: {} removed", count(self.events), count(self.churn));
        let mut table =
            Table::measure(&title, Unit::PerSecond, &WAYS, self.rounds, async |way, _| match way {
                0 | 1 => self.fresh(servers, &mut stream, way == 1).await,
                _ => churned.round(servers, &mut stream, self.events).await,
            })
            .await?;
        churned.outbox.remove().await?;
        table.ratio("transaction open", "fresh", Some(Goal::AtLeast(0.95)))?;
        table.ratio("after churn", "fresh", None)?;
        Ok(Findings { tables: vec![table], plot: Plot::Bars })
    }
}

impl RelayBloat {
    async fn churn(&self, servers: &Servers, stream: &mut Stream) -> Result<Churned> {
        let outbox = Outbox::create(&servers.postgres).await?;
        let open = outbox.leave_open().await?;
        let churned = Churned { outbox, _open: open };
        churned.round(servers, stream, self.churn).await?;
        Ok(churned)
    }

    async fn fresh(&self, servers: &Servers, stream: &mut Stream, open: bool) -> Result<f64> {
        let outbox = Outbox::create(&servers.postgres).await?;
        let transaction = if open { Some(outbox.leave_open().await?) } else { None };
        outbox.fill(self.events, KEYS).await?;
        outbox.settle().await?;
        let rate = drain(&servers.nats, &outbox, stream, self.events, SinkChoice::Auto).await;
        drop(transaction);
        outbox.remove().await?;
        rate
    }
}

impl Churned {
    /// Ships this many events, and then removes all of them at once.
    async fn round(&self, servers: &Servers, stream: &mut Stream, events: u64) -> Result<f64> {
        self.outbox.fill(events, KEYS).await?;
        self.outbox.settle().await?;
        let rate = drain(&servers.nats, &self.outbox, stream, events, SinkChoice::Auto).await;
        sqlx::raw_sql("delete from pillarbox.outbox").execute(self.outbox.pool()).await?;
        rate
    }
}
