//! `pillarbox doctor`.

use std::time::Duration;

use crate::doctor::{Doctor, Finding, Level};
use clap::Args;

use super::Done;
use super::limit::Limit;
use super::settings::{Flags, Surroundings};
use crate::terminal::harmless;

/// Check the database, the outbox, the broker and its streams, and say what to fix.
///
/// It only reads, and needs no more rights than the relay has: run it with the relay's DATABASE_URL and NATS_URL. Of a
/// database that only consumes, it checks the inbox and the broker; of one that holds only a trail, the trail and the
/// broker.
/// Each finding is ok, warn or fail, with a remedy where there is something to do.
#[derive(Debug, Args)]
pub(crate) struct DoctorCommand {
    #[command(flatten)]
    flags: Flags<Surroundings>,
    /// The database role that the relay runs as, if doctor runs as a different one; or the trail, if there is only a trail.
    #[arg(long, value_name = "ROLE")]
    role: Option<String>,
    /// Report a transaction that has been open for at least this many seconds.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    old_transaction_s: u64,
    #[command(flatten)]
    limit: Limit,
    /// Print one JSON object: `findings`, each with `relay`, `schema`, `check`, `level`, `message` and
    /// `remedy`.
    #[arg(long)]
    json: bool,
}

impl DoctorCommand {
    pub(crate) async fn run(self) -> Done {
        let settings = self.flags.settings()?;
        settings.require_database()?;
        let several = settings.outboxes.len() > 1;
        let (mut findings, mut all, mut report) = (Vec::new(), Vec::new(), String::new());
        for config in settings.outboxes {
            if several {
                let whose = format!("relay {} on schema {}", config.name, config.schema);
                report += &(harmless(&whose) + "\n");
            }
            let doctor = Doctor {
                role: self.role.clone(),
                old_transaction: Duration::from_secs(self.old_transaction_s),
                limit: self.limit.duration(),
                ..Doctor::new(config)
            };
            let found = doctor.examine().await;
            report += &text(&found);
            for finding in &found {
                let mut value = serde_json::to_value(finding)?;
                value["relay"] = doctor.config.name.as_str().into();
                value["schema"] = doctor.config.schema.as_str().into();
                all.push(value);
            }
            findings.extend(found);
        }
        match self.json {
            true => super::print_json(&format!("{:#}\n", serde_json::json!({ "findings": all })))?,
            false => super::print(&report)?,
        }
        match count(&findings, Level::Fail) {
            0 => Ok(()),
            1 => Err("one check failed".into()),
            failed => Err(format!("{failed} checks failed").into()),
        }
    }
}

fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { check, level, message, remedy } in findings {
        let level = match level {
            Level::Ok => "ok",
            Level::Warn => "warn",
            _ => "FAIL",
        };
        text += &format!("{level:<4}  {check:<22}  {}\n", harmless(message));
        if let Some(remedy) = remedy {
            text += &format!("{:28}  → {}\n", "", harmless(remedy));
        }
    }
    text + &format!(
        "{} checks: {} ok, {} to look at, {} failed\n",
        findings.len(),
        count(findings, Level::Ok),
        count(findings, Level::Warn),
        count(findings, Level::Fail)
    )
}

fn count(findings: &[Finding], level: Level) -> usize {
    findings.iter().filter(|finding| finding.level == level).count()
}
