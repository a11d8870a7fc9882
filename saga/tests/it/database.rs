//! Instances in a real Postgres: what is written together, what is ignored, and what is kept.

use std::time::Duration;

use pillarbox_event::IntoEvent;
use pillarbox_inbox::{Fault, Outcome};
use pillarbox_outbox::Outbox;

use crate::trips::*;

#[tokio::test]
async fn state_events_timers_and_history_are_written_together() {
    let office = Office::open().await;
    let requested = Requested::of("1").into_event().unwrap();
    office.when(&requested).await;
    assert_eq!(office.stands("1").await, "running flight");
    assert_eq!(office.published().await, ["flight.book"]);
    let timer = office.scheduled().await.remove(0);
    assert_eq!((timer.event_type(), timer.key()), ("trip.unanswered", Some("1")));
    assert_eq!(timer.causation_id(), Some(requested.id().as_str()));
    let due = "select round(extract(epoch from due_at - created_at))::text from pillarbox.outbox_scheduled";
    assert_eq!(office.text(due).await, "60");
    let history = "select concat_ws(' ', seq, event_id, event_type, step_before, step_after, status, \
                   published -> 0 ->> 'type', timers_set -> 0 ->> 'name', timers_cancelled) \
                   from pillarbox.saga_history";
    assert_eq!(
        office.text(history).await,
        format!("1 {} trip.requested started flight running flight.book answer []", requested.id())
    );
    let same = "select (published -> 0 ->> 'id' = (select event_id::text from pillarbox.outbox) \
                and timers_set -> 0 ->> 'event_id' = (select event_id::text from pillarbox.outbox_scheduled))::text \
                from pillarbox.saga_history";
    assert_eq!(office.text(same).await, "true");

    // Again, by another delivery of the same event.
    assert_eq!(office.give(saga(), &requested).await.unwrap(), Outcome::Duplicate);
    assert_eq!(office.published().await.len(), 1);
}

#[tokio::test]
async fn a_step_that_fails_leaves_nothing_behind() {
    let office = Office::open().await;
    office.when(Requested::of("1")).await;
    let before = office.text("select saga::text from pillarbox.saga").await;
    office.refused(poke("1", "fail after writing")).await;
    assert_eq!(office.text("select saga::text from pillarbox.saga").await, before);
    assert_eq!(office.text("select count(*)::text from effects").await, "0");
    assert_eq!((office.published().await.len(), office.scheduled().await.len()), (1, 1));
    assert_eq!(office.notes("1").await.len(), 1);
    office.when(poke("1", "write")).await;
    assert_eq!(office.text("select string_agg(id, ',') from effects").await, "1");
}

#[tokio::test]
async fn a_refusal_compensates_newest_first_and_ends_when_all_is_undone() {
    let office = Office::open().await;
    office.when(Requested::of("1")).await;
    office.when(FlightBooked::of("1")).await;
    assert_eq!(office.scheduled().await.len(), 1, "the first timer was taken back");
    office.when(HotelRefused::of("1")).await;
    assert_eq!(office.stands("1").await, "compensating hotel");
    assert_eq!(
        office.published().await,
        ["flight.book", "hotel.book", "hotel.cancel", "flight.cancel"]
    );
    assert_eq!(office.scheduled().await.len(), 0);
    assert_eq!(office.text("select failure from pillarbox.saga").await, "no room");
    office.when(HotelCancelled::of("1")).await;
    office.when(FlightCancelled::of("1")).await;
    assert_eq!(office.stands("1").await, "failed hotel");
    assert_eq!(office.published().await.len(), 4);
    assert_eq!(
        office.text("select (ended_at is not null)::text from pillarbox.saga").await,
        "true"
    );
}

#[tokio::test]
async fn a_timer_that_was_replaced_or_cancelled_does_nothing_though_it_was_on_its_way() {
    let office = Office::open().await;
    office.when(Requested::of("1")).await;
    let replaced = office.scheduled().await.remove(0);
    // It leaves before the step that replaces it.
    office.run("delete from pillarbox.outbox_scheduled").await;
    office.when(FlightBooked::of("1")).await;
    let cancelled = office.scheduled().await.remove(0);
    office.when(&replaced).await;
    assert_eq!(office.stands("1").await, "running hotel");

    office.when(poke("1", "cancel the timer")).await;
    assert_eq!(office.scheduled().await.len(), 0);
    office.when(&cancelled).await;
    assert_eq!(office.stands("1").await, "running hotel");
    let notes = office.notes("1").await;
    let ignored = "ignored: this timer had been cancelled or replaced";
    assert_eq!(notes, ["-", "-", ignored, "-", ignored]);
}

#[tokio::test]
async fn a_timer_that_is_set_fires_once() {
    let office = Office::open().await;
    office.when(Requested::of("1")).await;
    let timer = office.scheduled().await.remove(0);
    office.when(&timer).await;
    assert_eq!(office.stands("1").await, "compensating flight");
    assert_eq!(office.text("select timers::text from pillarbox.saga").await, "[]");
    assert_eq!(office.give(saga(), &timer).await.unwrap(), Outcome::Duplicate);
    assert_eq!(office.published().await, ["flight.book", "flight.cancel"]);
}

