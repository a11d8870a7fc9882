//! Who runs a command that changes something, and why.

use clap::Args;
use pillarbox_store::Operator;

/// Who and why, for the record of operators' actions (`pillarbox actions list`).
#[derive(Clone, Debug, Args)]
pub(super) struct Signature {
    /// Why, for the record of operators' actions.
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    /// Who does it, for the record. The default is the account that runs this command. The record also has the role of
    /// the database.
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

impl Signature {
    pub(super) fn operator(&self) -> Operator {
        operator(self.by.as_deref(), self.note.as_deref())
    }
}

/// Who runs this command: the name that was given, and otherwise the account. Behind sudo, that is who called it.
pub(super) fn operator(by: Option<&str>, note: Option<&str>) -> Operator {
    let account = || {
        let names = ["SUDO_USER", "USER", "LOGNAME", "USERNAME"];
        let names = names.iter().filter_map(|name| std::env::var(name).ok());
        names.into_iter().find(|name| !name.is_empty()).unwrap_or_else(|| "unknown".to_owned())
    };
    Operator::new(&by.map_or_else(account, str::to_owned), note)
}
