//! Writing letters.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};

use crate::lease::{Lease, LeaseError};
use crate::refused::Refused;
use crate::rows::{BadRow, is_of_data};

/// An event that is to be set aside.
#[derive(Clone, Debug)]
pub(crate) struct Aside {
    position: i64,
    is_dead: bool,
    reason: String,
    error: String,
    /// Columns that cannot be copied.
    lost: Vec<&'static str>,
}

/// The columns that a letter can do without.
const CONTENT: [&str; 5] = ["event_type", "topic", "key", "headers", "payload"];

impl Aside {
    /// One that can never be stored.
    pub(crate) fn dead(refused: Refused) -> Self {
        let Refused { position, reason, error, .. } = refused;
        Self { position, is_dead: true, reason: reason.to_string(), error, lost: Vec::new() }
    }

    /// One that cannot be sent at all.
    pub(crate) fn bad(bad: BadRow) -> Self {
        Self { lost: bad.lost, ..Self::dead(bad.refused) }
    }

    /// One that waits behind a dead event of its key.
    pub(crate) fn parked(position: i64) -> Self {
        Self {
            position,
            is_dead: false,
            reason: "parked".to_owned(),
            error: "an earlier event of its key is a dead letter".to_owned(),
            lost: Vec::new(),
        }
    }

    /// The least that can be kept: its place, and why it is there.
    fn least(self) -> Self {
        Self { error: ascii(&self.error), lost: CONTENT.to_vec(), ..self }
    }
}

impl Lease {
    /// Sets events aside, and then moves the cursor if there is one. If a copy cannot be made of one of them, each is
    /// copied by itself, and of that one only what can be. Returns the positions of those that were not aside already.
    ///
    /// The cursor moves last: if this leader ends in between, its successor meets the events again, and finds their letters.
    pub(super) async fn set_aside(
        &self,
        cursor: Option<String>,
        events: Vec<Aside>,
    ) -> Result<Vec<i64>, LeaseError> {
        let new = match self.write_letters(None, &events).await {
            Err(LeaseError::Database(error)) if is_of_data(&error) => {
                self.set_each_aside(events).await?
            }
            done => done?,
        };
        if cursor.is_some() {
            self.write_letters(cursor, &[]).await?;
        }
        Ok(new)
    }

    async fn set_each_aside(&self, events: Vec<Aside>) -> Result<Vec<i64>, LeaseError> {
        let mut new = Vec::new();
        for event in events {
            new.extend(match self.write_letters(None, std::slice::from_ref(&event)).await {
                Err(LeaseError::Database(error)) if is_of_data(&error) => {
                    self.write_letters(None, &[event.least()]).await?
                }
                done => done?,
            });
        }
        Ok(new)
    }

    async fn write_letters(
        &self,
        cursor: Option<String>,
        events: &[Aside],
    ) -> Result<Vec<i64>, LeaseError> {
        let all = |read: fn(&Aside) -> String| events.iter().map(read).collect::<Vec<_>>();
        let query = self
            .query(include_str!("set_aside.sql"))
            .bind(cursor)
            .bind(events.iter().map(|event| event.position).collect::<Vec<_>>())
            .bind(all(|event| if event.is_dead { "dead" } else { "parked" }.to_owned()))
            .bind(all(|event| event.reason.clone()))
            .bind(all(|event| event.error.replace('\0', " ")))
            .bind(events.iter().map(|event| i32::from(event.is_dead)).collect::<Vec<_>>())
            .bind(all(|event| event.lost.join(",")));
        let row: PgRow = self.within(async |c: &mut PgConnection| query.fetch_one(c).await).await?;
        if row.try_get::<i64, _>(0)? != 1 {
            return Err(LeaseError::Lost);
        }
        let gone: Vec<i64> = row.try_get(1)?;
        if !gone.is_empty() {
            tracing::warn!(
                positions = ?gone,
                "these events were to be set aside, and are not in the outbox any more: somebody deleted them"
            );
        }
        let left_out: Vec<i64> = row.try_get(2)?;
        if let Some(position) = left_out.first().copied() {
            return Err(LeaseError::LeftOut { position, events: left_out.len() });
        }
        Ok(row.try_get(3)?)
    }
}

pub(super) fn ascii(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii() && c != '\0' { c } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_of_an_event_is_its_place_and_an_error_that_any_encoding_has() {
        let least = Aside { error: "größe\0".to_owned(), ..Aside::parked(7) }.least();
        assert_eq!((least.position, least.error.as_str()), (7, "gr??e?"));
        assert_eq!(least.lost.join(","), "event_type,topic,key,headers,payload");
    }
}
