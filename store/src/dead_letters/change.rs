//! What an operator changes: letters are retried, discarded, restored and edited.
//!
//! Each change of a page of letters and its record in `operator_action` are one transaction.

use std::collections::BTreeMap;

use bytes::Bytes;
use pillarbox_event::header;
use serde::Serialize;
use sqlx::{PgConnection, Row, SqlStr};

use super::merge::{MergeError, merged};
use super::of_inbox;
use super::state::LetterState;
use super::view::{DeadLetters, LetterView, RetryError, Side};
use crate::actions::{Deed, Operator, record};
use crate::schema::Schema;

const RETRY_OUTBOX: &str = "update pillarbox.outbox_dead_letter set state = 'parked' \
     where letter = any ($1) and state = 'dead' and whole returning letter";
const DISCARD_OUTBOX: &str = "update pillarbox.outbox_dead_letter \
     set state = 'discarded', resolved_at = clock_timestamp() \
     where letter = any ($1) and state in ('dead', 'parked') returning letter";
const RESTORE_OUTBOX: &str = "update pillarbox.outbox_dead_letter \
     set state = 'dead', resolved_at = null \
     where letter = any ($1) and state = 'discarded' returning letter";

/// The statements that change letters, for one schema and one side.
#[derive(Clone, Debug)]
pub(super) struct Statements {
    retry: SqlStr,
    discard: SqlStr,
    restore: SqlStr,
    edit: SqlStr,
    outcome: SqlStr,
    original: SqlStr,
}

impl Statements {
    pub(super) fn new(schema: &Schema, side: Side) -> Self {
        let (table, number) = match side {
            Side::Outbox => ("outbox_dead_letter", "letter"),
            Side::Inbox => ("inbox_dead_letter", "position"),
        };
        let (retry, discard, restore) = match side {
            Side::Outbox => (RETRY_OUTBOX, DISCARD_OUTBOX, RESTORE_OUTBOX),
            Side::Inbox => (of_inbox::RETRY_MANY, of_inbox::DISCARD_MANY, of_inbox::RESTORE_MANY),
        };
        let edit = include_str!("edit.sql").replace("{table}", table).replace("{number}", number);
        let outcome = format!(
            "select state, count(*) from pillarbox.{table} where {number} = any ($1) group by state"
        );
        let original = format!(
            "select original_headers::text, original_payload from pillarbox.{table} \
             where {number} = $1 and edited_at is not null"
        );
        Self {
            retry: schema.statement(retry),
            discard: schema.statement(discard),
            restore: schema.statement(restore),
            edit: schema.statement(&edit),
            outcome: schema.statement(&outcome),
            original: schema.statement(&original),
        }
    }
}

/// What became of letters that an operator wanted to change.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Changed {
    /// The numbers of those that were changed. Those that somebody else changed before are not among them.
    pub letters: Vec<i64>,
    /// Those that cannot be changed in this way, and why.
    pub refused: Vec<RetryError>,
}

/// What became of letters that were retried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RetryOutcome {
    /// They were shipped or handled. Also those that are no longer there, because retention removes only what is
    /// resolved.
    pub done: i64,
    /// They failed again.
    pub failed_again: i64,
    /// The relay or the consumer has not come to them yet, or tries them again.
    pub waiting: i64,
    /// An operator discarded them meanwhile.
    pub discarded: i64,
}

/// How a dead letter's content changes. The default changes nothing.
#[derive(Clone, Debug, Default)]
pub struct Edit {
    /// What becomes of the payload.
    pub payload: PayloadEdit,
    /// Headers to set, or to remove (`None`). The other headers stay.
    pub headers: BTreeMap<String, Option<String>>,
}

/// How a payload changes.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum PayloadEdit {
    /// It stays as it is.
    #[default]
    Keep,
    /// These bytes replace it.
    Replace(Bytes),
    /// This JSON merge patch (RFC 7396) is applied to it: members that the patch names are set, or removed if they are
    /// `null`, and all others stay.
    Merge(String),
}

