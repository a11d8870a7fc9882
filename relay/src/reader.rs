//! Reads pages ahead of the shipper. If there is nothing new, it waits and looks again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pillarbox_store::full_text;
use time::OffsetDateTime;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::cursor::Cursor;
use crate::health::Observer;
use crate::message::{Form, Message};
use crate::pauses::Pauses;
use crate::refused::{Reason, Refused};
use crate::rows::{BadRow, Room};
use crate::session::Patience;
use crate::source::{Page, Source};

/// The time from commit to acknowledgement is measured for at most this many events of a page.
const MEASURED: usize = 16;

/// A page whose rows have become messages.
pub(crate) struct MessagePage {
    pub(crate) messages: Vec<Message>,
    pub(crate) positions: Vec<i64>,
    /// The rows that cannot be sent, in the order of their positions. They must be set aside before the cursor passes
    /// the page.
    pub(crate) bad: Vec<BadRow>,
    /// When some of its events were created. The time from commit to acknowledgement is measured with these.
    pub(crate) created: Vec<OffsetDateTime>,
    page: Page,
    /// The memory that the page takes until it is stored.
    _room: Room,
}

impl MessagePage {
    /// The cursor once the rows up to this position have been shipped.
    pub(crate) fn cursor_at(&self, position: i64) -> Cursor {
        self.page.cursor_at(position)
    }

    /// The cursor once all messages of the page have been stored.
    pub(crate) fn after(&self) -> Cursor {
        self.page.after.clone()
    }
}

/// Reads until the receiver is dropped or the database fails. Looks at once when something was `released` into the
/// outbox.
pub(crate) async fn read(
    mut source: Source,
    form: Form,
    idle_interval: Duration,
    batches: mpsc::Sender<MessagePage>,
    observer: Observer,
    patience: Patience,
    released: Arc<Notify>,
) -> Result<(), sqlx::Error> {
    let mut pauses = Pauses::up_to(idle_interval);
    let memory = source.memory();
    loop {
        let asked = Instant::now();
        let page = patience.wait_unless(|| memory.is_waited_for(), source.next()).await?;
        observer.meter.polled(asked.elapsed());
        let Some(page) = page else {
            // Pages that were read before may still fail, each time anew.
            if memory.is_free() {
                observer.progressed();
            }
            tokio::select! {
                () = pauses.pass() => {}
                () = released.notified() => pauses.begin_again(),
                () = batches.closed() => return Ok(()),
            }
            continue;
        };
        pauses.begin_again();
        if batches.send(batch(page, &form)).await.is_err() {
            return Ok(());
        }
    }
}

/// Turns the rows of a page into messages, and finds those that cannot be sent.
pub(crate) fn batch(mut page: Page, form: &Form) -> MessagePage {
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
    MessagePage {
        messages,
        positions,
        bad: bad.into_values().collect(),
        created,
        page,
        _room: room,
    }
}
