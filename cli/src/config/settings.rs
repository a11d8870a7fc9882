//! The settings from all sources, merged and checked.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use pillarbox_relay::config::without_secrets;
use pillarbox_relay::{ConfigError, Database, RelayConfig};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::database_files;
use super::file::{File, Layer, Origin, Setting};
use super::keys::{Key, key};
use super::layers::{choose, over, put};
use super::listen_address::is_listen_address;
use super::load_error::LoadError;
use super::sources::{FILE, Sources, Wanted};

/// The program's settings that are not settings of a relay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ProgramConfig {
    /// Where `/healthz`, `/readyz` and `/metrics` are served: an address and a port, or `off`. Port 0 means any free
    /// port. Default: `127.0.0.1:9464`.
    pub http: String,
}

impl Default for ProgramConfig {
    fn default() -> Self {
        Self { http: "127.0.0.1:9464".into() }
    }
}

/// The settings from all sources, merged and checked.
#[derive(Clone)]
pub struct Settings {
    /// The file, if one was read.
    pub file: Option<PathBuf>,
    /// One for each outbox. At least one.
    pub outboxes: Vec<RelayConfig>,
    /// The settings that are not about an outbox.
    pub program: ProgramConfig,
    pub(super) top: Layer,
    /// What the tables `[[outbox]]` set, in the order of `outboxes`. Empty if there are no such tables.
    pub(super) own: Vec<Layer>,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("file", &self.file)
            .field("outboxes", &self.outboxes)
            .field("program", &self.program)
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// Reads, merges and checks the settings. Connects to nothing.
    ///
    /// # Errors
    /// [`LoadError`], with the first setting that cannot be used and where it was set.
    pub fn load(sources: &Sources) -> Result<Self, LoadError> {
        let file = match sources.path() {
            Some(path) => Some(File::read(&path)?),
            None => None,
        };
        let (path, top, mut own) = match file {
            Some(file) => (Some(file.path), file.top, file.outboxes),
            None => (None, Layer::new(), Vec::new()),
        };
        let flags = sources.flags()?;
        let mut top = over(top, &sources.environment()?);
        let shown = path.clone().unwrap_or_default();
        if own.is_empty() {
            top = over(top, &flags);
        } else if sources.wanted != Wanted::All {
            own = vec![choose(sources.wanted, &shown, &top, &own, &flags)?];
        } else {
            for (name, setting) in own.iter().flatten() {
                if let (true, Origin::File { line }) = (flags.contains_key(name), setting.origin) {
                    let flag = key(name).and_then(|key| key.flag).unwrap_or(name);
                    return Err(LoadError::FlagAndOutbox { flag, key: name, file: shown, line });
                }
            }
            top = over(top, &flags);
        }
        let mut program = ProgramConfig::default();
        if let Some(http) = top.get("http").and_then(|http| http.value.as_str()) {
            program.http = http.to_owned();
        }
        let wrong_http = (!is_listen_address(&program.http)).then(|| ConfigError {
            key: "http",
            value: program.http.clone(),
            problem: "it must be an address and a port, such as 127.0.0.1:9464, [::]:9464 or localhost:9464, or off"
                .to_owned(),
        });
        let mut settings = Self { file: path, outboxes: Vec::new(), program, top, own };
        if let Some(error) = wrong_http {
            return Err(settings.value_error(error, &settings.top));
        }
        let layers = match settings.own.is_empty() {
            true => vec![settings.top.clone()],
            false => settings.own.iter().map(|own| over(settings.top.clone(), own)).collect(),
        };
        for layer in &layers {
            let outbox = settings.relay_config(layer)?;
            if sources.wanted == Wanted::All {
                settings.look_for_files(&outbox, layer)?;
            }
            settings.outboxes.push(outbox);
        }
        settings.refuse_twins()?;
        Ok(settings)
    }

    /// Refuses settings in which an outbox has no database set.
    ///
    /// # Errors
    /// [`LoadError::Missing`].
    pub fn require_database(&self) -> Result<(), LoadError> {
        let key = "database_url";
        let set = self.top.contains_key(key)
            || (!self.own.is_empty() && self.own.iter().all(|own| own.contains_key(key)));
        match set {
            true => Ok(()),
            false => Err(LoadError::Missing { key, flag: "database-url", env: "DATABASE_URL" }),
        }
    }

    /// The settings of one outbox, checked.
    fn relay_config(&self, layer: &Layer) -> Result<RelayConfig, LoadError> {
        let mut whole = Table::new();
        for (name, setting) in layer.iter().filter(|(name, _)| **name != "http") {
            let mut alone = Table::new();
            put(&mut alone, name, setting.value.clone());
            // One key at a time, so that an error belongs to this key.
            if let Err(error) = RelayConfig::deserialize(Value::Table(alone)) {
                let problem = error.message().to_owned();
                let error = ConfigError { key: name, value: self.shown(name, setting), problem };
                return Err(self.value_error(error, layer));
            }
            put(&mut whole, name, setting.value.clone());
        }
        let config = RelayConfig::deserialize(Value::Table(whole)).map_err(|error| {
            let problem = error.message().to_owned();
            let error = ConfigError { key: "pillarbox.toml", value: String::new(), problem };
            self.value_error(error, layer)
        })?;
        config.validate().map_err(|error| self.value_error(error, layer))?;
        Ok(config)
    }

    /// Refuses files that cannot be read. Commands that may not need the broker skip this check.
    fn look_for_files(&self, config: &RelayConfig, layer: &Layer) -> Result<(), LoadError> {
        let files = config.nats.files().map(|(key, path)| (key, path.clone()));
        for (key, path) in files.chain(database_files::files(&config.database_url)) {
            if let Err(error) = std::fs::File::open(&path) {
                let value = path.display().to_string();
                let error = ConfigError { key, value, problem: error.to_string() };
                return Err(self.value_error(error, layer));
            }
        }
        Ok(())
    }

    fn value_error(&self, error: ConfigError, layer: &Layer) -> LoadError {
        let origin = layer.get(error.key).map_or_else(
            || "the default".to_owned(),
            |setting| match key(error.key) {
                Some(key) => self.origin(key, setting.origin),
                None => "the file".to_owned(),
            },
        );
        LoadError::Value { error, origin }
    }

    /// Where a value was set, in words.
    pub(super) fn origin(&self, key: &Key, origin: Origin) -> String {
        match origin {
            Origin::File { line } => {
                format!(
                    "{}, line {line}",
                    self.file.as_deref().unwrap_or(Path::new(FILE)).display()
                )
            }
            Origin::Environment => format!("environment {}", key.env),
            Origin::Flag => format!("flag --{}", key.flag.unwrap_or(key.name)),
        }
    }

    /// A value in words, without secrets.
    fn shown(&self, name: &str, setting: &Setting) -> String {
        let value = super::print::masked_value(name, &setting.value);
        value.as_str().map_or_else(|| value.to_string(), str::to_owned)
    }

    /// Refuses two outboxes with the same database, schema and name: they would share a cursor, and never both lead.
    fn refuse_twins(&self) -> Result<(), LoadError> {
        let mut seen = BTreeSet::new();
        for RelayConfig { database_url, schema, name, .. } in &self.outboxes {
            let database = match Database::new(database_url, "pillarbox") {
                Ok(database) => database.place(),
                Err(_) => database_url.clone(),
            };
            if !seen.insert((database, schema, name)) {
                return Err(LoadError::SameOutbox {
                    file: self.file.clone().unwrap_or_default(),
                    name: name.clone(),
                    schema: schema.clone(),
                    database: without_secrets(database_url),
                });
            }
        }
        Ok(())
    }
}
