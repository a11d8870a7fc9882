//! TLS and every way to log in, against a real nats-server.

use std::path::PathBuf;
use std::time::Duration;

use crate::support::accounts::Operator;
use crate::support::authority::{Authority, Signed, file};
use crate::support::{DEADLINE, Process};
use async_nats::jetstream;
use nkeys::KeyPair;
use pillarbox_relay::broker::Connection;
use pillarbox_relay::config::Secret;
use pillarbox_relay::{BrokerError, NatsConfig};
use pillarbox_store::full_text;
use pillarbox_testkit::{Nats, Scope, eventually, servers};

/// Tries to connect, and says what went wrong.
async fn refused(url: &str, config: &NatsConfig) -> (BrokerError, String) {
    let error = Connection::open(url, config).await.err().unwrap();
    let text = full_text(&error);
    assert!(!text.contains("hunter2") && !format!("{error:?}").contains("hunter2"), "{error:?}");
    (error, text)
}

/// Connects, and asks the JetStream API something.
async fn let_in(url: &str, config: &NatsConfig) {
    let broker = Connection::open(url, config).await.unwrap_or_else(|error| {
        panic!("{}", full_text(&error));
    });
    assert_eq!(broker.stream_of("nobody.takes.this").await.unwrap(), None);
}

/// A client of the test's own, with the same files and passwords.
async fn client(url: &str, config: &NatsConfig) -> jetstream::Context {
    let mut options = match (&config.creds, &config.user, &config.password) {
        (Some(creds), ..) => {
            async_nats::ConnectOptions::with_credentials_file(creds.clone()).await.unwrap()
        }
        (None, Some(user), Some(password)) => async_nats::ConnectOptions::with_user_and_password(
            user.clone(),
            password.reveal().to_owned(),
        ),
        _ => async_nats::ConnectOptions::new(),
    };
    if let Some(ca) = &config.ca {
        options = options.add_root_certificates(ca.clone());
    }
    if let (Some(cert), Some(key)) = (&config.cert, &config.key) {
        options = options.add_client_certificate(cert.clone(), key.clone());
    }
    if config.tls_first {
        options = options.tls_first();
    }
    jetstream::new(options.connect(url).await.unwrap())
}

/// Certificates in a folder, and the server's lines about them.
struct Certificates {
    folder: tempfile::TempDir,
    authority: Authority,
}

