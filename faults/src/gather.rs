//! Puts the history of a run together when it is over, from the journals, the databases and the stream.

use std::collections::HashMap;

use sqlx::Row;

use crate::event::Drawn;
use crate::foreign::{self, ForeignNote};
use crate::history::{
    Cancel, Committed, CursorWrite, Dead, Effect, Foreign, Given, History, Scheduled, Told, Written,
};
use crate::journal::{At, Noted, read};
use crate::role::{ConsumerNote, Group, WriterNote};
use crate::trips::record::Trips;
use crate::world::World;

/// A time of the database in microseconds.
macro_rules! micros {
    ($column:literal) => {
        concat!("(extract(epoch from ", $column, ") * 1000000)::bigint")
    };
}

/// Gathers everything that is known. All processes must have stopped, and the servers must answer.
pub(crate) async fn gather(world: &World, left: Vec<(String, i64)>) -> anyhow::Result<History> {
    world.keep_what_is_stored().await?;
    let mut history = History {
        consumers: Group::ALL.map(|group| (group.name(), group.keeps_order())).to_vec(),
        left,
        ..History::default()
    };
    journals(world, &mut history)?;
    outbox(world, &mut history).await?;
    scheduled(world, &mut history).await?;
    inbox(world, &mut history).await?;
    if world.saga {
        history.trips = Trips::read(&world.outbox).await?;
    }
    let mut record = world.record();
    history.faults = std::mem::take(&mut record.made);
    history.losses = std::mem::take(&mut record.losses);
    history.stored = std::mem::take(&mut record.stored);
    history.ended = std::mem::take(&mut record.ended);
    Ok(history)
}

fn journals(world: &World, history: &mut History) -> anyhow::Result<()> {
    let mut names: Vec<String> = std::fs::read_dir(&world.folder)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    let of = |process: &[crate::process::Process], name: &str| {
        process.iter().any(|process| process.is_journal(name))
    };
    for name in names {
        let path = world.folder.join(&name);
        let process = name.trim_end_matches(".journal");
        if name == "faults.journal" || of(&world.writers, &name) {
            history.written.extend(written(process, read(&path)?));
        } else if name == foreign::JOURNAL {
            history.foreign = sent(read(&path)?);
        } else if of(&world.consumers, &name) {
            let mut skipped = 0;
            for Noted { at, what } in read(&path)? {
                match what {
                    ConsumerNote::Given { id } => {
                        history.given.push(Given { id, process: process.to_owned(), at });
                    }
                    ConsumerNote::Skipped { duplicates } => skipped = duplicates,
                }
            }
            history.skipped += skipped;
        }
    }
    Ok(())
}

fn written(process: &str, notes: Vec<Noted<WriterNote>>) -> Vec<Written> {
    let mut drawn: HashMap<String, Vec<(At, Drawn)>> = HashMap::new();
    let mut told: HashMap<String, (Told, At)> = HashMap::new();
    for Noted { at, what } in notes {
        match what {
            WriterNote::Begun { .. } => {}
            WriterNote::Drew { tx, events } => {
                drawn.entry(tx).or_default().extend(events.into_iter().map(|event| (at, event)));
            }
            WriterNote::Committed { tx } => drop(told.insert(tx, (Told::Committed, at))),
            WriterNote::RolledBack { tx } => drop(told.insert(tx, (Told::RolledBack, at))),
            WriterNote::Unknown { tx, .. } => drop(told.insert(tx, (Told::Unknown, at))),
        }
    }
    let mut written = Vec::new();
    for (tx, events) in drawn {
        // A process that was killed was told nothing.
        let (told, told_at) = told.get(&tx).copied().unwrap_or((Told::Unknown, 0));
        for (at, event) in events {
            written.push(Written { event, by: process.to_owned(), at, told, told_at });
        }
    }
    written
}

