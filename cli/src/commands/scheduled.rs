//! `pillarbox scheduled`.

use clap::{Args, Subcommand};
use pillarbox_store::scheduled::{Scheduled, Which, cancel};
use pillarbox_store::{Operator, Schema};
use sqlx::postgres::PgRow;
use sqlx::{Connection, PgConnection, Row, SqlStr};
use uuid::Uuid;

use super::limit::Limit;
use super::place::Place;
use super::signature::Signature;
use super::{Done, age, print, print_json_lines};
use crate::terminal::harmless;

/// Look at events that are scheduled for later, or cancel them.
#[derive(Debug, Args)]
pub(crate) struct ScheduledCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List them, the next one first.
    List {
        #[command(flatten)]
        place: Place,
        /// Only those of this topic.
        #[arg(long)]
        topic: Option<String>,
        /// Only those of this type.
        #[arg(long = "type", value_name = "TYPE")]
        event_type: Option<String>,
        /// Only those that could not be released when they were due.
        #[arg(long)]
        held: bool,
        /// List at most this many.
        #[arg(long, default_value_t = 50)]
        limit: i64,
        /// Print one JSON object per line.
        #[arg(long)]
        json: bool,
    },
    /// Show one. Its key, headers and payload are shown to roles that may read them.
    Show {
        #[command(flatten)]
        place: Place,
        /// The event's id.
        event_id: Uuid,
        /// Write the payload, and only that, to standard output.
        #[arg(long)]
        payload: bool,
    },
    /// Cancel them: they are never delivered.
    Cancel {
        #[command(flatten)]
        place: Place,
        /// The events' ids.
        #[arg(required = true)]
        event_ids: Vec<Uuid>,
        #[command(flatten)]
        signature: Signature,
    },
}

type Failed = Box<dyn std::error::Error>;

/// When an event is due, as seen from now.
fn due(event: &Scheduled) -> String {
    match event.due_in_seconds {
        ahead if ahead > 0.0 => format!("in {}", age(ahead)),
        ago => format!("{} ago", age(-ago)),
    }
}

/// An open connection, and the schema.
struct Opened {
    connection: PgConnection,
    schema: Schema,
    limit: Limit,
}

impl Opened {
    async fn at(place: &Place) -> Result<Self, Failed> {
        let (connection, schema) = place.open().await?;
        Ok(Self { connection, schema: Schema::parse(&schema)?, limit: place.limit })
    }

    fn sql(&self, text: &str) -> SqlStr {
        self.schema.statement(text)
    }

    async fn list(&mut self, which: Which, most: i64) -> Result<Vec<Scheduled>, Failed> {
        let listed = which.list(&mut self.connection, &self.schema, most);
        self.limit.ask("list the scheduled events", listed).await
    }

    async fn show(&mut self, id: Uuid) -> Result<Scheduled, Failed> {
        let found = self.list(Which { event_id: Some(id), ..Which::default() }, 1).await?;
        Ok(found.into_iter().next().ok_or_else(|| not_there(id))?)
    }

    /// Key, headers and payload; `None` if the role may not read them.
    async fn content(&mut self, id: Uuid) -> Result<Option<PgRow>, Failed> {
        let readable = sqlx::query_scalar(
            "select coalesce(bool_or(has_table_privilege(oid, 'select')), false) from pg_class \
             where relname = 'outbox_scheduled' and relnamespace = (select oid from pg_namespace where nspname = $1)",
        )
        .bind(self.schema.as_str())
        .fetch_one(&mut self.connection);
        if !self.limit.ask("tell this role's rights", readable).await? {
            return Ok(None);
        }
        let query =
            sqlx::query(self.sql(include_str!("scheduled/content.sql"))).bind(id.to_string());
        let found = query.fetch_optional(&mut self.connection);
        let found = self.limit.ask("show what is in a scheduled event", found).await?;
        Ok(Some(found.ok_or_else(|| not_there(id))?))
    }

