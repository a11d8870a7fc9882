//! `pillarbox migrate`.

use clap::{Args, ValueEnum};
use sqlx::postgres::PgPoolOptions;

use super::Done;

/// Create or update the tables. Safe to run again, and from several places at once.
#[derive(Debug, Args)]
pub(crate) struct Migrate {
    /// Which tables.
    #[arg(value_enum, default_value = "all")]
    set: Set,
    /// Print the SQL instead of running it; needs no database.
    #[arg(long)]
    print: bool,
    /// The database, postgres://user:password@host:port/database.
    #[arg(
        long,
        env = "DATABASE_URL",
        hide_env_values = true,
        value_name = "URL",
        required_unless_present = "print"
    )]
    database_url: Option<String>,
    /// The schema of the tables.
    #[arg(long, env = "PILLARBOX_SCHEMA", default_value = "pillarbox", value_name = "NAME")]
    schema: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Set {
    /// The producer's: outbox, relay, dead letters.
    Outbox,
    /// The consumer's: inbox, failures, dead letters.
    Inbox,
    /// Both.
    All,
}

impl Migrate {
    pub(crate) async fn run(self) -> Done {
        let outbox = pillarbox_outbox::Outbox::new().schema(&self.schema)?;
        let inbox = pillarbox_inbox::migrations(&self.schema)?;
        if self.print {
            if self.set != Set::Inbox {
                print(&pillarbox_outbox::migrations(&self.schema)?);
            }
            if self.set != Set::Outbox {
                print(&inbox);
            }
            return Ok(());
        }
        let url = self.database_url.unwrap_or_default();
        let pool = PgPoolOptions::new().max_connections(1).connect(&url).await?;
        if self.set != Set::Inbox {
            outbox.migrate(&pool).await?;
            println!("outbox tables in schema {} are up to date", self.schema);
        }
        if self.set != Set::Outbox {
            pillarbox_inbox::migrate_schema(&pool, &self.schema).await?;
            println!("inbox tables in schema {} are up to date", self.schema);
        }
        pool.close().await;
        Ok(())
    }
}

fn print(migrations: &[(String, String)]) {
    for (name, sql) in migrations {
        println!("-- {name}\n\n{sql}");
    }
}
