//! What all pages share.

use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

use crate::access::{Access, Attempts, Sessions};
use crate::check_up::Examined;
use crate::jobs::Jobs;
use crate::place::Place;
use crate::watch::Watch;

/// The most pages that are updated live at a time.
const LIVE: usize = 64;

/// What all pages share.
pub(crate) struct State {
    pub(crate) places: Arc<Vec<Place>>,
    pub(crate) access: Access,
    /// The path that the routes are mounted at: empty, or `/…` without a slash at its end.
    pub(crate) base: String,
    pub(crate) shows_payloads: bool,
    pub(crate) sessions: Sessions,
    pub(crate) attempts: Attempts,
    pub(crate) watch: Watch,
    pub(crate) examined: Examined,
    pub(crate) jobs: Jobs,
    pub(crate) live: Arc<Semaphore>,
    /// Signs what shows that a form comes from a page of this process.
    key: [u8; 32],
}

impl State {
    pub(crate) fn new(places: Vec<Place>, access: Access) -> Self {
        let places = Arc::new(places);
        Self {
            watch: Watch::new(places.clone()),
            places,
            access,
            base: String::new(),
            shows_payloads: false,
            sessions: Sessions::default(),
            attempts: Attempts::default(),
            examined: Examined::default(),
            jobs: Jobs::default(),
            live: Arc::new(Semaphore::new(LIVE)),
            key: rand::random(),
        }
    }

    /// The place of this name.
    pub(crate) fn place(&self, name: &str) -> Option<&Place> {
        self.places.iter().find(|place| place.name() == name)
    }

    /// What a form of this visitor must contain. `bound` is the session, or the visitor's name where there is none.
    pub(crate) fn form_token(&self, bound: &str) -> String {
        self.signature(bound).map(|bytes| crate::access::hex(&bytes)).unwrap_or_default()
    }

    /// Whether a form contains what the visitor's forms do.
    pub(crate) fn is_form_token(&self, bound: &str, token: &str) -> bool {
        let expected = self.form_token(bound);
        !expected.is_empty() && bool::from(expected.as_bytes().ct_eq(token.as_bytes()))
    }

    fn signature(&self, bound: &str) -> Option<[u8; 32]> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).ok()?;
        mac.update(bound.as_bytes());
        Some(mac.finalize().into_bytes().into())
    }
}
