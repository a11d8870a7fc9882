//! The flags for the configuration's keys. Each command has flags for the keys that it needs. Every command reads all
//! keys from the environment and the file.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::path::PathBuf;

use crate::config::{KEYS, Key, Kind, LoadError, ProgramConfig, Settings, Sources, Wanted};
use clap::builder::{PossibleValuesParser, ValueParser};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use pillarbox_relay::RelayConfig;

/// The flags of the keys that `W` names, and `--config`.
#[derive(Clone, Debug)]
pub(crate) struct Flags<W> {
    config: Option<PathBuf>,
    given: BTreeMap<&'static str, String>,
    which: PhantomData<W>,
}

/// Which keys have flags.
pub(crate) trait Which {
    /// What to choose from a file with several outboxes.
    const WANTED: Wanted = Wanted::OneSetOfTables;

    /// Whether the key of this name has a flag.
    fn has(name: &str) -> bool;
}

/// All keys.
#[derive(Clone, Debug)]
pub(crate) struct All;

/// Where the tables are.
#[derive(Clone, Debug)]
pub(crate) struct Tables;

/// Where the tables are, and which relay it is.
#[derive(Clone, Debug)]
pub(crate) struct OneRelay;

/// What one relay has shipped, and to which broker.
#[derive(Clone, Debug)]
pub(crate) struct Shipped;

/// What `doctor` checks: a relay's database and broker.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings;

impl Which for All {
    fn has(_: &str) -> bool {
        true
    }
}

impl Which for Tables {
    fn has(name: &str) -> bool {
        ["database_url", "schema"].contains(&name)
    }
}

impl Which for OneRelay {
    const WANTED: Wanted = Wanted::OneRelay;

    fn has(name: &str) -> bool {
        Tables::has(name) || name == "name"
    }
}

impl Which for Shipped {
    const WANTED: Wanted = Wanted::OneRelay;

    fn has(name: &str) -> bool {
        OneRelay::has(name) || ["source", "partitions"].contains(&name) || name.starts_with("nats")
    }
}

impl Which for Surroundings {
    fn has(name: &str) -> bool {
        Shipped::has(name) || name == "retention_s"
    }
}

/// Where the trail is, and what it reads.
#[derive(Clone, Debug)]
pub(crate) struct TrailKeys;

impl Which for TrailKeys {
    fn has(name: &str) -> bool {
        Tables::has(name) || name == "http" || name.starts_with("nats")
    }
}

impl<W: Which> Flags<W> {
    /// The settings of every outbox.
    pub(crate) fn settings(&self) -> Result<Settings, LoadError> {
        Settings::load(&self.sources())
    }

    /// The settings of the one outbox that the command works on. Its database must be set.
    pub(crate) fn outbox(&self) -> Result<RelayConfig, LoadError> {
        let settings = Settings::load(&Sources { wanted: W::WANTED, ..self.sources() })?;
        settings.require_database()?;
        Ok(settings.outboxes.into_iter().next().unwrap_or_default())
    }

    /// The settings, with one outbox only, the one that the command works on. Its database must be set.
    pub(crate) fn settings_of_one(&self) -> Result<Settings, LoadError> {
        let settings = Settings::load(&Sources { wanted: W::WANTED, ..self.sources() })?;
        settings.require_database()?;
        Ok(settings)
    }

    /// As [`outbox`](Self::outbox), where the database may be missing.
    pub(crate) fn outbox_without_database(&self) -> Result<RelayConfig, LoadError> {
        let settings = Settings::load(&Sources { wanted: W::WANTED, ..self.sources() })?;
        Ok(settings.outboxes.into_iter().next().unwrap_or_default())
    }

    /// Sets a key as its flag would.
    pub(crate) fn set(&mut self, key: &'static str, value: &str) {
        self.given.insert(key, value.to_owned());
    }

    fn sources(&self) -> Sources {
        Sources {
            file: self.config.clone(),
            flags: self.given.clone(),
            ..Sources::of_this_process()
        }
    }
}

fn flags<W: Which>() -> impl Iterator<Item = (&'static Key, &'static str)> {
    KEYS.iter().filter(|key| W::has(key.name)).filter_map(|key| Some((key, key.flag?)))
}

impl<W: Which> Args for Flags<W> {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(ValueParser::path_buf())
            .help_heading("Settings")
            .help(
                "The settings file [env: PILLARBOX_CONFIG] [default: pillarbox.toml, if it exists]",
            );
        let mut defaults = serde_json::to_value(RelayConfig::default()).unwrap_or_default();
        defaults["http"] = ProgramConfig::default().http.into();
        flags::<W>().fold(command.arg(config), |command, (key, flag)| {
            let mut help = format!("{} [env: {}]", key.help, key.env);
            if let Some(default) = default(&defaults, key) {
                help.push_str(&format!(" [default: {default}]"));
            }
            let arg = Arg::new(key.name).long(flag).help(help).help_heading("Settings");
            command.arg(
                match key.kind {
                    Kind::Switch => arg
                        .num_args(0..=1)
                        .require_equals(true)
                        .default_missing_value("true")
                        .value_parser(["true", "false"])
                        .hide_possible_values(true),
                    Kind::Word(words) => {
                        arg.value_name("WORD").value_parser(PossibleValuesParser::new(words))
                    }
                    Kind::Number => arg.value_name("N"),
                    Kind::Url => arg.value_name("URL"),
                    Kind::File => arg.value_name("FILE"),
                    _ => arg.value_name("TEXT"),
                }
                .action(ArgAction::Set),
            )
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn default(defaults: &serde_json::Value, key: &Key) -> Option<String> {
    let default = match key.name.split_once('.') {
        Some((table, name)) => defaults.get(table)?.get(name)?,
        None => defaults.get(key.name)?,
    };
    // The library's default database is of no use to a command.
    if key.name == "database_url" || default.is_null() {
        return None;
    }
    Some(default.as_str().map_or_else(|| default.to_string(), str::to_owned))
}

impl<W: Which> FromArgMatches for Flags<W> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = flags::<W>()
            .filter_map(|(key, _)| Some((key.name, matches.get_one::<String>(key.name)?.clone())));
        let config = matches.get_one::<PathBuf>("config").cloned();
        Ok(Self { config, given: given.collect(), which: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
