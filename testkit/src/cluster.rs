//! A throwaway cluster of nats-servers with JetStream, for streams with replicas.

use std::time::Duration;

use async_nats::jetstream;

use crate::error::TestkitError;
use crate::nats::Nats;
use crate::port::free_port;
use crate::wait::eventually;

const NODES: usize = 3;
const START_DEADLINE: Duration = Duration::from_secs(30);

/// Three nats-servers on loopback that form one cluster. They end with their owner.
#[derive(Debug)]
pub struct NatsCluster {
    nodes: Vec<Nats>,
}

impl NatsCluster {
    /// Starts three servers and waits until JetStream has a leader and all three answer.
    ///
    /// # Errors
    /// Any [`TestkitError`].
    pub async fn start() -> Result<Self, TestkitError> {
        Self::start_with("").await
    }

    /// Starts a cluster with these lines in the configuration of each server.
    ///
    /// # Errors
    /// Any [`TestkitError`].
    pub async fn start_with(config: &str) -> Result<Self, TestkitError> {
        // All servers must know the ports of the routes before the first one starts. Somebody may take a port
        // meanwhile.
        let mut last = Self::try_start(config).await;
        for _ in 0..2 {
            if last.is_ok() {
                break;
            }
            last = Self::try_start(config).await;
        }
        last
    }

    async fn try_start(config: &str) -> Result<Self, TestkitError> {
        let mut ports = [0; NODES];
        for port in &mut ports {
            *port = free_port()?;
        }
        let routes: Vec<String> =
            ports.iter().map(|port| format!("nats-route://127.0.0.1:{port}")).collect();
        let node = |number: usize| {
            let lines = format!(
                "server_name: \"{}\"\n\
                 cluster {{ name: \"testkit\", listen: \"127.0.0.1:{}\", no_advertise: true, routes: [{}] }}",
                name(number),
                ports[number],
                routes.join(", ")
            );
            // JetStream answers only when most of the nodes are up.
            Nats::options().config(config).config(&lines).closed().start()
        };
        let (first, second, third) = tokio::try_join!(node(0), node(1), node(2))?;
        let cluster = Self { nodes: vec![first, second, third] };
        for node in &cluster.nodes {
            let url = node.url();
            eventually("JetStream to answer in the cluster", START_DEADLINE, async || {
                let client = async_nats::connect(&url).await.map_err(|error| error.to_string())?;
                let answer = jetstream::new(client).query_account().await;
                answer.map(|_| Some(())).map_err(|error| error.to_string())
            })
            .await?;
        }
        Ok(cluster)
    }

    /// The URLs of all nodes, separated by commas.
    pub fn url(&self) -> String {
        self.nodes.iter().map(Nats::url).collect::<Vec<_>>().join(",")
    }

    /// The nodes, which you can inspect, kill and pause.
    pub fn nodes(&self) -> &[Nats] {
        &self.nodes
    }

    /// The number of the node that leads a stream, if one does.
    ///
    /// # Errors
    /// The error of the cluster. During an election it often does not answer in time.
    pub async fn leader(&self, stream: &str) -> Result<Option<usize>, String> {
        let info = self.info(stream).await?;
        let leader = info.cluster.and_then(|cluster| cluster.leader);
        Ok(leader.and_then(|leader| (0..NODES).find(|number| name(*number) == leader)))
    }

    /// Waits until a stream has a leader and all its replicas are up to date.
    ///
    /// # Errors
    /// [`TestkitError::Deadline`].
    pub async fn until_current(
        &self,
        stream: &str,
        deadline: Duration,
    ) -> Result<(), TestkitError> {
        eventually(&format!("all replicas of {stream}"), deadline, async || {
            let Some(cluster) = self.info(stream).await?.cluster else {
                return Ok(None);
            };
            let behind: Vec<_> = cluster
                .replicas
                .iter()
                .filter(|replica| replica.offline || !replica.current)
                .map(|replica| replica.name.clone())
                .collect();
            if cluster.leader.is_none() || !behind.is_empty() {
                return Err(format!("leader {:?}, behind: {behind:?}", cluster.leader));
            }
            Ok(Some(()))
        })
        .await
    }

    /// Starts a node again on its port and store, and waits for its port. It may still have to catch up.
    ///
    /// # Errors
    /// As for [`NatsOptions::start`](crate::nats::NatsOptions::start).
    pub async fn restart(&mut self, number: usize) -> Result<(), TestkitError> {
        match self.nodes.get_mut(number) {
            Some(node) => node.restart().await,
            None => Err(TestkitError::NotRunning { server: "nats-server" }),
        }
    }

    async fn info(&self, stream: &str) -> Result<jetstream::stream::Info, String> {
        let urls: Vec<String> = self.nodes.iter().map(Nats::url).collect();
        let client = async_nats::connect(&*urls).await.map_err(|error| error.to_string())?;
        let mut context = jetstream::new(client);
        context.set_timeout(Duration::from_secs(1));
        let stream = context.get_stream(stream).await.map_err(|error| error.to_string())?;
        Ok(stream.cached_info().clone())
    }
}

fn name(number: usize) -> String {
    format!("n{number}")
}
