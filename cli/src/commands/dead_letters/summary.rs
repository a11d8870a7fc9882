//! `pillarbox dead-letters summary`.

use clap::Args;
use pillarbox_store::dead_letters::{Group, Groups, Side, brief};
use serde::Serialize;

use super::{Failed, Only, Open, Place, name};
use crate::commands::{Done, age, print, print_json_lines};
use crate::terminal::harmless;

#[derive(Debug, Args)]
pub(super) struct Summary {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    side: AnySide,
    #[command(flatten)]
    only: Only,
    /// Show at most this many groups of each side, the largest first.
    #[arg(long, default_value_t = 50)]
    limit: usize,
    /// Print one JSON object per line, for each group.
    #[arg(long)]
    json: bool,
}

/// Without a flag, both sides that are there.
#[derive(Debug, Args)]
#[group(multiple = false)]
struct AnySide {
    /// Only events that the relay could not ship.
    #[arg(long)]
    outbox: bool,
    /// Only events that a handler gave up.
    #[arg(long)]
    inbox: bool,
}

/// A group, as `--json` prints it.
#[derive(Serialize)]
struct Line<'a> {
    side: &'static str,
    #[serde(flatten)]
    group: &'a Group,
}

/// How many characters of an error are shown.
const ERROR: usize = 100;

impl Summary {
    pub(super) async fn run(self) -> Done {
        let sides: &[Side] = match (self.side.outbox, self.side.inbox) {
            (true, _) => &[Side::Outbox],
            (_, true) => &[Side::Inbox],
            _ => &[Side::Outbox, Side::Inbox],
        };
        let filter = self.only.filter(None, None);
        let place = Open::at(&self.place).await?;
        let (mut found, mut missing) = (Vec::new(), None);
        for side in sides {
            let letters = place.letters(*side)?;
            match letters.groups(&filter).await {
                Ok(groups) => {
                    if groups.letters == 0 {
                        letters.say_unknown(&self.only).await?;
                    }
                    found.push((*side, groups));
                }
                // A database may have only one of the sides.
                Err(error) if sides.len() > 1 && is_missing(&error) => missing = Some(error),
                Err(error) => return Err(error),
            }
        }
        match missing {
            Some(error) if found.is_empty() => return Err(error),
            _ => {}
        }
        match self.json {
            true => self.print_json(&found),
            false => self.print(&found),
        }
    }

    fn print_json(&self, found: &[(Side, Groups)]) -> Done {
        let lines = found.iter().flat_map(|(side, groups)| {
            let side = name(*side);
            groups.groups.iter().take(self.limit).map(move |group| Line { side, group })
        });
        print_json_lines(lines)
    }

    fn print(&self, found: &[(Side, Groups)]) -> Done {
        let mut text = String::new();
        for (side, groups) in found {
            if !text.is_empty() {
                text.push('\n');
            }
            text += &self.text(*side, groups);
        }
        if found.iter().any(|(_, groups)| groups.letters > 0) {
            text += "\nRetry or discard the letters of one group with --all --group GROUP.\n";
        }
        print(&text)
    }

    fn text(&self, side: Side, found: &Groups) -> String {
        let (name, Groups { groups, letters, left_out, .. }) = (name(side), found);
        if groups.is_empty() {
            return format!("{name}: no unresolved dead letters\n");
        }
        let kinds = if groups.len() == 1 { "group" } else { "groups" };
        let mut text = format!("{name}: {letters} unresolved, in {} {kinds}\n", groups.len());
        text += &format!(
            "{:<10}  {:>7}  {:>7}  {:<16}  {:<24}  {:<12}  {:>8}  {:>8}  error of the newest\n",
            "group", "letters", "parked", "owner", "type", "reason", "oldest", "newest"
        );
        for group in groups.iter().take(self.limit) {
            let line = format!(
                "{:<10}  {:>7}  {:>7}  {:<16}  {:<24}  {:<12}  {:>8}  {:>8}  {}",
                group.group,
                group.count,
                group.parked,
                group.owner,
                group.event_type.as_deref().unwrap_or("(no event)"),
                group.reason,
                age(group.first_age_seconds),
                age(group.last_age_seconds),
                brief(&group.error, ERROR),
            );
            text += &(harmless(&line) + "\n");
        }
        let hidden: i64 = groups.iter().skip(self.limit).map(|group| group.count).sum();
        if hidden + left_out > 0 {
            text += &format!("({} more letters are in smaller groups)\n", hidden + left_out);
        }
        text
    }
}

/// Whether the side's table does not exist.
fn is_missing(error: &Failed) -> bool {
    let error = error.downcast_ref::<sqlx::Error>().and_then(sqlx::Error::as_database_error);
    error.and_then(|error| error.code()).as_deref() == Some("42P01")
}
