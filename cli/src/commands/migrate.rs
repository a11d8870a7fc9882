//! `pillarbox migrate`.

mod watch;

use clap::{Args, ValueEnum};
use pillarbox_outbox::Migrated;
use pillarbox_relay::Database;
use pillarbox_store::grants::{self, Duty, Roles, Tables};

use super::Done;
use super::limit::Limit;
use super::settings::{self, Flags};
use watch::Watch;

/// Create or update the tables. Safe to run again, and from several places at once.
#[derive(Debug, Args)]
pub(crate) struct Migrate {
    /// Which tables.
    #[arg(value_enum, default_value = "all")]
    set: Set,
    /// Print the SQL instead of running it. This needs no database.
    #[arg(long)]
    print: bool,
    /// Print the SQL that grants each role only the rights it needs on the tables, instead of running anything. This
    /// needs no database. The SQL creates roles that do not exist; run it as the tables' owner.
    #[arg(long, conflicts_with = "print")]
    print_grants: bool,
    /// The prefix of the roles' names, for --print-grants.
    #[arg(long, value_name = "PREFIX", default_value = "pillarbox", requires = "print_grants")]
    role_prefix: String,
    /// The role for one duty, for --print-grants: writer, relay, consumer, trail or operator. May be given
    /// several times.
    #[arg(long, value_name = "DUTY=ROLE", value_parser = duty_and_role, requires = "print_grants")]
    role: Vec<(Duty, String)>,
    #[command(flatten)]
    limit: Limit,
    #[command(flatten)]
    flags: Flags<settings::Tables>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Set {
    /// The producer's: outbox, relay, dead letters.
    Outbox,
    /// The consumer's: inbox, failures, dead letters.
    Inbox,
    /// The trail's: what went through the streams, without payloads. Only where you want `pillarbox trail`.
    Trail,
    /// Outbox and inbox.
    All,
}

impl Set {
    fn has_outbox(self) -> bool {
        matches!(self, Self::Outbox | Self::All)
    }

    fn has_inbox(self) -> bool {
        matches!(self, Self::Inbox | Self::All)
    }
}

impl Migrate {
    pub(crate) async fn run(self) -> Done {
        let config = match self.print || self.print_grants {
            true => self.flags.outbox_without_database()?,
            false => self.flags.outbox()?,
        };
        let outbox = pillarbox_outbox::Outbox::new().schema(&config.schema)?;
        let inbox = pillarbox_inbox::migrations(&config.schema)?;
        if self.print_grants {
            return super::print(&self.grants(&config.schema)?);
        }
        if self.print {
            if self.set.has_outbox() {
                print(&pillarbox_outbox::migrations(&config.schema)?);
            }
            if self.set.has_inbox() {
                print(&inbox);
            }
            if self.set == Set::Trail {
                print(&pillarbox_trail::migrations(&config.schema)?);
            }
            return Ok(());
        }
        // There is no statement timeout, so the server does not cancel a migration that makes progress: see `watch`.
        let name = format!("pillarbox migrate {}", std::process::id());
        let database = Database::new(&config.database_url, &name)?;
        let watch = Watch::new(&config.database_url, &name, self.limit)?;
        let pool = self.limit.ask("let this command in", database.pool(1)).await?;
        if self.set.has_outbox() {
            let migrated = watch.over(outbox.migrate(&pool)).await?;
            super::print(&told("outbox", &config.schema, &migrated))?;
        }
        if self.set.has_inbox() {
            let migrating = pillarbox_inbox::migrate_schema(&pool, &config.schema);
            let migrated = watch.over(migrating).await?;
            super::print(&told("inbox", &config.schema, &migrated))?;
        }
        if self.set == Set::Trail {
            let migrating = pillarbox_trail::migrate_schema(&pool, &config.schema);
            let migrated = watch.over(migrating).await?;
            super::print(&told("trail", &config.schema, &migrated))?;
        }
        let closed = async {
            pool.close().await;
            Ok::<_, sqlx::Error>(())
        };
        self.limit.ask("end the session", closed).await
    }

    fn grants(&self, schema: &str) -> Result<String, grants::RoleError> {
        let mut roles = Roles::with_prefix(&self.role_prefix)?;
        for (duty, role) in &self.role {
            roles = roles.with(*duty, role)?;
        }
        let tables: &[Tables] = match self.set {
            Set::Outbox => &[Tables::Outbox],
            Set::Inbox => &[Tables::Inbox],
            Set::Trail => &[Tables::Trail],
            Set::All => &[Tables::Outbox, Tables::Inbox],
        };
        Ok(grants::sql(schema, &roles, tables))
    }
}

fn duty_and_role(text: &str) -> Result<(Duty, String), String> {
    let (duty, role) = text.split_once('=').ok_or("it must be written as duty=role")?;
    let duty = Duty::ALL
        .into_iter()
        .find(|known| known.as_str() == duty)
        .ok_or("the duty must be writer, relay, consumer, trail or operator")?;
    Ok((duty, role.to_owned()))
}

/// The text that says what was found and done.
fn told(side: &str, schema: &str, migrated: &Migrated) -> String {
    let tables = format!("{side} tables in schema {schema}");
    let mut text: String = migrated
        .applied
        .iter()
        .map(|name| format!("applied {name} in schema {schema}\n"))
        .collect();
    if migrated.newer.is_empty() {
        text += &format!("{tables} are up to date\n");
    } else {
        let newer: Vec<String> = migrated.newer.iter().map(i64::to_string).collect();
        text += &format!(
            "{tables} are newer than this program, which does not know migration {}: update the program\n",
            newer.join(", ")
        );
    }
    text
}

fn print(migrations: &[(String, String)]) {
    for (name, sql) in migrations {
        println!("-- {name}\n\n{sql}");
    }
}
