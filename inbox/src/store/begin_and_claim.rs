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
    claim: Prepared,
    release: Prepared,
    /// As an expression.
    consumer: String,
    /// A connection forgot what it had prepared, as some proxies do that share connections.
    forgetful: AtomicBool,
}

/// A statement that is prepared by SQL.
#[derive(Debug)]
struct Prepared {
    name: String,
    types: &'static str,
    /// Without comments.
    text: String,
}

/// What to claim.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event<'a> {
    pub(super) id: &'a str,
    /// Where what waits of the key matters.
    pub(super) key: Option<&'a str>,
    /// Or an empty text.
    pub(super) stream: &'a str,
    /// It is taken from the dead letters, and released first; whether the order is strict.
    pub(super) release: Option<bool>,
}

impl Prepared {
    fn new(text: &str, types: &'static str) -> Self {
        let text = without_comments(text);
        let mut hasher = DefaultHasher::new();
        hasher.write(text.as_bytes());
        // What begins so is known to be the inbox's own: see session.rs.
        Self { name: format!("pillarbox_claim_{:016x}", hasher.finish()), types, text }
    }

    fn prepare(&self) -> String {
        let Self { name, types, text } = self;
        format!(
            "if not exists (select from pg_catalog.pg_prepared_statements where name operator(pg_catalog.=) '{name}') \
             then execute $prepare$prepare {name} ({types}) as {text}$prepare$; end if; "
        )
    }

    /// Executes it with these expressions: as it was prepared, or from its text.
    fn execute(&self, prepared: bool, values: &[&str]) -> String {
        if prepared {
            return format!("execute {} ({})", self.name, values.join(", "));
        }
        let mut text = self.text.clone();
        for (number, value) in values.iter().enumerate() {
            text = text.replace(&format!("${}", number + 1), value);
        }
        text
    }
}

impl BeginAndClaim {
    /// `find_out` and `known` begin, `claim` and `release` are the statements with their parameters.
    pub(super) fn new(
        find_out: String,
        known: String,
        claim: &str,
        release: &str,
        consumer: &str,
    ) -> Self {
        let four = "pg_catalog.text, pg_catalog.text, pg_catalog.text, pg_catalog.text";
        Self {
            find_out,
            known,
            claim: Prepared::new(claim, four),
            release: Prepared::new(release, "pg_catalog.text, pg_catalog.text, boolean"),
            consumer: hex_text(consumer),
            forgetful: AtomicBool::new(false),
        }
    }

    /// What to send. `limit`: the longest time of a statement, once this connection has found it out. The answer has
    /// that time, if it had to be found out, what the release says, if it is asked for, and what the claim says.
    pub(super) fn text(&self, limit: Option<u64>, event: Event<'_>) -> String {
        let (id, stream) = (hex_text(event.id), hex_text(event.stream));
        let key = event.key.map_or_else(|| "null".to_owned(), hex_text);
        let prepared = !self.forgetful.load(Ordering::Relaxed);
        let mut text = match limit {
            Some(limit) => format!("{} {limit}", self.known),
            None => self.find_out.clone(),
        };
        if prepared && limit.is_none() {
            let (claim, release) = (self.claim.prepare(), self.release.prepare());
            text += &format!(";\ndo $pillarbox$ begin {claim}{release}end $pillarbox$");
        }
        if let Some(strict) = event.release {
            let strict = if strict { "true" } else { "false" };
            let release = self.release.execute(prepared, &[&self.consumer, &id, strict]);
            text += &format!(";\n{release}");
        }
        let claim = self.claim.execute(prepared, &[&self.consumer, &id, &key, &stream]);
        format!("{text};\n{claim}")
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
