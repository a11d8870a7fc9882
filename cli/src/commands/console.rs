//! `pillarbox console`.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use axum::extract::ConnectInfo;
use axum::http::HeaderName;
use clap::Args;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use pillarbox_console::{Access, Console, Finding, Level, Place, Proxy, Tokens};
use pillarbox_relay::{Database, RelayConfig};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tower_service::Service;

use super::Done;
use super::settings::{Flags, Surroundings};
use crate::doctor::{self, Doctor};
use crate::http::connections::Connections;

/// How long a connection may last. The live updates of an open page last two minutes, and then begin anew.
const WHOLE: Duration = Duration::from_secs(150);
/// How long to wait after a connection could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);
/// How long the doctor waits for one answer.
const DOCTOR: Duration = Duration::from_secs(5);

/// Serve the operator's page: what is wrong, and what to do about it.
///
/// It shows every database of the settings: backlog, consumers, retries, dead letters, sagas, scheduled events. Without
/// accounts it only listens on a loopback address, shows nothing secret, and changes nothing. Give it the operator's
/// login to the database; it needs no more rights.
#[derive(Debug, Args)]
pub(crate) struct ConsoleCommand {
    #[command(flatten)]
    flags: Flags<Surroundings>,
    /// The address to listen on. Another one than a loopback address needs --token-file or --proxy-from.
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "127.0.0.1:9470",
        env = "PILLARBOX_CONSOLE_LISTEN"
    )]
    listen: SocketAddr,
    /// Let in who has a token of this file: a line for each, `viewer NAME TOKEN` or `operator NAME TOKEN`.
    #[arg(
        long,
        value_name = "FILE",
        env = "PILLARBOX_CONSOLE_TOKENS",
        conflicts_with = "proxy_from"
    )]
    token_file: Option<PathBuf>,
    /// Let in whom a proxy with one of these addresses names in its headers.
    #[arg(long, value_name = "IP", value_delimiter = ',', env = "PILLARBOX_CONSOLE_PROXY")]
    proxy_from: Vec<IpAddr>,
    /// The proxy's header with the visitor's name.
    #[arg(long, value_name = "HEADER", default_value = "x-forwarded-user")]
    user_header: HeaderName,
    /// The proxy's header with the visitor's role: viewer or operator.
    #[arg(long, value_name = "HEADER", default_value = "x-pillarbox-role")]
    role_header: HeaderName,
    /// Show payloads, the events' own headers and the state of sagas. Needs --token-file or --proxy-from.
    #[arg(long)]
    show_payloads: bool,
    /// The path that a proxy puts before every page, such as /pillarbox.
    #[arg(long, value_name = "PATH", default_value = "")]
    path: String,
}

impl ConsoleCommand {
    pub(crate) async fn run(self) -> Done {
        let settings = self.flags.settings()?;
        settings.require_database()?;
        let places = places(settings.outboxes)?;
        let access = self.access()?;
        let console = Console::new(places, access).show_payloads(self.show_payloads);
        let router = console.mounted_at(&self.path)?.router();
        let router = match self.path.trim_end_matches('/') {
            "" => router,
            path => axum::Router::new().nest(path, router),
        };
        let listener = TcpListener::bind(self.listen).await.map_err(|error| {
            format!("the console cannot listen on {}: {error} (--listen)", self.listen)
        })?;
        tracing::info!("console: http://{}{}", listener.local_addr()?, self.path);
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! {
            () = serve(listener, router) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    }

    /// Who is let in. Refuses what would show the page to everybody.
    fn access(&self) -> Result<Access, Box<dyn std::error::Error>> {
        if let Some(file) = &self.token_file {
            return Ok(Access::Tokens(Tokens::read(file)?));
        }
        if !self.proxy_from.is_empty() {
            return Ok(Access::Proxy(Proxy {
                from: self.proxy_from.clone(),
                user_header: self.user_header.clone(),
                role_header: self.role_header.clone(),
            }));
        }
        if !self.listen.ip().is_loopback() {
            return Err(format!(
                "without accounts the console does not listen on {}, because everybody who reaches it could look: give it \
                 --token-file or --proxy-from, or listen on 127.0.0.1 (--listen)",
                self.listen
            )
            .into());
        }
        if self.show_payloads {
            return Err("without accounts the console shows no payloads, because every account of this machine could read \
                        them: give it --token-file or --proxy-from with --show-payloads"
                .into());
        }
        Ok(Access::Loopback)
    }
}

/// A place for each database and schema. Several relays of one outbox are one place.
fn places(outboxes: Vec<RelayConfig>) -> Result<Vec<Place>, Box<dyn std::error::Error>> {
    let mut found: Vec<(String, String, Vec<RelayConfig>)> = Vec::new();
    for config in outboxes {
        let database = Database::new(&config.database_url, "pillarbox console")?;
        let (at, name) = (database.place(), database.name().to_owned());
        match found
            .iter_mut()
            .find(|(other, _, configs)| *other == at && configs[0].schema == config.schema)
        {
            Some((_, _, configs)) => configs.push(config),
            None => found.push((at, name, vec![config])),
        }
    }
    let names: Vec<String> = found.iter().map(|(_, name, _)| name.clone()).collect();
    let mut places: Vec<Place> = Vec::new();
    for (at, name, configs) in found {
        let Some(first) = configs.first().cloned() else { continue };
        // As short as tells it apart.
        let alone = names.iter().filter(|other| **other == name).count() == 1;
        let schema = if alone { name } else { format!("{name}/{}", first.schema) };
        let taken = places.iter().any(|place| place.name() == schema);
        let name = if taken { format!("{at}/{}", first.schema) } else { schema };
        let mut place = Place::new(name, &first.database_url, &first.schema)?;
        for config in &configs {
            place = place.relay(config.name.clone());
        }
        places.push(place.check_up(move || {
            let doctor = Doctor { limit: DOCTOR, ..Doctor::new(first.clone()) };
            Box::pin(async move { doctor.examine().await.into_iter().map(finding).collect() })
        }));
    }
    Ok(places)
}

fn finding(found: doctor::Finding) -> Finding {
    Finding {
        check: found.check.to_owned(),
        level: match found.level {
            doctor::Level::Ok => Level::Ok,
            doctor::Level::Warn => Level::Warn,
            doctor::Level::Fail => Level::Fail,
        },
        message: found.message,
        remedy: found.remedy,
    }
}

async fn serve(listener: TcpListener, router: axum::Router) {
    let mut connections = Connections::lasting(WHOLE);
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                let router = router.clone();
                let service = service_fn(move |mut request: Request<Incoming>| {
                    request.extensions_mut().insert(ConnectInfo(from));
                    let mut router = router.clone();
                    async move {
                        Ok::<_, Infallible>(
                            router.call(request).await.unwrap_or_else(|it| match it {}),
                        )
                    }
                });
                connections.hold(service, stream);
            }
            Err(error) => {
                tracing::debug!(%error, "a connection was not accepted");
                connections.close_oldest();
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
