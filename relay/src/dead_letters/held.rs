//! Events whose letters the table does not take.
//!
//! A trigger, a rule or a constraint that somebody put on the letters can refuse one, or leave it out without a word.
//! Such an event can be neither shipped nor set aside, and it holds only itself: the relay notes it in its own row, in
//! `held`, and then the cursor may pass it. Retention keeps its row, and in a strict order its key waits. The relay
//! tries again to write the letter, says that it cannot, and is not ready until it can.
//!
//! It notes [`MOST`] events. If there are more, it waits in front of the next one, and nothing is shipped.

use pillarbox_store::Backoff;
use pillarbox_store::bad_data::is_of_data;
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, Row as _};
use tokio::time::Instant;
use uuid::Uuid;

use super::aside::{Aside, CONTENT, say_gone};
use crate::lease::{Lease, LeaseError};
use crate::refused::Refused;

/// How many events are noted at the most.
pub(crate) const MOST: usize = 1_000;

/// An event as it is noted.
#[derive(Debug, Serialize, Deserialize)]
struct Noted {
    position: i64,
    event_id: Uuid,
    is_dead: bool,
    reason: String,
    error: String,
    lost: Vec<String>,
}

impl From<&Aside> for Noted {
    fn from(aside: &Aside) -> Self {
        let Aside { position, event_id, is_dead, reason, error, lost } = aside.clone();
        let lost = lost.into_iter().map(str::to_owned).collect();
        Self { position, event_id, is_dead, reason, error: error.replace('\0', " "), lost }
    }
}

impl From<Noted> for Aside {
    fn from(noted: Noted) -> Self {
        let Noted { position, event_id, is_dead, reason, error, lost } = noted;
        let lost =
            CONTENT.into_iter().filter(|name| lost.iter().any(|lost| lost == name)).collect();
        Self { position, event_id, is_dead, reason, error, lost }
    }
}

