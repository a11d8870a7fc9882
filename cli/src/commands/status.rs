//! `pillarbox status`.

use clap::Args;
use pillarbox_relay::RelayConfig;
use pillarbox_relay::cursor::Cursor;
use pillarbox_relay::status::{self, Status};
use sqlx::Connection;

use super::Done;
use super::limit::Limit;
use super::settings::{Flags, OneRelay};
use crate::terminal::harmless;

/// Show a relay's status: which process leads, how many events wait, how many were given up.
///
/// The command counts the backlog, which takes time in proportion to its size.
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
        let status = Status::read(&mut connection, schema, name);
        let status = limit.ask("count the backlog", status).await?;
        let others = match status.epoch {
            None => {
                let names = status::names(&mut connection, schema);
                limit.ask("name the relays that have run", names).await?
            }
            Some(_) => Vec::new(),
        };
        limit.ask("end the session", connection.close()).await?;
        match self.json {
            true => super::print_json(&(serde_json::to_string_pretty(&status)? + "\n")),
            false => super::print(&text(&status, &others)),
        }
    }
}

/// `others`: the relays that have run, if this one has not.
fn text(status: &Status, others: &[String]) -> String {
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
    if !status.unwatched_streams.is_empty() {
        let streams = status.unwatched_streams.join(", ");
        lines.push(("not watched", format!("{streams} (the JetStream API does not show it)")));
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

fn age_text(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.1} s"),
        s => super::age(s),
    }
}