impl std::fmt::Debug for PayloadEdit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Keep => "Keep",
            Self::Replace(_) => "Replace",
            Self::Merge(_) => "Merge",
        })
    }
}

/// Why a dead letter was not edited. It is unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EditError {
    /// The letter could not be retried even after an edit.
    #[error(transparent)]
    Retry(#[from] RetryError),
    /// The header belongs to the event's identity or its place, which an edit keeps.
    #[error(
        "header {name:?} cannot be edited, because it says which event this is; publish a new event instead"
    )]
    Identity {
        /// The header.
        name: String,
    },
    /// The headers are too large to be read, so they cannot be edited.
    #[error("the headers of dead letter {event_id} are too large to be edited, or are not text")]
    Headers {
        /// The event's id.
        event_id: String,
    },
    /// The patch cannot be applied.
    #[error("dead letter {event_id} was not edited: {source}")]
    Merge {
        /// The event's id.
        event_id: String,
        /// What is wrong.
        source: MergeError,
    },
    /// With the new headers it would not be an event.
    #[error(
        "dead letter {event_id} was not edited, because it would not be an event any more: {reason}"
    )]
    Invalid {
        /// The event's id.
        event_id: String,
        /// What is wrong.
        reason: String,
    },
    /// The letter is not dead, or somebody else has edited it meanwhile.
    #[error(
        "dead letter {event_id} was not edited, because it is not dead any more or was edited by somebody else; look at \
         it again"
    )]
    Changed {
        /// The event's id.
        event_id: String,
    },
    /// The database failed.
    #[error("dead letter {event_id} was not edited: the database failed")]
    Database {
        /// The event's id.
        event_id: String,
        /// The error of sqlx.
        #[source]
        source: sqlx::Error,
    },
}

/// The headers that an edit may not touch, beside those that no application may set.
const IDENTITY: [&str; 1] = [header::SOURCE];

impl DeadLetters {
    /// Parks dead letters, so that the relay ships them or the consumer handles them, about a second later. Letters
    /// that are no longer dead stay as they are.
    ///
    /// The relay ships a letter behind the events of its key that were shipped meanwhile; with `order = "strict"` there
    /// are none.
    ///
    /// # Errors
    /// The error of sqlx. All letters are then unchanged. A letter that cannot be retried is among the
    /// [refused](Changed::refused) ones, and the others are retried.
    pub async fn retry(
        &self,
        letters: &[LetterView],
        operator: &Operator,
    ) -> Result<Changed, sqlx::Error> {
        let (mut good, mut refused) = (Vec::new(), Vec::new());
        for letter in letters {
            match self.retryable(letter) {
                Ok(()) => good.push(letter),
                Err(error) => refused.push(error),
            }
        }
        let letters = self.change(&good, &self.changes.retry, self.deed("retry"), operator).await?;
        Ok(Changed { letters, refused })
    }

    /// Discards unresolved letters, so that they are neither shipped nor handled, until they are
    /// [restored](Self::restore). Retention removes them for good.
    ///
    /// # Errors
    /// The error of sqlx. All letters are then unchanged.
    pub async fn discard(
        &self,
        letters: &[LetterView],
        operator: &Operator,
    ) -> Result<Changed, sqlx::Error> {
        let letters: Vec<_> = letters.iter().collect();
        let done = self.change(&letters, &self.changes.discard, self.deed("discard"), operator);
        Ok(Changed { letters: done.await?, refused: Vec::new() })
    }

    /// Makes discarded letters dead again: the opposite of [`discard`](Self::discard). Events of their keys that were
    /// shipped or handled meanwhile stay so.
    ///
    /// # Errors
    /// The error of sqlx. All letters are then unchanged.
    pub async fn restore(
        &self,
        letters: &[LetterView],
        operator: &Operator,
    ) -> Result<Changed, sqlx::Error> {
        let letters: Vec<_> = letters.iter().collect();
        let done = self.change(&letters, &self.changes.restore, self.deed("restore"), operator);
        Ok(Changed { letters: done.await?, refused: Vec::new() })
    }

