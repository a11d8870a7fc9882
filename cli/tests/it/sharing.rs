//! Several processes share several outboxes.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use crate::support::{DEADLINE, Shop};
use pillarbox_relay::{RelayConfig, RelayError, Relays};
use pillarbox_testkit::eventually;
use sqlx::{AssertSqlSafe, Row};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const OUTBOXES: usize = 6;

/// As many outboxes, each in a schema of its own.
fn schema(number: usize) -> String {
    format!("outbox{number}")
}

struct Process {
    running: JoinHandle<Result<(), RelayError>>,
    shutdown: CancellationToken,
}

fn start(shop: &Shop) -> Process {
    let configs = (0..OUTBOXES).map(|number| RelayConfig {
        schema: schema(number),
        lease: Duration::from_millis(900),
        ..shop.config()
    });
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(Relays::new(configs).unwrap().run(shutdown.clone()));
    Process { running, shutdown }
}

/// How many outboxes each process leads, the least first.
async fn led(shop: &Shop) -> Vec<usize> {
    let mut leads: HashMap<String, usize> = HashMap::new();
    for number in 0..OUTBOXES {
        let sql = format!(
            "select holder from {}.relay where expires_at > clock_timestamp()",
            schema(number)
        );
        let row = sqlx::query(AssertSqlSafe(sql)).fetch_optional(shop.pool()).await.unwrap();
        if let Some(holder) = row.and_then(|row| row.get::<Option<String>, _>(0)) {
            *leads.entry(holder).or_default() += 1;
        }
    }
    let mut leads: Vec<_> = leads.into_values().collect();
    leads.sort_unstable();
    leads
}

async fn until_led(shop: &Shop, wanted: &[usize]) {
    eventually(&format!("shares of {wanted:?}"), DEADLINE, async || match led(shop).await {
        found if found == wanted => Ok(Some(())),
        found => Err(format!("{found:?}")),
    })
    .await
    .unwrap();
}

/// Inserts into each outbox, and waits until all of it is in the stream.
async fn ship(shop: &Shop, so_far: &mut u64) {
    for number in 0..OUTBOXES {
        let sql = format!(
            "insert into {}.outbox (event_type, topic, key, payload) \
             select 't', $1, (i % 5)::text, convert_to(i::text, 'utf8') from generate_series(1, 100) i",
            schema(number)
        );
        sqlx::query(AssertSqlSafe(sql)).bind(shop.topic()).execute(shop.pool()).await.unwrap();
        *so_far += 100;
    }
    shop.until_messages(*so_far).await;
}

#[tokio::test]
async fn processes_share_outboxes_evenly_and_again_when_one_joins_or_leaves() {
    let shop = Shop::open().await;
    for number in 0..OUTBOXES {
        let outbox = pillarbox_outbox::Outbox::new().schema(&schema(number)).unwrap();
        outbox.migrate(shop.pool()).await.unwrap();
    }
    let mut shipped = 0;
    let first = start(&shop);
    until_led(&shop, &[6]).await;
    ship(&shop, &mut shipped).await;
    let second = start(&shop);
    until_led(&shop, &[3, 3]).await;
    ship(&shop, &mut shipped).await;
    let third = start(&shop);
    until_led(&shop, &[2, 2, 2]).await;
    ship(&shop, &mut shipped).await;

    // One stops, one is killed; their shares are taken over.
    second.shutdown.cancel();
    second.running.await.unwrap().unwrap();
    until_led(&shop, &[3, 3]).await;
    ship(&shop, &mut shipped).await;
    third.running.abort();
    until_led(&shop, &[6]).await;
    ship(&shop, &mut shipped).await;
    first.shutdown.cancel();
    first.running.await.unwrap().unwrap();

    let stored = shop.stored().await;
    let ids: HashSet<_> = stored.iter().map(|stored| &stored.id).collect();
    assert_eq!((stored.len() as u64, ids.len() as u64), (shipped, shipped), "each event once");
}
