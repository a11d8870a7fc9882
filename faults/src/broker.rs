//! The broker of a run: one nats-server, or a cluster of three.

use std::path::PathBuf;

use anyhow::Context;
use pillarbox_testkit::{Nats, NatsCluster};

use crate::world::STREAM;

/// One server or three. In a cluster, faults hit the server that leads the stream.
#[derive(Debug)]
pub(crate) enum Broker {
    One(Nats),
    Three {
        cluster: NatsCluster,
        /// The server that faults hit now.
        victim: usize,
    },
}

impl Broker {
    pub(crate) async fn start(cluster: bool, config: &str) -> anyhow::Result<Self> {
        Ok(match cluster {
            true => Self::Three { cluster: NatsCluster::start_with(config).await?, victim: 0 },
            false => Self::One(Nats::options().config(config).start().await?),
        })
    }

    pub(crate) fn url(&self) -> String {
        match self {
            Self::One(nats) => nats.url(),
            Self::Three { cluster, .. } => cluster.url(),
        }
    }

    /// The port behind the proxies. Processes reach the servers of a cluster without a proxy.
    pub(crate) fn port(&self) -> u16 {
        self.server().port()
    }

    /// The ports of all servers. They do not change.
    pub(crate) fn ports(&self) -> Vec<u16> {
        match self {
            Self::One(nats) => vec![nats.port()],
            Self::Three { cluster, .. } => cluster.nodes().iter().map(Nats::port).collect(),
        }
    }

    pub(crate) fn replicas(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Three { .. } => 3,
        }
    }

    /// The server that faults hit now.
    pub(crate) fn server(&self) -> &Nats {
        match self {
            Self::One(nats) => nats,
            Self::Three { cluster, victim } => &cluster.nodes()[*victim],
        }
    }

    /// Chooses the server that the next fault hits: the one that leads the stream, if there is one.
    pub(crate) async fn choose(&mut self) {
        if let Self::Three { cluster, victim } = self
            && let Ok(Some(leader)) = cluster.leader(STREAM).await
        {
            *victim = leader;
        }
    }

    pub(crate) async fn restart(&mut self) -> anyhow::Result<()> {
        match self {
            Self::One(nats) => nats.restart().await?,
            Self::Three { cluster, victim } => cluster.restart(*victim).await?,
        }
        Ok(())
    }

    /// Where the one server keeps its streams.
    pub(crate) fn store(&self) -> anyhow::Result<(PathBuf, PathBuf)> {
        match self {
            Self::One(nats) => Ok((nats.store_dir(), nats.folder().join("backup"))),
            Self::Three { .. } => None.context("the store of a cluster cannot be put back"),
        }
    }
}
