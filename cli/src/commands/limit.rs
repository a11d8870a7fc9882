//! How long a command waits.

use std::error::Error;
use std::time::Duration;

use clap::Args;
use pillarbox_relay::{Database, SessionError};
use pillarbox_store::limit::within;

/// How long a command waits for one answer.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Limit {
    /// Give up when the database or the broker has not answered one request for this long.
    #[arg(
        long = "timeout-s",
        value_name = "SECONDS",
        default_value_t = 30,
        value_parser = clap::value_parser!(u64).range(1..=86_400)
    )]
    seconds: u64,
}

/// There was no answer.
#[derive(Debug, thiserror::Error)]
#[error(
    "{who} did not answer within {limit:?}, asked to {what}: something between here and {who} drops the connection's \
     packets, or {who} is slow; try again, with a larger --timeout-s if it is slow"
)]
pub(super) struct Unanswered {
    who: &'static str,
    what: &'static str,
    limit: Duration,
}

impl Unanswered {
    /// The database did not answer, asked to do `what`.
    pub(super) fn database(what: &'static str, limit: Duration) -> Self {
        Self { who: "the database", what, limit }
    }
}

/// How much longer than the server's own limit to wait for its answer: a statement that the server cancels does not
/// mean that the connection is lost.
const CANCELLED_WITHIN: Duration = Duration::from_secs(2);

impl Limit {
    pub(super) fn duration(self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    /// How long to wait for the database's answer.
    pub(super) fn of_database(self) -> Duration {
        self.duration() + CANCELLED_WITHIN
    }

    /// The database that a command works on. The server cancels statements that run longer than the limit.
    pub(super) fn database(self, url: &str) -> Result<Database, SessionError> {
        Ok(Database::new(url, "pillarbox")?.statement_timeout(self.duration()))
    }

    /// Waits for the database to do `what`.
    pub(super) async fn ask<T, E: Into<Box<dyn Error>>>(
        self,
        what: &'static str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Box<dyn Error>> {
        bounded("the database", what, self.of_database(), work).await
    }

    /// Waits for the broker to do `what`.
    pub(super) async fn ask_broker<T, E: Into<Box<dyn Error>>>(
        self,
        what: &'static str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Box<dyn Error>> {
        bounded("the broker", what, self.duration(), work).await
    }
}

async fn bounded<T, E: Into<Box<dyn Error>>>(
    who: &'static str,
    what: &'static str,
    limit: Duration,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, Box<dyn Error>> {
    match within(limit, who, work).await {
        Ok(done) => done.map_err(Into::into),
        Err(_) => Err(Unanswered { who, what, limit }.into()),
    }
}
