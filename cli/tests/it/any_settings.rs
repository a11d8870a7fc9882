//! What holds for every configuration, whatever somebody wrote.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;

use pillarbox_cli::config::{KEYS, Key, Kind, LoadError, Scope, Settings, Sources};
use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

fn properties() -> ProptestConfig {
    ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() }
}

/// A value for a key, as TOML. `fine`: one that can be used.
fn value(key: &'static Key, fine: bool) -> BoxedStrategy<toml::Value> {
    let text = |text: &'static str| text.prop_map(toml::Value::from).boxed();
    match (key.kind, fine) {
        (_, false) => prop_oneof![
            any::<String>().prop_map(toml::Value::from),
            any::<i64>().prop_map(toml::Value::from),
            any::<f64>().prop_map(toml::Value::from),
            any::<bool>().prop_map(toml::Value::from),
            vec(any::<i64>(), 0..3).prop_map(toml::Value::from),
        ]
        .boxed(),
        (Kind::Number, _) => (300..1_000_i64).prop_map(toml::Value::from).boxed(),
        (Kind::Switch, _) => any::<bool>().prop_map(toml::Value::from).boxed(),
        (Kind::Word(words), _) => {
            select(words.to_vec()).prop_map(|word| toml::Value::from(word.to_owned())).boxed()
        }
        _ => match key.name {
            "database_url" => {
                text("postgres://app@[a-z]{1,8}:[1-9][0-9]{1,3}/[a-z]{1,8}(\\?sslmode=require)?")
            }
            "nats_url" => text("(nats|tls)://[a-z]{1,8}:[1-9][0-9]{1,3}(,nats://[a-z]{1,8}:4222)?"),
            // No word of SQL begins with it.
            "schema" => text("x[a-z0-9_]{0,20}"),
            "nats.inbox_prefix" | "nats.api_prefix" => {
                text("[a-zA-Z0-9_-]{1,20}(\\.[a-z0-9]{1,5})?")
            }
            "nats.jetstream_domain" => text("[a-zA-Z0-9_-]{1,20}"),
            "name" => text("[^\\p{Cc}]{1,30}"),
            "source" => text("/[^\\p{Cc}]{0,30}"),
            "http" => text("(off|127\\.0\\.0\\.1:[1-9][0-9]{3})"),
            _ => text("[a-zA-Z0-9 \"'#\\\\äß]{1,20}"),
        },
    }
}

/// Keys with values, at most one of each. Those of the login and of files make sets that are refused for other
/// reasons.
fn settings(fine: bool) -> impl Strategy<Value = BTreeMap<&'static str, toml::Value>> {
    let plain: Vec<&'static Key> = KEYS
        .iter()
        .filter(|key| !fine || !matches!(key.kind, Kind::File | Kind::Secret))
        // A prefix and a domain say the same, and exclude each other.
        .filter(|key| !fine || !["nats.user", "nats.jetstream_domain"].contains(&key.name))
        .collect();
    let most = if fine { plain.len() } else { 2 };
    let one = select(plain).prop_flat_map(move |key| (Just(key.name), value(key, fine)));
    vec(one, 0..=most).prop_map(|pairs| pairs.into_iter().collect())
}

/// The settings as a file.
fn file(settings: &BTreeMap<&'static str, toml::Value>) -> String {
    let (mut top, mut nats) = (String::new(), String::new());
    for (name, value) in settings {
        match name.split_once('.') {
            Some((_, name)) => writeln!(nats, "{name} = {value}").unwrap(),
            None => writeln!(top, "{name} = {value}").unwrap(),
        }
    }
    format!("{top}[nats]\n{nats}")
}

/// Loads this text as `pillarbox.toml`, with these variables.
fn load(text: &str, environment: &[(&str, &str)]) -> Result<Settings, LoadError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pillarbox.toml");
    std::fs::write(&path, text).unwrap();
    let environment =
        environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
    Settings::load(&Sources { file: Some(path), environment, ..Sources::default() })
}

/// All that anybody would be shown of it.
fn shown(loaded: &Result<Settings, LoadError>) -> String {
    match loaded {
        Ok(settings) => format!("{settings:?} {:?} {}", settings.outboxes, settings.print()),
        Err(error) => {
            let mut text = format!("{error:?}");
            let mut next: Option<&dyn Error> = Some(error);
            while let Some(error) = next {
                write!(text, " {error}").unwrap();
                next = error.source();
            }
            text
        }
    }
}

