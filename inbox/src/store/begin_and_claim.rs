//! The begin of a transaction and the claim of an event in it, in one round trip.
//!
//! Both go in one simple query, since sqlx waits for the answer to each statement that it prepares. Unprepared, the
//! claim would be parsed and planned for each event, which costs nearly as much as to execute it. So a connection that
//! is kept prepares it by SQL, with the first event that begins there, and finds out how long its statements may take.
//! What was prepared stays on the connection when it goes back to the pool, under a name that is made of the text.
//!
//! A simple query has no parameters: names and ids travel as digits, see [`literal`](pillarbox_store::literal).

use std::hash::{DefaultHasher, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};

use pillarbox_store::literal::hex_text;

use crate::store::text::without_comments;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct BeginAndClaim {
    /// Begins, and finds out the longest time of a statement.
    find_out: String,
    /// Begins where it is known; it goes behind this.
    known: String,
    prepare: String,
    /// The event's id, and a bracket, go behind this.
    execute: String,
    /// The unprepared claim; the event's id goes between the parts.
    claim_parts: Vec<String>,
    /// A connection forgot what it had prepared, as some proxies do that share connections.
    forgetful: AtomicBool,
}

impl BeginAndClaim {
    /// `find_out` and `known` begin, `claim` is the statement with its parameters.
    pub(super) fn new(find_out: String, known: String, claim: &str, consumer: &str) -> Self {
        let claim = without_comments(claim);
        let consumer = hex_text(consumer);
        let mut hasher = DefaultHasher::new();
        hasher.write(claim.as_bytes());
        let name = format!("pillarbox_claim_{:016x}", hasher.finish());
        Self {
            find_out,
            known,
            prepare: format!(
                "do $pillarbox$ begin if not exists (select from pg_catalog.pg_prepared_statements \
                 where name operator(pg_catalog.=) '{name}') then \
                 execute $prepare$prepare {name} (pg_catalog.text, pg_catalog.text) as {claim}$prepare$; end if; \
                 end $pillarbox$"
            ),
            execute: format!("execute {name} ({consumer}, "),
            claim_parts: claim.split("$2").map(|part| part.replace("$1", &consumer)).collect(),
            forgetful: AtomicBool::new(false),
        }
    }

    /// What to send. `limit`: the longest time of a statement, once this connection has found it out.
    pub(super) fn text(&self, limit: Option<u64>, event_id: &str) -> String {
        let id = hex_text(event_id);
        let begin = match limit {
            Some(limit) => format!("{} {limit}", self.known),
            None => self.find_out.clone(),
        };
        if self.forgetful.load(Ordering::Relaxed) {
            return format!("{begin};\n{}", self.claim_parts.join(&id));
        }
        match limit {
            Some(_) => format!("{begin};\n{}{id})", self.execute),
            None => format!("{begin};\n{};\n{}{id})", self.prepare, self.execute),
        }
    }

    /// Nothing is prepared from now on, if that is what went wrong.
    pub(super) fn failed(&self, error: &sqlx::Error) {
        const INVALID_STATEMENT_NAME: &str = "26000";
        let code = error.as_database_error().and_then(|error| error.code());
        if code.as_deref() == Some(INVALID_STATEMENT_NAME)
            && !self.forgetful.swap(true, Ordering::Relaxed)
        {
            tracing::info!("connections forget prepared statements: claims are sent unprepared");
        }
    }
}
