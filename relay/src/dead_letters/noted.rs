//! Writing what became of parked events, and making sure that it was kept.
//!
//! The updates are not prepared for later use. Postgres keeps the plan of a statement that a rule turned into nothing,
//! and goes on doing nothing after the rule was dropped.

use std::collections::HashSet;
use std::fmt;

use pillarbox_store::Backoff;
use sqlx::{PgConnection, Row as _};
use tokio::time::Instant;

use super::aside::ascii;
use crate::lease::{Lease, LeaseError};
use crate::refused::Refused;
use crate::rows::is_of_data;

/// Letters that are parked still, although the relay wrote that they are not.
#[derive(Debug)]
pub(crate) struct LeftOut {
    pub(crate) letters: Vec<i64>,
    /// The triggers and rules on their table.
    suspects: Vec<String>,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = "the table outbox_dead_letter does not keep what became of parked events";
        match self.suspects.as_slice() {
            [] => write!(
                f,
                "{what}, and has no trigger and no rule that explains it; the relay tries again"
            ),
            suspects => write!(
                f,
                "{what}: one of these on that table leaves the relay's updates out: {}; drop it, and the relay goes on by \
                 itself",
                suspects.join(", ")
            ),
        }
    }
}

impl Lease {
    /// The events of these letters have been shipped. Answers the letters that the table did not mark so.
    pub(crate) async fn shipped(&self, letters: &[i64]) -> Result<Option<LeftOut>, LeaseError> {
        let query = self.query(include_str!("shipped.sql")).bind(letters.to_vec());
        let query = query.persistent(false);
        self.within(async |c: &mut PgConnection| query.execute(c).await).await?;
        self.left_out(letters).await
    }

    /// The event of a parked letter could not be stored. Answers the letter if the table did not mark it so.
    pub(crate) async fn dead_again(
        &self,
        letter: i64,
        refused: &Refused,
    ) -> Result<Option<LeftOut>, LeaseError> {
        for error in [refused.error.replace('\0', " "), ascii(&refused.error)] {
            let query = self
                .query(include_str!("dead_again.sql"))
                .bind(letter)
                .bind(refused.reason.to_string())
                .bind(error)
                .persistent(false);
            match self.within(async |c: &mut PgConnection| query.execute(c).await).await {
                // The database's encoding does not have all of these characters.
                Err(LeaseError::Database(error)) if is_of_data(&error) => {}
                done => {
                    done?;
                    break;
                }
            }
        }
        self.left_out(&[letter]).await
    }

    async fn left_out(&self, letters: &[i64]) -> Result<Option<LeftOut>, LeaseError> {
        let query = self.query(include_str!("left_out.sql")).bind(letters.to_vec());
        let row = self.within(async |c: &mut PgConnection| query.fetch_one(c).await).await?;
        if row.try_get::<i64, _>(0)? != 1 {
            return Err(LeaseError::Lost);
        }
        let (letters, suspects): (Vec<i64>, Vec<String>) = (row.try_get(1)?, row.try_get(2)?);
        Ok((!letters.is_empty()).then_some(LeftOut { letters, suspects }))
    }
}

/// Letters whose events have been shipped, and whose table did not keep that.
///
/// The events do not go out again: only the writing is tried again. This outlives a rewind, but not the leader, so a
/// successor ships such an event once more.
#[derive(Debug, Default)]
pub(crate) struct Unnoted {
    letters: HashSet<i64>,
    why: Option<String>,
    again: Option<(Backoff, Instant)>,
}

impl Unnoted {
    /// Takes note of letters that the table left out.
    pub(crate) fn add(&mut self, left_out: LeftOut) {
        self.why = Some(left_out.to_string());
        self.letters.extend(left_out.letters);
        let mut backoff = self.again.take().map_or_else(Backoff::default, |(backoff, _)| backoff);
        let at = Instant::now() + backoff.wait();
        self.again = Some((backoff, at));
    }

    pub(crate) fn contains(&self, letter: i64) -> bool {
        self.letters.contains(&letter)
    }

    /// Why they are not noted, if there are any.
    pub(crate) fn why(&self) -> Option<&str> {
        self.why.as_deref()
    }

    /// Tries to write them, if it is time.
    pub(crate) async fn write(&mut self, lease: &Lease) -> Result<(), LeaseError> {
        if self.again.as_ref().is_none_or(|(_, at)| *at > Instant::now()) {
            return Ok(());
        }
        let letters: Vec<i64> = self.letters.iter().copied().collect();
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
