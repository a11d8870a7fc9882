//! What operators have done: who, when, what, to what, to how many, and why.
//!
//! Every call that changes something for an operator takes an [`Operator`], and writes a row into `operator_action` in
//! the transaction that makes the change. So there is no change without a row, and no row without a change. Rows are
//! only added; old ones are removed after [`KEPT_FOR`].

use std::time::Duration;

use pillarbox_event::EventId;
use serde::Serialize;
use sqlx::{PgConnection, PgPool, Row};

use crate::schema::{Schema, SchemaError};

/// How long actions are kept: a year.
pub const KEPT_FOR: Duration = Duration::from_secs(366 * 24 * 3600);

/// Removes actions that are older than [`KEPT_FOR`], at most 1,000 of them: $1 how old, in seconds.
pub const REMOVE_OLD: &str = include_str!("actions/remove_old.sql");

/// The longest note and the longest name, in characters. Longer ones are cut off.
const LONGEST: usize = 2_000;

/// Who acts, and why.
///
/// Changes that one command, or one click, makes in several transactions share one `Operator`, and are listed as one
/// action.
#[derive(Clone, Debug)]
pub struct Operator {
    who: String,
    note: Option<String>,
    run: String,
}

impl Operator {
    /// `who` is what the program knows of the person: an account, or a name that was given. The database adds its own
    /// role, which nobody can choose. `note` says why.
    pub fn new(who: &str, note: Option<&str>) -> Self {
        let cut =
            |text: &str| -> String { text.chars().filter(|c| *c != '\0').take(LONGEST).collect() };
        let note = note.map(cut).filter(|note| !note.trim().is_empty());
        Self { who: cut(who), note, run: EventId::generate().as_str().to_owned() }
    }

    /// Who acts.
    pub fn who(&self) -> &str {
        &self.who
    }

    /// Why.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }
}

/// What was done.
#[derive(Clone, Copy, Debug)]
pub struct Deed<'a> {
    /// The kind of action, such as `dead-letters.discard`.
    pub what: &'static str,
    /// To what, in words.
    pub target: &'a str,
    /// To how many.
    pub count: i64,
    /// The dead letters, if it was done to any.
    pub letters: &'a [i64],
}

/// Records an action in the caller's transaction, which must be the one that makes the change.
///
/// # Errors
/// The error of sqlx. The caller must then roll back.
pub async fn record(
    connection: &mut PgConnection,
    schema: &Schema,
    operator: &Operator,
    deed: &Deed<'_>,
) -> Result<(), sqlx::Error> {
    let target: String = deed.target.chars().filter(|c| *c != '\0').take(LONGEST).collect();
    sqlx::query(schema.statement(include_str!("actions/record.sql")))
        .persistent(false)
        .bind(&operator.who)
        .bind(deed.what)
        .bind(target)
        .bind(deed.count)
        .bind(&operator.note)
        .bind(&operator.run)
        .bind((!deed.letters.is_empty()).then_some(deed.letters))
        .execute(connection)
        .await
        .map(drop)
}

/// An action of an operator.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Action {
    /// When it was done, or when its last part was done: `YYYY-MM-DDTHH:MM:SSZ`.
    pub at: String,
    /// How long ago that was, in seconds.
    pub age_seconds: f64,
    /// The role of the database that did it.
    pub role: String,
    /// Who did it, as far as the operator's program knew.
    pub who: String,
    /// The kind of action, such as `dead-letters.discard`.
    pub what: String,
    /// To what.
    pub target: String,
    /// To how many.
    pub count: i64,
    /// Why.
    pub note: Option<String>,
}

/// Which actions. A field that is `None` matches all.
#[derive(Clone, Debug, Default)]
pub struct ActionFilter {
    /// The kind of action, or its beginning: `dead-letters` matches `dead-letters.discard`.
    pub what: Option<String>,
    /// Done by somebody, or by a role, with exactly this name.
    pub who: Option<String>,
    /// Done at most this long ago, in seconds.
    pub since_s: Option<i64>,
    /// Done to this dead letter: the kind of action begins as in `what`, and the letter has this number.
    pub letter: Option<i64>,
}

/// The actions that are recorded in one schema.
#[derive(Clone, Debug)]
pub struct Actions {
    pool: PgPool,
    schema: Schema,
}

impl Actions {
    /// The actions in this schema. Connects to nothing yet.
    ///
    /// # Errors
    /// [`SchemaError`] if the schema's name cannot be used.
    pub fn new(pool: PgPool, schema: &str) -> Result<Self, SchemaError> {
        Ok(Self { pool, schema: Schema::parse(schema)? })
    }

    /// The newest actions that match, the newest first, at most `limit`. Of the whole record, only the newest 50,000
    /// rows are looked at.
    ///
    /// # Errors
    /// The error of sqlx.
    pub async fn list(
        &self,
        filter: &ActionFilter,
        limit: i64,
    ) -> Result<Vec<Action>, sqlx::Error> {
        let rows = sqlx::query(self.schema.statement(include_str!("actions/list.sql")))
            .bind(&filter.what)
            .bind(&filter.who)
            .bind(filter.since_s)
            .bind(filter.letter)
            .bind(limit.max(0))
            .fetch_all(&self.pool)
            .await?;
        rows.iter()
            .map(|row| {
                Ok(Action {
                    at: row.try_get("at")?,
                    age_seconds: row.try_get("age")?,
                    role: row.try_get("role")?,
                    who: row.try_get("who")?,
                    what: row.try_get("what")?,
                    target: row.try_get("target")?,
                    count: row.try_get("count")?,
                    note: row.try_get("note")?,
                })
            })
            .collect()
    }
}
