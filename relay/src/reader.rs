//! Reads pages ahead of the shipper, and looks again after a while when there is nothing new.

use std::time::Duration;

use tokio::sync::mpsc;

use crate::cursor::Cursor;
use crate::message::Message;
use crate::sink::Fault;
use crate::source::{Page, Source};

/// A page whose rows have become messages.
pub(crate) struct Batch {
    pub(crate) messages: Vec<Message>,
    pub(crate) positions: Vec<i64>,
    /// The first row that cannot be sent, if there is one; what comes behind it is not in the batch.
    pub(crate) refused: Option<Refused>,
    page: Page,
}

/// A row that is not an event.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) position: i64,
    pub(crate) event_id: uuid::Uuid,
    pub(crate) fault: Fault,
    pub(crate) error: String,
}

impl Batch {
    /// The cursor when the rows up to this position have been shipped.
    pub(crate) fn cursor_at(&self, position: i64) -> Cursor {
        self.page.cursor_at(position)
    }

    /// The cursor when all its messages have been stored, or `None` if there is nothing to move.
    pub(crate) fn after(&self) -> Option<Cursor> {
        if self.refused.is_some() {
            return self.positions.last().map(|position| self.page.cursor_at(*position));
        }
        Some(self.page.after.clone())
    }
}

/// Reads until the receiver is dropped or the database fails.
pub(crate) async fn read(
    mut source: Source,
    event_source: String,
    idle_interval: Duration,
    batches: mpsc::Sender<Batch>,
) -> Result<(), sqlx::Error> {
    const SHORTEST: Duration = Duration::from_millis(2);
    let mut pause = SHORTEST;
    loop {
        let Some(page) = source.next().await? else {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = batches.closed() => return Ok(()),
            }
            pause = (pause * 2).min(idle_interval);
            continue;
        };
        pause = SHORTEST;
        if batches.send(batch(page, &event_source)).await.is_err() {
            return Ok(());
        }
    }
}

fn batch(mut page: Page, event_source: &str) -> Batch {
    let mut messages = Vec::with_capacity(page.rows.len());
    let mut positions = Vec::with_capacity(page.rows.len());
    let mut refused = None;
    for row in std::mem::take(&mut page.rows) {
        let (position, event_id) = (row.position, row.event_id);
        match row.into_message(event_source) {
            Ok(message) => {
                messages.push(message);
                positions.push(position);
            }
            Err(error) => {
                let error = crate::error::full_text(&error);
                refused = Some(Refused { position, event_id, fault: Fault::Invalid, error });
                break;
            }
        }
    }
    Batch { messages, positions, refused, page }
}
