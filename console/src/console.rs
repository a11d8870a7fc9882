//! The settings of the console, and its routes.

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};

use crate::access::Access;
use crate::guard;
use crate::pages;
use crate::place::Place;
use crate::state::State;

/// The largest form, in bytes.
const FORM: usize = 64 * 1024;
/// The largest form with the content of a dead letter, in bytes. A byte of the content may take three.
const EDIT_FORM: usize = 1024 * 1024;

/// The operator's page. It shows some places to those whom its access lets in.
pub struct Console(State);

/// A path at which the console cannot be mounted.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} cannot be the console's path: it must begin with / and consist of letters, digits, -, _ and /"
)]
pub struct MountError(String);

impl Console {
    /// A console for these places, whose names must differ. It shows no payloads, and is at the root of its server.
    /// Connects to nothing yet.
    pub fn new(places: Vec<Place>, access: Access) -> Self {
        Self(State::new(places, access))
    }

    /// The path at which a service or a proxy puts the routes, for example `/operations`, so that links lead there.
    /// Default: the root.
    ///
    /// # Errors
    /// [`MountError`] if the path has characters that would have to be escaped.
    pub fn mounted_at(mut self, path: &str) -> Result<Self, MountError> {
        let path = path.trim_end_matches('/');
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'/');
        let fits = path.is_empty() || (path.starts_with('/') && !path.contains("//"));
        if !fits || !path.bytes().all(plain) {
            return Err(MountError(path.chars().take(80).collect()));
        }
        self.0.base = path.to_owned();
        Ok(self)
    }

    /// Shows the payloads of dead letters, the values of their own headers, and the state of sagas. Default: it does
    /// not. Without accounts ([`Access::Loopback`]) it never does, because every account of the machine could read
    /// them.
    #[must_use]
    pub fn show_payloads(mut self, show: bool) -> Self {
        self.0.shows_payloads = show && !matches!(self.0.access, Access::Loopback);
        self
    }

    /// The routes. Except with [`Access::Service`], they must be served with
    /// `into_make_service_with_connect_info::<SocketAddr>()`, or nobody is let in. They leave it to the server to limit
    /// its connections.
    pub fn router(self) -> Router {
        let state = Arc::new(self.0);
        let closed = Router::new()
            .route("/", get(pages::overview::page))
            .route("/outboxes", get(pages::outboxes::page))
            .route("/consumers", get(pages::consumers::page))
            .route("/consumers/one", get(pages::consumer::page))
            .route("/consumers/change", post(pages::consumer::change))
            .route("/retries", get(pages::retries::page))
            .route("/dead-letters", get(pages::letter_groups::page))
            .route("/dead-letters/list", get(pages::letter_list::page))
            .route("/dead-letters/one", get(pages::letter::page))
            .route("/dead-letters/sure", get(pages::change::sure))
            .route("/dead-letters/change", post(pages::change::change))
            .route(
                "/dead-letters/edit",
                get(pages::edit::page)
                    .post(pages::edit::edit)
                    .layer(DefaultBodyLimit::max(EDIT_FORM)),
            )
            .route("/job", get(pages::job::page))
            .route("/job/stop", post(pages::job::stop))
            .route("/actions", get(pages::actions::page))
            .route("/flows", get(pages::flows::page))
            .route("/sagas", get(pages::sagas::page))
            .route("/sagas/one", get(pages::saga::page))
            .route("/sagas/sure", get(pages::end_saga::sure))
            .route("/sagas/end", post(pages::end_saga::end))
            .route("/scheduled", get(pages::scheduled::page))
            .route("/scheduled/sure", get(pages::cancel_scheduled::sure))
            .route("/scheduled/cancel", post(pages::cancel_scheduled::cancel))
            .route("/doctor", get(pages::doctor::page))
            .route("/runbook", get(pages::runbook::page))
            .route("/live", get(pages::live::events))
            .route("/logout", post(pages::login::log_out))
            .fallback(pages::not_found)
            .layer(from_fn_with_state(state.clone(), guard::admit));
        Router::new()
            .route("/login", get(pages::login::page).post(pages::login::log_in))
            .route("/console.css", get(pages::assets::style))
            .route("/console.js", get(pages::assets::script))
            .merge(closed)
            .layer(from_fn(guard::refuse_other_sites))
            .layer(from_fn(guard::protect))
            .layer(DefaultBodyLimit::max(FORM))
            .with_state(state)
    }
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let State { places, access, .. } = &self.0;
        f.debug_struct("Console")
            .field("places", places)
            .field("access", access)
            .finish_non_exhaustive()
    }
}
