//! `pillarbox actions`.

use clap::{Args, Subcommand};
use pillarbox_store::actions::{Action, ActionFilter, Actions};

use super::ages::seconds;
use super::place::Place;
use super::{Done, age, print, print_json_lines};
use crate::terminal::harmless;

/// Look at what operators have done.
#[derive(Debug, Args)]
pub(crate) struct ActionsCommand {
    #[command(subcommand)]
    action: Which,
}

#[derive(Debug, Subcommand)]
enum Which {
    /// List what operators have changed, the newest first: who, when, what, and why.
    List {
        #[command(flatten)]
        place: Place,
        /// Only actions of this kind, or whose kind begins with it: `inbox-letters` or `inbox-letters.discard`.
        #[arg(long, value_name = "KIND")]
        what: Option<String>,
        /// Only those of this person, or of this role of the database.
        #[arg(long, value_name = "NAME")]
        who: Option<String>,
        /// Only those done at most this long ago: 90s, 15m, 1h or 2d. A number without a unit is in seconds.
        #[arg(long, value_name = "AGE", value_parser = seconds)]
        since: Option<i64>,
        /// List at most this many.
        #[arg(long, default_value_t = 50)]
        limit: i64,
        /// Print one JSON object per line.
        #[arg(long)]
        json: bool,
    },
}

impl ActionsCommand {
    pub(crate) async fn run(self) -> Done {
        let Which::List { place, what, who, since, limit, json } = self.action;
        let (database, schema) = place.database()?;
        let pool = place.limit.ask("let this command in", database.pool(1)).await?;
        let filter = ActionFilter { what, who, since_s: since, letter: None };
        let actions = Actions::new(pool, &schema)?;
        let found = place.limit.ask("list the actions", actions.list(&filter, limit)).await?;
        if json {
            return print_json_lines(&found);
        }
        let mut text = table(&found);
        if found.len() as i64 == limit {
            text += &format!("(the newest {limit}; there may be more)\n");
        }
        print(&text)
    }
}

fn table(found: &[Action]) -> String {
    if found.is_empty() {
        return "no actions\n".to_owned();
    }
    let mut text = format!(
        "{:<20}  {:>8}  {:<16}  {:<16}  {:<22}  {:>7}  {:<32}  note\n",
        "at", "ago", "who", "role", "what", "count", "target"
    );
    for action in found {
        let line = format!(
            "{:<20}  {:>8}  {:<16}  {:<16}  {:<22}  {:>7}  {:<32}  {}",
            action.at,
            age(action.age_seconds),
            action.who,
            action.role,
            action.what,
            action.count,
            action.target,
            action.note.as_deref().unwrap_or("-"),
        );
        text += &harmless(&line);
        text.push('\n');
    }
    text
}