    /// Changes the content of a dead letter. The content with which the event was published stays in the table, however
    /// often the letter is edited: see [`original`](Self::original). The letter stays dead; a retry uses the new
    /// content.
    ///
    /// The event keeps its id, source, type, topic and key. The inbox knows an event by its id and source, so the
    /// edited event is still handled once at most, by this consumer and by every other one. Whoever handled the
    /// original already does not see the edit.
    ///
    /// The letter must have been read by [`first`](Self::first), because [`list`](Self::list) leaves large payloads
    /// out.
    ///
    /// # Errors
    /// [`EditError`]. The letter is then unchanged.
    pub async fn edit(
        &self,
        letter: &LetterView,
        edit: &Edit,
        operator: &Operator,
    ) -> Result<(), EditError> {
        self.retryable(letter)?;
        let edited = edited(letter, edit)?;
        let event_id = || letter.event_id.clone();
        let database = |source| EditError::Database { event_id: event_id(), source };
        let headers = (!edit.headers.is_empty())
            .then(|| serde_json::to_string(&edited.headers))
            .transpose()
            .map_err(|error| database(sqlx::Error::Encode(Box::new(error))))?;
        let payload = (!matches!(edit.payload, PayloadEdit::Keep)).then(|| edited.payload.to_vec());
        let mut tx = self.pool.begin().await.map_err(database)?;
        let changed = sqlx::query(self.changes.edit.clone())
            .bind(letter.letter)
            .bind(headers)
            .bind(payload)
            .bind(&letter.edited_at)
            .execute(&mut *tx)
            .await
            .map_err(database)?;
        if changed.rows_affected() != 1 {
            return Err(EditError::Changed { event_id: event_id() });
        }
        self.recorded(&mut tx, self.deed("edit"), &[letter], &[letter.letter], operator)
            .await
            .map_err(database)?;
        tx.commit().await.map_err(database)
    }

    /// The headers and the payload with which an edited letter was published. `None`: it was not edited.
    ///
    /// # Errors
    /// The error of sqlx.
    pub async fn original(
        &self,
        letter: i64,
    ) -> Result<Option<(BTreeMap<String, String>, Bytes)>, sqlx::Error> {
        let row = sqlx::query(self.changes.original.clone())
            .bind(letter)
            .fetch_optional(&self.pool)
            .await?;
        row.map(|row| {
            let headers: Option<String> = row.try_get(0)?;
            let payload: Option<Vec<u8>> = row.try_get(1)?;
            let headers = serde_json::from_str(&headers.unwrap_or_default()).unwrap_or_default();
            Ok((headers, payload.unwrap_or_default().into()))
        })
        .transpose()
    }

    /// What has become of these letters, which were retried.
    ///
    /// # Errors
    /// The error of sqlx.
    pub async fn outcome(&self, letters: &[i64]) -> Result<RetryOutcome, sqlx::Error> {
        let rows =
            sqlx::query(self.changes.outcome.clone()).bind(letters).fetch_all(&self.pool).await?;
        let mut outcome = RetryOutcome::default();
        let mut there = 0;
        for row in rows {
            let (state, count): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
            there += count;
            match LetterState::read(&state)? {
                LetterState::Dead => outcome.failed_again += count,
                LetterState::Parked => outcome.waiting += count,
                LetterState::Retried => outcome.done += count,
                LetterState::Discarded => outcome.discarded += count,
            }
        }
        outcome.done += i64::try_from(letters.len()).unwrap_or(i64::MAX).saturating_sub(there);
        Ok(outcome)
    }

