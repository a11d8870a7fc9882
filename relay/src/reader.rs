//! Reads pages ahead of the shipper, and looks again after a while when there is nothing new.

use std::collections::BTreeMap;
use std::time::Duration;

use pillarbox_store::full_text;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::cursor::Cursor;
use crate::health::Observer;
use crate::message::{Form, Message};
use crate::refused::{Reason, Refused};
use crate::rows::{BadRow, Room};
use crate::session::Patience;
use crate::source::{Page, Source};

/// Of so many events of a page the way is measured.
const MEASURED: usize = 16;

/// A page whose rows have become messages.
pub(crate) struct Batch {
    pub(crate) messages: Vec<Message>,
    pub(crate) positions: Vec<i64>,
    /// The rows that cannot be sent, in the order of their positions. They must be set aside before the cursor passes
    /// the page.
    pub(crate) bad: Vec<BadRow>,
    /// When some of its events were created, for the measuring of their way.
    pub(crate) created: Vec<OffsetDateTime>,
    page: Page,
    /// The memory that it takes until it is stored.
    _room: Room,
}

impl Batch {
    /// The cursor when the rows up to this position have been shipped.
    pub(crate) fn cursor_at(&self, position: i64) -> Cursor {
        self.page.cursor_at(position)
    }

    /// The cursor when all its messages have been stored.
    pub(crate) fn after(&self) -> Cursor {
        self.page.after.clone()
    }
}

/// Reads until the receiver is dropped or the database fails.
pub(crate) async fn read(
    mut source: Source,
    form: Form,
    idle_interval: Duration,
    batches: mpsc::Sender<Batch>,
    observer: Observer,
    patience: Patience,
) -> Result<(), sqlx::Error> {
    const SHORTEST: Duration = Duration::from_millis(1);
    let mut pause = SHORTEST;
    let memory = source.memory();
    loop {
        let asked = Instant::now();
        let page = patience.wait_unless(|| memory.is_waited_for(), source.next()).await?;
        observer.meter.polled(asked.elapsed());
        let Some(page) = page else {
            observer.progressed();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = batches.closed() => return Ok(()),
            }
            pause = (pause * 2).min(idle_interval);
            continue;
        };
        pause = SHORTEST;
        if batches.send(batch(page, &form)).await.is_err() {
            return Ok(());
        }
    }
}

/// The page as messages, and what of it cannot be sent.
pub(crate) fn batch(mut page: Page, form: &Form) -> Batch {
    let mut messages = Vec::with_capacity(page.rows.len());
    let every = page.rows.len().div_ceil(MEASURED).max(1);
    let created = page.rows.iter().step_by(every).map(|row| row.created_at).collect();
    let mut bad: BTreeMap<i64, BadRow> = (std::mem::take(&mut page.bad).into_iter())
        .map(|bad| (bad.refused.position, bad))
        .collect();
    for row in std::mem::take(&mut page.rows) {
        let (position, event_id) = (row.position, row.event_id);
        let key = form.keys_wait.then(|| row.key.clone()).flatten();
        let mut refuse = |reason, error, key| {
            let refused = Refused { position, event_id, reason, error };
            bad.insert(position, BadRow { place: position, refused, key, lost: Vec::new() });
        };
        match row.into_message(form) {
            Ok(message) => match message.too_large(page.max_payload) {
                None => messages.push(message),
                Some(error) => refuse(Reason::TooLarge, error, key),
            },
            Err(error) => refuse(Reason::Invalid, full_text(&error), key),
        }
    }
    let positions = messages.iter().map(|message| message.position).collect();
    let room = std::mem::take(&mut page.room);
    Batch { messages, positions, bad: bad.into_values().collect(), created, page, _room: room }
}
