//! A database whose tables are shown.

use std::time::Duration;

use futures::future::BoxFuture;
use pillarbox_relay::{Database, SessionError};
use pillarbox_store::consumers::Consumers;
use pillarbox_store::dead_letters::{DeadLetters, Side};
use pillarbox_store::limit::within;
use pillarbox_store::{Schema, SchemaError, full_text, row_security};
use sqlx::pool::PoolConnection;
use sqlx::{PgConnection, PgPool, Postgres};
use tokio::sync::OnceCell;

use crate::check_up::{CheckUp, Finding};

/// How long the database may take for one answer. It is longer than the server's own limit on a statement, so a slow
/// statement does not cost the connection.
const ANSWER: Duration = Duration::from_secs(7);
/// The server ends a statement of a page that takes longer than this.
const STATEMENT: Duration = Duration::from_secs(5);
/// The most connections to one database.
const CONNECTIONS: u32 = 4;

/// A schema with an outbox, an inbox, or both, under the name that the pages show.
pub struct Place {
    name: String,
    database: Database,
    schema: Schema,
    relays: Vec<String>,
    check_up: Option<CheckUp>,
    pool: OnceCell<PgPool>,
}

/// A place that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// The URL of the database cannot be used.
    #[error(transparent)]
    Database(#[from] SessionError),
    /// The schema's name cannot be used.
    #[error(transparent)]
    Schema(#[from] SchemaError),
}

/// Why something could not be read or changed, in words for the page.
#[derive(Clone, Debug)]
pub(crate) struct Unanswered {
    pub(crate) why: String,
    pub(crate) remedy: &'static str,
}

impl Place {
    /// The tables in this schema of this database, under a name. Connects to nothing yet; then to at most 4
    /// connections. The connections must not go through a pooler in transaction mode.
    ///
    /// # Errors
    /// [`PlaceError`] if the URL or the schema's name cannot be used.
    pub fn new(
        name: impl Into<String>,
        database_url: &str,
        schema: &str,
    ) -> Result<Self, PlaceError> {
        let database = Database::new(database_url, "pillarbox console")?;
        Ok(Self {
            name: name.into(),
            database: database.statement_timeout(STATEMENT),
            schema: Schema::parse(schema)?,
            relays: Vec::new(),
            check_up: None,
            pool: OnceCell::new(),
        })
    }

    /// Names a relay that should run here, so that the page can say so if none has ever run. Relays that have run are
    /// found without it.
    #[must_use]
    pub fn relay(mut self, name: impl Into<String>) -> Self {
        self.relays.push(name.into());
        self
    }

    /// How the page `Doctor` examines this place. It runs once at a time, and at most every ten seconds; dropping its
    /// future must end it.
    #[must_use]
    pub fn check_up(
        mut self,
        check_up: impl Fn() -> BoxFuture<'static, Vec<Finding>> + Send + Sync + 'static,
    ) -> Self {
        self.check_up = Some(std::sync::Arc::new(check_up));
        self
    }

    /// The name that the pages show.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn schema(&self) -> &Schema {
        &self.schema
    }

    /// The relays that should run here.
    pub(crate) fn relays(&self) -> &[String] {
        &self.relays
    }

    pub(crate) fn doctor(&self) -> Option<&CheckUp> {
        self.check_up.as_ref()
    }

    /// The pool, opened when it is first needed. After an outage it opens new connections by itself.
    pub(crate) async fn pool(&self) -> Result<&PgPool, Unanswered> {
        // Boxed, because the future of a new connection is large: with it, an unoptimised build had almost no stack
        // left.
        let opened = Box::pin(self.database.pool(CONNECTIONS));
        let opened = within(ANSWER, "the database", opened);
        let opened = self.pool.get_or_try_init(async || match opened.await {
            Ok(pool) => pool.map_err(|error| Unanswered::by(&error)),
            Err(late) => Err(Unanswered::by(&late)),
        });
        opened.await
    }

    /// A connection of the pool, which is opened first if need be.
    pub(crate) async fn connection(&self) -> Result<PoolConnection<Postgres>, Unanswered> {
        let opened = async {
            let acquired = Box::pin(self.pool().await?.acquire()).await;
            acquired.map_err(|error| Unanswered::by(&error))
        };
        let opened = within(ANSWER, "the database", opened).await;
        opened.unwrap_or_else(|late| Err(Unanswered::by(&late)))
    }

    /// Lets `work` use a connection. A connection that does not answer in time is not used again.
    pub(crate) async fn ask<T, E>(
        &self,
        work: impl for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, E>>,
    ) -> Result<T, Unanswered>
    where
        E: std::error::Error + 'static,
    {
        let mut connection = self.connection().await?;
        let answer = within(ANSWER, "the database", work(&mut connection)).await;
        match answer {
            Ok(answer) => answer.map_err(|error| Unanswered::by(&error)),
            Err(late) => {
                connection.close_on_drop();
                Err(Unanswered::by(&late))
            }
        }
    }

    /// The dead letters of one side.
    pub(crate) async fn letters(&self, side: Side) -> Result<DeadLetters, Unanswered> {
        let pool = self.pool().await?.clone();
        DeadLetters::new(pool, self.schema.as_str(), side).map_err(|error| Unanswered::by(&error))
    }

    /// The consumers.
    pub(crate) async fn consumers(&self) -> Result<Consumers, Unanswered> {
        let pool = self.pool().await?.clone();
        Consumers::new(pool, self.schema.as_str()).map_err(|error| Unanswered::by(&error))
    }
}

impl Unanswered {
    /// The reason, and what to do about it.
    pub(crate) fn by(error: &(dyn std::error::Error + 'static)) -> Self {
        let cause = of_sqlx(error);
        let code = cause.and_then(sqlx::Error::as_database_error).and_then(|error| error.code());
        let remedy = match (cause, code.as_deref()) {
            (_, Some("42P01" | "3F000")) => {
                "The tables do not exist here: run `pillarbox migrate`, or correct the database or the schema."
            }
            (_, Some("57014")) => {
                "The statement took too long: the database is slow, or something is locked. Narrow the filter, or look \
                 again in a moment."
            }
            (Some(error), _) if row_security::is_refusal(error) => row_security::REMEDY,
            (_, Some("42501")) => {
                "The console's role lacks a right: `pillarbox migrate --print-grants` prints what the operator's role needs."
            }
            (None, _) | (_, None) => {
                "Check that the database runs and can be reached from here. The page looks again by itself."
            }
            _ => "Run `pillarbox doctor`, which says more.",
        };
        Self { why: full_text(error), remedy }
    }
}

/// Whether the role lacks a right. The message is in the language of the server, so only the code tells.
pub(crate) fn lacks_a_right(error: &(dyn std::error::Error + 'static)) -> bool {
    let refused = of_sqlx(error).and_then(sqlx::Error::as_database_error);
    refused.and_then(|error| error.code()).is_some_and(|code| code == "42501")
}

/// The error of sqlx behind this one. An error that shows another one as its own hides it here: pass the inner one.
fn of_sqlx<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e sqlx::Error> {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.find_map(|error| error.downcast_ref::<sqlx::Error>())
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place")
            .field("name", &self.name)
            .field("database", &self.database)
            .field("schema", &self.schema.as_str())
            .finish_non_exhaustive()
    }
}

/// Waits for work on the dead letters, at most for as long as for any answer.
pub(crate) async fn in_time<T, E: std::error::Error + 'static>(
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, Unanswered> {
    match within(ANSWER, "the database", work).await {
        Ok(answer) => answer.map_err(|error| Unanswered::by(&error)),
        Err(late) => Err(Unanswered::by(&late)),
    }
}
