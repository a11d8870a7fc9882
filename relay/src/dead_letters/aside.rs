//! Writing letters.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};
use uuid::Uuid;

use super::held::{MOST, refusal};
use crate::lease::{Lease, LeaseError};
use crate::refused::{Reason, Refused};
use crate::rows::{BadRow, is_of_data};

/// An event that is to be set aside.
#[derive(Clone, Debug)]
pub(crate) struct Aside {
    pub(super) position: i64,
    pub(super) event_id: Uuid,
    pub(super) is_dead: bool,
    pub(super) reason: String,
    pub(super) error: String,
    /// Columns that cannot be copied.
    pub(super) lost: Vec<&'static str>,
}

/// The columns that a letter can do without.
pub(super) const CONTENT: [&str; 5] = ["event_type", "topic", "key", "headers", "payload"];

impl Aside {
    /// One that can never be stored.
    pub(crate) fn dead(refused: Refused) -> Self {
        let Refused { position, event_id, reason, error } = refused;
        let reason = reason.to_string();
        Self { position, event_id, is_dead: true, reason, error, lost: Vec::new() }
    }

    /// One that cannot be sent at all.
    pub(crate) fn bad(bad: BadRow) -> Self {
        Self { lost: bad.lost, ..Self::dead(bad.refused) }
    }

    /// An event that waits behind a dead event of its key.
    pub(crate) fn parked(position: i64, event_id: Uuid) -> Self {
        Self {
            position,
            event_id,
            is_dead: false,
            reason: "parked".to_owned(),
            error: "an earlier event of its key is a dead letter".to_owned(),
            lost: Vec::new(),
        }
    }

    /// Why it is dead.
    pub(super) fn refused(&self) -> Option<Refused> {
        let reason = Reason::ALL.into_iter().find(|reason| reason.to_string() == self.reason)?;
        let (position, event_id, error) = (self.position, self.event_id, self.error.clone());
        Some(Refused { position, event_id, reason, error })
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        (self.position, self.event_id) == (other.position, other.event_id)
    }

    /// The minimum that can always be kept: the position, and why the event is set aside.
    fn least(self) -> Self {
        Self { error: ascii(&self.error), lost: CONTENT.to_vec(), ..self }
    }
}

impl Lease {
    /// Sets events aside, and then moves the cursor if there is one. What the table does not take is
    /// [held](super::held).
    ///
    /// The cursor moves last: if this leader ends in between, its successor meets the events again, and finds their
    /// letters.
    pub(super) async fn set_aside(
        &self,
        cursor: Option<String>,
        events: Vec<Aside>,
    ) -> Result<Written, LeaseError> {
        let written = self.try_letters(&events).await?;
        if !written.refused.is_empty() {
            self.hold(&written.refused).await?;
        }
        if cursor.is_some() {
            self.write_letters(cursor, &[]).await?;
        }
        Ok(written)
    }

    /// Writes letters. If that fails, each is written by itself; and if a copy cannot be made of an event, only what
    /// can be of it.
    pub(super) async fn try_letters(&self, events: &[Aside]) -> Result<Written, LeaseError> {
        match self.write_letters(None, events).await {
            Ok(written) if written.refused.is_empty() => return Ok(written),
            Err(LeaseError::Database(error)) if refusal(&error).is_none() => {
                return Err(LeaseError::Database(error));
            }
            Err(LeaseError::Database(_)) | Ok(_) => {}
            Err(error) => return Err(error),
        }
        let mut all = Written::default();
        for event in events {
            let written = match self.write_letters(None, std::slice::from_ref(event)).await {
                Err(LeaseError::Database(error)) if is_of_data(&error) => {
                    self.write_letters(None, &[event.clone().least()]).await
                }
                written => written,
            };
            match written {
                Ok(written) => {
                    all.new.extend(written.new);
                    all.refused.extend(written.refused);
                }
                Err(LeaseError::Database(error)) => match refusal(&error) {
                    Some(why) => {
                        all.why = Some(why);
                        all.refused.push(event.clone());
                    }
                    None => return Err(LeaseError::Database(error)),
                },
                Err(error) => return Err(error),
            }
            if all.refused.len() > MOST {
                break;
            }
        }
        Ok(all)
    }

    async fn write_letters(
        &self,
        cursor: Option<String>,
        events: &[Aside],
    ) -> Result<Written, LeaseError> {
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
            say_gone(&gone);
        }
        let left_out: Vec<i64> = row.try_get(2)?;
        let refused = events.iter().filter(|event| left_out.contains(&event.position));
        Ok(Written { new: row.try_get(3)?, refused: refused.cloned().collect(), why: None })
    }
}

/// Reports events that were to be set aside, and whose rows are not there.
pub(super) fn say_gone(positions: &[i64]) {
    tracing::warn!(
        ?positions,
        "these events were to be set aside, and are not in the outbox: somebody deleted them, or another table took its name"
    );
}

/// What came of letters that were to be written.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// The positions of the events that were not aside already.
    pub(crate) new: Vec<i64>,
    /// The events whose letters the table refused, or left out.
    pub(crate) refused: Vec<Aside>,
    /// What it said.
    pub(super) why: Option<String>,
}

pub(super) fn ascii(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii() && c != '\0' { c } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_of_an_event_is_its_place_and_an_error_that_any_encoding_has() {
        let least = Aside { error: "größe\0".to_owned(), ..Aside::parked(7, Uuid::nil()) }.least();
        assert_eq!((least.position, least.error.as_str()), (7, "gr??e?"));
        assert_eq!(least.lost.join(","), "event_type,topic,key,headers,payload");
    }
}
