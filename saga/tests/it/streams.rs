//! The whole way: outbox, relay, stream, consumer, and timers that come when they are due.

use std::time::Duration;

use pillarbox_consumer::{Consumer, ConsumerConfig};
use pillarbox_event::{Event, RawEvent};
use pillarbox_inbox::{HandlerError, Router, Tx};
use pillarbox_relay::{Relay, RelayConfig};
use pillarbox_saga::{Saga, Step};
use pillarbox_testkit::eventually;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::trips::Office;

const DEADLINE: Duration = Duration::from_secs(60);

/// The events have the test's prefix in their topics, so they are not typed.
fn event(prefix: &str, event_type: &str, trip: &str) -> RawEvent {
    let topic = format!("{prefix}.{event_type}");
    RawEvent::builder(event_type, topic).key(trip).payload("{}").build().unwrap()
}

macro_rules! received {
    ($($name:ident $type:literal)*) => { $(
        #[derive(Deserialize)]
        struct $name {}

        impl Event for $name {
            const TYPE: &'static str = $type;
            const TOPIC: &'static str = ">";
        }
    )* };
}

received! { Asked "asked" Answered "answered" Reminder "reminder" TimedOut "timed.out" }

#[derive(Default, Serialize, Deserialize)]
struct Question {
    reminders: i64,
}

fn prefix(step: &Step<'_>) -> String {
    step.event().topic().split('.').next().unwrap().to_owned()
}

impl Question {
    async fn asked(&mut self, step: &mut Step<'_>, _: Asked) -> Result<(), HandlerError> {
        let (prefix, id) = (prefix(step), step.id().to_owned());
        step.publish(event(&prefix, "please.answer", &id))?;
        step.timer("reminder", Duration::from_millis(300), event(&prefix, "reminder", &id))?;
        step.timer("end", Duration::from_secs(2), event(&prefix, "timed.out", &id))?;
        Ok(())
    }

    async fn reminder(&mut self, step: &mut Step<'_>, _: Reminder) -> Result<(), HandlerError> {
        self.reminders += 1;
        let (prefix, id) = (prefix(step), step.id().to_owned());
        step.timer("reminder", Duration::from_millis(300), event(&prefix, "reminder", &id))?;
        Ok(())
    }

    async fn answered(&mut self, step: &mut Step<'_>, _: Answered) -> Result<(), HandlerError> {
        step.complete();
        Ok(())
    }

    async fn timed_out(&mut self, step: &mut Step<'_>, _: TimedOut) -> Result<(), HandlerError> {
        step.fail("nobody answered");
        Ok(())
    }
}

/// Answers all questions but those whose id begins with `silent`.
async fn answer(tx: &mut Tx, question: RawEvent) -> Result<(), HandlerError> {
    let id = question.key().unwrap();
    if !id.starts_with("silent") {
        let prefix = question.topic().split('.').next().unwrap();
        pillarbox_outbox::publish(tx, event(prefix, "answered", id)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn timers_come_when_they_are_due_and_answers_end_instances() {
    let office = Office::open().await;
    let (pool, prefix) = (office.pool().clone(), office.scope.prefix().to_owned());
    let stream = async_nats::jetstream::stream::Config {
        name: prefix.clone(),
        subjects: vec![format!("{prefix}.>")],
        ..Default::default()
    };
    office.scope.jetstream().create_stream(stream).await.unwrap();
    let shutdown = CancellationToken::new();
    let relay = RelayConfig {
        database_url: office.scope.database_url().into(),
        nats_url: office.scope.nats_url().into(),
        ..RelayConfig::default()
    };
    let relay = tokio::spawn(Relay::new(relay).unwrap().run(shutdown.clone()));
    let consumer = |name: &str, subjects: &[&str]| {
        let config = ConsumerConfig {
            filter_subjects: subjects.iter().map(|subject| format!("{prefix}.{subject}")).collect(),
            ..ConsumerConfig::new(&*prefix, name)
        };
        Consumer::with_config(office.scope.nats().clone(), pool.clone(), config).unwrap()
    };
    let questions = Saga::new("question")
        .starts(Question::asked)
        .on(Question::reminder)
        .on(Question::answered)
        .on(Question::timed_out);
    let saga = consumer("questions", &["asked", "answered", "reminder", "timed.out"]);
    let saga = tokio::spawn(saga.with(questions).run(shutdown.clone()));
    let answers = consumer("answers", &["please.answer"]).router(Router::new().on(answer));
    let answers = tokio::spawn(answers.run(shutdown.clone()));

    let mut tx = pool.begin().await.unwrap();
    for id in ["1", "2", "silent 3"] {
        pillarbox_outbox::publish(&mut tx, event(&prefix, "asked", id)).await.unwrap();
    }
    tx.commit().await.unwrap();
    let ended = "select string_agg(id || ' ' || status, ', ' order by id) from pillarbox.saga";
    eventually("all to end", DEADLINE, async || {
        let found = office.text(ended).await;
        match &*found {
            "1 completed, 2 completed, silent 3 failed" => Ok(Some(())),
            _ => Err(found),
        }
    })
    .await
    .unwrap();
    // Reminders came about every 300 ms until the end, and none too early.
    let reminders = office
        .text("select (state -> 'reminders')::text from pillarbox.saga where id = 'silent 3'")
        .await;
    assert!((1..=6).contains(&reminders.parse::<i64>().unwrap()), "{reminders}");
    let lasted = office.text("select extract(epoch from ended_at - started_at)::text from pillarbox.saga where id = 'silent 3'").await;
    assert!(lasted.parse::<f64>().unwrap() >= 2.0, "{lasted}");
    assert!(office.scheduled().await.is_empty(), "no timer is left");
    assert_eq!(office.text("select count(*)::text from pillarbox.inbox_dead_letter").await, "0");
    shutdown.cancel();
    relay.await.unwrap().unwrap();
    saga.await.unwrap().unwrap();
    answers.await.unwrap().unwrap();
}
