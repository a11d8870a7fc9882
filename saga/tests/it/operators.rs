//! What operators see and do.

use pillarbox_outbox::Outbox;
use pillarbox_saga::Status;
use pillarbox_saga::operate::{End, Instances, OperateError, Which};
use pillarbox_store::Operator;

use crate::trips::*;

fn mia(note: &str) -> Operator {
    Operator::new("mia", Some(note))
}

async fn end(office: &Office, trip: &str, end: End) -> Result<Status, OperateError> {
    let mut connection = office.pool().acquire().await.unwrap();
    Instances::new(Outbox::new()).end(&mut connection, "trip", trip, end, &mia("ticket 7")).await
}

#[tokio::test]
async fn a_cancelled_instance_compensates_and_then_gets_its_answers() {
    let office = Office::open().await;
    office.when(Requested::of("1")).await;
    office.when(FlightBooked::of("1")).await;
    assert_eq!(end(&office, "1", End::Cancel).await.unwrap(), Status::Compensating);
    assert_eq!(office.published().await[2..], ["hotel.cancel", "flight.cancel"]);
    assert_eq!(office.scheduled().await.len(), 0);
    let note = office.notes("1").await.pop().unwrap();
    assert!(note.starts_with("failed: cancelled by ") && note.ends_with(": ticket 7"), "{note}");
    let action =
        "select event_type || event_id from pillarbox.saga_history order by seq desc limit 1";
    assert_eq!(office.text(action).await, "operator.cancel");

    let again = end(&office, "1", End::Cancel).await.unwrap_err();
    assert!(again.to_string().contains("complete it"), "{again}");
    office.when(FlightCancelled::of("1")).await;
    assert_eq!(office.stands("1").await, "failed hotel");
    let ended = end(&office, "1", End::Complete).await.unwrap_err();
    assert!(matches!(ended, OperateError::Ended { status: Status::Failed, .. }), "{ended}");
}

#[tokio::test]
async fn an_instance_can_be_ended_without_compensation_or_completed() {
    let office = Office::open().await;
    for trip in ["1", "2", "3"] {
        office.when(Requested::of(trip)).await;
    }
    let published = office.published().await;
    let status = end(&office, "1", End::CancelWithoutCompensation).await.unwrap();
    assert_eq!(status, Status::Failed);
    assert_eq!(end(&office, "2", End::Complete).await.unwrap(), Status::Completed);
    assert_eq!(office.published().await, published);
    assert_eq!(office.scheduled().await.len(), 1, "only that of the third");
    end(&office, "3", End::Cancel).await.unwrap();
    assert_eq!(end(&office, "3", End::Complete).await.unwrap(), Status::Failed);
    let missing = end(&office, "4", End::Complete).await.unwrap_err();
    assert!(matches!(missing, OperateError::NotThere { .. }), "{missing}");
}

#[tokio::test]
async fn what_is_open_overdue_or_failed_is_listed() {
    let office = Office::open().await;
    for trip in ["1", "2", "3"] {
        office.when(Requested::of(trip)).await;
    }
    office.when(HotelBooked::of("2")).await;
    office
        .run("update pillarbox.saga set deadline_at = clock_timestamp() - interval '5 s' where id > '1'")
        .await;
    let instances = Instances::new(Outbox::new());
    let mut connection = office.pool().acquire().await.unwrap();
    let mut ids = async |which: Which| {
        let found = instances.list(&mut connection, &which, 10).await.unwrap();
        found.iter().map(|found| found.id.clone()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(ids(Which::default()).await, "1 3");
    assert_eq!(ids(Which { overdue: true, ..Which::default() }).await, "3");
    let completed = Which { status: Some(Status::Completed), ..Which::default() };
    assert_eq!(ids(completed).await, "2");
    assert_eq!(ids(Which { step: Some("hotel".into()), ..Which::default() }).await, "");
    assert_eq!(ids(Which { saga: Some("other".into()), ..Which::default() }).await, "");
    assert_eq!(ids(Which { id: Some("2".into()), ..Which::default() }).await, "2");

    let which = Which { id: Some("3".into()), ..Which::default() };
    let listed = instances.list(&mut connection, &which, 1).await.unwrap().remove(0);
    assert_eq!((&*listed.step, &*listed.status, listed.version), ("flight", "running", 1));
    assert_eq!(
        (&*listed.timers[0].name, &*listed.compensations),
        ("answer", &["flight.cancel".to_owned()][..])
    );
    assert!((4.0..60.0).contains(&listed.overdue_seconds.unwrap()), "{listed:?}");
    let history = instances.history(&mut connection, "trip", "3").await.unwrap();
    assert_eq!((history.len(), &*history[0].event_type), (1, "trip.requested"));
    let state = instances.state(&mut connection, "trip", "3").await.unwrap().unwrap();
    assert!(state.contains("\"flight\": false"), "{state}");
}

#[tokio::test]
async fn each_role_has_the_rights_that_its_grants_say_and_no_more() {
    use pillarbox_store::grants::{self, Roles, Tables};
    let office = Office::open().await;
    let prefix = office.scope.prefix();
    let roles = Roles::with_prefix(prefix).unwrap();
    office.run(&grants::sql("pillarbox", &roles, &[Tables::Outbox, Tables::Inbox])).await;
    office.run(&format!("grant insert on effects to {prefix}_consumer; grant {prefix}_writer to {prefix}_consumer")).await;

    // The consumer runs the saga.
    let as_role = |role: &str| {
        let options: sqlx::postgres::PgConnectOptions =
            office.scope.database_url().parse().unwrap();
        let options = options.options([("role", format!("{prefix}_{role}"))]);
        sqlx::postgres::PgPoolOptions::new().max_connections(2).connect_lazy_with(options)
    };
    let consumer = as_role("consumer");
    for event in [
        pillarbox_event::IntoEvent::into_event(Requested::of("1")).unwrap(),
        pillarbox_event::IntoEvent::into_event(FlightBooked::of("1")).unwrap(),
        pillarbox_event::IntoEvent::into_event(poke("1", "write")).unwrap(),
        pillarbox_event::IntoEvent::into_event(Requested::of("1")).unwrap(),
        pillarbox_event::IntoEvent::into_event(Requested::of("2")).unwrap(),
        pillarbox_event::IntoEvent::into_event(HotelBooked::of("2")).unwrap(),
    ] {
        give(&consumer, saga(), event).await.unwrap();
    }

    // The operator lists and completes, sees no state, and publishes nothing.
    let operator = as_role("operator");
    let mut operator = operator.acquire().await.unwrap();
    let instances = Instances::new(Outbox::new());
    assert_eq!(instances.list(&mut operator, &Which::default(), 9).await.unwrap().len(), 1);
    assert_eq!(instances.history(&mut operator, "trip", "1").await.unwrap().len(), 4);
    assert!(instances.state(&mut operator, "trip", "1").await.is_err());
    let error =
        instances.end(&mut operator, "trip", "1", End::Cancel, &mia("x")).await.unwrap_err();
    assert!(pillarbox_store::full_text(&error).contains("permission denied"), "{error}");
    let done = instances.end(&mut operator, "trip", "1", End::Complete, &mia("x")).await.unwrap();
    assert_eq!(done, Status::Completed);
}
