//! What the processes of a run do: writers, relays and consumers. Each is this program, started in a role.

mod consumer;
mod relay;
mod writer;

use std::path::PathBuf;
use std::time::Duration;

use pillarbox_testkit::told_to_stop;
use serde::{Deserialize, Serialize};

pub use consumer::{ConsumerNote, ConsumerRole, Group};
pub use relay::RelayRole;
pub(crate) use writer::key_name;
pub use writer::{WriterNote, WriterRole};

use crate::journal::Journal;
use crate::trips::TripRole;

/// How long a process may take to stop.
pub const STOP_DEADLINE: Duration = Duration::from_secs(8);

/// The settings of a process: its role, and where it records what it does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Told {
    /// Its name.
    pub name: String,
    /// Its journal.
    pub journal: PathBuf,
    /// What it is.
    pub role: Role,
}

/// What a process is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Commits events.
    Writer(WriterRole),
    /// Ships them.
    Relay(RelayRole),
    /// Handles them.
    Consumer(ConsumerRole),
    /// Books trips.
    Trip(TripRole),
}

/// Plays the role until the standard input ends, which happens when the process that started it ends.
///
/// # Errors
/// A role never ends by itself. An error means that the role failed, and the run reports that.
pub async fn play(told: &str) -> anyhow::Result<()> {
    let Told { name, journal, role } = serde_json::from_str(told)?;
    let (journal, stop) = (Journal::open(&journal)?, told_to_stop(STOP_DEADLINE));
    match role {
        Role::Writer(role) => role.play(journal, stop).await,
        Role::Relay(role) => role.play(stop).await,
        Role::Consumer(role) => role.play(&name, journal, stop).await,
        Role::Trip(role) => role.play(stop).await,
    }
}