/// What the settings are, without where they were set.
fn essence(settings: &Settings) -> serde_json::Value {
    serde_json::json!({
        "outboxes": serde_json::to_value(&settings.outboxes).unwrap(),
        "program": serde_json::to_value(&settings.program).unwrap(),
    })
}

proptest! {
    #![proptest_config(properties())]

    #[test]
    fn a_file_of_any_text_is_read_or_refused(
        text in prop_oneof![
            any::<String>(),
            "[a-z_.]{1,8} ?= ?[\"'\\[{]{0,3}[ -~]{0,20}\n?",
            (1..200_usize).prop_map(|deep| format!("nats = {}", "[".repeat(deep))),
            (1..200_usize).prop_map(|deep| format!("{}a = 1", "nats.".repeat(deep))),
            settings(false).prop_map(|settings| file(&settings)),
        ],
        cut in any::<proptest::sample::Index>(),
    ) {
        let _ = load(&text, &[]);
        let cut = text.floor_char_boundary(cut.index(text.len() + 1));
        let _ = load(&text[..cut], &[]);
    }

    #[test]
    fn settings_that_can_be_used_are_printed_as_such_that_can_be_loaded(
        top in settings(true),
        own in vec(settings(true), 0..3),
    ) {
        let mut text = file(&top);
        for (at, own) in own.iter().enumerate() {
            let own = own.iter().filter(|(name, _)| {
                KEYS.iter().any(|key| key.name == **name && key.scope == Scope::Outbox)
            });
            writeln!(text, "[[outbox]]").unwrap();
            // No two may be the same.
            for (name, value) in own.filter(|(name, _)| **name != "name") {
                writeln!(text, "{name} = {value}").unwrap();
            }
            writeln!(text, "name = \"relay {at}\"").unwrap();
        }
        match load(&text, &[]) {
            Ok(settings) => {
                let printed = settings.print();
                let again = load(&printed, &[]);
                prop_assert!(again.is_ok(), "{:?}\n{}", again, printed);
                prop_assert_eq!(essence(&again.unwrap()), essence(&settings), "{}", printed);
            }
            // Spaces around a source would be stripped on the way.
            Err(error) => prop_assert!(error.to_string().contains("source"), "{}\n{}", error, text),
        }
    }

    #[test]
    fn an_error_names_the_key_or_what_set_it(key in select(KEYS.iter().collect::<Vec<_>>()), alone in any::<bool>(),
        (value, in_file) in any::<(String, bool)>()
    ) {
        let value = value.replace('\0', "");
        let quoted = toml::Value::from(value.clone()).to_string();
        let settings = BTreeMap::from([(key.name, toml::Value::from(value.clone()))]);
        let result = match in_file {
            true => load(&file(&settings), &[]),
            false => load(if alone { "" } else { "schema = \"shop\"" }, &[(key.env, &value)]),
        };
        if let Err(error) = result {
            let text = error.to_string();
            prop_assert!(text.contains(key.name) || text.contains(key.env), "{} = {}: {}", key.name, quoted, text);
        }
    }

    #[test]
    fn what_is_secret_in_a_file_shows_nowhere(
        places in btree_set(0..7_usize, 1..4),
        around in vec(select(vec!["", "@", ":", "/", "?", "#", "%", "&", "=", ",", "\"", "\\", "\n", " "]), 8),
        broken in option::of(select(vec!["zzz = 1\n", "schema = \"", "lease_ms = \"5\"\n", "[nats", "name = 5\n"])),
    ) {
        let secret = |place: usize| format!("{}q7Hunter2{place}{}", around[place], around[7]);
        let line = |place: usize| {
            let text = |text: String| toml::Value::from(text).to_string();
            match place {
                0 => format!("database_url = {}\n", text(format!("postgres://app:{}@db/shop", secret(0)))),
                1 => format!("database_url = {}\n", text(format!("postgres://app@db/shop?password={}", secret(1)))),
                2 => format!("nats_url = {}\n", text(format!("nats://{}@a:4222", secret(2)))),
                3 => format!("nats_url = {}\n", text(format!("nats://u:{}@a:4222,nats://b:4222", secret(3)))),
                4 => format!("nats.token = {}\n", text(secret(4))),
                5 => format!("nats.user = \"u\"\nnats.password = {}\n", text(secret(5))),
                // Not a text.
                _ => "nats.password = [\"q7Hunter26\"]\n".to_owned(),
            }
        };
        let mut text: String = places.into_iter().map(line).collect();
        text.push_str(broken.unwrap_or_default());
        let shown = shown(&load(&text, &[]));
        prop_assert!(!shown.contains("q7Hunter2"), "{}\n{}", text, shown);
    }
}
