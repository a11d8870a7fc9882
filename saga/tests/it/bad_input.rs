//! What comes from outside or from a careless handler, against a real Postgres.

use pillarbox_event::RawEvent;
use pillarbox_inbox::{Fault, Outcome};
use pillarbox_saga::Saga;

use crate::trips::*;

#[tokio::test]
async fn a_timer_in_the_past_is_due_now() {
    let office = Office::open().await;
    office.when(Requested::of("1")).await;
    for wish in ["timer in the past", "timer before 1970"] {
        office.when(poke("1", wish)).await;
        let due = "select count(*)::text from pillarbox.outbox_scheduled \
                   where due_at <= clock_timestamp() and due_at > clock_timestamp() - interval '1 minute'";
        assert_eq!(office.text(due).await, "1", "{wish}");
    }
    assert_eq!(office.scheduled().await.len(), 2, "the second replaced the first");
}

#[tokio::test]
async fn a_timer_beyond_the_calendar_is_refused_and_nothing_is_written() {
    let office = Office::open().await;
    office.when(Requested::of("1")).await;
    for wish in ["timer beyond the calendar", "timer at the end of days"] {
        let (error, text) = office.refused(poke("1", wish)).await;
        assert_eq!(error.fault(), Fault::Transient);
        assert!(text.contains("timer \"beyond\" cannot be due"), "{text}");
        assert!(text.contains("before the year 10000"), "{text}");
    }
    assert_eq!(office.text("select version::text from pillarbox.saga").await, "1");
    assert_eq!(office.scheduled().await.len(), 1);
}

#[tokio::test]
async fn an_event_without_correlation_is_refused_for_good() {
    let office = Office::open().await;
    let (error, text) = office.refused(Poked { trip: None, to: String::new() }).await;
    assert_eq!(error.fault(), Fault::Permanent);
    assert!(text.contains("has no key") && text.contains("on_by"), "{text}");
    // A function that tells the instance may tell nothing, or too much.
    let by = || Saga::new("trip").starts_by(|poked: &Poked| poked.to.clone(), Trip::poked_first);
    for id in ["", " x", "a\nb", &"x".repeat(256)] {
        let error = office.give(by(), poke("1", id)).await.unwrap_err();
        assert_eq!(error.fault(), Fault::Permanent, "{id:?}");
        let text = pillarbox_store::full_text(&error);
        assert!(text.contains("must have 1 to 255 bytes"), "{text}");
    }
    let outcome = office.give(by(), poke("another key", "7")).await.unwrap();
    assert_eq!(outcome, Outcome::Handled);
    assert_eq!(office.stands("7").await, "running started");
    assert_eq!(office.text("select count(*)::text from pillarbox.saga").await, "1");
}

impl Trip {
    async fn poked_first(
        &mut self,
        _: &mut pillarbox_saga::Step<'_>,
        _: Poked,
    ) -> Result<(), pillarbox_inbox::HandlerError> {
        self.pokes += 1;
        Ok(())
    }
}

#[tokio::test]
async fn a_state_that_cannot_be_read_is_named_and_left_alone() {
    let office = Office::open().await;
    office.when(Requested::of("1")).await;
    for state in [r#"{"flight": "secret 4711"}"#, "null", r#"{"hotel": true}"#] {
        office.run(&format!("update pillarbox.saga set state = '{state}'")).await;
        let before = office.text("select saga::text from pillarbox.saga").await;
        let (error, text) = office.refused(FlightBooked::of("1")).await;
        assert_eq!(error.fault(), Fault::Permanent);
        for named in ["instance \"1\"", "saga \"trip\"", "version 1", "step \"flight\""] {
            assert!(text.contains(named), "no {named} in {text}");
        }
        assert!(!text.contains("4711"), "{text}");
        assert_eq!(office.text("select saga::text from pillarbox.saga").await, before);
    }
    assert_eq!(office.notes("1").await.len(), 1);
}

