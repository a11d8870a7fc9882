//! `pillarbox status`.

use clap::Args;
use pillarbox_relay::cursor::Cursor;
use pillarbox_relay::status::{self, RelayStatus};
use pillarbox_relay::{Database, RelayConfig, Scheduled};
use pillarbox_store::consumers::{Consumers, Overview};
use pillarbox_trail::status::StreamStatus;
use serde::Serialize;
use sqlx::Connection;

use super::Done;
use super::inbox_status::{InboxStatus, Tables};
use super::lacks_a_right;
use super::limit::Limit;
use super::settings::{Flags, OneRelay};
use crate::terminal::harmless;

/// Show a relay's status: which process leads, how many events wait, how many were given up.
///
/// The command counts the backlog, which takes time in proportion to its size. For a database that only consumes, it
/// shows what each consumer has failed to handle.
#[derive(Debug, Args)]
pub(crate) struct StatusCommand {
    #[command(flatten)]
    flags: Flags<OneRelay>,
    #[command(flatten)]
    limit: Limit,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

impl StatusCommand {
    pub(crate) async fn run(self) -> Done {
        let config = self.flags.outbox()?;
        let (limit, RelayConfig { schema, name, .. }) = (self.limit, &config);
        let database = limit.database(&config.database_url)?;
        let mut connection = limit.ask("let this command in", database.one_direct()).await?;
        let tables = limit.ask("name its tables", Tables::find(&mut connection, schema)).await?;
        let trail = StreamStatus::all(&mut connection, schema);
        let trail = limit.ask("say how far the trail is", trail).await?;
        match (tables, &trail) {
            (Tables::Outbox | Tables::Both, _) => {}
            (Tables::InboxAlone, _) => {
                limit.ask("end the session", connection.close()).await?;
                return self.inbox(&database, schema).await;
            }
            (Tables::Neither, Some(trail)) if self.json => {
                let json = serde_json::json!({ "schema": schema, "trail": trail });
                return super::print_json(&(serde_json::to_string_pretty(&json)? + "\n"));
            }
            (Tables::Neither, Some(trail)) => {
                let text = match trail.is_empty() {
                    true => "\nThe trail has read nothing yet.\n".to_owned(),
                    false => format!("\n{}", trail_text(trail)),
                };
                let what =
                    format!("Schema {schema} has a trail and no outbox, and needs no relay.");
                return super::print(&format!("{what}\n{text}"));
            }
            (Tables::Neither, None) => return Err(Tables::missing(schema).into()),
        }
        let status = RelayStatus::read(&mut connection, schema, name);
        let status = limit.ask("count the backlog", status).await?;
        let others = match status.epoch {
            None => {
                let names = status::names(&mut connection, schema);
                limit.ask("name the relays that have run", names).await?
            }
            Some(_) => Vec::new(),
        };
        limit.ask("end the session", connection.close()).await?;
        let consumers = match tables {
            Tables::Both => match self.consumers(&database, schema).await {
                Ok(all) => Some(all),
                Err(error) if lacks_a_right(&*error) => None,
                Err(error) => return Err(error),
            },
            _ => None,
        };
        if self.json {
            let consumers = consumers.as_deref();
            let both = BothSides { relay: &status, consumers, trail };
            return super::print_json(&(serde_json::to_string_pretty(&both)? + "\n"));
        }
        let mut text = text(&status, &others);
        match consumers {
            Some(consumers) if !consumers.is_empty() => {
                text += &format!("\n{}", super::consumers::table(&consumers));
            }
            None if tables == Tables::Both => {
                text += "\nconsumers     this role may not see them\n"
            }
            _ => {}
        }
        super::print(&(text + &trail_text(&trail.unwrap_or_default())))
    }

    /// The consumers in the same schema.
    async fn consumers(
        &self,
        database: &Database,
        schema: &str,
    ) -> Result<Vec<Overview>, Box<dyn std::error::Error>> {
        let pool = self.limit.ask("let this command in again", database.pool(1)).await?;
        self.limit.ask("list the consumers", Consumers::new(pool, schema)?.list()).await
    }

