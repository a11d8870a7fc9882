//! Flags override the environment, the environment overrides the file, and the file overrides the defaults.
//!
//! These layers make the settings for all outboxes. A table `[[outbox]]` overrides them for its own outbox. A flag for a
//! key that such a table sets would be ambiguous, and is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use pillarbox_relay::config::without_secrets;
use pillarbox_relay::{ConfigError, Database, RelayConfig};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::database_files;
use super::file::{File, FileError, Layer, Origin, Setting};
use super::keys::{KEYS, Key, Kind, Scope, key};

/// The file to read if none is named.
const FILE: &str = "pillarbox.toml";

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

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A variable or a flag.
    #[error("{name} cannot be used: it must be {wanted}")]
    Text {
        /// The variable or the flag.
        name: String,
        /// What it must be.
        wanted: String,
    },
    /// A value.
    #[error("{error} ({origin})")]
    Value {
        /// What is wrong with it.
        error: ConfigError,
        /// Where it was set.
        origin: String,
    },
    /// A key that must be set is not.
    #[error("{key} is not set: give --{flag}, set the variable {env}, or write {key} into {FILE}")]
    Missing {
        /// The key.
        key: &'static str,
        /// Its flag.
        flag: &'static str,
        /// Its variable.
        env: &'static str,
    },
    /// A flag that could be meant for one outbox or for all.
    #[error(
        "--{flag} is given, and [[outbox]] in {} sets {key} on line {line} too; leave one of them out", file.display()
    )]
    FlagAndOutbox {
        /// The flag.
        flag: &'static str,
        /// Its key.
        key: &'static str,
        /// The file.
        file: PathBuf,
        /// Where the outbox sets it.
        line: usize,
    },
    /// Two outboxes are the same.
    #[error(
        "two outboxes in {} are the same: name {name:?} in schema {schema:?} of {database}; give each relay of an outbox \
         a name of its own", file.display()
    )]
    SameOutbox {
        /// The file.
        file: PathBuf,
        /// Their name.
        name: String,
        /// Their schema.
        schema: String,
        /// Their database, without secrets.
        database: String,
    },
    /// One outbox is needed, and none or several were chosen.
    #[error(
        "{found} of the outboxes in {} fit; choose one with --name, --schema or --database-url: {}",
        file.display(), outboxes.join(", ")
    )]
    NotOne {
        /// The file.
        file: PathBuf,
        /// How many fit what was given.
        found: usize,
        /// All of them.
        outboxes: Vec<String>,
    },
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

    /// A sentence for each file with a secret, including a settings file, that every account of this machine can read or
    /// change, or that its group can change.
    pub fn exposed_files(&self) -> Vec<String> {
        let mut files: BTreeMap<PathBuf, &str> = BTreeMap::new();
        for outbox in &self.outboxes {
            let secrets = outbox.nats.secret_files().map(|(key, path)| (path.clone(), key));
            files.extend(secrets);
            files.extend(
                database_files::key_files(&outbox.database_url).map(|path| (path, "database_url")),
            );
        }
        let from_file = |setting: &Setting| matches!(setting.origin, Origin::File { .. });
        let holds_secret = |layer: &Layer| {
            layer.iter().any(|(name, setting)| {
                let kind = key(name).map(|key| key.kind);
                let login = || setting.value.as_str().is_some_and(|url| url.contains('@'));
                from_file(setting)
                    && (kind == Some(Kind::Secret) || (kind == Some(Kind::Url) && login()))
            })
        };
        if let Some(file) = self.file.clone()
            && (holds_secret(&self.top) || self.own.iter().any(holds_secret))
        {
            files.insert(file, "the settings");
        }
        let mut said: Vec<String> =
            files.iter().flat_map(|(path, key)| exposed(path, key)).collect();
        if self.outboxes.iter().any(|outbox| database_files::wants_password(&outbox.database_url)) {
            said.extend(database_files::password_files().iter().filter_map(|path| unused(path)));
        }
        said
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

impl Sources {
    fn variable(&self, name: &str) -> Option<&OsString> {
        self.environment.get(name).filter(|value| !value.is_empty())
    }

    fn path(&self) -> Option<PathBuf> {
        let named =
            self.file.clone().or_else(|| self.variable("PILLARBOX_CONFIG").map(PathBuf::from));
        named.or_else(|| {
            let here = PathBuf::from(FILE);
            // If the file exists and cannot be read, that is an error. Only a missing file counts as none.
            (!matches!(here.try_exists(), Ok(false))).then_some(here)
        })
    }

    fn environment(&self) -> Result<Layer, LoadError> {
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

    fn flags(&self) -> Result<Layer, LoadError> {
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

fn over(mut below: Layer, above: &Layer) -> Layer {
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
fn choose(
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

/// The keys that a table `[[outbox]]` may set.
pub(super) fn of_outboxes() -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(|key| key.scope == Scope::Outbox)
}

/// Whether this is `off`, or a host and a port.
fn is_listen_address(text: &str) -> bool {
    if text == "off" || text.parse::<std::net::SocketAddr>().is_ok() {
        return true;
    }
    // A host name. An IPv6 address has brackets and was parsed above.
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        is_host_name(host)
            && !digits(&host.replace('.', ""))
            && digits(port)
            && port.parse::<u16>().is_ok()
    })
}

/// Whether this can be a host's name: words of letters, digits, `-` and `_`, separated by dots. Whether a name server
/// knows it is checked later, because the server may not answer now.
fn is_host_name(host: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let word = |word: &str| {
        (1..=63).contains(&word.len())
            && word.bytes().all(plain)
            && !word.starts_with('-')
            && !word.ends_with('-')
    };
    host.len() <= 253 && host.strip_suffix('.').unwrap_or(host).split('.').all(word)
}

/// What is wrong with the permissions of a file that holds a secret. The file's group may read it: Kubernetes gives a
/// mounted secret to a pod that way (`fsGroup`), and a service gets a file that root owns that way.
fn exposed(path: &Path, key: &str) -> Vec<String> {
    use std::os::unix::fs::PermissionsExt;
    let Ok(metadata) = std::fs::metadata(path) else { return Vec::new() };
    let mode = metadata.permissions().mode();
    let path = path.display();
    let mut said = Vec::new();
    let everybody = match (mode & 0o004 != 0, mode & 0o002 != 0) {
        (false, false) => None,
        (true, false) => Some("read"),
        (false, true) => Some("change"),
        (true, true) => Some("read and change"),
    };
    said.extend(everybody.map(|what| {
        format!(
            "every account of this machine can {what} {path} ({key}), which holds a secret: run chmod o-rw {path}"
        )
    }));
    if mode & 0o020 != 0 {
        said.push(format!(
            "every account in the group of {path} ({key}) can change it, and it holds a secret: run chmod g-w {path}"
        ));
    }
    said
}

/// What is wrong with the permissions of a password file, of the kind that `psql` reads too. Such a file is not used.
fn unused(path: &Path) -> Option<String> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    let path = path.display();
    (mode & 0o077 != 0).then(|| {
        format!(
            "other accounts of this machine can read or change {path} (PGPASSFILE), so the passwords in it are not \
             used: run chmod 600 {path}"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_listened_on_is_told_from_what_cannot() {
        for fine in [
            "off",
            "127.0.0.1:9464",
            "0.0.0.0:0",
            "[::]:9464",
            "[::1]:1",
            "localhost:9464",
            "relay-1.shop:80",
        ] {
            assert!(is_listen_address(fine), "{fine}");
        }
        for wrong in [
            "",
            "on",
            "9464",
            ":9464",
            "localhost",
            "::1:9464",
            "[::1]",
            "127.0.0.1:70000",
            "1.2.3:80",
            "a b:1",
            "http://x:1",
            "a..b:1",
            ".a:1",
            ".:1",
            "-a:1",
            "a-.b:1",
            "localhost:+80",
            "localhost:",
            "größe:1",
            &format!("{}:1", "a".repeat(64)),
            &format!("{}a:1", "a.".repeat(127)),
        ] {
            assert!(!is_listen_address(wrong), "{wrong}");
        }
    }
}