#[tokio::test]
async fn an_early_event_waits_and_a_late_one_is_acknowledged() {
    let office = Office::open().await;
    let early = FlightBooked::of("1").into_event().unwrap();
    let (error, text) = office.refused(&early).await;
    assert_eq!(error.fault(), Fault::Transient);
    assert!(text.contains("has no instance \"1\""), "{text}");
    office.when(Requested::of("1")).await;
    office.when(&early).await;
    office.when(HotelBooked::of("1")).await;
    assert_eq!(office.stands("1").await, "completed hotel");
    let published = office.published().await;
    office.when(HotelRefused::of("1")).await;
    office.when(Requested::of("1")).await;
    assert_eq!(office.stands("1").await, "completed hotel");
    assert_eq!(office.published().await, published);
    let ended = "ignored: the instance had ended";
    assert_eq!(office.notes("1").await[3..], [ended, ended]);
}

#[tokio::test]
async fn steps_of_one_instance_run_one_after_another() {
    let office = Office::open().await;
    office.when(Requested::of("1")).await;
    let pokes = (0..8).map(|_| office.give(saga(), poke("1", "write")));
    for outcome in futures::future::join_all(pokes).await {
        assert_eq!(outcome.unwrap(), Outcome::Handled);
    }
    assert_eq!(office.text("select (state -> 'pokes')::text from pillarbox.saga").await, "8");
    assert_eq!(office.text("select version::text from pillarbox.saga").await, "9");
}

#[tokio::test]
async fn the_history_is_bounded_and_keeps_the_first_entry() {
    let office = Office::open().await;
    let saga = || saga().history(3);
    office.give(saga(), Requested::of("1")).await.unwrap();
    for _ in 0..6 {
        office.give(saga(), poke("1", "")).await.unwrap();
    }
    let kept = "select string_agg(seq::text, ' ' order by seq) from pillarbox.saga_history";
    assert_eq!(office.text(kept).await, "1 5 6 7");
    // Events that are not handled are bounded, too.
    for _ in 0..6 {
        office.give(saga(), Requested::of("1")).await.unwrap();
    }
    assert_eq!(office.text(kept).await, "1 11 12 13");
}

#[tokio::test]
async fn old_instances_are_removed_when_others_end() {
    let office = Office::open().await;
    let saga = || saga().retention(Duration::from_secs(3_600));
    for trip in ["old", "young", "open", "other"] {
        office.give(saga(), Requested::of(trip)).await.unwrap();
    }
    for trip in ["old", "young"] {
        office.give(saga(), HotelBooked::of(trip)).await.unwrap();
    }
    office
        .run("update pillarbox.saga set ended_at = ended_at - interval '2 hours' where id = 'old'")
        .await;
    office.give(saga(), HotelBooked::of("other")).await.unwrap();
    let ids = "select string_agg(id, ' ' order by id) from pillarbox.saga";
    assert_eq!(office.text(ids).await, "open other young");
    assert_eq!(office.notes("old").await.len(), 0);
    // The timers of those that ended are gone.
    assert_eq!(office.scheduled().await.len(), 1);
}

#[tokio::test]
async fn a_timer_without_its_instance_is_not_taken_for_handled() {
    let office = Office::open().await;
    for trip in ["removed", "lost", "other"] {
        office.when(Requested::of(trip)).await;
    }
    let timers = office.scheduled().await;
    assert_eq!(timers.len(), 3);
    // One was removed long after its end. One is gone as after a restore to an older state.
    office.when(HotelBooked::of("removed")).await;
    office.run("update pillarbox.saga set ended_at = ended_at - interval '1 year' where id = 'removed'").await;
    office.when(HotelBooked::of("other")).await;
    assert_eq!(office.stands("removed").await, "not there");
    office.run("delete from pillarbox.saga where id = 'lost'").await;
    for timer in timers {
        let trip = timer.key().unwrap().to_owned();
        if trip == "other" {
            // It is there and has ended, which proves that its timer is over.
            office.when(timer).await;
            continue;
        }
        let (error, text) = office.refused(timer.clone()).await;
        assert!(text.contains(&format!("has no instance {trip:?}")), "{text}");
        assert_eq!(error.fault(), Fault::Transient, "its instance may come yet");
        let handled = "select count(*)::text from pillarbox.inbox";
        let before = office.text(handled).await;
        let _ = office.refused(timer).await;
        assert_eq!(office.text(handled).await, before, "it is not recorded as handled");
    }
}

#[tokio::test]
async fn a_deadline_is_counted_from_the_start_and_kept() {
    let office = Office::open().await;
    let saga = || saga().deadline(Duration::from_secs(900));
    office.give(saga(), Requested::of("1")).await.unwrap();
    office.give(saga(), FlightBooked::of("1")).await.unwrap();
    let seconds =
        "select round(extract(epoch from deadline_at - started_at))::text from pillarbox.saga";
    assert_eq!(office.text(seconds).await, "900");
    office.give(crate::trips::saga().deadline(Duration::MAX), Requested::of("2")).await.unwrap();
    let none = "select (deadline_at is null)::text from pillarbox.saga where id = '2'";
    assert_eq!(office.text(none).await, "true");
}

#[tokio::test]
async fn another_schema_has_its_own_instances() {
    let office = Office::open().await;
    let outbox = Outbox::new().schema("travel").unwrap();
    outbox.migrate(office.pool()).await.unwrap();
    pillarbox_inbox::migrate_schema(office.pool(), "travel").await.unwrap();
    office.give(saga().outbox(outbox), Requested::of("1")).await.unwrap();
    assert_eq!(office.stands("1").await, "not there");
    assert_eq!(office.text("select step from travel.saga").await, "flight");
    assert_eq!(office.text("select count(*)::text from travel.outbox").await, "1");
}