    /// The status of a database that only consumes.
    async fn inbox(&self, database: &Database, schema: &str) -> Done {
        let status = InboxStatus::new(schema, self.consumers(database, schema).await?);
        match self.json {
            true => super::print_json(&(serde_json::to_string_pretty(&status)? + "\n")),
            false => super::print(&status.text()),
        }
    }
}

/// What `status --json` prints of an outbox.
#[derive(Serialize)]
struct BothSides<'a> {
    #[serde(flatten)]
    relay: &'a RelayStatus,
    consumers: Option<&'a [Overview]>,
    trail: Option<Vec<StreamStatus>>,
}

/// `others`: the relays that have run, if this one has not.
fn text(status: &RelayStatus, others: &[String]) -> String {
    let holder = match (&status.holder, status.leading) {
        (Some(holder), true) => holder.clone(),
        (Some(holder), false) => {
            format!("{holder}, whose lease has expired: no process is shipping")
        }
        (None, _) => "nobody: no relay is running".to_owned(),
    };
    let mut lines = vec![("relay", status.relay.clone()), ("holder", holder)];
    if let Some(age) = status.heartbeat_age_seconds {
        lines.push(("heartbeat", format!("{} ago", age_text(age))));
    }
    lines.push((
        "epoch",
        match (status.epoch, others) {
            (Some(epoch), _) => epoch.to_string(),
            (None, []) => "none: this relay has never run".to_owned(),
            (None, others) => {
                format!("none: this relay has never run; give --name one of: {}", others.join(", "))
            }
        },
    ));
    let events = if status.backlog_events == 1 { "event" } else { "events" };
    lines.push(("backlog", format!("{} {events}", status.backlog_events)));
    lines.push(("oldest age", age_text(status.oldest_age_seconds)));
    lines.push((
        "dead letters",
        match status.dead_letters {
            0 => "0".to_owned(),
            count => format!("{count} (pillarbox dead-letters list --outbox)"),
        },
    ));
    if status.held_events > 0 {
        let text = "the table outbox_dead_letter does not take their dead letters";
        lines.push(("held", format!("{} ({text})", status.held_events)));
    }
    if let Some(Scheduled { pending, held, overdue_seconds, .. }) = &status.scheduled {
        let mut scheduled = pending.to_string();
        if *overdue_seconds > 0.0 {
            scheduled += &format!(", the oldest has been due for {}", age_text(*overdue_seconds));
        }
        if *held > 0 {
            scheduled +=
                &format!(", {held} could not be released (pillarbox scheduled list --held)");
        }
        lines.push(("scheduled", scheduled));
    }
    if !status.unwatched_streams.is_empty() {
        let streams = status.unwatched_streams.join(", ");
        lines.push(("not watched", format!("{streams} (the JetStream API does not show it)")));
    }
    if let Some(table) = &status.left_table {
        let text = "was the outbox before; copy what had not been shipped from it, then drop it";
        lines.push(("old table", format!("{table} {text}")));
    }
    for said in &status.notices {
        lines.push(("notice", format!("{}: {}", said.holder, said.notice)));
    }
    if let Some(Cursor { high, floor, snapshot, .. }) = &status.cursor {
        let text = format!("position {high}, floor {floor}, snapshot {snapshot}");
        lines.push(("cursor", text));
    }
    let mut text: String =
        lines.iter().map(|(name, value)| format!("{name:<12}  {}\n", harmless(value))).collect();
    if !status.leading {
        text += "\nNothing is shipped. `pillarbox doctor` says what to do.\n";
    }
    text
}

/// A line for each stream of the trail.
fn trail_text(streams: &[StreamStatus]) -> String {
    let line = |stream: &StreamStatus| {
        let problem =
            stream.problem.as_ref().map_or_else(String::new, |problem| format!("; {problem}"));
        let (lag, looked) = (stream.lag(), age_text(stream.looked_seconds));
        let text = format!("{} is {lag} behind, looked at {looked} ago{problem}", stream.stream);
        format!("{:<12}  {}\n", "trail", harmless(&text))
    };
    streams.iter().map(line).collect()
}

fn age_text(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.1} s"),
        s => super::age(s),
    }
}
