//! Records what became of parked events, and checks that the table kept it.
//!
//! The updates are not prepared for later use. If a rule turns a statement into nothing, Postgres keeps the plan of the
//! prepared statement, which still does nothing after the rule was dropped.

use std::collections::HashSet;
use std::fmt;

use pillarbox_store::Backoff;
use sqlx::postgres::PgQueryResult;
use sqlx::{PgConnection, Row as _};
use tokio::time::Instant;

use super::aside::ascii;
use super::held::{explained, refusal};
use crate::lease::{Lease, LeaseError};
use crate::refused::Refused;
use crate::rows::is_of_data;

/// Letters that are still parked, although the relay has updated them.
#[derive(Debug)]
pub(crate) struct LeftOut {
    pub(crate) letters: Vec<i64>,
    /// What the table said, if it said something.
    why: Option<String>,
    /// The triggers and rules on the table, which may be the cause.
    suspects: Vec<String>,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = "the table outbox_dead_letter does not keep what became of parked events";
        f.write_str(&explained(what, self.why.as_deref(), &self.suspects))
    }
}

impl Lease {
    /// Marks the letters of shipped events. Returns the letters that the table did not mark.
    pub(crate) async fn shipped(&self, letters: &[i64]) -> Result<Option<LeftOut>, LeaseError> {
        let mut why = self.note_shipped(letters).await?;
        if why.is_some() && letters.len() > 1 {
            // One of them may be refused, and the others not.
            for letter in letters {
                why = self.note_shipped(&[*letter]).await?.or(why);
            }
        }
        self.left_out(letters, why).await
    }

    /// Answers what the table says if it refuses the update.
    async fn note_shipped(&self, letters: &[i64]) -> Result<Option<String>, LeaseError> {
        let query = self.query(include_str!("shipped.sql")).bind(letters.to_vec());
        let query = query.persistent(false);
        refused(self.within(async |c: &mut PgConnection| query.execute(c).await).await)
    }

    /// Makes a parked letter dead again, because its event could not be stored. Returns the letter if the table did not
    /// mark it.
    pub(crate) async fn dead_again(
        &self,
        letter: i64,
        refused: &Refused,
    ) -> Result<Option<LeftOut>, LeaseError> {
        let mut why = None;
        for error in [refused.error.replace('\0', " "), ascii(&refused.error)] {
            let query = self
                .query(include_str!("dead_again.sql"))
                .bind(letter)
                .bind(refused.reason.to_string())
                .bind(error)
                .persistent(false);
            let done = self.within(async |c: &mut PgConnection| query.execute(c).await).await;
            // The database's encoding may not have all of these characters.
            let again = matches!(&done, Err(LeaseError::Database(error)) if is_of_data(error));
            why = self::refused(done)?;
            if !again {
                break;
            }
        }
        self.left_out(&[letter], why).await
    }

    /// The triggers and rules on the table of the letters.
    pub(super) async fn suspects(&self) -> Result<Vec<String>, LeaseError> {
        let (_, suspects) = self.still_parked(&[]).await?;
        Ok(suspects)
    }

    async fn left_out(
        &self,
        letters: &[i64],
        why: Option<String>,
    ) -> Result<Option<LeftOut>, LeaseError> {
        let (letters, suspects) = self.still_parked(letters).await?;
        Ok((!letters.is_empty()).then_some(LeftOut { letters, why, suspects }))
    }

    async fn still_parked(&self, letters: &[i64]) -> Result<(Vec<i64>, Vec<String>), LeaseError> {
        let query = self.query(include_str!("left_out.sql")).bind(letters.to_vec());
        let row = self.within(async |c: &mut PgConnection| query.fetch_one(c).await).await?;
        if row.try_get::<i64, _>(0)? != 1 {
            return Err(LeaseError::Lost);
        }
        Ok((row.try_get(1)?, row.try_get(2)?))
    }
}

/// What the table said if it refused a statement.
fn refused(done: Result<PgQueryResult, LeaseError>) -> Result<Option<String>, LeaseError> {
    match done {
        Err(LeaseError::Database(error)) => {
            refusal(&error).map(Some).ok_or(LeaseError::Database(error))
        }
        done => done.map(|_| None),
    }
}

/// Letters whose events have been shipped, although the table did not record it.
///
/// The events are not shipped again; only the update is tried again. This survives a rewind, but not the leader, so a
/// successor ships such an event once more.
#[derive(Debug, Default)]
pub(crate) struct Unnoted {
    letters: HashSet<i64>,
    why: Option<String>,
    again: Option<(Backoff, Instant)>,
}

impl Unnoted {
    /// Adds letters that the table did not mark.
    pub(crate) fn add(&mut self, left_out: LeftOut) {
        self.why = Some(left_out.to_string());
        self.letters.extend(left_out.letters);
        let mut backoff = self.again.take().map_or_else(Backoff::default, |(backoff, _)| backoff);
        let at = Instant::now() + backoff.wait();
        self.again = Some((backoff, at));
    }

    pub(crate) fn letters(&self) -> impl Iterator<Item = i64> {
        self.letters.iter().copied()
    }

    /// Why the table did not mark them, if there are any.
    pub(crate) fn why(&self) -> Option<&str> {
        self.why.as_deref()
    }

    /// Tries to mark them again, if it is time.
    pub(crate) async fn write(&mut self, lease: &Lease) -> Result<(), LeaseError> {
        if self.again.as_ref().is_none_or(|(_, at)| *at > Instant::now()) {
            return Ok(());
        }
        let letters: Vec<i64> = self.letters().collect();
        match lease.shipped(&letters).await? {
            Some(left_out) => {
                self.letters.clear();
                self.add(left_out);
            }
            None => *self = Self::default(),
        }
        Ok(())
    }
}
