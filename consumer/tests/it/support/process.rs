//! A consumer in a process of its own: the test binary again, of which only the test `child` of a module runs.

use std::process::{Child, Command, Stdio};

use pillarbox_consumer::{Consumer, ConsumerConfig};
use pillarbox_inbox::Router;
use pillarbox_testkit::eventually;
use tokio_util::sync::CancellationToken;

use super::{DEADLINE, Shop};

const TOLD: &str = "PILLARBOX_TEST_CONSUMER";

/// The body of the test `child`: a consumer, if this process is to be one.
pub async fn consume(router: Router) {
    if let Some((consumer, _, _)) = consumer().await {
        consumer.router(router).run(CancellationToken::new()).await.unwrap();
    }
}

/// The consumer that this process is to be, if it is to be one, with its pool and its settings.
pub async fn consumer() -> Option<(Consumer, sqlx::PgPool, ConsumerConfig)> {
    let told = std::env::var(TOLD).ok()?;
    super::log();
    let (nats, database, config): (String, String, ConsumerConfig) =
        serde_json::from_str(&told).unwrap();
    let client = async_nats::connect(nats).await.unwrap();
    let pool = sqlx::PgPool::connect(&database).await.unwrap();
    let consumer = Consumer::with_config(client, pool.clone(), config.clone()).unwrap();
    Some((consumer, pool, config))
}

pub struct Process(pub Child);

impl Process {
    /// The process runs the test `child` of this module, as `module_path!()` names it.
    pub fn start(module: &str, shop: &Shop, config: &ConsumerConfig) -> Self {
        let told = (shop.scope.nats_url(), shop.scope.database_url(), config);
        let (_crate, module) = module.split_once("::").unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("{module}::child"), "--nocapture"])
            .env(TOLD, serde_json::to_string(&told).unwrap())
            .stdout(Stdio::inherit())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        Self(child)
    }

    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Stops it as it stands, or lets it go on.
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.0.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    pub async fn died(&mut self) {
        eventually("the process to die", DEADLINE, async || {
            Ok::<_, String>(self.0.try_wait().unwrap())
        })
        .await
        .unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
