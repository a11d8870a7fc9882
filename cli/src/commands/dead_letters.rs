//! `pillarbox dead-letters`.

use clap::{Args, Subcommand};
use pillarbox_store::dead_letters::{DeadLetter, DeadLetters, Filter, Side, State};

use super::limit::{Limit, Unanswered};
use super::settings::{Flags, Tables};
use super::{Done, age, print, print_json};
use crate::terminal::harmless;

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
        /// List at most this many.
        #[arg(long, default_value_t = 50)]
        limit: i64,
        /// Print one JSON object per line.
        #[arg(long)]
        json: bool,
    },
    /// Show one completely, with its headers.
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
    /// Discard them: they will not be shipped or handled.
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
    flags: Flags<Tables>,
    #[command(flatten)]
    limit: Limit,
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
    /// Only the one at this position.
    #[arg(long)]
    position: Option<i64>,
    /// Only those whose event names this source.
    #[arg(long)]
    source: Option<String>,
    /// Only the dead letter with this number. `list --json` and `show` print the number; one event id may have several
    /// dead letters.
    #[arg(long, value_name = "NUMBER")]
    letter: Option<i64>,
    /// Only those given up at least this long ago: 90s, 15m, 1h or 2d. A number without a unit is in seconds.
    #[arg(long, value_name = "AGE", default_value = "0", value_parser = seconds)]
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
    /// All that match the filters.
    #[arg(long, conflicts_with = "event_id")]
    all: bool,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

/// How many dead letters `--all` loads at a time, with their payloads.
const PAGE: i64 = 50;
/// How many dead letters `--dry-run` shows.
const SHOWN: i64 = 20;

impl Which {
    async fn letters(&self) -> Result<Letters, Failed> {
        let config = self.flags.outbox()?;
        let database = self.limit.database(&config.database_url)?;
        let pool = self.limit.ask("let this command in", database.pool(2)).await?;
        let side = if self.side.outbox { Side::Outbox } else { Side::Inbox };
        Ok(Letters { letters: DeadLetters::new(pool, &config.schema, side)?, limit: self.limit })
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
            position: self.position,
            source: self.source.clone(),
            letter: self.letter,
        }
    }
}

type Failed = Box<dyn std::error::Error>;

/// The dead letters, with a time limit for every request.
struct Letters {
    letters: DeadLetters,
    limit: Limit,
}

impl Letters {
    async fn list(&self, filter: &Filter, most: i64) -> Result<Vec<DeadLetter>, Failed> {
        self.limit.ask("list the dead letters", self.letters.list(filter, most)).await
    }

    async fn first(&self, filter: &Filter) -> Result<Option<DeadLetter>, Failed> {
        self.limit.ask("send a payload", self.letters.first(filter)).await
    }

    async fn count(&self, filter: &Filter) -> Result<i64, Failed> {
        self.limit.ask("count the dead letters", self.letters.count(filter)).await
    }

    async fn retry(&self, letter: &DeadLetter) -> Result<bool, Failed> {
        self.limit.ask("have a dead letter retried", self.letters.retry(letter)).await
    }

    async fn discard(&self, letter: &DeadLetter) -> Result<bool, Failed> {
        self.limit.ask("discard a dead letter", self.letters.discard(letter)).await
    }
}

impl DeadLettersCommand {
    pub(crate) async fn run(self) -> Done {
        match self.action {
            Action::List { which, limit, json } => {
                let found = which.letters().await?.list(&which.filter(None, None), limit).await?;
                if json {
                    let lines: Result<String, _> = found
                        .iter()
                        .map(|letter| serde_json::to_string(letter).map(|line| line + "\n"))
                        .collect();
                    return print_json(&lines?);
                }
                let mut text = table(&found);
                if found.len() as i64 == limit {
                    text += &format!("(the first {limit}; there may be more)\n");
                }
                print(&text)
            }
            Action::Show { which, event_id, payload } => {
                let letters = which.letters().await?;
                let filter = which.filter(Some(&event_id), None);
                let found = letters.list(&filter, 100).await?;
                if found.is_empty() {
                    return Err(format!("no unresolved dead letter {event_id}").into());
                }
                match found.as_slice() {
                    [letter] if payload => {
                        let filter = Filter { letter: Some(letter.letter), ..filter };
                        let whole = letters.first(&filter).await?;
                        print(&whole.unwrap_or_else(|| letter.clone()).payload)
                    }
                    _ if payload => Err(ambiguous(&event_id, &found).into()),
                    _ => print(&found.iter().map(whole).collect::<String>()),
                }
            }
            Action::Retry { which, chosen } => {
                let letters = which.letters().await?;
                let dead = Some(State::Dead);
                let retry = async |letter: &DeadLetter| letters.retry(letter).await;
                each(&letters, &which, &chosen, dead, "retried", retry).await
            }
            Action::Discard { which, chosen } => {
                let letters = which.letters().await?;
                let discard = async |letter: &DeadLetter| letters.discard(letter).await;
                each(&letters, &which, &chosen, None, "discarded", discard).await
            }
        }
    }
}

