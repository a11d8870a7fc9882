//! What a handler may leave behind in its session, and how it is undone.
//!
//! A handler runs in a transaction on a connection that is used again, by the next event or by the service's own code.
//! `set role`, `set search_path`, a temporary table or a session's advisory lock survive a commit, and some of them
//! also a rollback. Two texts undo that. They cost no round trip of their own, because they are sent with the commit:
//!
//! - [`settle`](Session::settle), before the inbox's own last statements, restores the role and the settings that the
//!   session had before the handler.
//! - [`clear`](Session::clear), after the commit, ends locks, temporary tables, cursors and listening.
//!
//! What the session had *before* the handler belongs to the service, for example an `after_connect` that sets a role or
//! a search_path, and stays. So it is read once for each backend, before a handler uses it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use pillarbox_store::literal::hex_text;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};

/// At most this many backends are remembered. If there are more, all of them are forgotten and read again.
const MOST: usize = 1024;

/// Finds what was prepared by SQL, except by the inbox.
const FIND_PREPARED: &str = "select pg_catalog.quote_ident(name) as prepared_by_sql \
     from pg_catalog.pg_prepared_statements \
     where from_sql and not pg_catalog.starts_with(name, 'pillarbox_claim_'); ";

const READ: &str = include_str!("session.sql");

/// What the session of a backend had before a handler used it.
#[derive(Debug, Default)]
pub(crate) struct Session {
    /// Restores the settings that `reset` removes. Empty, or ends with a semicolon.
    restore: String,
    locks: bool,
    temporary: bool,
    listens: bool,
    /// The names of statements that were prepared by SQL.
    prepared: Vec<String>,
}

impl Session {
    async fn read(
        connection: &mut PgConnection,
        own_lock: Option<i64>,
    ) -> Result<Self, sqlx::Error> {
        let own_lock = own_lock.map_or_else(|| "null".to_owned(), |lock| format!("'{lock}'"));
        // A simple query leaves no prepared statement behind, even if sessions are shared.
        let read = AssertSqlSafe(READ.replace("$1", &own_lock));
        let rows = sqlx::raw_sql(read).fetch_all(connection).await?;
        let mut session = Self::default();
        for row in &rows {
            session.note(row)?;
        }
        Ok(session)
    }

    fn note(&mut self, row: &PgRow) -> Result<(), sqlx::Error> {
        let (kind, name, value): (&str, &str, &str) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        match kind {
            "setting" => self.restore.push_str(&format!(
                "select pg_catalog.set_config({}, {}, false); ",
                hex_text(name),
                hex_text(value)
            )),
            "locks" => self.locks = true,
            "temporary" => self.temporary = true,
            "listens" => self.listens = true,
            "prepared" => self.prepared.push(name.to_owned()),
            other => {
                return Err(sqlx::Error::Protocol(format!("unexpected answer {other:?}")));
            }
        }
        Ok(())
    }

    /// The text that restores the role and the settings.
    pub(crate) fn settle(&self) -> String {
        format!("reset session authorization; reset role; reset all; {}", self.restore)
    }

    /// The text that ends what survives a transaction. To be sent after its end.
    pub(crate) fn clear(&self) -> String {
        let mut text = String::from("close all; ");
        if !self.listens {
            text.push_str("unlisten *; ");
        }
        if !self.temporary {
            text.push_str("discard temporary; ");
        }
        if !self.locks {
            text.push_str("select pg_catalog.pg_advisory_unlock_all(); ");
        }
        text.push_str(FIND_PREPARED);
        text
    }

    /// The column in the answer to [`clear`](Self::clear) that contains the quoted names of statements that were
    /// prepared by SQL.
    pub(crate) const PREPARED: &str = "prepared_by_sql";

    /// Whether this was prepared before.
    pub(crate) fn has_prepared(&self, name: &str) -> bool {
        self.prepared.iter().any(|prepared| prepared == name)
    }
}

/// The sessions of a pool's backends, by their process id.
#[derive(Debug, Default)]
pub(crate) struct Sessions(Mutex<HashMap<i32, Arc<Session>>>);

impl Sessions {
    /// The session of the backend of `connection`, in an open transaction that no handler has used yet. `own_lock`: the
    /// advisory lock that the inbox has taken in it.
    pub(crate) async fn of(
        &self,
        backend: i32,
        connection: &mut PgConnection,
        own_lock: Option<i64>,
    ) -> Result<Arc<Session>, sqlx::Error> {
        if let Some(session) = self.all().get(&backend) {
            return Ok(session.clone());
        }
        let session = Arc::new(Session::read(connection, own_lock).await?);
        let mut all = self.all();
        if all.len() >= MOST {
            all.clear();
        }
        all.insert(backend, session.clone());
        Ok(session)
    }

    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<i32, Arc<Session>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
