//! `pillarbox consumers`.

use clap::{Args, Subcommand};
use pillarbox_store::consumers::{Consumers, ControlError, Overview, Pause, Process};
use sqlx::PgPool;

use super::confirm::confirm;
use super::limit::Limit;
use super::place::Place;
use super::signature::Signature;
use super::{Done, age, print, print_json, print_json_lines};
use crate::terminal::harmless;

/// Look at consumers, pause and resume them, limit their rate, or remove those that are gone.
#[derive(Debug, Args)]
pub(crate) struct ConsumersCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List them: how each is, how far it is behind, what fails and what was given up.
    List {
        #[command(flatten)]
        place: Place,
        /// Print one JSON object per line.
        #[arg(long)]
        json: bool,
    },
    /// Show one with its processes, pauses and limit.
    Show {
        #[command(flatten)]
        place: Place,
        /// The consumer.
        consumer: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Pause one in all its processes, within about a second. Its events wait, and the order of each key stays.
    Pause {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        signature: Signature,
        /// The consumer.
        consumer: String,
        /// Pause only events of this type. They are put into the table of dead letters as parked ones, and so are the
        /// later events of their keys.
        #[arg(long = "type", value_name = "TYPE")]
        event_type: Option<String>,
    },
    /// Resume one that is paused.
    Resume {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        signature: Signature,
        /// The consumer.
        consumer: String,
        /// Resume events of this type.
        #[arg(long = "type", value_name = "TYPE")]
        event_type: Option<String>,
    },
    /// Limit how many events one begins per second, over all its processes.
    #[command(name = "limit")]
    LimitRate {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        signature: Signature,
        /// The consumer.
        consumer: String,
        #[command(flatten)]
        rate: Rate,
    },
    /// Remove what the database knows of one that is gone. If it starts again, it does not know what it has handled.
    ///
    /// Run it as the owner of the tables. The durable consumer on the broker is not touched.
    Remove {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        signature: Signature,
        /// The consumer.
        consumer: String,
        /// Remove its unresolved dead letters, too.
        #[arg(long)]
        with_dead_letters: bool,
        /// Do it without asking. Required if standard input is not a terminal.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Rate {
    /// At most this many events per second. May be a fraction, such as 0.5.
    #[arg(long, value_name = "EVENTS_PER_SECOND")]
    rate: Option<f64>,
    /// Remove the limit.
    #[arg(long)]
    none: bool,
}

/// The consumers, with a time limit for every request.
struct Opened {
    consumers: Consumers,
    limit: Limit,
}

impl Opened {
    async fn at(place: &Place) -> Result<Self, Box<dyn std::error::Error>> {
        let (database, schema) = place.database()?;
        let pool: PgPool = place.limit.ask("let this command in", database.pool(1)).await?;
        Ok(Self { consumers: Consumers::new(pool, &schema)?, limit: place.limit })
    }

    async fn find(&self, name: &str) -> Result<Overview, Box<dyn std::error::Error>> {
        match self.limit.ask("show the consumer", self.consumers.find(name)).await? {
            Some(found) => Ok(found),
            None => {
                let all = self.limit.ask("list the consumers", self.consumers.list()).await?;
                let known = all.into_iter().map(|one| one.consumer).take(20).collect();
                Err(ControlError::Unknown { consumer: name.to_owned(), known }.into())
            }
        }
    }

    /// Says if no process will notice a change.
    async fn say_if_gone(&self, consumer: &str) -> Done {
        let running = self.consumers.running(consumer);
        if self.limit.ask("count the processes", running).await? == 0 {
            eprintln!(
                "pillarbox: {}",
                harmless(&format!(
                    "no process of consumer {consumer} was seen in the last half minute; the change holds for those that \
                     start"
                ))
            );
        }
        Ok(())
    }
}

impl ConsumersCommand {
    pub(crate) async fn run(self) -> Done {
        match self.action {
            Action::List { place, json } => {
                let opened = Opened::at(&place).await?;
                let all = opened.limit.ask("list the consumers", opened.consumers.list()).await?;
                if json { print_json_lines(&all) } else { print(&table(&all)) }
            }
            Action::Show { place, consumer, json } => {
                let opened = Opened::at(&place).await?;
                let found = opened.find(&consumer).await?;
                let processes = opened.consumers.processes(&consumer);
                let processes = opened.limit.ask("list its processes", processes).await?;
                if json {
                    let both = serde_json::json!({"consumer": found, "processes": processes});
                    return print_json(&(serde_json::to_string_pretty(&both)? + "\n"));
                }
                print(&whole(&found, &processes))
            }
            Action::Pause { place, signature, consumer, event_type } => {
                let opened = Opened::at(&place).await?;
                let operator = signature.operator();
                let paused = opened.consumers.pause(&consumer, event_type.as_deref(), &operator);
                let news = opened.limit.ask("pause the consumer", paused).await?;
                opened.say_if_gone(&consumer).await?;
                let what = named(&consumer, event_type.as_deref());
                let said = if news { "is paused" } else { "was paused before" };
                print(&(harmless(&format!("{what} {said}")) + "\n"))
            }
            Action::Resume { place, signature, consumer, event_type } => {
                let opened = Opened::at(&place).await?;
                let operator = signature.operator();
                let resumed = opened.consumers.resume(&consumer, event_type.as_deref(), &operator);
                let news = opened.limit.ask("resume the consumer", resumed).await?;
                opened.say_if_gone(&consumer).await?;
                let what = named(&consumer, event_type.as_deref());
                if !news {
                    return Err(format!("{what} was not paused").into());
                }
                print(&(harmless(&format!("{what} is resumed")) + "\n"))
            }
            Action::LimitRate { place, signature, consumer, rate } => {
                let opened = Opened::at(&place).await?;
                let operator = signature.operator();
                let limited = opened.consumers.limit(&consumer, rate.rate, &operator);
                let news = opened.limit.ask("limit the consumer", limited).await?;
                opened.say_if_gone(&consumer).await?;
                let said = match rate.rate {
                    Some(rate) => format!("{consumer} begins at most {rate} events per second"),
                    None if news => format!("{consumer} has no limit any more"),
                    None => return Err(format!("{consumer} had no limit").into()),
                };
                print(&(harmless(&said) + "\n"))
            }
            Action::Remove { place, signature, consumer, with_dead_letters, yes } => {
                let opened = Opened::at(&place).await?;
                opened.find(&consumer).await?;
                if !yes {
                    let what = format!(
                        "This removes all that the database knows of consumer {consumer}. If it starts again, it handles \
                         again whatever the broker still delivers."
                    );
                    confirm(&harmless(&what), "remove", "removed")?;
                }
                // It has no limit of its own, because an inbox may be large. Each statement has one.
                let operator = signature.operator();
                let removed = opened.consumers.remove(&consumer, with_dead_letters, &operator);
                let events = removed.await?;
                print(
                    &(harmless(&format!(
                        "{consumer} is removed, with the record of {events} handled events; its durable consumer on the \
                     broker, if there is one, is not touched"
                    )) + "\n"),
                )
            }
        }
    }
}

fn named(consumer: &str, event_type: Option<&str>) -> String {
    match event_type {
        Some(event_type) => format!("type {event_type} of {consumer}"),
        None => consumer.to_owned(),
    }
}

/// A number that may not be known.
fn known<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// All consumers in a table.
pub(super) fn table(all: &[Overview]) -> String {
    if all.is_empty() {
        return "no consumers\n".to_owned();
    }
    let mut text = format!(
        "{:<24}  {:<8}  {:>9}  {:>9}  {:>9}  {:>8}  {:>7}  {:>7}  remarks\n",
        "consumer", "state", "processes", "lag", "oldest", "in retry", "parked", "dead"
    );
    for one in all {
        let line = format!(
            "{:<24}  {:<8}  {:>9}  {:>9}  {:>9}  {:>8}  {:>7}  {:>7}  {}",
            one.consumer,
            one.condition,
            one.processes,
            known(one.lag_events),
            known(one.oldest_age_seconds.map(age)),
            one.failing_events,
            one.parked_events,
            one.dead_letters,
            remarks(one).join("; "),
        );
        text += &harmless(line.trim_end());
        text.push('\n');
    }
    text
}

fn remarks(one: &Overview) -> Vec<String> {
    let waits = one.waits_for.iter().map(|reason| format!("handles nothing: {reason}"));
    let mut remarks: Vec<String> = waits.chain(one.pauses.iter().map(pause)).collect();
    if let Some(rate) = &one.rate {
        remarks.push(format!("at most {} events per second", rate.per_second));
    }
    if one.processes == 0 {
        remarks.push(match one.seen_age_seconds {
            Some(seen) => format!("last seen {} ago", age(seen)),
            None => "no process was seen lately".to_owned(),
        });
    }
    remarks
}

fn pause(pause: &Pause) -> String {
    let what = match &pause.event_type {
        Some(event_type) => format!("type {event_type} is "),
        None => String::new(),
    };
    let note = pause.note.as_ref().map(|note| format!(": {note}")).unwrap_or_default();
    format!("{what}paused by {} since {}{note}", pause.by, pause.since)
}

fn whole(one: &Overview, processes: &[Process]) -> String {
    let mut lines = vec![
        ("consumer", one.consumer.clone()),
        ("state", one.condition.to_string()),
        ("stream", one.stream.clone().unwrap_or("not known".into())),
        (
            "lag",
            match (one.lag_events, one.measured_age_seconds) {
                (Some(events), Some(measured)) => {
                    format!("{events} events, measured {} ago", age(measured))
                }
                _ => "not known: no process has measured it".to_owned(),
            },
        ),
        ("oldest age", known(one.oldest_age_seconds.map(age))),
        (
            "in retry",
            match one.oldest_failure_seconds {
                Some(oldest) => format!("{}, the oldest for {}", one.failing_events, age(oldest)),
                None => one.failing_events.to_string(),
            },
        ),
        ("parked", one.parked_events.to_string()),
        ("dead letters", one.dead_letters.to_string()),
    ];
    lines.extend(one.pauses.iter().map(|found| ("pause", pause(found))));
    if let Some(rate) = &one.rate {
        let note = rate.note.as_ref().map(|note| format!(": {note}")).unwrap_or_default();
        let said = format!(
            "{} events per second, set by {} at {}{note}",
            rate.per_second, rate.by, rate.since
        );
        lines.push(("limit", said));
    }
    lines.extend(processes.iter().map(|process| {
        let reason =
            process.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        let said = format!(
            "{} {}{reason}, started {} ago, seen {} ago",
            process.host,
            process.state,
            age(process.started_age_seconds),
            age(process.seen_age_seconds)
        );
        ("process", said)
    }));
    if processes.is_empty() {
        lines.push(("process", "none was seen in the last hour".to_owned()));
    }
    lines.iter().map(|(name, value)| format!("{name:<12}  {}\n", harmless(value))).collect()
}
