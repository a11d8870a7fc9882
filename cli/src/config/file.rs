//! Reads `pillarbox.toml`, and refuses unknown keys and wrong values.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use pillarbox_relay::config::nearest;
use toml::Value;
use toml::de::{DeTable, DeValue};

use super::keys::{KEYS, Key, Kind, Scope, key};

/// The values from one source, by key.
pub(super) type Layer = BTreeMap<&'static str, Setting>;

/// A value, and where it was set.
#[derive(Clone)]
pub(super) struct Setting {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

/// Where a value was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    File { line: usize },
    Environment,
    Flag,
}

/// What a file sets.
#[derive(Default)]
pub(super) struct File {
    pub(super) path: PathBuf,
    pub(super) top: Layer,
    /// The tables `[[outbox]]`, in order.
    pub(super) outboxes: Vec<Layer>,
}

/// Why a file cannot be used. Values are not quoted: they may be secrets.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// It cannot be read.
    #[error("settings file {} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not TOML.
    #[error("{}, line {line}, is not TOML: {problem}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser said.
        problem: String,
    },
    /// A key that does not exist.
    #[error("unknown key `{name}` in {}, line {line}{hint}", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key.
        name: String,
        /// The most similar key that exists.
        hint: String,
    },
    /// A value of the wrong kind, or a key in the wrong place.
    #[error("`{name}` in {}, line {line}: {problem}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key.
        name: String,
        /// What is wrong.
        problem: String,
    },
}

impl File {
    pub(super) fn read(path: &Path) -> Result<Self, FileError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
            Err(source) => Err(FileError::Read { path: path.to_owned(), source }),
        }
    }

    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, FileError> {
        let place = Place { path, text };
        let table = DeTable::parse(text).map_err(|error| FileError::Syntax {
            path: path.to_owned(),
            line: place.line(&error.span().unwrap_or(0..0)),
            // The message says only what was expected. The line itself may hold a secret.
            problem: error.message().to_owned(),
        })?;
        let mut file = Self { path: path.to_owned(), ..Self::default() };
        for (name, value) in table.get_ref() {
            let (name, at) = (name.get_ref().as_ref(), name.span());
            match (name, value.get_ref()) {
                ("nats", DeValue::Table(nats)) => place.table(nats, "nats.", &mut file.top)?,
                ("nats", _) => {
                    return Err(place.wrong(name, at, "it must be a table, [nats]".into()));
                }
                ("outbox", DeValue::Array(tables)) => {
                    for table in tables {
                        let DeValue::Table(table) = table.get_ref() else {
                            let problem = "it must be tables, [[outbox]]".to_owned();
                            return Err(place.wrong(name, at, problem));
                        };
                        let mut outbox = Layer::new();
                        place.outbox(table, &mut outbox)?;
                        file.outboxes.push(outbox);
                    }
                }
                ("outbox", _) => {
                    return Err(place.wrong(name, at, "it must be tables, [[outbox]]".into()));
                }
                _ => place.setting(name, at, value.get_ref(), &mut file.top)?,
            }
        }
        Ok(file)
    }
}

/// A file that is being read.
struct Place<'f> {
    path: &'f Path,
    text: &'f str,
}

