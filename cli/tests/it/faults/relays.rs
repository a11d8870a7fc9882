//! Several relay processes of one name.

use std::time::{Duration, Instant};

use pillarbox_testkit::eventually;
use sqlx::Row;

use crate::support::{DEADLINE, Process, Shop};

/// Relays of one name: one leads, the others stand by.
pub struct Relays<'s> {
    shop: &'s Shop,
    database_url: String,
    lease_ms: String,
    pub processes: Vec<Process>,
}

impl<'s> Relays<'s> {
    /// None yet.
    pub fn new(shop: &'s Shop, lease: Duration) -> Self {
        Self {
            shop,
            database_url: shop.scope.database_url().to_owned(),
            lease_ms: lease.as_millis().to_string(),
            processes: Vec::new(),
        }
    }

    /// They reach the database at this address.
    pub fn database_url(mut self, url: String) -> Self {
        self.database_url = url;
        self
    }

    /// Starts one more, and returns its number.
    pub fn start(&mut self, more: &[&str]) -> usize {
        let process = self.run(more);
        self.processes.push(process);
        self.processes.len() - 1
    }

    /// Starts another in the place of one that has ended.
    pub fn replace(&mut self, number: usize, more: &[&str]) {
        self.processes[number] = self.run(more);
    }

    fn run(&self, more: &[&str]) -> Process {
        let arguments = [&["relay", "--lease-ms", &self.lease_ms], more].concat();
        Process::run(
            &arguments,
            &[("DATABASE_URL", &self.database_url), ("NATS_URL", self.shop.scope.nats_url())],
        )
    }

    /// The holder of a lease in force, as the database has it.
    pub async fn holder(&self) -> Option<String> {
        sqlx::query("select holder from pillarbox.relay where expires_at > clock_timestamp()")
            .fetch_optional(self.shop.pool())
            .await
            .unwrap()
            .and_then(|row| row.get(0))
    }

    /// The number of the process that leads, as soon as one does.
    pub async fn leader(&self) -> usize {
        eventually("a leader", DEADLINE, async || {
            let holder = self.holder().await.unwrap_or_default();
            let leads =
                |process: &Process| holder.split('/').nth(1) == Some(&process.id().to_string());
            match self.processes.iter().position(leads) {
                Some(number) => Ok(Some(number)),
                None => Err(format!("holder {holder:?}")),
            }
        })
        .await
        .unwrap()
    }

    /// From `since` until another than `before` holds the lease and has had an event stored.
    pub async fn taken_over(&self, before: &str, since: Instant) -> Duration {
        let jetstream = self.shop.jetstream().await;
        let mut stream = jetstream.get_stream(&self.shop.stream).await.unwrap();
        let mut at_takeover = None;
        while since.elapsed() < DEADLINE {
            if at_takeover.is_none() && self.holder().await.is_some_and(|holder| holder != before) {
                at_takeover = Some(stream.info().await.unwrap().state.last_sequence);
            }
            if let Some(at_takeover) = at_takeover
                && stream.info().await.unwrap().state.last_sequence > at_takeover
            {
                return since.elapsed();
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("nobody took over from {before}");
    }

    pub fn lines(&self) -> Vec<Vec<String>> {
        self.processes.iter().map(|process| process.lines.lock().unwrap().clone()).collect()
    }

    pub fn said(&self, text: &str) -> usize {
        self.processes.iter().map(|process| process.said(text)).sum()
    }
}

impl Drop for Relays<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (number, lines) in self.lines().into_iter().enumerate() {
                let last = lines.len().saturating_sub(30);
                println!("relay {number} said last:\n{}", lines[last..].join("\n"));
            }
        }
    }
}

/// Takeover times in milliseconds: the least, the median and the most.
pub fn spread(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize].as_millis();
    format!(
        "{} takeovers: min {} ms, median {} ms, max {} ms",
        times.len(),
        at(0.0),
        at(0.5),
        at(1.0)
    )
}
