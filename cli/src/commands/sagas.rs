//! `pillarbox sagas`.

use clap::{Args, Subcommand};
use pillarbox_outbox::Outbox;
use pillarbox_saga::Status;
use pillarbox_saga::operate::{End, Entry, Instances, Listed, Which};
use pillarbox_store::Operator;
use sqlx::{Connection, PgConnection};

use super::limit::Limit;
use super::place::Place;
use super::signature::operator;
use super::{Done, age, lacks_a_right, print, print_json, print_json_lines};
use crate::terminal::harmless;

/// Look at the instances of sagas, or end one by hand.
#[derive(Debug, Args)]
pub(crate) struct SagasCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List instances that have not ended, the oldest first.
    List {
        #[command(flatten)]
        place: Place,
        /// Only those of this saga.
        #[arg(long)]
        saga: Option<String>,
        /// Those with this status instead: running, compensating, completed or failed.
        #[arg(long)]
        status: Option<Status>,
        /// Only those in this step.
        #[arg(long)]
        step: Option<String>,
        /// Only those whose deadline is past.
        #[arg(long)]
        overdue: bool,
        /// List at most this many.
        #[arg(long, default_value_t = 50)]
        limit: i64,
        /// Print one JSON object per line.
        #[arg(long)]
        json: bool,
    },
    /// Show one instance with its history. Its state is shown to roles that may read it.
    Show {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        one: One,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make one fail: its compensations are published, the newest first. Its history tells who did it, and why.
    Cancel {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        one: One,
        /// Publish no compensations: it has failed at once.
        #[arg(long)]
        without_compensation: bool,
        /// Why, for its history and the record of operators' actions.
        #[arg(long)]
        note: String,
        /// Who does it, for the record. The default is the account that runs this command.
        #[arg(long, value_name = "NAME")]
        by: Option<String>,
    },
    /// End one by hand: as completed, or as failed if it was compensating. Its history tells who did it, and why.
    Complete {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        one: One,
        /// Why, for its history and the record of operators' actions.
        #[arg(long)]
        note: String,
        /// Who does it, for the record. The default is the account that runs this command.
        #[arg(long, value_name = "NAME")]
        by: Option<String>,
    },
}

/// One instance.
#[derive(Debug, Args)]
struct One {
    /// The saga.
    saga: String,
    /// The instance's id.
    id: String,
}

type Failed = Box<dyn std::error::Error>;

/// An open connection, and the instances in its schema.
struct Opened {
    connection: PgConnection,
    instances: Instances,
    limit: Limit,
}

impl Opened {
    async fn at(place: &Place) -> Result<Self, Failed> {
        let (connection, schema) = place.open().await?;
        let instances = Instances::new(Outbox::new().schema(&schema)?);
        Ok(Self { connection, instances, limit: place.limit })
    }

    async fn list(&mut self, which: &Which, limit: i64) -> Result<Vec<Listed>, Failed> {
        let listed = self.instances.list(&mut self.connection, which, limit);
        self.limit.ask("list the instances of sagas", listed).await
    }

    async fn find(&mut self, one: &One) -> Result<Listed, Failed> {
        let which =
            Which { saga: Some(one.saga.clone()), id: Some(one.id.clone()), ..Which::default() };
        let found = self.list(&which, 1).await?.into_iter().next();
        let not_there = || format!("saga {:?} has no instance {:?}", one.saga, one.id);
        Ok(found.ok_or_else(not_there)?)
    }

    async fn history(&mut self, one: &One) -> Result<Vec<Entry>, Failed> {
        let history = self.instances.history(&mut self.connection, &one.saga, &one.id);
        self.limit.ask("read the history", history).await
    }

