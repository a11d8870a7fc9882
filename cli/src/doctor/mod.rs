//! Finds what is wrong, or soon will be, and says what to do about it.
//!
//! It only reads, with the rights that the relay has. It writes, publishes and changes nothing.
//!
//! | module | looks at |
//! |---|---|
//! | `database` | the server: reachable, a primary, its version, clock, open transactions, vacuum |
//! | `outbox` | tables, rights, sequence, cursor, lease, backlog |
//! | `inbox` | the tables of a database that only consumes |
//! | `trail` | whether the trail keeps up, where there is one; its tables and rights |
//! | `tables` | migrations and dead letters |
//! | `broker` | reachable, its version, JetStream, the streams that take the outbox's events |

mod broker;
mod database;
mod inbox;
mod outbox;
mod privileges;
mod stream;
mod tables;
mod trail;

use std::time::Duration;

use outbox::Purpose;
use pillarbox_relay::RelayConfig;
use pillarbox_store::full_text;
use pillarbox_store::limit::limited;
use pillarbox_store::row_security;
use pillarbox_store::shown::age;
use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Level {
    /// Everything is as it should be.
    Ok,
    /// It works, but may soon fail, or works less well than it could.
    Warn,
    /// Events are not shipped, or soon will not be, or can be lost.
    Fail,
}

/// What a check found.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// The check's name, such as `outbox.sequence`. Names stay the same across versions.
    pub check: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub message: String,
    /// What to do about it. `None`: nothing.
    pub remedy: Option<String>,
}

/// A check-up of one relay's surroundings, of a database that only consumes, or of one that holds only a trail.
#[derive(Clone, Debug)]
pub struct Doctor {
    /// The relay's settings.
    pub config: RelayConfig,
    /// The database role that the relay runs as, or the trail if there is only a trail. `None`: the role in `config.database_url`.
    pub role: Option<String>,
    /// A transaction that has been open for at least this long is reported.
    pub old_transaction: Duration,
    /// How long the database or the broker may take for one answer. If the database takes longer, it is not asked
    /// again.
    pub limit: Duration,
}

impl Doctor {
    /// A check-up with the default limits: a transaction may be open for five minutes, and an answer may take 30
    /// seconds.
    pub fn new(config: RelayConfig) -> Self {
        Self {
            config,
            role: None,
            old_transaction: Duration::from_secs(300),
            limit: Duration::from_secs(30),
        }
    }

    /// Checks everything that can be reached, and returns the findings in the order of the checks. Takes seconds. If
    /// nothing answers, it takes about [`limit`](Self::limit) for the database and the same for the broker.
    ///
    /// Dropping the future ends it at once; nothing was changed.
    pub async fn examine(&self) -> Vec<Finding> {
        let mut report = Report { findings: Vec::new(), limit: self.limit, lost: false };
        if let Err(error) = self.config.validate() {
            report.fail("config", error, "correct the setting");
            return report.findings;
        }
        let mut outbox = Some(outbox::Found::default());
        if let Some(mut connection) = database::examine(self, &mut report).await {
            let purpose = outbox::examine(self, &mut connection, &mut report).await;
            let alone = matches!(purpose, Purpose::Trail);
            trail::examine(self, &mut connection, &mut report, alone).await;
            outbox = match purpose {
                Purpose::Outbox(found) => Some(found),
                Purpose::Inbox | Purpose::Trail => None,
            };
            // Everything has been read.
            if !report.lost {
                let _ = limited(self.limit, sqlx::Connection::close(connection)).await;
            }
        }
        broker::examine(&self.config, outbox.as_ref(), &mut report).await;
        report.findings
    }
}

/// The findings so far.
#[derive(Debug)]
struct Report {
    findings: Vec<Finding>,
    /// How long an answer may take.
    limit: Duration,
    /// The database has left one request without an answer, so its connection is not used any more.
    lost: bool,
}

impl Report {
    fn ok(&mut self, check: &'static str, message: impl ToString) {
        self.add(check, Level::Ok, message, None);
    }

    fn warn(&mut self, check: &'static str, message: impl ToString, remedy: impl ToString) {
        self.add(check, Level::Warn, message, Some(remedy.to_string()));
    }

    fn fail(&mut self, check: &'static str, message: impl ToString, remedy: impl ToString) {
        self.add(check, Level::Fail, message, Some(remedy.to_string()));
    }

    fn add(
        &mut self,
        check: &'static str,
        level: Level,
        message: impl ToString,
        remedy: Option<String>,
    ) {
        self.findings.push(Finding { check, level, message: message.to_string(), remedy });
    }

    /// What a statement returned. If it failed, adds a finding that the check could not be made. Asks nothing more once
    /// the database has left a request without an answer.
    async fn got<T>(
        &mut self,
        check: &'static str,
        asked: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Option<T> {
        if self.lost {
            return None;
        }
        // Before this limit, the server cancels a statement that takes too long, and the connection stays usable.
        let error = match limited(self.limit + CANCELLED_WITHIN, asked).await {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        let text = full_text(&error);
        if is_silence(&error) {
            self.lost = true;
            self.fail(
                check,
                format!("{text}, so this check and the database checks after it were not made"),
                "check whether something between here and the server drops the connection's packets (a firewall, a \
                 NAT, a proxy), and run doctor again",
            );
            return None;
        }
        let code = error.as_database_error().and_then(|error| error.code());
        let remedy = match code.as_deref() {
            _ if row_security::is_refusal(&error) => row_security::REMEDY,
            Some("42501") => {
                "run doctor as the relay's role or the operator's; `pillarbox migrate --print-grants` shows their rights"
            }
            Some("57014") => {
                "the database is slow, or something is locked: run doctor again, with a larger --timeout-s"
            }
            _ => "run doctor again; if it fails the same way, correct what the error says",
        };
        self.warn(check, format!("not checked: {text}"), remedy);
        None
    }
}

/// How much longer than the server's own limit to wait for its answer.
const CANCELLED_WITHIN: Duration = Duration::from_secs(2);

/// Whether an error says that there was no answer in time.
fn is_silence(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::TimedOut)
}

/// A duration for people.
fn said(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => format!("{:.0} ms", s * 1000.0),
        s => age(s),
    }
}
