//! Prints settings as TOML, with a comment that says where each was set, and without secrets.

use pillarbox_relay::RelayConfig;
use pillarbox_relay::config::{MASK, masked};
use toml::{Table, Value};

use super::file::{Layer, Setting};
use super::keys::{KEYS, Key, Kind, Scope, key};
use super::settings::{ProgramConfig, Settings};

impl Settings {
    /// The settings as TOML that can be loaded again, except that secrets are `***`. A comment on each line says where
    /// its value was set. A key without a value is a comment line.
    pub fn print(&self) -> String {
        let mut defaults = Table::try_from(RelayConfig::default()).unwrap_or_default();
        defaults.extend(Table::try_from(ProgramConfig::default()).unwrap_or_default());
        let mut text = String::new();
        match &self.file {
            Some(path) => text.push_str(&format!("# {}\n", path.display())),
            None => text.push_str("# no file\n"),
        }
        let mut within = "";
        for key in KEYS {
            let (table, _) = key.name.split_once('.').unwrap_or(("", key.name));
            if table != within {
                text.push_str(&format!("\n[{table}]\n"));
                within = table;
            }
            text.push_str(&self.line(key, &self.top, &defaults));
        }
        for own in &self.own {
            text.push_str("\n[[outbox]]\n");
            let of_outboxes = KEYS.iter().filter(|key| key.scope == Scope::Outbox);
            for key in of_outboxes.filter(|key| own.contains_key(key.name)) {
                text.push_str(&self.line(key, own, &defaults));
            }
        }
        text
    }

    fn line(&self, key: &Key, layer: &Layer, defaults: &Table) -> String {
        let name = key.name.rsplit('.').next().unwrap_or(key.name);
        match layer.get(key.name) {
            Some(Setting { value, origin }) => {
                let value = masked_value(key.name, value);
                format!("{name} = {value}  # {}\n", self.origin(key, *origin))
            }
            None => match default(defaults, key.name) {
                Some(value) => {
                    format!("{name} = {}  # default\n", masked_value(key.name, value))
                }
                None => format!("# {name} is not set\n"),
            },
        }
    }
}

fn default<'t>(defaults: &'t Table, name: &str) -> Option<&'t Value> {
    match name.split_once('.') {
        Some((table, name)) => defaults.get(table)?.get(name),
        None => defaults.get(name),
    }
}

/// The value as it may be shown.
pub(super) fn masked_value(name: &str, value: &Value) -> Value {
    let kind = key(name).map(|key| key.kind);
    match (kind, value) {
        (Some(Kind::Url), Value::String(url)) => Value::String(masked(url)),
        (Some(Kind::Secret) | None, _) => Value::String(MASK.to_owned()),
        _ => value.clone(),
    }
}
