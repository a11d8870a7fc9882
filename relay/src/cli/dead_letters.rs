//! `pillarbox dead-letters`.

use std::io::Write;

use clap::{Args, Subcommand};
use pillarbox_relay::dead_letters::{DeadLetter, DeadLetters, Filter, Side, State};
use pillarbox_relay::jetstream;
use sqlx::postgres::PgPoolOptions;

use super::Done;
use super::settings::{Flags, TablesAndBroker};

/// Look at events that were given up, try them again, or discard them.
#[derive(Debug, Args)]
pub(crate) struct DeadLettersCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List them, oldest first.
    List {
        #[command(flatten)]
        which: Which,
        /// At most so many.
        #[arg(long, default_value_t = 50)]
        limit: i64,
        /// Print one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Show one whole, with its headers.
    Show {
        #[command(flatten)]
        which: Which,
        /// The event's id.
        event_id: String,
        /// Write the payload, and only that, to standard output.
        #[arg(long)]
        payload: bool,
    },
    /// Try them again.
    Retry {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        chosen: Chosen,
    },
    /// Mark them as not to be handled.
    Discard {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        chosen: Chosen,
    },
}

#[derive(Debug, Args)]
struct Which {
    #[command(flatten)]
    flags: Flags<TablesAndBroker>,
    #[command(flatten)]
    side: SideFlags,
    /// Only those of this relay or consumer.
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
    /// Only those with this reason.
    #[arg(long)]
    reason: Option<String>,
    /// Only those of this topic.
    #[arg(long)]
    topic: Option<String>,
    /// Only those of this key.
    #[arg(long)]
    key: Option<String>,
    /// Only those given up at least so many seconds ago.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    older_than: i64,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct SideFlags {
    /// Events that the relay could not ship.
    #[arg(long)]
    outbox: bool,
    /// Events that a handler gave up.
    #[arg(long)]
    inbox: bool,
}

#[derive(Debug, Args)]
struct Chosen {
    /// The event's id.
    #[arg(required_unless_present = "all")]
    event_id: Option<String>,
    /// All that the filters let through.
    #[arg(long, conflicts_with = "event_id")]
    all: bool,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

/// As many are handled at a time with `--all`.
const PAGE: i64 = 500;

impl Which {
    async fn letters(&self) -> Result<DeadLetters, Box<dyn std::error::Error>> {
        let config = self.flags.outbox()?;
        let pool = PgPoolOptions::new().max_connections(2).connect(&config.database_url).await?;
        let side = if self.side.outbox { Side::Outbox } else { Side::Inbox };
        Ok(DeadLetters::new(pool, &config.schema, side)?)
    }

