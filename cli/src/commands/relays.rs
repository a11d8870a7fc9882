//! `pillarbox relays`.

use clap::{Args, Subcommand};
use pillarbox_relay::{removal, status};
use pillarbox_store::Schema;
use sqlx::Connection;

use super::confirm::confirm;
use super::place::Place;
use super::signature::Signature;
use super::{Done, print};
use crate::terminal::harmless;

/// List the relays that have run on an outbox, or remove one that is gone.
#[derive(Debug, Args)]
pub(crate) struct RelaysCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List their names. `pillarbox status --name NAME` shows how one is.
    List {
        #[command(flatten)]
        place: Place,
    },
    /// Remove what the database knows of a relay that is gone. The events in the outbox stay.
    ///
    /// Run it as the owner of the tables. A relay that starts under this name begins at the front of the outbox.
    Remove {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        signature: Signature,
        /// The relay's name.
        relay: String,
        /// Remove its unresolved dead letters, too.
        #[arg(long)]
        with_dead_letters: bool,
        /// Do it without asking. Required if standard input is not a terminal.
        #[arg(long)]
        yes: bool,
    },
}

impl RelaysCommand {
    pub(crate) async fn run(self) -> Done {
        match self.action {
            Action::List { place } => {
                let (mut connection, schema) = place.open().await?;
                let names = status::names(&mut connection, &schema);
                let names = place.limit.ask("name the relays that have run", names).await?;
                place.limit.ask("end the session", connection.close()).await?;
                if names.is_empty() {
                    return print("no relay has run\n");
                }
                print(&names.iter().map(|name| harmless(name) + "\n").collect::<String>())
            }
            Action::Remove { place, signature, relay, with_dead_letters, yes } => {
                let (mut connection, schema) = place.open().await?;
                let schema = Schema::parse(&schema)?;
                if !yes {
                    let what = format!(
                        "This removes all that the database knows of relay {relay}. If it starts again, it ships again \
                         what is in the outbox."
                    );
                    confirm(&harmless(&what), "remove", "removed")?;
                }
                let operator = signature.operator();
                let removed =
                    removal::remove(&mut connection, &schema, &relay, with_dead_letters, &operator);
                place.limit.ask("remove the relay", removed).await?;
                place.limit.ask("end the session", connection.close()).await?;
                print(&(harmless(&format!("{relay} is removed")) + "\n"))
            }
        }
    }
}
