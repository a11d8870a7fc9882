//! Which tables a command works on.

use clap::Args;
use pillarbox_relay::Database;
use sqlx::PgConnection;

use super::limit::Limit;
use super::settings::{Flags, Tables};

/// Where the tables are, and how long to wait for them.
#[derive(Debug, Args)]
pub(super) struct Place {
    #[command(flatten)]
    flags: Flags<Tables>,
    #[command(flatten)]
    pub(super) limit: Limit,
}

impl Place {
    /// The database, and the schema in it. It is not connected to yet.
    pub(super) fn database(&self) -> Result<(Database, String), Box<dyn std::error::Error>> {
        let config = self.flags.outbox()?;
        Ok((self.limit.database(&config.database_url)?, config.schema))
    }

    /// A direct connection to the database, and the schema in it.
    pub(super) async fn open(&self) -> Result<(PgConnection, String), Box<dyn std::error::Error>> {
        let (database, schema) = self.database()?;
        Ok((self.limit.ask("let this command in", database.one_direct()).await?, schema))
    }
}
