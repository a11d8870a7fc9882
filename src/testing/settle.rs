//! Waits until outboxes are shipped and consumers have nothing left.

use std::fmt::Write as _;
use std::time::Duration;

use pillarbox_consumer::Consumer;
use pillarbox_consumer::Unhandled;
use pillarbox_relay::RelayStatus;
use pillarbox_store::{Schema, full_text};
use sqlx::PgPool;
use tokio::time::{Instant, sleep, timeout_at};

/// The longest wait.
const LONGEST: Duration = Duration::from_secs(86_400);

/// The wait between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(25);

/// Waits until nothing is left to do: each outbox is shipped, and each consumer has handled everything.
///
/// ```no_run
/// # use std::time::Duration;
/// # use pillarbox::{Consumer, testing::Settle};
/// # async fn test(pool: sqlx::PgPool, payments: Consumer, mails: Consumer) -> anyhow::Result<()> {
/// let settled = Settle::new().outbox(&pool).consumer(&payments).consumer(&mails);
/// # let running = payments.clone();
/// tokio::spawn(running.run(Default::default()));
/// // … the test does something …
/// settled.within(Duration::from_secs(30)).await?;
/// # Ok(()) }
/// ```
///
/// It asks the databases and the broker, and does not rely on what this process knows, so the relay and the consumers
/// may run anywhere. An event that a handler publishes is waited for too, through every consumer that is named here.
/// Scheduled events are waited for once they are due, not before.
///
/// A dead letter ends the wait at once with an error, because waiting cannot help. If the test expects dead letters,
/// call [`with_letters`](Self::with_letters).
#[derive(Clone, Debug, Default)]
#[must_use = "`within` waits"]
pub struct Settle {
    outboxes: Vec<Outbox>,
    consumers: Vec<Consumer>,
    with_letters: bool,
}

/// Why [`Settle::within`] did not wait until the end. The text says what is stuck, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{story}")]
pub struct NotSettled {
    story: String,
    /// Whether it ended before its deadline, because of dead letters.
    pub by_letters: bool,
}

#[derive(Clone, Debug)]
struct Outbox {
    pool: PgPool,
    schema: String,
    relay: String,
}

/// The events of an outbox: how many there are, and the sum of their positions. It differs if an event was added.
type Content = (i64, String);

/// What one look found.
#[derive(Debug, Default)]
struct Look {
    /// What is stuck, a line for each outbox and consumer.
    left: Vec<String>,
    /// Dead letters, a line for each outbox and consumer that has any.
    letters: Vec<String>,
    contents: Vec<Content>,
}

impl Settle {
    /// Nothing to wait for yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits for the outbox in schema `pillarbox` of this database, which the relay `default` ships.
    pub fn outbox(self, pool: &PgPool) -> Self {
        self.outbox_of(pool, "pillarbox", "default")
    }

    /// Waits for the outbox in this schema, which the relay of this name ships.
    pub fn outbox_of(mut self, pool: &PgPool, schema: &str, relay: &str) -> Self {
        let (pool, schema, relay) = (pool.clone(), schema.to_owned(), relay.to_owned());
        self.outboxes.push(Outbox { pool, schema, relay });
        self
    }

    /// Waits for a consumer. It need not be the very one that runs: any with the same settings will do, and
    /// [`Consumer`] can be cloned.
    pub fn consumer(mut self, consumer: &Consumer) -> Self {
        self.consumers.push(consumer.clone());
        self
    }

    /// Takes dead letters for done, on either side.
    pub fn with_letters(self) -> Self {
        Self { with_letters: true, ..self }
    }