    /// `None` if the role may not read it.
    async fn state(&mut self, one: &One) -> Result<Option<String>, Failed> {
        let state = self.instances.state(&mut self.connection, &one.saga, &one.id);
        match self.limit.ask("read the state", state).await {
            Ok(state) => Ok(state),
            Err(error) if lacks_a_right(&*error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn end(mut self, one: &One, end: End, operator: &Operator) -> Done {
        let ended = self.instances.end(&mut self.connection, &one.saga, &one.id, end, operator);
        let status = self.limit.ask("end the instance", ended).await?;
        self.close().await?;
        print(&(harmless(&format!("{} {}: {status}", one.saga, one.id)) + "\n"))
    }

    async fn close(self) -> Done {
        self.limit.ask("end the session", self.connection.close()).await
    }
}

impl SagasCommand {
    pub(crate) async fn run(self) -> Done {
        match self.action {
            Action::List { place, saga, status, step, overdue, limit, json } => {
                let mut opened = Opened::at(&place).await?;
                let which = Which { saga, id: None, status, step, overdue };
                let found = opened.list(&which, limit).await?;
                opened.close().await?;
                if json {
                    return print_json_lines(&found);
                }
                let mut text = table(&found);
                if found.len() as i64 == limit {
                    text += &format!("(the first {limit}; there may be more)\n");
                }
                print(&text)
            }
            Action::Show { place, one, json } => {
                let mut opened = Opened::at(&place).await?;
                let found = opened.find(&one).await?;
                let history = opened.history(&one).await?;
                let state = opened.state(&one).await?;
                opened.close().await?;
                if json {
                    let mut value = serde_json::to_value(&found)?;
                    value["history"] = serde_json::to_value(&history)?;
                    value["state"] = match &state {
                        Some(state) => serde_json::from_str(state)?,
                        None => serde_json::Value::Null,
                    };
                    return print_json(&format!("{value}\n"));
                }
                print(&whole(&found, state, &history))
            }
            Action::Cancel { place, one, without_compensation, note, by } => {
                let end = match without_compensation {
                    true => End::CancelWithoutCompensation,
                    false => End::Cancel,
                };
                Opened::at(&place)
                    .await?
                    .end(&one, end, &operator(by.as_deref(), Some(&note)))
                    .await
            }
            Action::Complete { place, one, note, by } => {
                Opened::at(&place)
                    .await?
                    .end(&one, End::Complete, &operator(by.as_deref(), Some(&note)))
                    .await
            }
        }
    }
}

fn table(found: &[Listed]) -> String {
    if found.is_empty() {
        return "no instances\n".to_owned();
    }
    let mut text = format!(
        "{:<20}  {:<36}  {:<12}  {:<20}  {:>8}  {}\n",
        "saga", "id", "status", "step", "age", "overdue"
    );
    for one in found {
        let overdue = one.overdue_seconds.map_or_else(String::new, age);
        let line = format!(
            "{:<20}  {:<36}  {:<12}  {:<20}  {:>8}  {overdue}",
            one.saga,
            one.id,
            one.status,
            one.step,
            age(one.age_seconds)
        );
        text += &harmless(line.trim_end());
        text.push('\n');
    }
    text
}

fn whole(one: &Listed, state: Option<String>, history: &[Entry]) -> String {
    let mut lines = vec![
        ("saga", one.saga.clone()),
        ("id", one.id.clone()),
        ("status", one.status.clone()),
        ("step", one.step.clone()),
        ("started at", format!("{} ({} ago)", one.started_at, age(one.age_seconds))),
        ("updated at", one.updated_at.clone()),
    ];
    let more =
        [("ended at", &one.ended_at), ("deadline", &one.deadline_at), ("failure", &one.failure)];
    lines.extend(more.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))));
    if let Some(overdue) = one.overdue_seconds {
        lines.push(("overdue by", age(overdue)));
    }
    lines.extend(
        one.timers.iter().map(|timer| ("timer", format!("{} {}", timer.name, timer.event_id))),
    );
    if !one.compensations.is_empty() {
        lines.push(("if it fails", one.compensations.join(", ")));
    }
    lines.push(("state", state.unwrap_or_else(|| "this role may not read it".to_owned())));
    let mut text: String =
        lines.iter().map(|(name, value)| format!("{name:<12}  {}\n", harmless(value))).collect();
    text += "history\n";
    for entry in history {
        text += &harmless(&line(entry));
        text.push('\n');
    }
    text
}

/// An entry of the history in one line.
fn line(entry: &Entry) -> String {
    let mut line =
        format!("  {:>5}  {}  {:<24}  {}", entry.seq, entry.at, entry.event_type, entry.step_after);
    let names = |list: &serde_json::Value, name: &str| {
        let items = list.as_array().map(Vec::as_slice).unwrap_or_default();
        let names: Vec<_> = items.iter().filter_map(|item| item[name].as_str()).collect();
        names.join(", ")
    };
    for (what, names) in [
        ("published", names(&entry.published, "type")),
        ("timers set", names(&entry.timers_set, "name")),
        ("timers cancelled", names(&entry.timers_cancelled, "name")),
        ("note", entry.note.clone().unwrap_or_default()),
    ] {
        if !names.is_empty() {
            line += &format!("; {what}: {names}");
        }
    }
    line
}
