//! The results of a program.

use serde::{Deserialize, Serialize};

use crate::machine::{Machine, Versions};
use crate::table::Table;

/// The results of a program, as in its JSON file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The program's name.
    pub program: String,
    /// Its arguments, including defaults.
    pub arguments: serde_json::Value,
    /// When it began, in RFC 3339 form.
    pub began_at: String,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// How many processes were running on the machine when it began: 0 on an idle one.
    pub load_before: Option<f64>,
    /// The machine.
    pub machine: Machine,
    /// The versions of the programs that took part.
    pub versions: Versions,
    /// What was measured.
    pub tables: Vec<Table>,
}
