//! Settings from file, environment and flags.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use pillarbox_cli::config::{KEYS, Kind, ProgramConfig, Scope, Settings, Sources, Wanted};
use pillarbox_relay::config::Secret;
use pillarbox_relay::{NoStream, RelayConfig, ShippingOrder, SinkChoice};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn with(text: &str) -> Self {
        let folder = Self::new();
        folder.write("pillarbox.toml", text);
        folder
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join(name), text).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("pillarbox.toml")
    }

    /// Loads the file with variables and flags.
    fn load(&self, environment: &[(&str, &str)], flags: &[(&'static str, &str)]) -> Settings {
        Settings::load(&self.sources(environment, flags)).unwrap()
    }

    fn refused(&self, environment: &[(&str, &str)], flags: &[(&'static str, &str)]) -> String {
        Settings::load(&self.sources(environment, flags)).unwrap_err().to_string()
    }

    fn sources(&self, environment: &[(&str, &str)], flags: &[(&'static str, &str)]) -> Sources {
        Sources {
            file: Some(self.file()),
            environment: environment
                .iter()
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect(),
            flags: flags.iter().map(|(name, value)| (*name, (*value).into())).collect(),
            ..Sources::default()
        }
    }

    fn pillarbox(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_pillarbox"))
            .env_clear()
            .envs(environment.iter().copied())
            .current_dir(self.0.path())
            .args(arguments)
            .output()
            .unwrap()
    }
}

fn said(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// All settings, by key.
fn all(relay: &RelayConfig, program: &ProgramConfig) -> serde_json::Value {
    let mut json = serde_json::to_value(relay).unwrap();
    let program = serde_json::to_value(program).unwrap();
    json.as_object_mut().unwrap().extend(program.as_object().unwrap().clone());
    json
}

#[test]
fn flags_stand_over_the_environment_over_the_file_over_defaults() {
    let folder = Folder::with("lease_ms = 1000\nretention_s = 1000\npage_rows = 1000\n");
    let environment = [("PILLARBOX_LEASE_MS", "2000"), ("PILLARBOX_RETENTION_S", "2000")];
    let settings = folder.load(&environment, &[("lease_ms", "3000")]);
    let [config] = &settings.outboxes[..] else { panic!("{settings:?}") };
    assert_eq!(config.lease, Duration::from_secs(3));
    assert_eq!(config.retention, Duration::from_secs(2000));
    assert_eq!(config.page_rows, 1000);
    assert_eq!(config.idle_interval, RelayConfig::default().idle_interval);
    let file = folder.file();
    let printed = settings.print();
    for line in [
        "lease_ms = 3000  # flag --lease-ms\n".to_owned(),
        "retention_s = 2000  # environment PILLARBOX_RETENTION_S\n".to_owned(),
        format!("page_rows = 1000  # {}, line 3\n", file.display()),
        "idle_interval_ms = 50  # default\n".to_owned(),
        "# ca is not set\n".to_owned(),
    ] {
        assert!(printed.contains(&line), "{line} in {printed}");
    }
}

#[test]
fn an_empty_variable_is_one_that_is_not_set() {
    let folder = Folder::with("[nats]\ntoken = \"a\"\n");
    let settings = folder.load(&[("NATS_TOKEN", ""), ("NATS_CREDS", "")], &[]);
    assert_eq!(settings.outboxes[0].nats.token.as_ref().map(Secret::reveal), Some("a"));
}

#[test]
fn each_outbox_has_its_own_on_top_of_what_is_common() {
    let folder = Folder::with(
        "database_url = \"postgres://app@db/shop\"\nretention_s = 60\n\
         [nats]\nuser = \"relay\"\npassword = \"hunter2\"\n\
         [[outbox]]\nschema = \"a\"\norder = \"strict\"\n\
         [[outbox]]\nschema = \"b\"\ndatabase_url = \"postgres://app@other/shop\"\nretention_s = 70\n\
         no_stream = \"dead-letter\"\nsink = \"keyed-window\"\n",
    );
    let settings = folder.load(&[("PILLARBOX_RETENTION_S", "80")], &[("lease_ms", "4000")]);
    let [a, b] = &settings.outboxes[..] else { panic!("{settings:?}") };
    assert_eq!((a.schema.as_str(), b.schema.as_str()), ("a", "b"));
    assert_eq!(a.database_url, "postgres://app@db/shop");
    assert_eq!(b.database_url, "postgres://app@other/shop");
    assert_eq!((a.order, b.order), (ShippingOrder::Strict, ShippingOrder::Key));
    assert_eq!((a.no_stream, b.no_stream), (NoStream::Hold, NoStream::DeadLetter));
    assert_eq!((a.sink, b.sink), (SinkChoice::Auto, SinkChoice::KeyedWindow));
    assert_eq!((a.lease.as_millis(), b.lease.as_millis()), (4000, 4000));
    // What an outbox says for itself stands over what the environment says for all.
    assert_eq!((a.retention.as_secs(), b.retention.as_secs()), (80, 70));
    assert_eq!(a.nats.user.as_deref(), Some("relay"));
    assert_eq!(a.nats, b.nats);
    settings.require_database().unwrap();
    let error = folder.refused(&[], &[("retention_s", "5")]);
    assert!(error.contains("--retention-s") && error.contains("line 12"), "{error}");
}

#[test]
fn two_outboxes_that_are_one_are_refused() {
    let twins = "[[outbox]]\nschema = \"a\"\n[[outbox]]\nschema = \"a\"\n";
    let error = Folder::with(twins).refused(&[], &[]);
    assert!(error.contains("are the same: name \"default\" in schema \"a\""), "{error}");
    let twins = "[[outbox]]\ndatabase_url = \"postgres://a:hunter2@db/shop\"\n\
                 [[outbox]]\ndatabase_url = \"postgres://b@db:5432/shop?sslmode=require\"\n";
    let error = Folder::with(twins).refused(&[], &[]);
    assert!(error.contains("of postgres://db:5432/shop") && !error.contains("hunter2"), "{error}");
    let named = format!("{}name = \"other\"\n", "[[outbox]]\nschema = \"a\"\n".repeat(2));
    assert_eq!(Folder::with(&named).load(&[], &[]).outboxes.len(), 2);
}

#[test]
fn a_command_about_one_outbox_chooses_among_several() {
    let folder = Folder::with(
        "database_url = \"postgres://app@db/shop\"\n[[outbox]]\nschema = \"a\"\n\
         [[outbox]]\nschema = \"b\"\n[[outbox]]\nschema = \"b\"\nname = \"second\"\n",
    );
    let choose = |wanted, flags: &[(&'static str, &str)]| {
        Settings::load(&Sources { wanted, ..folder.sources(&[], flags) })
            .map(|settings| {
                (settings.outboxes[0].schema.clone(), settings.outboxes[0].name.clone())
            })
            .map_err(|error| error.to_string())
    };
    let pair = |schema: &str, name: &str| Ok((schema.to_owned(), name.to_owned()));
    assert_eq!(choose(Wanted::OneRelay, &[("schema", "a")]), pair("a", "default"));
    assert_eq!(choose(Wanted::OneRelay, &[("name", "second")]), pair("b", "second"));
    assert_eq!(choose(Wanted::OneSetOfTables, &[("schema", "b")]), pair("b", "default"));
    let error = choose(Wanted::OneRelay, &[("schema", "b")]).unwrap_err();
    assert!(error.contains("2 of the outboxes") && error.contains("name second"), "{error}");
    let error = choose(Wanted::OneRelay, &[("schema", "c")]).unwrap_err();
    assert!(error.contains("0 of the outboxes"), "{error}");
    // Under another user than the relay's.
    let sources =
        folder.sources(&[], &[("schema", "a"), ("database_url", "postgres://op@db/shop")]);
    let settings = Settings::load(&Sources { wanted: Wanted::OneRelay, ..sources }).unwrap();
    assert_eq!(settings.outboxes[0].database_url, "postgres://op@db/shop");
}

#[test]
fn what_cannot_be_used_is_named_with_the_place_that_set_it() {
    let folder = Folder::with("\nlease_ms = 1\n");
    let error = folder.refused(&[], &[]);
    assert!(
        error.contains("lease_ms = \"1\" cannot be used: it must be between 300 and 600000"),
        "{error}"
    );
    assert!(error.contains(&format!("({}, line 2)", folder.file().display())), "{error}");
    let error = folder.refused(&[("PILLARBOX_LEASE_MS", "soon")], &[]);
    assert!(error.contains("PILLARBOX_LEASE_MS cannot be used: it must be a whole"), "{error}");
    let error = folder.refused(&[("PILLARBOX_PAGE_ROWS", "5000000000")], &[]);
    assert!(error.contains("page_rows") && error.contains("environment PILLARBOX"), "{error}");
    let error = folder.refused(&[], &[("lease_ms", "2")]);
    assert!(error.contains("(flag --lease-ms)"), "{error}");
    let error = Folder::with("[nats]\ncreds = \"gone.creds\"\n").refused(&[], &[]);
    assert!(error.contains("nats.creds") && error.contains("/gone.creds"), "{error}");
    let url = "database_url = \"postgres://h/x?sslmode=verify-full&sslrootcert=/no/ca.pem\"\n";
    let error = Folder::with(url).refused(&[], &[]);
    assert!(error.contains("database_url = \"/no/ca.pem\" cannot be used"), "{error}");
    let folder = Folder::with("[nats]\ncreds = \"some.creds\"\n");
    folder.write("some.creds", "");
    let error = folder.refused(&[("NATS_TOKEN", "hunter2")], &[]);
    assert!(error.contains("nats.creds is another way to log in"), "{error}");
    assert!(error.contains("environment NATS_TOKEN") && !error.contains("hunter2"), "{error}");
}

#[test]
fn the_program_refuses_before_it_connects_and_shows_what_it_would_use() {
    let folder = Folder::with("retension_s = 60\n");
    let database = [("DATABASE_URL", "postgres://app:hunter2@127.0.0.1:1/shop")];
    for command in [&["relay"][..], &["config"], &["status"], &["migrate"]] {
        let refused = folder.pillarbox(command, &database);
        assert_eq!(refused.status.code(), Some(1));
        assert_eq!(
            said(&refused.stderr),
            "pillarbox: unknown key `retension_s` in pillarbox.toml, line 1; did you mean `retention_s`?\n"
        );
    }
    folder.write("pillarbox.toml", "retention_s = 60\n");
    folder.write("other.toml", "retention_s = 70\n");
    let shown = |arguments: &[&str], environment: &[(&str, &str)]| {
        let output = folder.pillarbox(arguments, environment);
        assert!(output.status.success(), "{}", said(&output.stderr));
        said(&output.stdout)
    };
    let printed = shown(&["config", "--print"], &database);
    assert!(printed.contains("retention_s = 60  # pillarbox.toml, line 1"), "{printed}");
    assert!(
        printed.contains("\"postgres://app:***@127.0.0.1:1/shop\"  # environment DATABASE_URL")
    );
    let printed = shown(&["config", "--print"], &[("PILLARBOX_CONFIG", "other.toml")]);
    assert!(printed.contains("retention_s = 70  # other.toml, line 1"), "{printed}");
    let named = ["config", "--print", "--config", "pillarbox.toml"];
    let printed = shown(&named, &[("PILLARBOX_CONFIG", "other.toml")]);
    assert!(printed.contains("retention_s = 60"), "{printed}");
    assert!(shown(&["config"], &database).contains("fine: 1 outbox"));
    assert!(shown(&["config"], &[]).contains("but database_url is not set"));
    let gone = folder.pillarbox(&["config", "--config", "gone.toml"], &[]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(said(&gone.stderr).contains("gone.toml cannot be read"), "{}", said(&gone.stderr));
    let unset = folder.pillarbox(&["relay"], &[]);
    assert_eq!(unset.status.code(), Some(2));
    let unset = said(&unset.stderr);
    let wanted = "give --database-url, set the variable DATABASE_URL, or write database_url into";
    assert!(unset.contains(wanted), "{unset}");
}

#[test]
fn every_key_can_be_set_in_the_file_by_a_variable_and_by_its_flag() {
    for key in KEYS {
        let folder = Folder::with("");
        folder.write("there", "x");
        let text = match key.kind {
            Kind::Number => "1000".to_owned(),
            Kind::Switch => "true".to_owned(),
            Kind::Word(words) => words[words.len() - 1].to_owned(),
            Kind::Url if key.name == "nats_url" => "tls://broker:4222".to_owned(),
            Kind::Url => "postgres://broker/shop".to_owned(),
            Kind::File => folder.0.path().join("there").display().to_string(),
            _ if key.name == "http" => "localhost:9465".to_owned(),
            _ => "word".to_owned(),
        };
        // What a key needs beside it.
        let beside: &[(&str, &str)] = match key.name {
            "nats.cert" => &[("NATS_KEY", "there")],
            "nats.key" => &[("NATS_CERT", "there")],
            "nats.user" => &[("NATS_PASSWORD", "x")],
            "nats.password" | "nats.password_file" => &[("NATS_USER", "x")],
            _ => &[],
        };
        let beside: Vec<(&str, String)> = beside
            .iter()
            .map(|(name, value)| match *value {
                "there" => (*name, folder.0.path().join("there").display().to_string()),
                value => (*name, value.to_owned()),
            })
            .collect();
        let beside: Vec<_> = beside.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let set = |settings: &Settings| {
            let json = all(&settings.outboxes[0], &settings.program);
            let value = match key.name.split_once('.') {
                Some((table, name)) => json[table][name].clone(),
                None => json[key.name].clone(),
            };
            value.as_str().map_or_else(|| value.to_string(), str::to_owned)
        };
        let wanted = if key.kind == Kind::Secret { "***" } else { &text };
        let plain = Folder::with("").load(&[], &[]);
        assert_ne!(set(&plain), wanted, "{}: the test needs another value", key.name);
        let by_variable = [&beside[..], &[(key.env, text.as_str())]].concat();
        assert_eq!(set(&folder.load(&by_variable, &[])), wanted, "{}", key.env);
        if key.flag.is_some() {
            let by_flag = folder.load(&beside, &[(key.name, &text)]);
            assert_eq!(set(&by_flag), wanted, "{:?}", key.flag);
        }
        let quoted = match key.kind {
            Kind::Number | Kind::Switch => text.clone(),
            _ => format!("{text:?}"),
        };
        let in_file = match key.name.split_once('.') {
            Some((table, name)) => format!("[{table}]\n{name} = {quoted}\n"),
            None => format!("{} = {quoted}\n", key.name),
        };
        folder.write("pillarbox.toml", &in_file);
        assert_eq!(set(&folder.load(&beside, &[])), wanted, "{in_file}");
    }
}

#[test]
fn every_setting_of_a_relay_has_a_key() {
    let json = all(&RelayConfig::default(), &ProgramConfig::default());
    let mut names: Vec<String> = Vec::new();
    for (name, value) in json.as_object().unwrap() {
        match value.as_object() {
            Some(table) => names.extend(table.keys().map(|key| format!("{name}.{key}"))),
            None => names.push(name.clone()),
        }
    }
    let mut keys: Vec<_> = KEYS.iter().map(|key| key.name.to_owned()).collect();
    names.sort();
    keys.sort();
    assert_eq!(names, keys);
}

/// Random secrets in every place that takes one: none of them, nor a piece of one, is ever shown.
#[test]
fn no_secret_shows_in_debug_print_or_errors() {
    let seed = std::env::var("PILLARBOX_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(rand::random);
    println!("PILLARBOX_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut loaded = 0;
    for _ in 0..2_000 {
        let folder = Sources::default();
        let secrets: Vec<String> = (0..5).map(|_| secret(&mut random)).collect();
        let [database, parameter, nats, token, password] = &secrets[..] else { panic!() };
        let mut environment = BTreeMap::from([(
            "DATABASE_URL".to_owned(),
            format!("postgres://app:{database}@db:5432/shop?sslmode=require&password={parameter}"),
        )]);
        let url = match random.random_range(0..3) {
            0 => format!("nats://user:{nats}@a:4222,nats://b:4222"),
            1 => format!("nats://{nats}@a:4222"),
            _ => "nats://a:4222".to_owned(),
        };
        environment.insert("NATS_URL".to_owned(), url);
        match random.random_range(0..4) {
            0 => drop(environment.insert("NATS_TOKEN".to_owned(), token.clone())),
            1 => drop(environment.insert("NATS_PASSWORD".to_owned(), password.clone())),
            2 => {
                environment.insert("NATS_USER".to_owned(), "relay".to_owned());
                environment.insert("NATS_PASSWORD".to_owned(), password.clone());
            }
            _ => {}
        }
        let environment = environment.into_iter().map(|(name, value)| (name, value.into()));
        let sources = Sources { environment: environment.collect(), ..folder };
        let shown = match Settings::load(&sources) {
            Ok(settings) => {
                loaded += 1;
                let relay = pillarbox_relay::Relay::new(settings.outboxes[0].clone());
                format!("{settings:?} {:?} {} {relay:?}", settings.outboxes[0], settings.print())
            }
            Err(error) => {
                let text = pillarbox_store::full_text(&error);
                format!("{error:?} {text}")
            }
        };
        for secret in &secrets {
            for piece in secret.split(|c: char| !c.is_ascii_alphanumeric()) {
                assert!(piece.len() < 6 || !shown.contains(piece), "{secret} shows in {shown}");
            }
        }
    }
    assert!(loaded > 200, "only {loaded} loaded: the test shows little");
}

/// Letters and digits, and often characters that mean something in a URL.
fn secret(random: &mut StdRng) -> String {
    let mut text = String::new();
    for part in 0..random.random_range(1..4) {
        if part > 0 {
            text.push(*b"@:/?#%&=, ".get(random.random_range(0..10)).unwrap() as char);
        }
        // A letter first: a number might be a port.
        text.push('q');
        text.extend((0..7).map(|_| random.sample(rand::distr::Alphanumeric) as char));
    }
    text
}

/// The sample in the documentation, and every key in its tables.
#[test]
fn the_documentation_names_every_key_and_its_sample_loads() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = std::fs::read_to_string(root.join("docs/configuration.md")).unwrap();
    let sample = text.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let folder = Folder::with(sample);
    folder.write("ca.pem", "");
    folder.write("relay.creds", "");
    let settings = folder.load(&[], &[]);
    assert_eq!(settings.outboxes.len(), 2);
    settings.require_database().unwrap();
    for key in KEYS.iter() {
        let commented = |name: &str| {
            sample
                .lines()
                .any(|line| line.trim_start_matches("# ").starts_with(&format!("{name} = ")))
        };
        let name = key.name.rsplit('.').next().unwrap();
        assert!(commented(name), "{name} is not in the sample");
        let cell = |text: &str| format!("`{text}`");
        let row = text.lines().find(|line| line.starts_with(&format!("| `{}` |", key.name)));
        let row = row.unwrap_or_else(|| panic!("{} has no row", key.name));
        assert!(row.contains(&cell(key.env)), "{row}");
        match key.flag {
            Some(flag) => assert!(row.contains(&cell(&format!("--{flag}"))), "{row}"),
            None => assert!(!row.contains("--"), "{row}"),
        }
        let json = all(&RelayConfig::default(), &ProgramConfig::default());
        let default = match key.name.split_once('.') {
            Some((table, name)) => json[table][name].clone(),
            None => json[key.name].clone(),
        };
        if !default.is_null() && key.name != "database_url" {
            let default = default.as_str().map_or_else(|| default.to_string(), str::to_owned);
            assert!(row.contains(&cell(&default)), "{row}: default {default}");
        }
        let own = key.scope == Scope::Outbox;
        assert_eq!(row.contains("| yes |"), own, "{row}");
    }
}

#[test]
fn values_that_could_not_be_used_later_are_refused_with_their_key() {
    for (key, value) in [
        ("schema", "order"),
        ("schema", "pg_shop"),
        ("http", "9464"),
        ("http", ":9464"),
        ("http", "127.0.0.1:99999"),
        ("http", "::1:9464"),
        ("database_url", "postgres://u@::1:5432/x"),
        ("database_url", "postgres://u@a:1,b:2/x?port=1,2,3"),
        ("nats_url", "nats://a:0"),
        ("nats_url", "nats://::1:4222"),
        ("nats.inbox_prefix", "a.>"),
    ] {
        let table = match key.split_once('.') {
            Some((table, name)) => format!("[{table}]\n{name} = \"{value}\"\n"),
            None => format!("{key} = \"{value}\"\n"),
        };
        let error = Folder::with(&table).refused(&[], &[]);
        assert!(
            error.contains(&format!("{key} = ")) && error.contains("cannot be used"),
            "{error}"
        );
    }
    for (key, value) in [
        ("database_url", "postgres://u:p@[::1]:5432/x"),
        ("database_url", "postgres://u:p@a,b:5433/x?target_session_attrs=primary"),
        ("nats_url", "nats://[::1]:4222,tls://b"),
        ("http", "[::1]:0"),
    ] {
        Folder::with(&format!("{key} = \"{value}\"\n")).load(&[], &[]);
    }
}

#[test]
fn a_secret_that_others_can_read_or_change_is_warned_of() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::with(
        "database_url = \"postgres://u:hunter2@h/x\"\n[nats]\ntoken_file = \"token\"\n",
    );
    folder.write("token", "t");
    let allow = |name: &str, mode| {
        let path = folder.0.path().join(name);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let everybody = |what: &str| format!("every account of this machine can {what} /");
    let group = "every account in the group of /".to_owned();
    for (settings, token, warned) in [
        (0o600, 0o600, vec![]),
        // As Kubernetes mounts a secret for the pod's group.
        (0o640, 0o440, vec![]),
        (0o644, 0o600, vec![everybody("read")]),
        (0o600, 0o606, vec![everybody("read and change")]),
        (0o602, 0o604, vec![everybody("change"), everybody("read")]),
        (0o620, 0o600, vec![group.clone()]),
        (0o600, 0o664, vec![everybody("read"), group.clone()]),
        (0o660, 0o620, vec![group.clone(), group]),
    ] {
        allow("pillarbox.toml", settings);
        allow("token", token);
        let said = folder.load(&[], &[]).exposed_files();
        assert_eq!(said.len(), warned.len(), "{said:?}");
        for (said, start) in said.iter().zip(warned) {
            let remedy = if start.contains("group") { "chmod g-w /" } else { "chmod o-rw /" };
            assert!(said.starts_with(&start) && said.contains(remedy), "{said}");
            assert!(!said.contains("hunter2"), "{said}");
        }
    }
    // A file without a secret may be read by everybody.
    let folder = Folder::with("database_url = \"postgres://h/x\"\n");
    assert_eq!(folder.load(&[], &[]).exposed_files(), Vec::<String>::new());
}
