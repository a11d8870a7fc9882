//! Where settings come from: the file, the environment and the flags.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use toml::Value;

use super::file::{Layer, Origin, Setting};
use super::keys::{KEYS, Key, Kind, key};
use super::load_error::LoadError;

/// The file to read if none is named.
pub(super) const FILE: &str = "pillarbox.toml";

/// Where settings come from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file to read; it must exist. `None`: the file that `PILLARBOX_CONFIG` names, or else `pillarbox.toml` in the
    /// working folder, if it exists.
    pub file: Option<PathBuf>,
    /// The environment. An empty variable counts as not set.
    pub environment: BTreeMap<String, OsString>,
    /// The values of flags, by the name of their key.
    pub flags: BTreeMap<&'static str, String>,
    /// How many of the outboxes are wanted.
    pub wanted: Wanted,
}

/// How many of the outboxes in a file are wanted.
///
/// If one is wanted, the flags for `name` and `schema` choose among the tables `[[outbox]]`, and all flags override the
/// chosen table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wanted {
    /// All of them.
    #[default]
    All,
    /// One relay's.
    OneRelay,
    /// One set of tables, whichever relays use it.
    OneSetOfTables,
}

impl Sources {
    /// This process's environment, and no flags.
    pub fn of_this_process() -> Self {
        let environment =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
        Self { environment: environment.collect(), ..Self::default() }
    }
}

impl Sources {
    fn variable(&self, name: &str) -> Option<&OsString> {
        self.environment.get(name).filter(|value| !value.is_empty())
    }

    pub(super) fn path(&self) -> Option<PathBuf> {
        let named =
            self.file.clone().or_else(|| self.variable("PILLARBOX_CONFIG").map(PathBuf::from));
        named.or_else(|| {
            let here = PathBuf::from(FILE);
            // If the file exists and cannot be read, that is an error. Only a missing file counts as none.
            (!matches!(here.try_exists(), Ok(false))).then_some(here)
        })
    }

    pub(super) fn environment(&self) -> Result<Layer, LoadError> {
        let mut layer = Layer::new();
        for key in KEYS {
            let Some(value) = self.variable(key.env) else { continue };
            let text = value.to_str().ok_or_else(|| LoadError::Text {
                name: key.env.to_owned(),
                wanted: "text in UTF-8".to_owned(),
            })?;
            let value = parsed(key, text, key.env.to_owned())?;
            layer.insert(key.name, Setting { value, origin: Origin::Environment });
        }
        Ok(layer)
    }

    pub(super) fn flags(&self) -> Result<Layer, LoadError> {
        let mut layer = Layer::new();
        for (name, text) in &self.flags {
            let Some(key) = key(name) else { continue };
            let value = parsed(key, text, format!("--{}", key.flag.unwrap_or(key.name)))?;
            layer.insert(key.name, Setting { value, origin: Origin::Flag });
        }
        Ok(layer)
    }
}

/// The value that a variable's or a flag's text stands for.
fn parsed(key: &Key, text: &str, name: String) -> Result<Value, LoadError> {
    let value = match key.kind {
        Kind::Text | Kind::Secret | Kind::Url | Kind::File => Some(Value::String(text.to_owned())),
        Kind::Number => text.parse::<i64>().ok().filter(|number| *number >= 0).map(Value::Integer),
        Kind::Switch => text.parse::<bool>().ok().map(Value::Boolean),
        Kind::Word(words) => words.contains(&text).then(|| Value::String(text.to_owned())),
    };
    value.ok_or_else(|| LoadError::Text { name, wanted: key.kind.to_string() })
}