impl Place<'_> {
    fn table(&self, table: &DeTable<'_>, within: &str, layer: &mut Layer) -> Result<(), FileError> {
        for (name, value) in table {
            let full = format!("{within}{}", name.get_ref());
            self.setting(&full, name.span(), value.get_ref(), layer)?;
        }
        Ok(())
    }

    fn outbox(&self, table: &DeTable<'_>, layer: &mut Layer) -> Result<(), FileError> {
        for (name, value) in table {
            let (name, at) = (name.get_ref().as_ref(), name.span());
            let whole = KEYS.iter().any(|key| {
                key.scope == Scope::Process
                    && (key.name == name || key.name.split('.').next() == Some(name))
            });
            if whole {
                let problem = "the whole process has only one: set it above [[outbox]]".to_owned();
                return Err(self.wrong(name, at, problem));
            }
            self.setting(name, at, value.get_ref(), layer)?;
        }
        Ok(())
    }

    fn setting(
        &self,
        name: &str,
        at: Range<usize>,
        value: &DeValue<'_>,
        layer: &mut Layer,
    ) -> Result<(), FileError> {
        let line = self.line(&at);
        // A dot within a quoted key does not name a table.
        let Some(key) = key(name).filter(|key| key.name.contains('.') == name.contains('.')) else {
            let names = KEYS.iter().map(|key| key.name).chain(["nats", "outbox"]);
            let hint = nearest(name, names)
                .map_or_else(String::new, |name| format!("; did you mean `{name}`?"));
            let (path, name) = (self.path.to_owned(), name.to_owned());
            return Err(FileError::UnknownKey { path, line, name, hint });
        };
        match self.value(key, value) {
            Some(value) => {
                layer.insert(key.name, Setting { value, origin: Origin::File { line } });
                Ok(())
            }
            None => Err(self.wrong(name, at, format!("it must be {}", key.kind))),
        }
    }

    fn value(&self, key: &Key, value: &DeValue<'_>) -> Option<Value> {
        Some(match (key.kind, value) {
            (Kind::Text | Kind::Secret | Kind::Url, DeValue::String(text)) => {
                Value::String(text.to_string())
            }
            (Kind::File, DeValue::String(text)) => {
                let folder = self.path.parent().unwrap_or(Path::new(""));
                Value::String(folder.join(text.as_ref()).to_str()?.to_owned())
            }
            (Kind::Word(words), DeValue::String(text)) if words.contains(&text.as_ref()) => {
                Value::String(text.to_string())
            }
            (Kind::Number, DeValue::Integer(number)) => {
                let number = i64::from_str_radix(number.as_str(), number.radix()).ok()?;
                Value::Integer(if number < 0 { return None } else { number })
            }
            (Kind::Switch, DeValue::Boolean(on)) => Value::Boolean(*on),
            _ => return None,
        })
    }

    fn wrong(&self, name: &str, at: Range<usize>, problem: String) -> FileError {
        let line = self.line(&at);
        FileError::Value { path: self.path.to_owned(), line, name: name.to_owned(), problem }
    }

    fn line(&self, at: &Range<usize>) -> usize {
        1 + self.text.bytes().take(at.start).filter(|byte| *byte == b'\n').count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        File::parse(Path::new("pillarbox.toml"), text).err().unwrap().to_string()
    }

    #[test]
    fn unknown_keys_are_refused_by_name_with_the_nearest_known_one() {
        for (text, said) in [
            (
                "# Shop\nschema = \"shop\"\n\nretension_s = 60\n",
                "unknown key `retension_s` in pillarbox.toml, line 4; did you mean `retention_s`?",
            ),
            ("zzz = 1", "unknown key `zzz` in pillarbox.toml, line 1"),
            (
                "[nats]\ntokenfile = \"x\"",
                "unknown key `nats.tokenfile` in pillarbox.toml, line 2; did you mean `nats.token_file`?",
            ),
            (
                "[natz]\nca = \"x\"",
                "unknown key `natz` in pillarbox.toml, line 1; did you mean `nats`?",
            ),
            (
                "[[outbox]]\nschema = \"a\"\n[[outbox]]\nshema = \"b\"",
                "unknown key `shema` in pillarbox.toml, line 4; did you mean `schema`?",
            ),
        ] {
            assert_eq!(refused(text), said);
        }
    }

    #[test]
    fn wrong_kinds_and_places_are_refused_by_key_and_line_and_without_the_value() {
        for (text, said) in [
            (
                "\nlease_ms = \"5\"",
                "`lease_ms` in pillarbox.toml, line 2: it must be a whole number",
            ),
            ("lease_ms = -5", "`lease_ms` in pillarbox.toml, line 1: it must be a whole number"),
            ("lease_ms = 99999999999999999999", "it must be a whole number"),
            ("fail_fast = 1", "it must be true or false"),
            ("order = \"strictly\"", "it must be one of \"key\", \"strict\""),
            ("nats = 5", "`nats` in pillarbox.toml, line 1: it must be a table"),
            ("outbox = 5", "it must be tables"),
            ("outbox = [5]", "it must be tables"),
            (
                "[nats]\npassword = 48151623",
                "`nats.password` in pillarbox.toml, line 2: it must be text",
            ),
            ("[[outbox]]\nnats_url = \"nats://48151623@a\"", "the whole process has only one"),
            ("[[outbox]]\nnats = { token = \"48151623\" }", "the whole process has only one"),
            ("[nats]\ntoken = \"48151623", "pillarbox.toml, line 2, is not TOML"),
            ("[nats]\ntoken = 48151623\"", "pillarbox.toml, line 2, is not TOML"),
            ("schema = \"a\"\nschema = \"48151623\"", "is not TOML: duplicate key"),
        ] {
            let error = refused(text);
            assert!(error.contains(said) && !error.contains("48151623"), "{text}: {error}");
        }
    }

    #[test]
    fn files_are_looked_for_beside_the_one_that_names_them() {
        let text = "[nats]\nca = \"ca.pem\"\ncert = \"/abs/cert.pem\"";
        let file = File::parse(Path::new("/etc/pillarbox/pillarbox.toml"), text).unwrap();
        assert_eq!(file.top["nats.ca"].value.as_str(), Some("/etc/pillarbox/ca.pem"));
        assert_eq!(file.top["nats.cert"].value.as_str(), Some("/abs/cert.pem"));
        assert_eq!(file.top["nats.ca"].origin, Origin::File { line: 2 });
    }
}
