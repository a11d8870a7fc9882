//! How much a consumer writes to the log when much fails.

use std::io::Write;
use std::sync::{Arc, Mutex};

use crate::support::{OrderPlaced, Shop, record};
use pillarbox_consumer::ConsumerConfig;
use pillarbox_inbox::{Handler, HandlerError, Received, Router, Tx};

/// What was logged at `info` and above.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn of(&self, consumer: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let named = format!("consumer={consumer:?}");
        text.lines().filter(|line| line.contains(&named)).map(str::to_owned).collect()
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Keeps what this thread logs, which is what the test logs: its runtime has no other thread.
fn keep(lines: &Lines) -> tracing::subscriber::DefaultGuard {
    let writer = lines.clone();
    let filter = tracing_subscriber::EnvFilter::new("info");
    let log = tracing_subscriber::fmt().with_ansi(false).with_env_filter(filter);
    tracing::subscriber::set_default(log.with_writer(move || writer.clone()).finish())
}

/// Refuses orders below 0 for good, fails those from 1,000 on, and the others seven times.
struct Fussy;

impl Handler<Received<OrderPlaced>> for Fussy {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        match placed.order {
            ..0 => Err(HandlerError::permanent("there is no such order")),
            1_000.. => Err(HandlerError::transient("the account is locked")),
            _ if placed.attempt() < 8 => Err(HandlerError::transient("the account is busy")),
            _ => record(tx, placed).await,
        }
    }
}

async fn handle_all(
    name: &str,
    orders: impl Iterator<Item = i64>,
    letters: i64,
    handled: i64,
) -> Vec<String> {
    let lines = Lines::default();
    let _kept = keep(&lines);
    let shop = Shop::open().await;
    let config = ConsumerConfig { name: name.into(), max_attempts: 9, ..shop.config() };
    let started = shop.start(config, Router::new().on(Fussy));
    for order in orders {
        shop.send(&shop.event(order, 1)).await;
    }
    shop.until("select count(*) from pillarbox.inbox_dead_letter where state = 'dead'", letters)
        .await;
    shop.until("select count(*) from effects", handled).await;
    shop.drained().await;
    started.stop().await;
    lines.of(name)
}

#[tokio::test]
async fn three_thousand_letters_take_few_lines_and_are_counted() {
    let lines = handle_all("refused", -3_000..0, 3_000, 0).await;
    assert!(lines.len() <= 50, "{} lines: {lines:#?}", lines.len());
    let counted =
        lines.iter().filter_map(|line| line.split_once("dead_letters=")?.1.split(' ').next());
    let counted: usize = counted.map(|count| count.parse::<usize>().unwrap()).sum();
    let told = lines
        .iter()
        .filter(|line| line.contains("the event failed for good; it is a dead letter now"))
        .count();
    assert_eq!(counted + told, 3_000, "{lines:#?}");
}

#[tokio::test]
async fn so_do_three_hundred_events_that_fail_nine_times() {
    let lines = handle_all("failing", 1_000..1_300, 300, 0).await;
    assert!(lines.len() <= 50, "{} lines: {lines:#?}", lines.len());
}

#[tokio::test]
async fn a_key_that_fails_seven_times_says_when_it_begins_and_when_it_is_over() {
    let lines = handle_all("busy", 0..1, 0, 1).await;
    let told: Vec<_> = lines.iter().filter(|line| line.contains("event_id")).collect();
    assert_eq!(told.len(), 2, "{lines:#?}");
    assert!(told[0].contains("WARN") && told[0].contains("an attempt failed"), "{told:?}");
    assert!(told[1].contains("INFO") && told[1].contains("is handled"), "{told:?}");
}
