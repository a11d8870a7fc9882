//! `pillarbox status`.

use clap::Args;
use pillarbox_relay::Status;
use sqlx::{Connection, PgConnection};

use super::Done;
use super::settings::{Flags, OneRelay};

/// Show how a relay stands.
#[derive(Debug, Args)]
pub(crate) struct StatusCommand {
    #[command(flatten)]
    flags: Flags<OneRelay>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

impl StatusCommand {
    pub(crate) async fn run(self) -> Done {
        let config = self.flags.outbox()?;
        let mut connection = PgConnection::connect(&config.database_url).await?;
        let status = Status::read(&mut connection, &config.schema, &config.name).await?;
        connection.close().await?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&status)?);
        } else {
            print(&status);
        }
        Ok(())
    }
}

fn print(status: &Status) {
    let holder = match (&status.holder, status.leading) {
        (Some(holder), true) => holder.clone(),
        (Some(holder), false) => format!("{holder}, whose lease has expired: nobody ships"),
        (None, _) => "nobody: no relay is running".to_owned(),
    };
    println!("relay         {}", status.relay);
    println!("holder        {holder}");
    if let Some(age) = status.heartbeat_age_seconds {
        println!("heartbeat     {age:.1} s ago");
    }
    match status.epoch {
        Some(epoch) => println!("epoch         {epoch}"),
        None => println!("epoch         none: this relay has never run"),
    }
    println!("backlog       {} events", status.backlog_events);
    println!("oldest age    {:.1} s", status.oldest_age_seconds);
    println!("dead letters  {}", status.dead_letters);
    if let Some(cursor) = &status.cursor {
        println!(
            "cursor        position {}, floor {}, snapshot {}",
            cursor.high, cursor.floor, cursor.snapshot
        );
    }
}