#[tokio::test]
async fn a_row_that_cannot_be_read_is_named_and_left_alone() {
    let office = Office::open().await;
    office.when(Requested::of("1")).await;
    for (column, wrong) in [("timers", "{}"), ("compensations", r#"[{"a": "secret 4711"}]"#)] {
        let sql = format!("update pillarbox.saga set {column} = '{wrong}'");
        office.run(&sql).await;
        let (error, text) = office.refused(FlightBooked::of("1")).await;
        assert_eq!(error.fault(), Fault::Permanent);
        assert!(text.contains("instance \"1\" of saga \"trip\" cannot be read"), "{text}");
        assert!(!text.contains("4711"), "{text}");
    }
}

#[tokio::test]
async fn a_state_that_postgres_refuses_is_named() {
    let office = Office::open().await;
    office.when(Requested::of("1")).await;
    let (error, text) = office.refused(poke("1", "nul")).await;
    assert_eq!(error.fault(), Fault::Permanent);
    assert!(text.contains("instance \"1\" of saga \"trip\" cannot be written"), "{text}");
    assert_eq!(office.text("select version::text from pillarbox.saga").await, "1");
}

#[tokio::test]
async fn a_handler_that_completes_and_sets_a_timer_leaves_no_timer() {
    let office = Office::open().await;
    for (trip, wish) in [("1", "complete and set a timer"), ("2", "set a timer and complete")] {
        office.when(Requested::of(trip)).await;
        office.when(poke(trip, wish)).await;
        assert_eq!(office.stands(trip).await, "completed flight");
        let notes = office.notes(trip).await;
        assert_eq!(notes[1], "timer \"late\" was not set, because the instance ended");
    }
    assert_eq!(office.scheduled().await.len(), 0);
    assert_eq!(
        office.text("select string_agg(timers::text, '') from pillarbox.saga").await,
        "[][]"
    );
    // One that fails and completes has failed, and its compensations are on their way.
    office.when(Requested::of("3")).await;
    office.when(poke("3", "fail and complete")).await;
    assert_eq!(office.stands("3").await, "failed flight");
    assert_eq!(office.published().await.last().unwrap(), "flight.cancel");
}

#[tokio::test]
async fn of_many_starts_at_once_one_starts_the_instance() {
    let office = Office::open().await;
    let starts = (0..6).map(|_| office.give(saga(), Requested::of("1")));
    for outcome in futures::future::join_all(starts).await {
        assert_eq!(outcome.unwrap(), Outcome::Handled);
    }
    assert_eq!(office.published().await, ["flight.book"]);
    assert_eq!(office.scheduled().await.len(), 1);
    let notes = office.notes("1").await;
    assert_eq!(notes.len(), 6);
    assert_eq!(notes[0], "-");
    assert!(notes[1..].iter().all(|note| note == "ignored: the instance had been started before"));
}

#[tokio::test]
async fn a_start_that_fails_lets_the_other_start() {
    let office = Office::open().await;
    let mut holder = office.pool().begin().await.unwrap();
    sqlx::raw_sql(
        "insert into pillarbox.saga (saga, id, state, step, status, version) \
         values ('trip', '1', 'null', 'started', 'running', 0)",
    )
    .execute(&mut *holder)
    .await
    .unwrap();
    let (given, ()) = tokio::join!(office.give(saga(), Requested::of("1")), async {
        let waits = "select count(*)::text from pg_stat_activity \
                     where datname = current_database() and wait_event_type = 'Lock'";
        while office.text(waits).await != "1" {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        holder.rollback().await.unwrap();
    });
    assert_eq!(given.unwrap(), Outcome::Handled);
    assert_eq!(office.published().await, ["flight.book"]);
}

pub fn renamed() -> Saga<Trip> {
    Saga::new("journey").starts(Trip::poked_first).on(Trip::booked)
}

impl Trip {
    async fn booked(
        &mut self,
        step: &mut pillarbox_saga::Step<'_>,
        event: RawEvent,
    ) -> Result<(), pillarbox_inbox::HandlerError> {
        self.pokes += 10;
        step.note(event.event_type());
        Ok(())
    }
}

#[tokio::test]
async fn a_renamed_saga_does_not_find_its_instances_unless_it_says_its_former_name() {
    let office = Office::open().await;
    office.when(Requested::of("1")).await;
    let timer = office.scheduled().await.remove(0);

    let error = office.give(renamed(), FlightBooked::of("1")).await.unwrap_err();
    assert_eq!(error.fault(), Fault::Transient);
    let text = pillarbox_store::full_text(&error);
    assert!(
        text.contains("\"journey\" has no instance \"1\"") && text.contains("`formerly`"),
        "{text}"
    );

    let formerly = || renamed().formerly("excursion").formerly("trip");
    // Also one that starts finds it.
    assert_eq!(office.give(formerly(), poke("1", "")).await.unwrap(), Outcome::Handled);
    assert_eq!(office.give(formerly(), FlightBooked::of("1")).await.unwrap(), Outcome::Handled);
    assert_eq!(office.give(formerly(), timer).await.unwrap(), Outcome::Handled);
    assert_eq!(office.text("select string_agg(saga, ',') from pillarbox.saga").await, "journey");
    assert_eq!(
        office.notes("1").await,
        ["-", "ignored: the instance had been started before", "flight.booked", "trip.unanswered"]
    );
    let state = office.text("select (state -> 'pokes')::text from pillarbox.saga").await;
    assert_eq!(state, "20");
    assert_eq!(office.text("select timers::text from pillarbox.saga").await, "[]", "it has fired");
}
