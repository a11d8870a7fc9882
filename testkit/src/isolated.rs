//! Accounts of NATS for tests that use a service's own streams and topics.
//!
//! A topic stands in the event's type, and only one stream of an account may take it. So two tests of the same service
//! would meet on one nats-server, whatever their databases are. An account of its own keeps each test's streams,
//! consumers and topics apart from all others, and the service runs in the test with the names that it has in
//! production.

use std::fmt::Write as _;

use tokio::sync::Mutex;

use crate::error::TestkitError;
use crate::nats::Nats;
use crate::scope::{Scope, servers};

/// The accounts of one server. There is another server for the next ones.
const ACCOUNTS: usize = 64;

/// The servers with accounts, and how many accounts are taken.
struct Taken {
    servers: Vec<Nats>,
    accounts: usize,
}

/// A place for one test, as [`Servers::scope`](crate::Servers::scope) gives, whose streams and topics no other test
/// sees: its client and its [`nats_url`](Scope::nats_url) belong to a NATS account of its own.
///
/// ```no_run
/// # async fn test() -> Result<(), Box<dyn std::error::Error>> {
/// let scope = pillarbox_testkit::isolated().await?;
/// // Every test may create the stream ORDERS and publish to `orders.placed`.
/// scope.jetstream().create_stream(async_nats::jetstream::stream::Config {
///     name: "ORDERS".into(),
///     subjects: vec!["orders.>".into()],
///     ..Default::default()
/// }).await?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// Any [`TestkitError`].
pub async fn isolated() -> Result<Scope, TestkitError> {
    Scope::on(&servers().await?.postgres, &account().await?).await
}

/// The URL of a nats-server, with the login of an account that nobody else has. A relay takes the URL as it is. For
/// async-nats, which does not look for a login there, use [`connect_options`](crate::nats::connect_options).
///
/// The server is shared by the tests of this process, and ends with it.
///
/// # Errors
/// Any [`TestkitError`]; the next call tries again.
pub async fn account() -> Result<String, TestkitError> {
    static TAKEN: Mutex<Taken> = Mutex::const_new(Taken { servers: Vec::new(), accounts: 0 });
    let mut taken = TAKEN.lock().await;
    let number = taken.accounts % ACCOUNTS;
    if number == 0 {
        let server = Nats::options().config(&configuration()).closed().start().await?;
        taken.servers.push(server);
    }
    taken.accounts += 1;
    let port = taken.servers.last().map_or(0, Nats::port);
    Ok(format!("nats://t{number}:t@127.0.0.1:{port}"))
}

/// The accounts, each with JetStream and one user. Nobody gets in without a login, or what a service opens by itself
/// could end up in another account.
fn configuration() -> String {
    let mut text = "accounts {\n".to_owned();
    for number in 0..ACCOUNTS {
        // Writing to a text does not fail.
        let _ = writeln!(
            text,
            "  T{number} {{ jetstream: enabled, users: [{{ user: t{number}, password: t }}] }}"
        );
    }
    text + "}\n"
}
