//! The crate `distributed`: its outbox store, dispatcher, drain loop and NATS publisher.
//!
//! Its own way to write is an event-sourced repository. That would compare more than outboxes. So the business
//! transaction writes the row by SQL, with the columns that its own INSERT fills, and after the commit the drain loop
//! gets the hint that its repository would give.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use distributed::bus::NatsPublisher;
use distributed::{
    DEFAULT_OUTBOX_HINT_CAPACITY, OutboxDispatcher, OutboxDrainRunner, OutboxPublishMailbox,
    PostgresRepository,
};
use uuid::Uuid;

use crate::contestant::{Contestant, Open, Running, begin};
use crate::event::{Placed, TYPE};
use crate::site::Site;

/// Events claimed at a time. The default of the drain loop is 32, and the README's example uses 100.
const BATCH: usize = 500;
/// The pause when there is nothing to do. The default is a second.
const IDLE: Duration = Duration::from_millis(10);
/// The value from the README.
const LEASE: Duration = Duration::from_secs(30);
const MAX_ATTEMPTS: u32 = 5;

pub struct Distributed {
    shipping: Shipping,
    /// The channel to which a commit sends its hint.
    mailbox: Mutex<Option<OutboxPublishMailbox>>,
}

/// Both ways are in the README, under "Publishing the Outbox".
#[derive(Clone, Copy)]
enum Shipping {
    /// Workers separate from the service. A single one keeps the order of creation.
    Workers(usize),
    /// A bus attached to the service: a drain loop in the process publishes committed events at once.
    OnCommit,
}

impl Distributed {
    pub fn all() -> impl Iterator<Item = Self> {
        let all = [Shipping::Workers(1), Shipping::Workers(4), Shipping::OnCommit];
        all.into_iter().map(|shipping| Self { shipping, mailbox: Mutex::default() })
    }

    fn set_mailbox(&self, mailbox: Option<OutboxPublishMailbox>) {
        *self.mailbox.lock().unwrap_or_else(PoisonError::into_inner) = mailbox;
    }
}

#[async_trait]
impl Contestant for Distributed {
    fn name(&self) -> String {
        match self.shipping {
            Shipping::Workers(1) => "distributed, 1 worker".into(),
            Shipping::Workers(workers) => format!("distributed, {workers} workers"),
            Shipping::OnCommit => "distributed, on commit".into(),
        }
    }

    fn outbox(&self) -> &'static str {
        "distributed"
    }

    async fn prepare(&self, site: &Site) -> Result<()> {
        Ok(PostgresRepository::migrate_pool(&site.pool).await?)
    }

    async fn write(&self, site: &Site, key: i32, due: i64) -> Result<Open> {
        let (mut transaction, n) = begin(site, key).await?;
        let id = Uuid::now_v7().to_string();
        sqlx::query(
            "insert into outbox_messages (message_id, event_type, payload, payload_codec, payload_codec_version, \
                 status, created_at, next_available_at, source_aggregate_type, source_aggregate_id, source_sequence) \
             select $1, $2, $3, 'bytes', 1, 'pending', now, now, 'account', $4, $5 \
             from (select clock_timestamp() as now) as clock",
        )
        .bind(&id)
        .bind(TYPE)
        .bind(Placed::new(key, n, due).payload()?)
        .bind(key.to_string())
        .bind(n)
        .execute(&mut *transaction)
        .await?;
        let mailbox = self.mailbox.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Open::from(transaction).then(move || {
            if let Some(mailbox) = mailbox {
                mailbox.try_submit(vec![id]);
            }
        }))
    }

    fn backlog(&self) -> &'static str {
        "insert into outbox_messages (message_id, event_type, payload, payload_codec, payload_codec_version, \
             status, created_at, next_available_at, source_aggregate_type, source_aggregate_id, source_sequence) \
         select gen_random_uuid()::text, 'placed', convert_to(payload, 'utf8'), 'bytes', 1, \
             'pending', clock_timestamp(), now(), 'account', key::text, n \
         from backlog($1, $2, $3, $4)"
    }

    async fn ship(&self, site: &Site) -> Result<Running> {
        let mut running = Running::default();
        let workers = match self.shipping {
            Shipping::Workers(workers) => workers,
            Shipping::OnCommit => 1,
        };
        self.set_mailbox(None);
        for worker in 0..workers {
            let publisher =
                NatsPublisher::connect(&site.nats_url).await?.with_subject_prefix(site.stream());
            let store = PostgresRepository::new(site.pool.clone()).outbox_store();
            let name = format!("worker-{worker}");
            let dispatcher = OutboxDispatcher::new(store, publisher, name, LEASE, MAX_ATTEMPTS);
            let mut runner =
                OutboxDrainRunner::new(dispatcher).with_batch_size(BATCH).with_poll_interval(IDLE);
            if let Shipping::OnCommit = self.shipping {
                let (mailbox, hints, wake) =
                    OutboxPublishMailbox::channel(DEFAULT_OUTBOX_HINT_CAPACITY);
                self.set_mailbox(Some(mailbox));
                runner = runner.with_hints(hints, wake);
            }
            let shutdown = running.shutdown();
            running.spawn(async move { Ok(runner.run(shutdown.cancelled_owned()).await?) });
        }
        Ok(running)
    }

    async fn pass(&self, site: &Site) -> Result<()> {
        sqlx::raw_sql(
            "update outbox_messages set status = 'in_flight', claimed_by = 'worker-1', \
                 claimed_until = now() + interval '30 s', attempts = attempts + 1, updated_at = now() \
                 where status = 'pending'; \
             update outbox_messages set status = 'published', claimed_by = null, claimed_until = null, \
                 published_at = now(), updated_at = now() where status = 'in_flight'",
        )
        .execute(&site.pool)
        .await?;
        Ok(())
    }
}
