//! `pillarbox config`.

use crate::config::LoadError;
use clap::Args;

use super::Done;
use super::settings::{All, Flags};

/// Check the settings from the file, the environment and the flags, or show the result. Connects to nothing.
#[derive(Debug, Args)]
pub(crate) struct ConfigCommand {
    /// Show the settings as TOML. A comment says where each was set. Passwords and tokens are shown as ***.
    #[arg(long)]
    print: bool,
    #[command(flatten)]
    flags: Flags<All>,
}

impl ConfigCommand {
    pub(crate) fn run(self) -> Done {
        let settings = self.flags.settings()?;
        if self.print {
            print!("{}", settings.print());
            return Ok(());
        }
        let what = match &settings.file {
            Some(file) => format!("{} and the environment are", file.display()),
            None => "there is no file, and the environment is".to_owned(),
        };
        println!(
            "{} fine: {}",
            crate::terminal::harmless(&what),
            match settings.outboxes.len() {
                1 => "1 outbox".to_owned(),
                several => format!("{several} outboxes"),
            }
        );
        for warning in settings.exposed_files() {
            println!("but {}", crate::terminal::harmless(&warning));
        }
        match settings.require_database() {
            Err(missing @ LoadError::Missing { .. }) => println!("but {missing}"),
            other => other?,
        }
        Ok(())
    }
}
