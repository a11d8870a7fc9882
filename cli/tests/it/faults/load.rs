//! Writers that change something and publish, under a lock of the key, and remember what they were told.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sqlx::{Connection, PgConnection, Row};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::support::Shop;

/// Locks the key's row, takes its next numbers, and publishes an event for each. One round trip.
const PUBLISH: &str = "with taken as (
    update counters set next = next + $3 where key = $1 returning next
)
insert into pillarbox.outbox (event_type, topic, key, payload)
select 'order.placed', $2, $1::text, convert_to(number::text || repeat(' ', 100), 'utf8')
from taken, generate_series(taken.next - $3 + 1, taken.next) as number
returning event_id::text";

const KEYS: i64 = 40;

/// How the writers behave.
#[derive(Clone, Debug)]
pub struct Habits {
    pub writers: u64,
    /// The longest pause between two transactions of a writer.
    pub pause: Duration,
    /// The most events of a transaction now and then; usually it is one to four.
    pub burst: i64,
}

impl Default for Habits {
    fn default() -> Self {
        Self { writers: 6, pause: Duration::from_millis(30), burst: 200 }
    }
}

/// What the writers were told about the ids that they drew.
#[derive(Debug, Default)]
pub struct Told {
    pub committed: Vec<String>,
    pub rolled_back: Vec<String>,
    /// The connection broke between `commit` and its answer.
    pub unknown: Vec<String>,
}

/// Writers at work.
pub struct Load {
    writers: JoinSet<Told>,
    end: CancellationToken,
}

impl Load {
    /// Starts writers on the shop's database, at its own address.
    pub async fn start(shop: &Shop, seed: u64, habits: Habits) -> Self {
        prepare(shop).await;
        Self::through(shop, shop.scope.database_url(), seed, habits)
    }

    /// Starts writers that reach the shop's database at `url`. [`prepare`] must have been called.
    pub fn through(shop: &Shop, url: &str, seed: u64, habits: Habits) -> Self {
        let end = CancellationToken::new();
        let mut writers = JoinSet::new();
        for number in 0..habits.writers {
            let writer = Writer {
                url: url.to_owned(),
                topic: shop.topic(),
                random: StdRng::seed_from_u64(seed.wrapping_add(number)),
                habits: habits.clone(),
                told: Told::default(),
            };
            writers.spawn(writer.run(end.clone()));
        }
        Self { writers, end }
    }

    /// Ends the writers after their transactions under way.
    pub async fn stop(self) -> Told {
        self.end.cancel();
        let mut all = Told::default();
        for told in self.writers.join_all().await {
            all.committed.extend(told.committed);
            all.rolled_back.extend(told.rolled_back);
            all.unknown.extend(told.unknown);
        }
        all
    }
}

/// Makes the rows that the keys stand for.
pub async fn prepare(shop: &Shop) {
    sqlx::raw_sql("create table counters (key bigint primary key, next bigint not null default 0)")
        .execute(shop.pool())
        .await
        .unwrap();
    sqlx::query("insert into counters (key) select generate_series(0, $1)")
        .bind(KEYS - 1)
        .execute(shop.pool())
        .await
        .unwrap();
}

/// One transaction with many events over all keys.
pub async fn backlog(shop: &Shop, events: i64) {
    sqlx::query(
        "with taken as (
            update counters set next = next + $2 / $3 returning key, next
        )
        insert into pillarbox.outbox (event_type, topic, key, payload)
        select 'order.placed', $1, key::text, convert_to(number::text || repeat(' ', 100), 'utf8')
        from taken, generate_series(taken.next - $2 / $3 + 1, taken.next) as number
        order by number, key",
    )
    .bind(shop.topic())
    .bind(events)
    .bind(KEYS)
    .execute(shop.pool())
    .await
    .unwrap();
}

struct Writer {
    url: String,
    topic: String,
    random: StdRng,
    habits: Habits,
    told: Told,
}

impl Writer {
    async fn run(mut self, end: CancellationToken) -> Told {
        while !end.is_cancelled() {
            // Whatever breaks the connection, the writer comes again.
            if let Ok(mut connection) = PgConnection::connect(&self.url).await {
                let _ = self.write(&mut connection, &end).await;
            }
            sleep(Duration::from_millis(5)).await;
        }
        self.told
    }

    async fn write(
        &mut self,
        connection: &mut PgConnection,
        end: &CancellationToken,
    ) -> Result<(), sqlx::Error> {
        while !end.is_cancelled() {
            let mut tx = connection.begin().await?;
            if self.random.random_bool(0.2) {
                // Takes its id early, and so finishes after transactions that began later.
                sqlx::query("select pg_current_xact_id()::text").fetch_one(&mut *tx).await?;
                self.pause(Duration::from_millis(3)).await;
            }
            let events = match self.random.random_bool(0.05) {
                true => self.random.random_range(1..=self.habits.burst),
                false => self.random.random_range(1..=4),
            };
            let rows = sqlx::query(PUBLISH)
                .bind(self.random.random_range(0..KEYS))
                .bind(&self.topic)
                .bind(events)
                .fetch_all(&mut *tx)
                .await?;
            let ids: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
            if self.random.random_bool(0.1) {
                self.told.rolled_back.extend(ids);
                tx.rollback().await?;
            } else {
                match tx.commit().await {
                    Ok(()) => self.told.committed.extend(ids),
                    Err(error) => {
                        self.told.unknown.extend(ids);
                        return Err(error);
                    }
                }
            }
            self.pause(self.habits.pause).await;
        }
        Ok(())
    }

    async fn pause(&mut self, longest: Duration) {
        sleep(longest.mul_f64(self.random.random_range(0.0..1.0))).await;
    }
}
