//! `pillarbox trace`.

use clap::Args;
use pillarbox_relay::Database;
use pillarbox_store::Schema;
use pillarbox_trail::flow::{self, Asked, Bounds, Part, text};
use sqlx::{Connection, PgConnection};

use super::limit::Limit;
use super::settings::{Flags, Tables};
use super::{Done, print, print_json};

/// Follow an event, a key or a correlation id through all services: what caused what, who handled it and when, and what
/// is missing. Needs what `pillarbox trail` has recorded.
///
/// It looks into every database of the settings, and into those of --also.
#[derive(Debug, Args)]
pub(crate) struct TraceCommand {
    /// The id of an event: everything that belongs to its flow is shown.
    #[arg(required_unless_present_any = ["key", "correlation"], conflicts_with_all = ["key", "correlation"])]
    id: Option<String>,
    /// The flows of the events with this key.
    #[arg(long, conflicts_with = "correlation")]
    key: Option<String>,
    /// The events with this correlation id.
    #[arg(long, value_name = "ID")]
    correlation: Option<String>,
    /// Another service's database, postgres://…; may be given several times. In the environment, they are separated by
    /// spaces. A password in an argument can be seen by other users of this machine.
    #[arg(
        long,
        value_name = "URL",
        env = "PILLARBOX_TRACE_ALSO",
        hide_env_values = true,
        value_delimiter = ' '
    )]
    also: Vec<String>,
    /// Show at most this many events.
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    wait: Limit,
    #[command(flatten)]
    flags: Flags<Tables>,
}

/// A database that is looked into.
struct Opened {
    name: String,
    schema: Schema,
    connection: PgConnection,
}

impl TraceCommand {
    pub(crate) async fn run(self) -> Done {
        let asked = match (&self.id, &self.key, &self.correlation) {
            (Some(id), _, _) => Asked::Event(id.clone()),
            (_, Some(key), _) => Asked::Key(key.clone()),
            (_, _, Some(id)) => Asked::Correlation(id.clone()),
            // The command line requires one of them.
            (None, None, None) => return Err("give an event's id, --key or --correlation".into()),
        };
        let mut opened = self.open().await?;
        let mut parts: Vec<Part<'_>> = opened
            .iter_mut()
            .map(|Opened { name, schema, connection }| Part {
                name: name.clone(),
                schema: schema.clone(),
                connection,
            })
            .collect();
        let bounds = Bounds { events: self.limit as usize, ..Bounds::default() };
        let flow = flow::read(&mut parts, asked, bounds).await?;
        drop(parts);
        for one in opened {
            self.wait.ask("end the session", one.connection.close()).await?;
        }
        if self.json {
            return print_json(&(serde_json::to_string_pretty(&flow)? + "\n"));
        }
        if flow.events.is_empty() {
            return Err(text::nothing(&flow).into());
        }
        print(&text::tree(&flow))
    }

    async fn open(&self) -> Result<Vec<Opened>, Box<dyn std::error::Error>> {
        let settings = self.flags.settings()?;
        settings.require_database()?;
        let mut places: Vec<(Database, Schema)> = Vec::new();
        let default = settings.outboxes.first().map(|outbox| outbox.schema.clone());
        let default = default.unwrap_or_else(|| pillarbox_store::schema::DEFAULT.to_owned());
        let named = settings.outboxes.iter().map(|one| (&one.database_url, one.schema.as_str()));
        let also = self.also.iter().filter(|url| !url.is_empty()).map(|url| (url, &*default));
        for (url, schema) in named.chain(also) {
            let (database, schema) = (self.wait.database(url)?, Schema::parse(schema)?);
            let same = |other: &(Database, Schema)| {
                other.0.place() == database.place() && other.1 == schema
            };
            if !places.iter().any(same) {
                places.push((database, schema));
            }
        }
        let mut opened = Vec::with_capacity(places.len());
        for (database, schema) in places {
            let connection = self.wait.ask("let this command in", database.one_direct()).await?;
            let name = match schema.as_str() {
                pillarbox_store::schema::DEFAULT => database.name().to_owned(),
                schema => format!("{}/{schema}", database.name()),
            };
            opened.push(Opened { name, schema, connection });
        }
        Ok(opened)
    }
}