fn sent(notes: Vec<Noted<ForeignNote>>) -> Vec<Foreign> {
    let mut all: Vec<Foreign> = Vec::new();
    for Noted { at, what } in notes {
        match what {
            ForeignNote::Sends { name, habit, readable } => {
                all.push(Foreign { name, habit, readable, at, told_at: None });
            }
            // It sends one message after the other.
            ForeignNote::Stored { name } => {
                if let Some(last) = all.last_mut().filter(|last| last.name == name) {
                    last.told_at = Some(at);
                }
            }
            ForeignNote::NotSaid { .. } => {}
        }
    }
    all
}

async fn outbox(world: &World, history: &mut History) -> anyhow::Result<()> {
    let rows = "select event_id::text, position, txid::text from pillarbox.outbox \
         where event_type not like 'trip.%' and event_type not like 'service.%' order by position";
    for row in sqlx::query(rows).fetch_all(&world.outbox).await? {
        history.committed.push(Committed {
            id: row.try_get(0)?,
            position: row.try_get(1)?,
            txid: row.try_get(2)?,
        });
    }
    let rows = concat!(
        "select event_id::text, reason, error, ",
        micros!("dead_at"),
        " from pillarbox.outbox_dead_letter where state <> 'retried'"
    );
    for row in sqlx::query(rows).fetch_all(&world.outbox).await? {
        history.dead.push(Dead {
            consumer: None,
            id: row.try_get(0)?,
            reason: row.try_get(1)?,
            error: row.try_get(2)?,
            at: row.try_get(3)?,
        });
    }
    let rows = concat!(
        "select ",
        micros!("at"),
        ", backend, took, epoch, coalesce(holder, ''), high, back from cursor_write order by number"
    );
    for row in sqlx::query(rows).fetch_all(&world.outbox).await? {
        history.cursor.push(CursorWrite {
            at: row.try_get(0)?,
            backend: row.try_get(1)?,
            took: row.try_get(2)?,
            epoch: row.try_get(3)?,
            holder: row.try_get(4)?,
            high: row.try_get(5)?,
            back: row.try_get(6)?,
        });
    }
    Ok(())
}

async fn scheduled(world: &World, history: &mut History) -> anyhow::Result<()> {
    let rows = concat!(
        "select event_id::text, ",
        micros!("due_at"),
        ", array(select ",
        micros!("created_at"),
        " from pillarbox.outbox where outbox.event_id = scheduled_ever.event_id) from scheduled_ever order by due_at"
    );
    for row in sqlx::query(rows).fetch_all(&world.outbox).await? {
        history.scheduled.push(Scheduled {
            id: row.try_get(0)?,
            due: row.try_get(1)?,
            released: row.try_get(2)?,
        });
    }
    let rows = "select event_id::text, cancelled from cancel";
    for row in sqlx::query(rows).fetch_all(&world.outbox).await? {
        history.cancels.push(Cancel { id: row.try_get(0)?, cancelled: row.try_get(1)? });
    }
    Ok(())
}

async fn inbox(world: &World, history: &mut History) -> anyhow::Result<()> {
    let rows = concat!(
        "select seq, ",
        micros!("at"),
        ", consumer, process, event_id, key, number, previous from effect order by seq"
    );
    for row in sqlx::query(rows).fetch_all(&world.inbox).await? {
        history.effects.push(Effect {
            seq: row.try_get(0)?,
            at: row.try_get(1)?,
            consumer: row.try_get(2)?,
            process: row.try_get(3)?,
            id: row.try_get(4)?,
            key: row.try_get(5)?,
            number: row.try_get(6)?,
            previous: row.try_get(7)?,
        });
    }
    let rows = concat!(
        "select consumer, event_id, reason, error, ",
        micros!("dead_at"),
        ", payload from pillarbox.inbox_dead_letter where state <> 'retried'"
    );
    for row in sqlx::query(rows).fetch_all(&world.inbox).await? {
        let name = foreign::name_in(row.try_get(5)?);
        history.dead.push(Dead {
            consumer: Some(row.try_get(0)?),
            id: name.map_or_else(|| row.try_get(1), Ok)?,
            reason: row.try_get(2)?,
            error: row.try_get(3)?,
            at: row.try_get(4)?,
        });
    }
    Ok(())
}
