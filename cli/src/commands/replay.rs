//! `pillarbox replay`.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use clap::Args;
use pillarbox_relay::broker::Connection;
use pillarbox_relay::replay::{self, Which};

use super::Done;
use super::confirm::confirm;
use super::limit::Limit;
use super::settings::{Flags, Shipped};
use super::signature::Signature;
use crate::terminal::harmless;

/// Send shipped events again, to a stream that was lost or to consumers that start over.
///
/// The outbox keeps shipped events for its retention. The events keep their ids: a consumer with an inbox skips those
/// that it has handled, unless the consumer has a new name. The relay may keep running meanwhile. The command counts
/// the events first; with --dry-run it only counts.
#[derive(Debug, Args)]
pub(crate) struct Replay {
    #[command(flatten)]
    flags: Flags<Shipped>,
    #[command(flatten)]
    limit: Limit,
    #[command(flatten)]
    start: Start,
    /// Only those of this topic.
    #[arg(long)]
    topic: Option<String>,
    /// Only those of this key.
    #[arg(long)]
    key: Option<String>,
    /// A text that is added to the message ids, so that the broker does not drop the events as duplicates. To continue
    /// an interrupted replay, give its generation. The default is made from the current time.
    #[arg(long)]
    generation: Option<String>,
    /// Only count.
    #[arg(long)]
    dry_run: bool,
    /// Send without asking. Required if standard input is not a terminal.
    #[arg(long)]
    yes: bool,
    /// Send at most this many events per second. By default, events are sent as fast as the broker takes them.
    #[arg(long, value_name = "EVENTS_PER_SECOND")]
    rate: Option<NonZeroU32>,
    #[command(flatten)]
    signature: Signature,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct Start {
    /// Events written since this time: a time that Postgres can read, or an age such as 90s, 15m, 2h or 1d.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Events from this position on.
    #[arg(long, value_name = "POSITION")]
    from_position: Option<i64>,
}

/// How often progress is shown.
const SHOWN_EVERY: Duration = Duration::from_secs(1);

impl Replay {
    pub(crate) async fn run(self) -> Done {
        let config = self.flags.outbox()?;
        let generation = match self.generation {
            Some(generation) => generation,
            None => {
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
                format!("replay-{}", now.as_secs())
            }
        };
        pillarbox_event::header::validate_value("Nats-Msg-Id", &generation)?;
        let limit = self.limit;
        let database = limit.database(&config.database_url)?;
        let connection = limit.ask("let this command in", database.one_direct()).await?;
        let which = Which {
            since: self.start.since,
            from_position: self.start.from_position,
            topic: self.topic,
            key: self.key,
        };
        let opened = replay::Replay::open(connection, &config, which);
        let mut replay = limit.ask("find what there is", opened).await?.limit(limit.of_database());
        let extent = replay.count().await?;
        match extent.positions {
            Some((first, last)) => {
                println!("{} events, positions {first} to {last}", extent.events);
            }
            None => println!("0 events"),
        }
        if self.dry_run || extent.events == 0 {
            return Ok(());
        }
        if !self.yes {
            ask(extent.events)?;
        }
        let shown = harmless(&generation);
        eprintln!("generation {shown}");
        let broker = Connection::open(&config.nats_url, &config.nats);
        let broker = limit.ask_broker("let this command in", broker).await?;
        replay.record(&self.signature.operator(), &generation, extent.events).await?;
        if let Some(rate) = self.rate {
            replay = replay.at_most(rate);
        }
        let mut shown_at = Instant::now();
        let ran = replay
            .run(&broker, &generation, |progress| {
                if shown_at.elapsed() >= SHOWN_EVERY {
                    shown_at = Instant::now();
                    let (sent, after) = (progress.sent, progress.after);
                    eprintln!("{sent} of {} sent, up to position {after}", extent.events);
                }
            })
            .await;
        match ran {
            Ok(done) if done.skipped == 0 => println!("{} sent", done.sent),
            Ok(done) => {
                println!("{} sent, {} skipped: they are not events", done.sent, done.skipped)
            }
            Err(error) => {
                if let Some(after) = error.after() {
                    eprintln!(
                        "to continue, run it again with --from-position {} --generation {shown}",
                        after.saturating_add(1)
                    );
                }
                return Err(error.into());
            }
        }
        Ok(())
    }
}

/// Asks whether to send this many events. Returns an error unless the answer is yes.
fn ask(events: i64) -> Done {
    let what = format!(
        "This sends {events} events again to every consumer of their topics. A consumer without an inbox, or under a new \
         name, handles them again."
    );
    confirm(&what, "send", "sent")
}
