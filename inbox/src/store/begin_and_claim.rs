//! Begins a transaction and claims an event in it, in one round trip.
//!
//! Both are sent in one simple query, because sqlx waits for the answer to each statement that it prepares. Without
//! preparation, the claim would be parsed and planned for each event, which costs nearly as much as executing it. So
//! the first event on a kept connection prepares the claim by SQL, and finds out how long statements may take there.
//! The prepared statement stays on the connection when it returns to the pool. Its name is a hash of its text.
//!
//! A simple query has no parameters, so names and ids are sent as digits; see [`literal`](pillarbox_store::literal).

use std::hash::{DefaultHasher, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};

use pillarbox_store::literal::hex_text;

use crate::store::text::without_comments;

/// Builds the texts; see the [module](self).
#[derive(Debug)]
pub(super) struct BeginAndClaim {
    /// Begins a transaction, and finds out how long a statement may take.
    find_out: String,
    /// Begins a transaction if that is known. The time limit follows this text.
    known: String,
    claim: Prepared,
    release: Prepared,
    /// The consumer's name, as an SQL expression.
    consumer: String,
    /// Whether a connection lost its prepared statements. Some proxies that share connections cause this.
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

/// The event to claim.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event<'a> {
    pub(super) id: &'a str,
    /// The key, if it matters whether events of the key wait.
    pub(super) key: Option<&'a str>,
    /// The stream, or an empty text.
    pub(super) stream: &'a str,
    /// Set if the event is taken from the dead letters, so that it is released first: whether the order is strict.
    pub(super) release: Option<bool>,
}

impl Prepared {
    fn new(text: &str, types: &'static str) -> Self {
        let text = without_comments(text);
        let mut hasher = DefaultHasher::new();
        hasher.write(text.as_bytes());
        // session.rs recognises the inbox's own statements by this beginning.
        Self { name: format!("pillarbox_claim_{:016x}", hasher.finish()), types, text }
    }

    fn prepare(&self) -> String {
        let Self { name, types, text } = self;
        format!(
            "if not exists (select from pg_catalog.pg_prepared_statements where name operator(pg_catalog.=) '{name}') \
             then execute $prepare$prepare {name} ({types}) as {text}$prepare$; end if; "
        )
    }

    /// Executes it with these expressions, prepared or from its text.
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
    /// `find_out` and `known` begin a transaction. `claim` and `release` are the statements with their parameters.
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

    /// The text to send. `limit`: how long a statement may take, if this connection has found that out. The answer
    /// contains that limit if it was not known, the answer of the release if there was one, and the answer of the
    /// claim.
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

    /// Prepares nothing from now on, if a lost prepared statement caused this error.
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
