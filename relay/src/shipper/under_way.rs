//! The pages that the sink was given and that are not yet known to be stored.

use std::collections::VecDeque;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::NoStream;
use crate::cursor::Cursor;
use crate::health::Observer;
use crate::interrupted::Interrupted;
use crate::reader::MessagePage;
use crate::sink::{Sink, SinkFailure};

/// The pages that the sink was given and that are not yet known to be stored.
pub(super) struct UnderWay<'p> {
    progress: &'p watch::Sender<Cursor>,
    observer: Observer,
    pages: VecDeque<Given>,
    /// How many messages the sink was given.
    pub(super) count: u64,
    /// How many of these are known to be stored.
    pub(super) stored: u64,
    /// How many parked messages were shipped in between.
    pub(super) parked: u64,
    no_stream: NoStream,
}

struct Given {
    batch: MessagePage,
    /// Where the relay stands when the page is stored.
    after: Cursor,
    /// How many messages the sink was given before this page.
    first: u64,
    given: Instant,
}

impl<'p> UnderWay<'p> {
    pub(super) fn new(
        progress: &'p watch::Sender<Cursor>,
        observer: Observer,
        no_stream: NoStream,
    ) -> Self {
        Self {
            progress,
            observer,
            pages: VecDeque::new(),
            count: 0,
            stored: 0,
            parked: 0,
            no_stream,
        }
    }

    /// Gives a page to the sink. `alone`: its first message is stored before any other is sent.
    pub(super) async fn ship(
        &mut self,
        sink: &mut dyn Sink,
        mut batch: MessagePage,
        alone: bool,
    ) -> Result<(), Interrupted> {
        let mut messages = std::mem::take(&mut batch.messages);
        let first = self.count;
        self.count += messages.len() as u64;
        let after = batch.after();
        self.pages.push_back(Given { batch, after, first, given: Instant::now() });
        if alone && messages.len() > 1 {
            let rest = messages.split_off(1);
            self.stored(sink.store(messages).await)?;
            self.stored(sink.flush().await)?;
            messages = rest;
        }
        self.stored(sink.store(messages).await)
    }

    pub(super) fn has_stored(&self) -> bool {
        self.stored + self.parked > 0
    }

    /// Records how far the sink has stored, and why no further.
    pub(super) fn stored(&mut self, result: Result<u64, SinkFailure>) -> Result<(), Interrupted> {
        let (stored, error) = match result {
            Ok(stored) => (stored, None),
            Err(failure) => (failure.stored, Some(failure.error)),
        };
        let more = stored.saturating_sub(self.stored);
        if more > 0 {
            self.observer.moved();
        }
        self.observer.meter.shipped(more);
        self.stored = stored;
        let mut reached = None;
        while let Some(page) = self.pages.front() {
            if page.first + page.batch.positions.len() as u64 > stored {
                break;
            }
            reached = Some(page.after.clone());
            match page.batch.positions.is_empty() {
                // All its events were set aside.
                true => self.observer.moved(),
                false => self.observer.page_stored(&page.batch.created, page.given),
            }
            self.pages.pop_front();
        }
        let Some(error) = error else {
            if let Some(cursor) = reached {
                self.progress.send_replace(cursor);
            }
            return Ok(());
        };
        // A part of a page counts only here, where reading starts again.
        let mut behind = None;
        if let Some(page) = self.pages.front() {
            let part = usize::try_from(stored.saturating_sub(page.first)).unwrap_or(usize::MAX);
            if let Some(position) =
                part.checked_sub(1).and_then(|last| page.batch.positions.get(last))
            {
                reached = Some(page.batch.cursor_at(*position));
            }
            behind = error.refused(self.no_stream).map(|refused| {
                let cursor = page.batch.cursor_at(refused.position);
                Box::new((cursor, refused))
            });
        }
        if let Some(cursor) = reached {
            self.progress.send_replace(cursor);
        }
        Err(behind.map_or_else(|| error.into(), Interrupted::Refused))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures::future::{BoxFuture, ready};
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;
    use crate::message::{Form, Message, Row};
    use crate::reader;
    use crate::source::Page;

    /// Has stored what it is given at once.
    struct AtOnce(u64);

    impl Sink for AtOnce {
        fn store(&mut self, messages: Vec<Message>) -> BoxFuture<'_, Result<u64, SinkFailure>> {
            self.0 += messages.len() as u64;
            self.flush()
        }

        fn flush(&mut self) -> BoxFuture<'_, Result<u64, SinkFailure>> {
            Box::pin(ready(Ok(self.0)))
        }
    }

    fn row(position: i64, topic: &str) -> Row {
        Row {
            position,
            event_id: Uuid::now_v7(),
            event_type: "t".into(),
            topic: topic.into(),
            key: None,
            headers: None,
            payload: Bytes::new(),
            created_at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[tokio::test]
    async fn a_row_that_cannot_be_sent_takes_no_part_in_what_the_sink_is_given() {
        let rows = vec![row(1, "a"), row(2, "no topic"), row(3, "a")];
        let page = Page::only("10:10:".parse().unwrap(), rows);
        let batch = reader::batch(page, &Form::new("/shop".into(), 1));
        assert_eq!(batch.positions, [1, 3]);
        assert_eq!(batch.bad.len(), 1);
        assert_eq!(batch.bad[0].refused.position, 2, "it is left to be set aside first");
        let (progress, reached) = watch::channel(Cursor::start("x"));
        let observer = Observer::new("default", "shop");
        let mut under_way = UnderWay::new(&progress, observer, NoStream::Hold);
        let mut sink = AtOnce(0);
        let shipped = under_way.ship(&mut sink, batch, false).await;
        shipped.unwrap_or_else(|_| panic!("it was interrupted"));
        assert_eq!(sink.0, 2);
        assert_eq!(reached.borrow().high, 3);
    }
}