    async fn cancel(&mut self, id: Uuid, operator: &Operator) -> Result<bool, Failed> {
        let id = id.to_string();
        let cancelled = cancel(&mut self.connection, &self.schema, &id, operator);
        self.limit.ask("cancel a scheduled event", cancelled).await
    }

    async fn close(self) -> Done {
        self.limit.ask("end the session", self.connection.close()).await
    }
}

fn not_there(id: Uuid) -> String {
    format!("there is no scheduled event {id}: it has left, was cancelled, or never was")
}

impl ScheduledCommand {
    pub(crate) async fn run(self) -> Done {
        match self.action {
            Action::List { place, topic, event_type, held, limit, json } => {
                let mut opened = Opened::at(&place).await?;
                let which = Which { topic, event_type, held, event_id: None };
                let found = opened.list(which, limit).await?;
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
            Action::Show { place, event_id, payload } => {
                let mut opened = Opened::at(&place).await?;
                let event = opened.show(event_id).await?;
                let content = opened.content(event_id).await?;
                opened.close().await?;
                match (payload, content) {
                    (true, Some(content)) => print(&content.try_get::<Vec<u8>, _>("payload")?),
                    (true, None) => {
                        Err("this role may not read payloads: run the command as the tables' owner"
                            .into())
                    }
                    (false, content) => print(&whole(&event, content.as_ref())?),
                }
            }
            Action::Cancel { place, event_ids, signature } => {
                let operator = signature.operator();
                let mut opened = Opened::at(&place).await?;
                let mut cancelled = 0;
                let mut missing = Vec::new();
                for id in event_ids {
                    match opened.cancel(id, &operator).await {
                        Ok(true) => cancelled += 1,
                        Ok(false) => missing.push(not_there(id)),
                        Err(error) => {
                            eprintln!("{cancelled} cancelled before that");
                            return Err(error);
                        }
                    }
                }
                opened.close().await?;
                print(&format!("{cancelled} cancelled\n"))?;
                if missing.is_empty() { Ok(()) } else { Err(missing.join("; ").into()) }
            }
        }
    }
}

fn table(found: &[Scheduled]) -> String {
    if found.is_empty() {
        return "no scheduled events\n".to_owned();
    }
    let mut text =
        format!("{:<36}  {:<27}  {:>10}  {:<24}  type\n", "event id", "due at", "due", "topic");
    for event in found {
        let held = event.error.as_ref().map(|error| format!("  not released: {error}"));
        let line = format!(
            "{:<36}  {:<27}  {:>10}  {:<24}  {}{}",
            event.event_id,
            event.due_at,
            due(event),
            event.topic,
            event.event_type,
            held.unwrap_or_default().chars().take(100).collect::<String>(),
        );
        text += &harmless(&line);
        text.push('\n');
    }
    text
}

fn whole(event: &Scheduled, content: Option<&PgRow>) -> Result<String, Failed> {
    let mut lines = vec![
        ("event id", event.event_id.clone()),
        ("type", event.event_type.clone()),
        ("topic", event.topic.clone()),
        ("due at", format!("{} ({})", event.due_at, due(event))),
        ("scheduled at", event.created_at.clone()),
    ];
    if let Some(error) = &event.error {
        lines.push(("not released", error.clone()));
    }
    match content {
        None => {
            lines.push(("content", "this role may not read the key, headers and payload".into()));
        }
        Some(row) => {
            lines.push(("key", row.try_get::<Option<_>, _>("key")?.unwrap_or("none".to_owned())));
            let bytes = row.try_get::<&[u8], _>("payload")?.len();
            lines.push(("payload", format!("{bytes} bytes (--payload writes it out)")));
            lines.push(("headers", row.try_get("headers")?));
        }
    }
    Ok(lines.iter().map(|(name, value)| format!("{name:<12}  {}\n", harmless(value))).collect())
}
