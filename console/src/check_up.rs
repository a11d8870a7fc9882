//! What `pillarbox doctor` finds, for the page of that name. The checks themselves are the caller's: see
//! [`Place::check_up`](crate::Place::check_up).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use pillarbox_store::limit::within;
use tokio::sync::Mutex as Turn;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Everything is as it should be.
    Ok,
    /// It works, but may soon fail, or works less well than it could.
    Warn,
    /// Events are not shipped, or soon will not be, or can be lost.
    Fail,
}

/// What a check found.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The check's name, such as `outbox.sequence`.
    pub check: String,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub message: String,
    /// What to do about it. `None`: nothing.
    pub remedy: Option<String>,
}

/// Makes the checks.
pub(crate) type CheckUp = Arc<dyn Fn() -> BoxFuture<'static, Vec<Finding>> + Send + Sync>;

/// How long a result is shown before the checks are made again.
const FRESH: Duration = Duration::from_secs(10);
/// How long the checks of a place may take.
const LONGEST: Duration = Duration::from_secs(14);

/// The newest result of each place, by its name. A place is examined once at a time, however many ask, and waits for no
/// other place.
#[derive(Default)]
pub(crate) struct Examined(Mutex<HashMap<String, Arc<Turn<Option<Result>>>>>);

/// When the checks were made, and what they found. `None`: they took too long.
pub(crate) type Result = (Instant, Option<Arc<Vec<Finding>>>);

impl Examined {
    /// What the checks find, or found at most ten seconds ago.
    pub(crate) async fn result(&self, name: &str, check_up: &CheckUp) -> Result {
        let newest = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.entry(name.to_owned()).or_default().clone()
        };
        let mut newest = newest.lock().await;
        if let Some((at, found)) = &*newest
            && at.elapsed() < FRESH
        {
            return (*at, found.clone());
        }
        let found = within(LONGEST, "the doctor", check_up()).await.ok().map(Arc::new);
        let result = (Instant::now(), found);
        *newest = Some(result.clone());
        result
    }
}
