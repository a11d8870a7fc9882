//! What the end of a batch says, on a real server.

use std::time::Duration;

use async_nats::jetstream::{self, stream};
use bytes::Bytes;
use pillarbox_event::header;
use pillarbox_testkit::{Scope, servers};
use time::OffsetDateTime;
use uuid::Uuid;

use super::*;
use crate::acknowledged::Acks;
use crate::message::{Form, Row};

struct Ingest {
    scope: Scope,
    context: Context,
    stream: stream::Stream,
    acknowledged: Acknowledged,
}

impl Ingest {
    async fn open() -> Self {
        let scope = servers().await.unwrap().scope().await.unwrap();
        let context = jetstream::new(async_nats::connect(scope.nats_url()).await.unwrap());
        let config = stream::Config {
            name: scope.prefix().to_uppercase(),
            subjects: vec![format!("{}.>", scope.prefix())],
            allow_batch_publish: true,
            ..Default::default()
        };
        let stream = context.create_stream(config).await.unwrap();
        Self { scope, context, stream, acknowledged: Acknowledged::default() }
    }

    fn messages(&self, ids: &[Uuid]) -> Vec<Message> {
        let form = Form::new("/test".to_owned(), 1);
        let message = |(position, id): (i64, &Uuid)| {
            let row = Row {
                position,
                event_id: *id,
                event_type: "order.placed".to_owned(),
                topic: format!("{}.placed", self.scope.prefix()),
                key: None,
                headers: None,
                payload: Bytes::from_static(b"{}"),
                created_at: OffsetDateTime::UNIX_EPOCH,
            };
            row.into_message(&form).unwrap()
        };
        (1..).zip(ids).map(message).collect()
    }

    /// Stores these in one batch. Returns what is known afterwards, if the end was well.
    async fn batch(&self, ids: &[Uuid]) -> Result<Acks, SinkError> {
        assert!(ids.len() > FEW);
        let mut targets = Targets::new(self.context.clone());
        let timeout = Duration::from_secs(10);
        let (context, known) = (self.context.clone(), self.acknowledged.clone());
        let mut sink = FastIngest::new(context, timeout, &mut targets, known, false);
        let (before, after) = ids.split_at(ids.len() / 2);
        sink.store(self.messages(before)).await.map_err(|failure| failure.error)?;
        // Another producer writes in between.
        self.foreign(5).await;
        sink.store(self.messages(after)).await.map_err(|failure| failure.error)?;
        let stored = sink.flush().await.map_err(|failure| failure.error)?;
        assert_eq!(stored, ids.len() as u64);
        self.foreign(5).await;
        Ok(self.acknowledged.look().remove(&self.scope.prefix().to_uppercase()).unwrap())
    }

    async fn foreign(&self, count: usize) {
        for _ in 0..count {
            let subject = format!("{}.foreign", self.scope.prefix());
            self.context.publish(subject, "foreign".into()).await.unwrap().await.unwrap();
        }
    }

    /// The event at this sequence.
    async fn event_at(&self, sequence: u64) -> Option<Uuid> {
        let message = self.stream.get_raw_message(sequence).await.unwrap();
        message.headers.get(header::NATS_MSG_ID).map(|id| id.as_str().parse().unwrap())
    }
}

fn new_ids(count: usize) -> Vec<Uuid> {
    (0..count).map(|_| Uuid::now_v7()).collect()
}

fn newest(acks: &Acks) -> (u64, Holds) {
    let place = acks.places.iter().next().unwrap();
    (place.sequence, place.holds.clone())
}

#[tokio::test]
async fn the_end_of_a_batch_names_the_place_of_the_last_message_that_it_added() {
    let ingest = Ingest::open().await;
    let (first, second) = (new_ids(600), new_ids(600));
    let (sequence, holds) = newest(&ingest.batch(&first).await.unwrap());
    assert_eq!(sequence, 605, "and five of the other producer before it");
    assert_eq!(ingest.event_at(sequence).await, Some(first[599]));
    assert!(first.iter().all(|id| holds.may_be(*id)) && !holds.may_be(second[0]));
    // With duplicates at its end, it is the last one before them.
    let mixed: Vec<Uuid> = [&second[..], &first[..100]].concat();
    let (sequence, holds) = newest(&ingest.batch(&mixed).await.unwrap());
    assert_eq!(ingest.event_at(sequence).await, Some(second[599]));
    assert!(holds.may_be(second[599]));
    // With duplicates before it, it is the last one.
    let third = new_ids(50);
    let mixed: Vec<Uuid> = [&first[..], &third[..]].concat();
    let (sequence, _) = newest(&ingest.batch(&mixed).await.unwrap());
    assert_eq!(ingest.event_at(sequence).await, Some(third[49]));
    // A batch of duplicates names no place.
    let known = ingest.acknowledged.look();
    let acks = ingest.batch(&first).await.unwrap();
    assert_eq!(newest(&acks).0, sequence);
    assert_eq!(acks.last, known.values().next().unwrap().last);
}

#[tokio::test]
async fn the_end_of_a_batch_at_a_lower_sequence_than_before_is_a_loss() {
    let ingest = Ingest::open().await;
    let name = ingest.scope.prefix().to_uppercase();
    ingest.acknowledged.note(&name, 5_000, false, None).unwrap();
    let error = ingest.batch(&new_ids(600)).await.unwrap_err();
    let SinkError::WentBack { stream, sequence, before } = error else { panic!("{error}") };
    assert_eq!((stream, sequence, before), (name, 605, 5_000));
}