/// Applies `act` to each chosen dead letter, page by page, and prints how many it was applied to. After a failure it
/// continues with the others and returns an error at the end. If the database does not answer, it stops at once.
async fn each(
    letters: &Letters,
    which: &Which,
    chosen: &Chosen,
    state: Option<State>,
    done_word: &str,
    act: impl AsyncFn(&DeadLetter) -> Result<bool, Failed>,
) -> Done {
    let filter = which.filter(chosen.event_id.as_ref(), state);
    if let Some(event_id) = &chosen.event_id {
        let mut found = letters.list(&filter, SHOWN).await?;
        found.sort_by(|one, other| one.owner.cmp(&other.owner));
        let of_one = |pair: &[DeadLetter]| pair[0].owner == pair[1].owner;
        if found.windows(2).any(of_one) {
            return Err(ambiguous(event_id, &found).into());
        }
    }
    let started = std::time::Instant::now();
    if chosen.dry_run {
        let first = letters.list(&filter, SHOWN).await?;
        let count = letters.count(&filter).await?;
        let more = if count > SHOWN { format!("(the first {SHOWN})\n") } else { String::new() };
        return print(&format!(
            "{}{more}{count} would be {done_word}; nothing was done\n",
            table(&first)
        ));
    }
    let (mut done, mut failed) = (0_u64, 0_i64);
    loop {
        // Those that failed are still there, at the front.
        let page = letters.list(&filter, PAGE + failed).await?;
        let fresh: Vec<_> = page
            .into_iter()
            .skip(usize::try_from(failed).unwrap_or(usize::MAX))
            // Leave out those that have failed again since this command started.
            .filter(|letter| letter.age_seconds >= started.elapsed().as_secs_f64())
            .collect();
        if fresh.is_empty() {
            break;
        }
        for letter in &fresh {
            match act(letter).await {
                Ok(true) => done += 1,
                Ok(false) => {}
                Err(error) if error.is::<Unanswered>() => {
                    eprintln!("{done} {done_word} before that");
                    return Err(error);
                }
                Err(error) => {
                    failed += 1;
                    eprintln!("pillarbox: {}", harmless(&pillarbox_store::full_text(&*error)));
                }
            }
        }
        if fresh.len() as i64 == PAGE {
            eprintln!("{done} {done_word} so far");
        }
    }
    print(&format!("{done} {done_word}\n"))?;
    match (failed, done, &chosen.event_id) {
        (0, 0, Some(event_id)) => {
            Err(format!("no dead letter {event_id} could be {done_word}").into())
        }
        (0, ..) => Ok(()),
        (failed, ..) => Err(format!("{failed} failed").into()),
    }
}

/// The error text for an event id that several dead letters have.
fn ambiguous(event_id: &str, found: &[DeadLetter]) -> String {
    let list: Vec<String> = found
        .iter()
        .map(|letter| {
            let position = letter.position.unwrap_or_default();
            let source =
                letter.source().map_or("no source".into(), |source| format!("source {source}"));
            format!("position {position} ({}, {source})", letter.owner)
        })
        .collect();
    harmless(&format!(
        "several dead letters have the id {event_id}: {}; choose one with --position, or with --owner and --source",
        list.join(", ")
    ))
}

fn table(letters: &[DeadLetter]) -> String {
    if letters.is_empty() {
        return "no dead letters\n".to_owned();
    }
    let mut text = format!(
        "{:<36}  {:<16}  {:<24}  {:<12}  {:<6}  {:>8}  error\n",
        "event id", "owner", "topic", "reason", "state", "age"
    );
    for letter in letters {
        let line = format!(
            "{:<36}  {:<16}  {:<24}  {:<12}  {:<6}  {:>8}  {}",
            letter.event_id,
            letter.owner,
            letter.topic,
            letter.reason,
            letter.state,
            age(letter.age_seconds),
            letter.error.chars().take(80).collect::<String>(),
        );
        text += &harmless(&line);
        text.push('\n');
    }
    text
}

fn whole(letter: &DeadLetter) -> String {
    let position = letter.position.map(|position| position.to_string());
    let mut lines = vec![
        ("event id", letter.event_id.clone()),
        ("type", letter.event_type.clone().unwrap_or("none: the message is not an event".into())),
        ("topic", letter.topic.clone()),
        ("key", letter.key.clone().unwrap_or("none".into())),
        ("owner", letter.owner.clone()),
        ("state", letter.state.to_string()),
        ("reason", letter.reason.clone()),
        ("error", letter.error.clone()),
        ("attempts", letter.attempts.to_string()),
        ("age", age(letter.age_seconds)),
        ("payload", format!("{} bytes (--payload writes it out)", letter.payload_bytes)),
    ];
    if let Some(position) = position {
        lines.insert(5, ("position", position));
    }
    if !letter.whole {
        lines.push(("kept", "only part of the event: it cannot be retried".to_owned()));
    }
    lines.push(("letter", letter.letter.to_string()));
    lines.extend(letter.headers.iter().map(|(name, value)| ("header", format!("{name}: {value}"))));
    lines.iter().map(|(name, value)| format!("{name:<8}  {}\n", harmless(value))).collect()
}

/// Reads an age such as `90s`, `15m`, `1h` or `2d`.
fn seconds(text: &str) -> Result<i64, String> {
    let (number, unit) = text.split_at(text.trim_end_matches(|c: char| !c.is_ascii_digit()).len());
    let unit = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err("an age must be a number followed by s, m, h or d, such as 15m".into()),
    };
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("an age must begin with a number, such as 15m".into());
    }
    let number: Option<i64> = number.parse().ok();
    number.and_then(|number| number.checked_mul(unit)).ok_or_else(|| "the age is too large".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_a_unit_or_is_in_seconds() {
        for (text, wanted) in
            [("0", 0), ("90", 90), ("90s", 90), ("15m", 900), ("1h", 3_600), ("2d", 172_800)]
        {
            assert_eq!(seconds(text), Ok(wanted), "{text}");
        }
        for text in ["", "h", "1w", "1.5h", "-1h", "1hh", "9223372036854775807d"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
