//! `pillarbox migrate`.

use clap::{Args, ValueEnum};
use sqlx::postgres::PgPoolOptions;

use super::Done;
use super::settings::{Flags, Tables};

/// Create or update the tables. Safe to run again, and from several places at once.
#[derive(Debug, Args)]
pub(crate) struct Migrate {
    /// Which tables.
    #[arg(value_enum, default_value = "all")]
    set: Set,
    /// Print the SQL instead of running it; needs no database.
    #[arg(long)]
    print: bool,
    #[command(flatten)]
    flags: Flags<Tables>,
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
        let config = match self.print {
            true => self.flags.outbox_without_database()?,
            false => self.flags.outbox()?,
        };
        let outbox = pillarbox_outbox::Outbox::new().schema(&config.schema)?;
        let inbox = pillarbox_inbox::migrations(&config.schema)?;
        if self.print {
            if self.set != Set::Inbox {
                print(&pillarbox_outbox::migrations(&config.schema)?);
            }
            if self.set != Set::Outbox {
                print(&inbox);
            }
            return Ok(());
        }
        let pool = PgPoolOptions::new().max_connections(1).connect(&config.database_url).await?;
        if self.set != Set::Inbox {
            outbox.migrate(&pool).await?;
            println!("outbox tables in schema {} are up to date", config.schema);
        }
        if self.set != Set::Outbox {
            pillarbox_inbox::migrate_schema(&pool, &config.schema).await?;
            println!("inbox tables in schema {} are up to date", config.schema);
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