    /// Waits, for at most this long, and for a day at most. It has settled when two looks in a row find nothing left,
    /// and no event was added to an outbox in between.
    ///
    /// Dropping the future is harmless: it only reads.
    ///
    /// # Errors
    /// [`NotSettled`], with what is stuck.
    pub async fn within(self, limit: Duration) -> Result<(), NotSettled> {
        let limit = limit.min(LONGEST);
        let until = Instant::now() + limit;
        let mut last: Option<Look> = None;
        loop {
            let Ok(look) = timeout_at(until, self.look()).await else {
                return Err(NotSettled { story: late(limit, last.as_ref()), by_letters: false });
            };
            if !look.letters.is_empty() && !self.with_letters {
                let story = format!("events were given up:\n{}", listed(&look.letters));
                return Err(NotSettled { story, by_letters: true });
            }
            let is_settled = |look: &Look| look.left.is_empty();
            if let Some(last) = &last
                && is_settled(last)
                && is_settled(&look)
                && last.contents == look.contents
            {
                return Ok(());
            }
            if Instant::now() + LOOK_AGAIN > until {
                return Err(NotSettled { story: late(limit, Some(&look)), by_letters: false });
            }
            last = Some(look);
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Looks at the outboxes first, so that what leaves them meanwhile is seen at the consumers. What the consumers'
    /// handlers publish meanwhile is seen by the next look.
    async fn look(&self) -> Look {
        let mut look = Look::default();
        for outbox in &self.outboxes {
            let name = format!("outbox {}, relay {}", outbox.place(), outbox.relay);
            match outbox.status().await {
                Ok((status, content)) => {
                    look.contents.push(content);
                    look.add(&name, backlog(&status), letters_of(&status));
                }
                Err(error) => {
                    look.add(&name, Some(format!("not known: {}", full_text(&error))), None)
                }
            }
        }
        for consumer in &self.consumers {
            let status = consumer.status().get();
            let name = format!("consumer {} of stream {}", status.consumer, status.stream);
            match consumer.unhandled().await {
                Ok(unhandled) => look.add(&name, waiting(&unhandled), given_up(&unhandled)),
                Err(error) => look.add(&name, Some(full_text(&error)), None),
            }
        }
        look
    }
}

impl Outbox {
    /// The database and the schema.
    fn place(&self) -> String {
        let options = self.pool.connect_options();
        format!("{}/{}", options.get_database().unwrap_or("?"), self.schema)
    }

    async fn status(&self) -> Result<(RelayStatus, Content), sqlx::Error> {
        let schema = Schema::parse(&self.schema)
            .map_err(|error| sqlx::Error::Configuration(Box::new(error)))?;
        let mut connection = self.pool.acquire().await?;
        // Before the backlog, so that an event that is added in between is in the backlog or in the next look's
        // content.
        let sql = schema
            .statement("select count(*), coalesce(sum(position), 0)::text from pillarbox.outbox");
        let content = sqlx::query_as(sql).fetch_one(&mut *connection).await?;
        Ok((RelayStatus::read(&mut connection, &self.schema, &self.relay).await?, content))
    }
}

impl Look {
    fn add(&mut self, name: &str, left: Option<String>, letters: Option<String>) {
        self.left.extend(left.map(|left| format!("{name}: {left}")));
        self.letters.extend(letters.map(|letters| format!("{name}: {letters}")));
    }
}

/// What an outbox has not shipped.
fn backlog(status: &RelayStatus) -> Option<String> {
    let overdue = status.scheduled.as_ref().filter(|scheduled| scheduled.overdue_seconds > 0.0);
    if status.backlog_events == 0 && status.held_events == 0 && overdue.is_none() {
        return None;
    }
    let mut text = format!(
        "{} events are not shipped, the oldest for {:.1} s",
        status.backlog_events, status.oldest_age_seconds
    );
    // Writing to a text does not fail.
    if status.held_events > 0 {
        let _ = write!(
            text,
            "; {} are held back, because their dead letters are refused",
            status.held_events
        );
    }
    if let Some(scheduled) = overdue {
        let _ =
            write!(text, "; a scheduled event has been due for {:.1} s", scheduled.overdue_seconds);
    }
    text += match (status.epoch, status.leading) {
        (None, _) => "; this relay has never run on this outbox",
        (_, false) => "; no process of this relay leads",
        (_, true) => "; a relay leads",
    };
    Some(text)
}

fn letters_of(status: &RelayStatus) -> Option<String> {
    (status.dead_letters > 0).then(|| {
        format!("{} dead letters (pillarbox dead-letters list --outbox)", status.dead_letters)
    })
}

/// What a consumer has not handled.
fn waiting(unhandled: &Unhandled) -> Option<String> {
    if unhandled.is_nothing() {
        return None;
    }
    let mut text = format!(
        "{} events are not delivered, {} are delivered and not acknowledged, {} are in retry, {} are parked",
        unhandled.pending, unhandled.ack_pending, unhandled.failed.failing, unhandled.failed.parked
    );
    if let Some(failure) = &unhandled.failed.failure {
        let _ = write!(text, "; event {failure}");
    }
    Some(text)
}

fn given_up(unhandled: &Unhandled) -> Option<String> {
    let letter = unhandled.failed.letter.as_deref().unwrap_or("unknown");
    let dead = unhandled.failed.dead;
    (dead > 0).then(|| format!("{dead} dead letters, the first: event {letter}"))
}

fn late(limit: Duration, look: Option<&Look>) -> String {
    let story = match look {
        None => "  the databases and the broker did not answer in this time".to_owned(),
        Some(look) if look.left.is_empty() => "  new events came until the end".to_owned(),
        Some(look) => listed(&look.left),
    };
    format!("not settled within {limit:?}:\n{story}")
}

fn listed(lines: &[String]) -> String {
    lines.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}
