//! A saga without servers.

use std::time::Duration;

use pillarbox_event::IntoEvent;
use pillarbox_inbox::Fault;
use pillarbox_saga::Status;

use crate::trips::*;

#[tokio::test]
async fn a_trip_is_booked_step_by_step() {
    let mut trip = saga().given_nothing();
    let started = trip.when(Requested::of("1")).await.unwrap();
    assert_eq!(started.published_of::<BookFlight>(), [BookFlight::of("1")]);
    assert_eq!(started.timers[0].due, trip.now() + ANSWER);
    assert_eq!((trip.status(), trip.step()), (Some(Status::Running), Some("flight")));

    let flown = trip.when(FlightBooked::of("1")).await.unwrap();
    assert_eq!(flown.types(), ["hotel.book"]);
    assert_eq!(flown.cancelled, ["answer"], "it was replaced");
    assert_eq!(trip.timers().len(), 1);

    let slept = trip.when(HotelBooked::of("1")).await.unwrap();
    assert!(slept.published.is_empty());
    assert_eq!(slept.cancelled, ["answer"]);
    assert_eq!(trip.status(), Some(Status::Completed));
    assert!(trip.state().unwrap().flight && trip.state().unwrap().hotel);
    assert!(trip.elapse(Duration::from_secs(3_600)).await.unwrap().is_empty());
}

#[tokio::test]
async fn compensations_are_published_newest_first() {
    let mut trip = saga().given_nothing();
    trip.when(Requested::of("1")).await.unwrap();
    trip.when(FlightBooked::of("1")).await.unwrap();
    let failed = trip.when(HotelRefused::of("1")).await.unwrap();
    assert_eq!(failed.types(), ["hotel.cancel", "flight.cancel"]);
    assert_eq!(failed.cancelled, ["answer"]);
    assert_eq!(failed.note.as_deref(), Some("failed: no room"));
    assert_eq!(trip.status(), Some(Status::Compensating));

    // What is booked after that is undone at once.
    let late = trip.when(poke("1", "compensate")).await.unwrap();
    assert_eq!(late.types(), ["hotel.cancel"]);
    assert_eq!(trip.status(), Some(Status::Compensating));

    trip.when(HotelCancelled::of("1")).await.unwrap();
    let undone = trip.when(FlightCancelled::of("1")).await.unwrap();
    assert!(undone.published.is_empty());
    assert_eq!(trip.status(), Some(Status::Failed));
    assert_eq!(trip.state().unwrap().cancelled, ["hotel", "flight"]);
}

#[tokio::test]
async fn time_stands_still_until_the_test_moves_it() {
    let mut trip = saga().given_nothing();
    trip.when(Requested::of("1")).await.unwrap();
    assert!(trip.elapse(ANSWER - Duration::from_nanos(1)).await.unwrap().is_empty());
    let fired = trip.elapse(Duration::from_nanos(1)).await.unwrap();
    assert_eq!(fired.len(), 1);
    assert_eq!(fired[0].types(), ["flight.cancel"]);
    assert_eq!(trip.status(), Some(Status::Compensating));
    assert!(trip.timers().is_empty());
}

#[tokio::test]
async fn a_given_state_is_an_instance_that_runs() {
    let mut trip = saga().given(Trip { flight: true, ..Trip::default() }).in_step("hotel");
    let ended = trip.when(HotelBooked::of("9")).await.unwrap();
    assert_eq!(ended.ignored, None);
    assert_eq!(trip.status(), Some(Status::Completed));
    let error = trip.when(HotelBooked::of("another")).await.unwrap_err();
    assert!(error.to_string().contains("no instance \"another\""), "{error}");
}

#[tokio::test]
async fn events_that_come_twice_too_early_or_too_late_change_nothing() {
    let mut trip = saga().given_nothing();
    let early = trip.when(FlightBooked::of("1")).await.unwrap_err();
    assert_eq!(early.fault(), Fault::Transient);
    let first = Requested::of("1").into_event().unwrap();
    trip.when(&first).await.unwrap();
    let again = trip.when(&first).await.unwrap();
    assert_eq!(again.ignored, Some("ignored: this event had been handled before"));
    let second = trip.when(Requested::of("1")).await.unwrap();
    assert_eq!(second.ignored, Some("ignored: the instance had been started before"));
    trip.when(FlightBooked::of("1")).await.unwrap();
    trip.when(HotelBooked::of("1")).await.unwrap();
    let late = trip.when(HotelRefused::of("1")).await.unwrap();
    assert_eq!(late.ignored, Some("ignored: the instance had ended"));
    assert!(late.published.is_empty());
}

#[tokio::test]
async fn a_step_that_fails_changes_nothing() {
    let mut trip = saga().given_nothing();
    trip.when(Requested::of("1")).await.unwrap();
    for wish in ["write", "timer beyond the calendar", "timer at the end of days"] {
        let error = trip.when(poke("1", wish)).await.unwrap_err();
        assert!(!error.to_string().is_empty());
    }
    assert_eq!(trip.state().unwrap().pokes, 0);
    assert_eq!(trip.timers().len(), 1);
    let error = trip.when(poke("1", "write")).await.unwrap_err();
    assert!(error.to_string().contains("without a database"), "{error}");
}

#[tokio::test]
async fn published_events_name_what_caused_them() {
    let mut trip = saga().given_nothing();
    let requested = Requested::of("1").into_event().unwrap();
    let started = trip.when(&requested).await.unwrap();
    assert_eq!(started.published[0].causation_id(), Some(requested.id().as_str()));
    assert_eq!(started.timers[0].event.causation_id(), Some(requested.id().as_str()));
}
