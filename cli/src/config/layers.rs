//! Layers of settings, and which of them override others.
//!
//! Flags override the environment, the environment overrides the file, and the file overrides the defaults.
//!
//! These layers make the settings for all outboxes. A table `[[outbox]]` overrides them for its own outbox. A flag for
//! a key that such a table sets would be ambiguous, and is refused.

use std::collections::BTreeSet;
use std::path::Path;

use pillarbox_relay::RelayConfig;
use toml::{Table, Value};

use super::file::Layer;
use super::load_error::LoadError;
use super::sources::Wanted;

/// `below`, overridden by `above`.
pub(super) fn over(mut below: Layer, above: &Layer) -> Layer {
    below.extend(above.iter().map(|(name, setting)| (*name, setting.clone())));
    below
}

/// Puts a value where its name says, for example `nats.ca` into the table `nats`.
pub(super) fn put(table: &mut Table, name: &str, value: Value) {
    match name.split_once('.') {
        Some((within, name)) => {
            let inner = table.entry(within).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                inner.insert(name.to_owned(), value);
            }
        }
        None => {
            table.insert(name.to_owned(), value);
        }
    }
}

/// The one outbox that has the name and the schema that the flags give, overridden by the flags.
pub(super) fn choose(
    wanted: Wanted,
    path: &Path,
    top: &Layer,
    own: &[Layer],
    flags: &Layer,
) -> Result<Layer, LoadError> {
    let default = RelayConfig::default();
    let of = |own: &Layer, name: &str| {
        let set = own.get(name).or_else(|| top.get(name)).and_then(|set| set.value.as_str());
        let default = if name == "name" { &default.name } else { &default.schema };
        set.unwrap_or(default).to_owned()
    };
    let fit: Vec<Layer> = own
        .iter()
        .filter(|own| {
            ["name", "schema"].into_iter().all(|name| {
                flags.get(name).is_none_or(|flag| flag.value.as_str() == Some(&of(own, name)))
            })
        })
        .map(|own| over(own.clone(), flags))
        .collect();
    let place = |own: &Layer| {
        let name = if wanted == Wanted::OneRelay { of(own, "name") } else { String::new() };
        (of(own, "database_url"), of(own, "schema"), name)
    };
    let found = fit.iter().map(place).collect::<BTreeSet<_>>().len();
    match fit.into_iter().next().filter(|_| found == 1) {
        Some(one) => Ok(one),
        None => Err(LoadError::NotOne {
            file: path.to_owned(),
            found,
            outboxes: own
                .iter()
                .map(|own| format!("name {} in schema {}", of(own, "name"), of(own, "schema")))
                .collect(),
        }),
    }
}