impl Certificates {
    fn new() -> Self {
        let certificates = Self {
            folder: tempfile::tempdir().unwrap(),
            authority: Authority::new("Pillarbox test"),
        };
        certificates.file("ca.pem", &certificates.authority.certificate);
        certificates.pair("server", &certificates.authority.server(&["127.0.0.1"]));
        certificates.pair("client", &certificates.authority.client("relay"));
        certificates
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        file(self.folder.path(), name, text)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn pair(&self, name: &str, signed: &Signed) {
        self.file(&format!("{name}.pem"), &signed.certificate);
        self.file(&format!("{name}-key.pem"), &signed.key);
    }

    fn server(&self, more: &str) -> String {
        format!(
            "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, {more} }}",
            self.path("server.pem"),
            self.path("server-key.pem"),
            self.path("ca.pem")
        )
    }

    fn client(&self) -> NatsConfig {
        NatsConfig {
            ca: Some(self.path("ca.pem")),
            cert: Some(self.path("client.pem")),
            key: Some(self.path("client-key.pem")),
            ..NatsConfig::default()
        }
    }
}

async fn start(config: &str) -> Nats {
    Nats::options().config(config).closed().start().await.unwrap()
}

/// An outbox with its tables, whose relay is to ship to a broker of its own.
async fn outbox() -> Scope {
    let scope = servers().await.unwrap().scope().await.unwrap();
    pillarbox_outbox::migrate(scope.pool()).await.unwrap();
    scope
}

async fn insert(scope: &Scope, events: i64) {
    let sql = "insert into pillarbox.outbox (event_type, topic, payload) \
               select 'test', 'tls.test', ''::bytea from generate_series(1, $1)";
    sqlx::query(sql).bind(events).execute(scope.pool()).await.unwrap();
}

async fn create_stream(broker: &jetstream::Context) {
    let config = jetstream::stream::Config {
        name: "TLS".into(),
        subjects: vec!["tls.>".into()],
        allow_batch_publish: true,
        ..Default::default()
    };
    broker.create_stream(config).await.unwrap();
}

async fn until_stored(broker: &jetstream::Context, events: u64) {
    eventually("the events in the stream", DEADLINE, async || {
        let stored = broker.get_stream("TLS").await?.cached_info().state.messages;
        Ok::<_, jetstream::context::GetStreamError>((stored == events).then_some(()))
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_relay_ships_over_tls_with_a_client_certificate_and_a_password() {
    let certificates = Certificates::new();
    let users = "authorization { users: [ { user: relay, password: hunter2 } ] }";
    let nats = start(&format!("{}\n{users}", certificates.server("verify: true"))).await;
    let scope = outbox().await;
    certificates.file("password", "hunter2\n");
    let right = NatsConfig {
        user: Some("relay".into()),
        password: Some(Secret::new("hunter2")),
        ..certificates.client()
    };
    let_in(&nats.url(), &right).await;
    let broker = client(&nats.url(), &right).await;
    create_stream(&broker).await;
    insert(&scope, 100).await;
    let settings = certificates.file(
        "pillarbox.toml",
        &format!(
            "database_url = \"{}\"\nnats_url = \"{}\"\n[nats]\nca = \"ca.pem\"\ncert = \"client.pem\"\n\
             key = \"client-key.pem\"\nuser = \"relay\"\npassword_file = \"password\"\n",
            scope.database_url(),
            nats.url()
        ),
    );
    let relay = Process::run(&["relay", "--config", settings.to_str().unwrap()], &[]);
    until_stored(&broker, 100).await;
    assert_eq!(relay.said("hunter2"), 0);

    let url = nats.url();
    let without = NatsConfig { cert: None, key: None, ..right.clone() };
    let (error, said) = refused(&url, &without).await;
    assert!(matches!(error, BrokerError::Tls { .. }), "{said}");
    assert!(said.contains("the server requires a client certificate: set nats.cert"), "{said}");
    let other = Authority::new("another");
    certificates.pair("stranger", &other.client("relay"));
    let stranger = NatsConfig {
        cert: Some(certificates.path("stranger.pem")),
        key: Some(certificates.path("stranger-key.pem")),
        ..right.clone()
    };
    let (_, said) = refused(&url, &stranger).await;
    assert!(said.contains("the server does not accept nats.cert"), "{said}");
    let ca = Some(certificates.file("other.pem", &other.certificate));
    let (error, said) = refused(&url, &NatsConfig { ca, ..right.clone() }).await;
    assert!(matches!(error, BrokerError::Tls { .. }), "{said}");
    assert!(said.contains("nats.ca must hold the certificate of the authority"), "{said}");
    let by_name = url.replace("127.0.0.1", "localhost");
    let (_, said) = refused(&by_name, &right).await;
    assert!(said.contains("is for other names") && said.contains("localhost"), "{said}");
    let password = Some(Secret::new("hunter22"));
    let (error, said) = refused(&url, &NatsConfig { password, ..right.clone() }).await;
    assert!(matches!(error, BrokerError::Refused { .. }), "{said}");
    assert!(said.contains("refused the user relay with nats.password"), "{said}");
    let (_, said) =
        refused(&url, &NatsConfig { user: None, password: None, ..right.clone() }).await;
    assert!(said.contains("refused a client without a login; set nats.creds"), "{said}");
    let ca = Some(certificates.file("empty.pem", ""));
    let (_, said) = refused(&url, &NatsConfig { ca, ..right }).await;
    assert!(said.contains("nats.ca") && said.contains("it holds no certificate"), "{said}");
}

#[tokio::test]
async fn a_server_that_begins_with_tls_needs_a_client_that_does() {
    let certificates = Certificates::new();
    let nats = start(&certificates.server("handshake_first: true")).await;
    let ca = Some(certificates.path("ca.pem"));
    let right = NatsConfig { ca, tls_first: true, ..NatsConfig::default() };
    let wrong = NatsConfig { tls_first: false, ..right.clone() };
    let url = nats.url();
    let (_, (_, said)) = tokio::join!(let_in(&url, &right), refused(&url, &wrong));
    assert!(said.contains("set nats.tls_first"), "{said}");
    let plain = Nats::start().await.unwrap();
    for right in [right, NatsConfig { require_tls: true, ..NatsConfig::default() }] {
        let (error, said) = refused(&plain.url(), &right).await;
        assert!(matches!(error, BrokerError::Tls { .. }), "{said}");
        assert!(said.contains("the server does not speak TLS"), "{said}");
    }
}

#[tokio::test]
async fn a_token_lets_in_from_a_variable_a_file_and_the_url() {
    let nats = start("authorization { token: \"hunter2/@\" }").await;
    let url = nats.url();
    let folder = tempfile::tempdir().unwrap();
    let token_file = Some(file(folder.path(), "token", "hunter2/@\n"));
    let token = Some(Secret::new("hunter2/@"));
    let_in(&url, &NatsConfig { token, ..NatsConfig::default() }).await;
    let_in(&url, &NatsConfig { token_file, ..NatsConfig::default() }).await;
    let in_url = url.replace("//", "//hunter2%2F%40@");
    let_in(&in_url, &NatsConfig::default()).await;
    let token = Some(Secret::new("hunter2"));
    let (_, said) = refused(&url, &NatsConfig { token, ..NatsConfig::default() }).await;
    assert!(said.contains("refused the token of nats.token; mend the token"), "{said}");
    let (_, said) = refused(&in_url.replace("%40", ""), &NatsConfig::default()).await;
    assert!(said.contains("refused the login in nats_url"), "{said}");
    let token_file = Some(file(folder.path(), "empty", "\n"));
    let (_, said) = refused(&url, &NatsConfig { token_file, ..NatsConfig::default() }).await;
    assert!(said.contains("nats.token_file") && said.contains("it is empty"), "{said}");
}

#[tokio::test]
async fn an_nkey_lets_in_and_a_stranger_is_told_its_public_key() {
    let (known, stranger) = (KeyPair::new_user(), KeyPair::new_user());
    let users = format!("authorization {{ users: [ {{ nkey: {} }} ] }}", known.public_key());
    let nats = start(&users).await;
    let folder = tempfile::tempdir().unwrap();
    let nkey = |name: &str, text: &str| NatsConfig {
        nkey: Some(file(folder.path(), name, text)),
        ..NatsConfig::default()
    };
    let seed = format!("# the relay's\n{}\n", known.seed().unwrap());
    let_in(&nats.url(), &nkey("known", &seed)).await;
    let seed = stranger.seed().unwrap();
    let (_, said) = refused(&nats.url(), &nkey("stranger", &seed)).await;
    assert!(said.contains(&format!("refused the nkey {}", stranger.public_key())), "{said}");
    assert!(!said.contains(&seed), "{said}");
    let (_, said) = refused(&nats.url(), &nkey("none", "hunter2")).await;
    assert!(said.contains("it holds no seed of a user's nkey"), "{said}");
}

#[tokio::test]
async fn a_credentials_file_lets_in_in_operator_mode() {
    let operator = Operator::new();
    let nats = start(&operator.config).await;
    let folder = tempfile::tempdir().unwrap();
    let creds = |name: &str, text: &str| NatsConfig {
        creds: Some(file(folder.path(), name, text)),
        ..NatsConfig::default()
    };
    let right = creds("relay.creds", &operator.credentials());
    let_in(&nats.url(), &right).await;
    let broker = client(&nats.url(), &right).await;
    create_stream(&broker).await;
    let scope = outbox().await;
    insert(&scope, 10).await;
    let path = folder.path().join("relay.creds").display().to_string();
    let url = nats.url();
    let environment =
        [("DATABASE_URL", scope.database_url()), ("NATS_URL", &url), ("NATS_CREDS", &path)];
    let _relay = Process::run(&["relay"], &environment);
    until_stored(&broker, 10).await;
    let stranger = Operator::new().credentials();
    let (_, said) = refused(&nats.url(), &creds("stranger.creds", &stranger)).await;
    assert!(
        said.contains("refused the credentials in") && said.contains("stranger.creds"),
        "{said}"
    );
    let (_, said) = refused(&nats.url(), &creds("none.creds", "hunter2")).await;
    assert!(said.contains("it holds no user's JWT"), "{said}");
}

#[tokio::test]
async fn a_refused_login_is_waited_out_and_said_once() {
    let users = |password: &str| {
        format!("authorization {{ users: [ {{ user: relay, password: {password} }} ] }}")
    };
    let nats = start(&users("hunter2")).await;
    let scope = outbox().await;
    let folder = tempfile::tempdir().unwrap();
    let password_file = file(folder.path(), "password", "wrong").display().to_string();
    let url = nats.url();
    let environment = [
        ("DATABASE_URL", scope.database_url()),
        ("NATS_URL", &url),
        ("NATS_USER", "relay"),
        ("NATS_PASSWORD_FILE", &password_file),
    ];
    let mut failing = Process::run(&["relay", "--fail-fast"], &environment);
    let mut relay = Process::run(&["relay"], &environment);
    let refusal = "refused the user relay with nats.password_file; mend nats.user";
    relay.until_said(refusal).await;
    assert_eq!(failing.ended().await, 1);
    failing.until_said(refusal).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(relay.child.try_wait().unwrap().is_none(), "it goes on trying");
    let lines = relay.lines.lock().unwrap().clone();
    let about = |line: &&String| line.contains("refused") || line.contains("violation");
    assert_eq!(lines.iter().filter(about).count(), 1, "said once: {lines:#?}");
    std::fs::write(&password_file, "hunter2").unwrap();
    relay.until_said("leading").await;

    // And when the server stops accepting it later on.
    let settings = nats.folder().join("server.conf");
    let before = std::fs::read_to_string(&settings).unwrap();
    let reload = |nats: &Nats, text: &str| {
        std::fs::write(&settings, text).unwrap();
        let pid = i32::try_from(nats.pid().unwrap()).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    };
    reload(&nats, &before.replace("hunter2", "hunter3"));
    relay.until_said("the broker refuses something").await;
    reload(&nats, &before);
    let right = NatsConfig {
        user: Some("relay".into()),
        password: Some(Secret::new("hunter2")),
        ..NatsConfig::default()
    };
    let open = eventually("the broker to let us in", DEADLINE, async || {
        Connection::open(&url, &right).await.map(Some)
    });
    open.await.unwrap();
    let broker = client(&url, &right).await;
    create_stream(&broker).await;
    insert(&scope, 10).await;
    until_stored(&broker, 10).await;
    assert_eq!(relay.said("hunter2"), 0);
}