    fn retryable(&self, letter: &LetterView) -> Result<(), RetryError> {
        if self.side == Side::Outbox && !letter.whole {
            return Err(RetryError::Incomplete {
                event_id: letter.event_id.clone(),
                position: letter.position.unwrap_or_default(),
                error: letter.error.clone(),
            });
        }
        if self.side == Side::Inbox {
            letter.event()?;
        }
        Ok(())
    }

    /// The kind of action, for the record.
    fn deed(&self, verb: &str) -> &'static str {
        match (self.side, verb) {
            (Side::Outbox, "retry") => "outbox-letters.retry",
            (Side::Outbox, "discard") => "outbox-letters.discard",
            (Side::Outbox, "restore") => "outbox-letters.restore",
            (Side::Outbox, _) => "outbox-letters.edit",
            (Side::Inbox, "retry") => "inbox-letters.retry",
            (Side::Inbox, "discard") => "inbox-letters.discard",
            (Side::Inbox, "restore") => "inbox-letters.restore",
            (Side::Inbox, _) => "inbox-letters.edit",
        }
    }

    async fn change(
        &self,
        letters: &[&LetterView],
        statement: &SqlStr,
        what: &'static str,
        operator: &Operator,
    ) -> Result<Vec<i64>, sqlx::Error> {
        if letters.is_empty() {
            return Ok(Vec::new());
        }
        let numbers: Vec<i64> = letters.iter().map(|letter| letter.letter).collect();
        let mut tx = self.pool.begin().await?;
        let rows = sqlx::query(statement.clone()).bind(&numbers).fetch_all(&mut *tx).await?;
        let mut changed: Vec<i64> =
            rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
        changed.sort_unstable();
        if !changed.is_empty() {
            let touched: Vec<_> = letters
                .iter()
                .copied()
                .filter(|letter| changed.binary_search(&letter.letter).is_ok())
                .collect();
            self.recorded(&mut tx, what, &touched, &changed, operator).await?;
        }
        tx.commit().await?;
        Ok(changed)
    }

    /// Records a change, with a row for each relay or consumer.
    async fn recorded(
        &self,
        connection: &mut PgConnection,
        what: &'static str,
        letters: &[&LetterView],
        changed: &[i64],
        operator: &Operator,
    ) -> Result<(), sqlx::Error> {
        let mut by_owner: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
        for letter in letters.iter().filter(|letter| changed.contains(&letter.letter)) {
            by_owner.entry(&letter.owner).or_default().push(letter.letter);
        }
        for (owner, letters) in by_owner {
            let count = i64::try_from(letters.len()).unwrap_or(i64::MAX);
            let deed = Deed { what, target: owner, count, letters: &letters };
            record(connection, &self.schema, operator, &deed).await?;
        }
        Ok(())
    }
}

/// The letter as it is after the edit, if it is an event then.
fn edited(letter: &LetterView, edit: &Edit) -> Result<LetterView, EditError> {
    let event_id = || letter.event_id.clone();
    let mut edited = letter.clone();
    if !edit.headers.is_empty() && !letter.has_all_headers {
        return Err(EditError::Headers { event_id: event_id() });
    }
    for (name, value) in &edit.headers {
        let is_identity = IDENTITY.iter().any(|own| own.eq_ignore_ascii_case(name));
        if is_identity || header::validate(name, "").is_err() {
            return Err(EditError::Identity { name: name.clone() });
        }
        edited.headers.retain(|kept, _| !kept.eq_ignore_ascii_case(name));
        if let Some(value) = value {
            edited.headers.insert(name.clone(), value.clone());
        }
    }
    match &edit.payload {
        PayloadEdit::Keep => {}
        PayloadEdit::Replace(payload) => edited.payload = payload.clone(),
        PayloadEdit::Merge(patch) => {
            let payload = merged(&letter.payload, patch)
                .map_err(|source| EditError::Merge { event_id: event_id(), source })?;
            edited.payload = payload.into();
        }
    }
    match edited.event() {
        Ok(_) => Ok(edited),
        Err(error) => Err(EditError::Invalid { event_id: event_id(), reason: error.to_string() }),
    }
}
