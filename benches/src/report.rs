//! What a program found.

use serde::{Deserialize, Serialize};

use crate::machine::{Machine, Versions};
use crate::table::Table;

/// All that a program found, as its JSON file holds it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The program's name.
    pub program: String,
    /// The arguments that it was given, and the defaults of the others.
    pub arguments: serde_json::Value,
    /// When it began, in RFC 3339.
    pub began_at: String,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// How many processes were running on the machine when it began: 0 on an idle one.
    pub load_before: Option<f64>,
    /// The machine.
    pub machine: Machine,
    /// The versions of what took part.
    pub versions: Versions,
    /// What was measured.
    pub tables: Vec<Table>,
}