/// Whether it is the table, or what somebody put on it, that refuses what was written, and not the database that cannot
/// do anything now. What it says then.
pub(super) fn refusal(error: &sqlx::Error) -> Option<String> {
    let sqlx::Error::Database(said) = error else {
        return is_of_data(error).then(|| error.to_string());
    };
    let code = said.code().unwrap_or_default().into_owned();
    let is_one_of = |classes: &[&str]| classes.iter().any(|class| code.starts_with(class));
    let postgres = said.try_downcast_ref::<sqlx::postgres::PgDatabaseError>();
    let context = postgres.and_then(|said| said.r#where()).and_then(|text| text.lines().next());
    // No connection, no such transaction, a deadlock, no room, a lock, a shutdown, a failure of the system.
    let passing = is_one_of(&["08", "25", "40", "53", "55", "57", "58"]);
    // Constraints, checks of views, what PL/pgSQL raises, and whatever else goes wrong within a function.
    let refused = is_of_data(error) || is_one_of(&["23", "44", "P0"]) || context.is_some();
    (refused && !passing).then(|| match context {
        Some(context) => format!("{} (SQLSTATE {code}, {context})", said.message()),
        None => format!("{} (SQLSTATE {code})", said.message()),
    })
}

/// Why the table does not take letters, for the log and the status.
pub(super) fn explained(what: &str, why: Option<&str>, suspects: &[String]) -> String {
    let why = why.map(|why| format!(": {why}")).unwrap_or_default();
    match suspects {
        [] => format!(
            "{what}{why}; the table has no trigger and no rule that explains it: check its constraints; the relay tries again"
        ),
        suspects => format!(
            "{what}{why}; one of these on that table keeps the relay's rows out: {}; drop it, and the relay goes on by itself",
            suspects.join(", ")
        ),
    }
}

impl Lease {
    /// Notes these events, so that the cursor may pass them.
    pub(super) async fn hold(&self, events: &[Aside]) -> Result<(), LeaseError> {
        let mut held = self.held().await?;
        for event in events {
            if !held.iter().any(|known| known.is_same(event)) {
                held.push(event.clone());
            }
        }
        if held.len() > MOST {
            let suspects = self.suspects().await?;
            let what = format!(
                "the table outbox_dead_letter takes no letter of more than {MOST} events that can never be shipped, so the \
                 events behind them wait"
            );
            return Err(LeaseError::Refusing(explained(&what, None, &suspects)));
        }
        self.keep_held(&held).await
    }

    /// The events that are noted.
    async fn held(&self) -> Result<Vec<Aside>, LeaseError> {
        let query =
            self.query("select held::text from pillarbox.relay where name = $1 and epoch = $2");
        let row = self.within(async |c: &mut PgConnection| query.fetch_optional(c).await).await?;
        let text: String = row.ok_or(LeaseError::Lost)?.try_get(0)?;
        let noted: Vec<Noted> = serde_json::from_str(&text)
            .map_err(|error| LeaseError::Database(sqlx::Error::Decode(error.into())))?;
        Ok(noted.into_iter().map(Aside::from).collect())
    }

    async fn keep_held(&self, events: &[Aside]) -> Result<(), LeaseError> {
        let noted: Vec<Noted> = events.iter().map(Noted::from).collect();
        let text =
            "update pillarbox.relay set held = $3::text::jsonb where name = $1 and epoch = $2";
        self.write(self.query(text).bind(self.json(&noted)?)).await
    }

    /// Those of these events that are still in the outbox.
    async fn still_there(&self, events: Vec<Aside>) -> Result<Vec<Aside>, LeaseError> {
        let query = self.read(
            "select noted.position from unnest($2::bigint[], $3::uuid[]) as noted (position, event_id) \
             join pillarbox.outbox on outbox.position = noted.position \
             and coalesce(outbox.event_id, '00000000-0000-0000-0000-000000000000'::uuid) = noted.event_id \
             where $1::text is not null",
        );
        let query = query
            .bind(events.iter().map(|event| event.position).collect::<Vec<_>>())
            .bind(events.iter().map(|event| event.event_id).collect::<Vec<_>>());
        let rows = self.within(async |c: &mut PgConnection| query.fetch_all(c).await).await?;
        let found = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<i64>, _>>()?;
        let (there, gone): (Vec<Aside>, Vec<Aside>) =
            events.into_iter().partition(|event| found.contains(&event.position));
        if !gone.is_empty() {
            say_gone(&gone.iter().map(|event| event.position).collect::<Vec<_>>());
        }
        Ok(there)
    }

    /// Tries again to write the letters of the events that are noted.
    async fn write_held(&self) -> Result<Outcome, LeaseError> {
        let noted = self.held().await?;
        if noted.is_empty() {
            return Ok(Outcome::default());
        }
        let many = noted.len();
        let there = self.still_there(noted).await?;
        let written = self.try_letters(&there).await?;
        if written.refused.len() < many {
            self.keep_held(&written.refused).await?;
        }
        let is_new = |event: &&Aside| event.is_dead && written.new.contains(&event.position);
        let dead = there.iter().filter(is_new).filter_map(Aside::refused).collect();
        let why = match written.refused.len() {
            0 => None,
            many => {
                let suspects = self.suspects().await?;
                let events = if many == 1 { "an event that" } else { "events that" };
                let what = format!(
                    "the table outbox_dead_letter does not take the letter of {events} can never be shipped \
                     (position {}{})",
                    written.refused.first().map_or(0, |event| event.position),
                    if many == 1 { String::new() } else { format!(" and {} more", many - 1) }
                );
                Some(explained(&what, written.why.as_deref(), &suspects))
            }
        };
        Ok(Outcome { dead, why })
    }
}

/// What came of a try.
#[derive(Debug, Default)]
struct Outcome {
    /// Events whose letters are written now.
    dead: Vec<Refused>,
    /// Why others are not.
    why: Option<String>,
}

/// The events whose letters the table does not take.
#[derive(Debug)]
pub(crate) struct Held {
    /// When to try again. `None`: there are none.
    again: Option<Instant>,
    backoff: Backoff,
    why: Option<String>,
}

impl Default for Held {
    /// A former leader may have left some.
    fn default() -> Self {
        Self { again: Some(Instant::now()), backoff: Backoff::default(), why: None }
    }
}

impl Held {
    /// There are new ones.
    pub(crate) fn add(&mut self) {
        self.again = Some(Instant::now());
    }

    /// Why their letters are not written, if there are any.
    pub(crate) fn why(&self) -> Option<&str> {
        self.why.as_deref()
    }

    /// Tries to write the letters, if it is time. Answers the events that are dead letters now.
    pub(crate) async fn write(&mut self, lease: &Lease) -> Result<Vec<Refused>, LeaseError> {
        if self.again.is_none_or(|again| again > Instant::now()) {
            return Ok(Vec::new());
        }
        let Outcome { dead, why } = lease.write_held().await?;
        if why.is_none() || !dead.is_empty() {
            self.backoff = Backoff::default();
        }
        self.again = why.as_ref().map(|_| Instant::now() + self.backoff.wait());
        self.why = why;
        Ok(dead)
    }
}