    fn filter(&self, event_id: Option<&String>, state: Option<State>) -> Filter {
        Filter {
            event_id: event_id.cloned(),
            reason: self.reason.clone(),
            topic: self.topic.clone(),
            key: self.key.clone(),
            owner: self.owner.clone(),
            older_than_s: self.older_than,
            state,
        }
    }
}

impl DeadLettersCommand {
    pub(crate) async fn run(self) -> Done {
        match self.action {
            Action::List { which, limit, json } => {
                let found = which.letters().await?.list(&which.filter(None, None), limit).await?;
                if json {
                    for letter in &found {
                        println!("{}", serde_json::to_string(letter)?);
                    }
                } else {
                    list(&found, limit);
                }
                Ok(())
            }
            Action::Show { which, event_id, payload } => {
                let found =
                    which.letters().await?.list(&which.filter(Some(&event_id), None), 100).await?;
                if found.is_empty() {
                    return Err(format!("no unresolved dead letter {event_id}").into());
                }
                for letter in &found {
                    if payload {
                        std::io::stdout().write_all(&letter.payload)?;
                        return Ok(());
                    }
                    show(letter);
                }
                Ok(())
            }
            Action::Retry { which, chosen } => {
                let config = which.flags.outbox()?;
                let letters = which.letters().await?;
                let broker = match which.side.inbox && !chosen.dry_run {
                    true => Some(jetstream(&config.nats_url, &config.nats).await?),
                    false => None,
                };
                let dead = Some(State::Dead);
                each(&letters, &which, &chosen, dead, "retried", async |letter| {
                    Ok(letters.retry(letter, broker.as_ref()).await?)
                })
                .await
            }
            Action::Discard { which, chosen } => {
                let letters = which.letters().await?;
                each(&letters, &which, &chosen, None, "discarded", async |letter| {
                    Ok(letters.discard(letter).await?)
                })
                .await
            }
        }
    }
}

/// Does it to each that is chosen, in pages, and says how many there were. Goes on after a failure, and ends
/// with one then.
async fn each(
    letters: &DeadLetters,
    which: &Which,
    chosen: &Chosen,
    state: Option<State>,
    done_word: &str,
    act: impl AsyncFn(&DeadLetter) -> Result<bool, Box<dyn std::error::Error>>,
) -> Done {
    let filter = which.filter(chosen.event_id.as_ref(), state);
    let started = std::time::Instant::now();
    let (mut done, mut failed) = (0_u64, 0_i64);
    loop {
        // What failed is still there, at the front.
        let page = letters.list(&filter, PAGE + failed).await?;
        let fresh: Vec<_> = page
            .into_iter()
            .skip(usize::try_from(failed).unwrap_or(usize::MAX))
            // Not what has failed again since.
            .filter(|letter| letter.age_seconds >= started.elapsed().as_secs_f64())
            .collect();
        if fresh.is_empty() {
            break;
        }
        if chosen.dry_run {
            list(&fresh, PAGE);
            println!("these would be {done_word}; nothing was done");
            return Ok(());
        }
        for letter in &fresh {
            match act(letter).await {
                Ok(true) => done += 1,
                Ok(false) => {}
                Err(error) => {
                    failed += 1;
                    eprintln!("pillarbox: {}", pillarbox_relay::error::full_text(&*error));
                }
            }
        }
        if fresh.len() as i64 == PAGE {
            eprintln!("{done} {done_word} so far");
        }
    }
    println!("{done} {done_word}");
    match (failed, done, &chosen.event_id) {
        (0, 0, Some(event_id)) => {
            Err(format!("no dead letter {event_id} that could be {done_word}").into())
        }
        (0, ..) => Ok(()),
        (failed, ..) => Err(format!("{failed} failed").into()),
    }
}

fn list(letters: &[DeadLetter], limit: i64) {
    if letters.is_empty() {
        println!("no dead letters");
        return;
    }
    println!(
        "{:<36}  {:<16}  {:<24}  {:<12}  {:<6}  {:>8}  error",
        "event id", "owner", "topic", "reason", "state", "age"
    );
    for letter in letters {
        let error: String = letter.error.chars().take(80).collect();
        println!(
            "{:<36}  {:<16}  {:<24}  {:<12}  {:<6}  {:>8}  {error}",
            letter.event_id,
            letter.owner,
            letter.topic,
            letter.reason,
            letter.state,
            age(letter.age_seconds)
        );
    }
    if letters.len() as i64 == limit {
        println!("(the first {limit}; there may be more)");
    }
}

fn show(letter: &DeadLetter) {
    println!("event id  {}", letter.event_id);
    println!(
        "type      {}",
        letter.event_type.as_deref().unwrap_or("none: the message is no event")
    );
    println!("topic     {}", letter.topic);
    println!("key       {}", letter.key.as_deref().unwrap_or("none"));
    println!("owner     {}", letter.owner);
    if let Some(position) = letter.position {
        println!("position  {position}");
    }
    println!("state     {}", letter.state);
    println!("reason    {}", letter.reason);
    println!("error     {}", letter.error);
    println!("attempts  {}", letter.attempts);
    println!("age       {}", age(letter.age_seconds));
    println!("payload   {} bytes (--payload writes it out)", letter.payload.len());
    for (name, value) in &letter.headers {
        println!("header    {name}: {value}");
    }
}

fn age(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7_200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3_600.0),
        s => format!("{:.0} d", s / 86_400.0),
    }
}
