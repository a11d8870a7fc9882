//! Trips: a flight, then a hotel; and a place to handle their events in, without a stream.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use pillarbox_event::{Event, EventId, IntoEvent, RawEvent};
use pillarbox_inbox::{Delivery, HandlerError, InboxError, InboxLayer, Outcome, Router};
use pillarbox_saga::{Saga, Status, Step};
use pillarbox_testkit::{Scope, servers};
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, PgPool, Row};
use tower::{Layer, ServiceExt};

macro_rules! events {
    ($($name:ident $type:literal $topic:literal)*) => { $(
        #[derive(Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[event(type = $type, topic = $topic, key = trip)]
        pub struct $name { pub trip: String }

        #[allow(dead_code, reason = "some are only received or only published")]
        impl $name {
            pub fn of(trip: &str) -> Self { Self { trip: trip.to_owned() } }
        }
    )* };
}

events! {
    Requested "trip.requested" "trips.requested"
    BookFlight "flight.book" "flights.book"
    FlightBooked "flight.booked" "flights.booked"
    CancelFlight "flight.cancel" "flights.cancel"
    FlightCancelled "flight.cancelled" "flights.cancelled"
    BookHotel "hotel.book" "hotels.book"
    HotelBooked "hotel.booked" "hotels.booked"
    HotelRefused "hotel.refused" "hotels.refused"
    CancelHotel "hotel.cancel" "hotels.cancel"
    HotelCancelled "hotel.cancelled" "hotels.cancelled"
    Unanswered "trip.unanswered" "trips.unanswered"
}

/// Makes the saga do something out of the way.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(type = "trip.poked", topic = "trips.poked", key = trip)]
pub struct Poked {
    pub trip: Option<String>,
    pub to: String,
}

pub fn poke(trip: &str, to: &str) -> Poked {
    Poked { trip: Some(trip.to_owned()), to: to.to_owned() }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trip {
    pub flight: bool,
    pub hotel: bool,
    pub cancelled: Vec<String>,
    #[serde(default)]
    pub pokes: i64,
}

pub const ANSWER: Duration = Duration::from_secs(60);

impl Trip {
    async fn requested(
        &mut self,
        step: &mut Step<'_>,
        Requested { trip }: Requested,
    ) -> Result<(), HandlerError> {
        step.publish(BookFlight { trip: trip.clone() })?;
        step.compensate(CancelFlight { trip: trip.clone() })?;
        step.timer("answer", ANSWER, Unanswered { trip })?;
        step.enter("flight");
        Ok(())
    }

    async fn flight_booked(
        &mut self,
        step: &mut Step<'_>,
        FlightBooked { trip }: FlightBooked,
    ) -> Result<(), HandlerError> {
        self.flight = true;
        if step.status() == Status::Running {
            step.publish(BookHotel { trip: trip.clone() })?;
            step.compensate(CancelHotel { trip: trip.clone() })?;
            step.timer("answer", ANSWER, Unanswered { trip })?;
            step.enter("hotel");
        }
        Ok(())
    }

    async fn hotel_booked(
        &mut self,
        step: &mut Step<'_>,
        _: HotelBooked,
    ) -> Result<(), HandlerError> {
        self.hotel = true;
        step.complete();
        Ok(())
    }

    async fn hotel_refused(
        &mut self,
        step: &mut Step<'_>,
        _: HotelRefused,
    ) -> Result<(), HandlerError> {
        step.fail("no room");
        Ok(())
    }

    async fn unanswered(&mut self, step: &mut Step<'_>, _: Unanswered) -> Result<(), HandlerError> {
        step.fail("no answer");
        Ok(())
    }

    async fn flight_cancelled(
        &mut self,
        step: &mut Step<'_>,
        _: FlightCancelled,
    ) -> Result<(), HandlerError> {
        // It is the last: the newest is undone first.
        self.cancelled.push("flight".into());
        step.complete();
        Ok(())
    }

    async fn hotel_cancelled(
        &mut self,
        _: &mut Step<'_>,
        _: HotelCancelled,
    ) -> Result<(), HandlerError> {
        self.cancelled.push("hotel".into());
        Ok(())
    }

    async fn poked(&mut self, step: &mut Step<'_>, poked: Poked) -> Result<(), HandlerError> {
        self.pokes += 1;
        let unanswered = || Unanswered::of("ignored, its instance is in its headers");
        match &*poked.to {
            "write" => {
                let id = step.id().to_owned();
                let query = sqlx::query("insert into effects values ($1)").bind(id);
                query.execute(&mut **step.tx()?).await?;
            }
            "fail after writing" => {
                step.publish(BookFlight::of("never"))?;
                step.timer("never", ANSWER, unanswered())?;
                let query = sqlx::query("insert into effects values ('never')");
                query.execute(&mut **step.tx()?).await?;
                return Err("it fails".into());
            }
            "timer in the past" => {
                step.timer_at("past", SystemTime::UNIX_EPOCH, unanswered())?;
            }
            "timer before 1970" => {
                let long_ago = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
                step.timer_at("past", long_ago, unanswered())?;
            }
            "timer beyond the calendar" => step.timer("beyond", Duration::MAX, unanswered())?,
            "timer at the end of days" => {
                let end = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_800);
                step.timer_at("beyond", end, unanswered())?;
            }
            "complete and set a timer" => {
                step.complete();
                step.timer("late", ANSWER, unanswered())?;
            }
            "set a timer and complete" => {
                step.timer("late", ANSWER, unanswered())?;
                step.complete();
            }
            "fail and complete" => {
                step.complete();
                step.fail("both");
            }
            "compensate" => {
                step.compensate(CancelHotel::of(&poked.trip.unwrap_or_default()))?;
            }
            "cancel the timer" => {
                step.cancel("answer");
            }
            "nul" => self.cancelled.push("\0".into()),
            _ => {}
        }
        Ok(())
    }
}

pub fn saga() -> Saga<Trip> {
    Saga::new("trip")
        .starts(Trip::requested)
        .on(Trip::flight_booked)
        .on(Trip::hotel_booked)
        .on(Trip::hotel_refused)
        .on(Trip::unanswered)
        .on(Trip::flight_cancelled)
        .on(Trip::hotel_cancelled)
        .on(Trip::poked)
}

/// Hands an event to a saga of a service with this pool.
pub async fn give(
    pool: &PgPool,
    saga: Saga<Trip>,
    event: impl IntoEvent,
) -> Result<Outcome, InboxError> {
    let layer = InboxLayer::new(pool.clone(), "trips").unwrap();
    let service = layer.layer(Router::new().with(saga));
    service.oneshot(Delivery::from(event.into_event().unwrap())).await
}

/// A database whose events the test hands over itself.
pub struct Office {
    pub scope: Scope,
}

impl Office {
    pub async fn open() -> Self {
        let scope = servers().await.unwrap().scope().await.unwrap();
        pillarbox_inbox::migrate(scope.pool()).await.unwrap();
        pillarbox_outbox::migrate(scope.pool()).await.unwrap();
        sqlx::raw_sql("create table effects (id text)").execute(scope.pool()).await.unwrap();
        Self { scope }
    }

    pub fn pool(&self) -> &PgPool {
        self.scope.pool()
    }

    /// Hands an event to a saga.
    pub async fn give(
        &self,
        saga: Saga<Trip>,
        event: impl IntoEvent,
    ) -> Result<Outcome, InboxError> {
        give(self.pool(), saga, event).await
    }

    /// Hands an event to the saga of trips, which handles it.
    pub async fn when(&self, event: impl IntoEvent) {
        assert_eq!(self.give(saga(), event).await.unwrap(), Outcome::Handled);
    }

    /// The error of an event, with all that caused it.
    pub async fn refused(&self, event: impl IntoEvent) -> (InboxError, String) {
        let error = self.give(saga(), event).await.unwrap_err();
        let text = pillarbox_store::full_text(&error);
        (error, text)
    }

    pub async fn text(&self, sql: &str) -> String {
        let row = sqlx::query(AssertSqlSafe(sql.to_owned())).fetch_one(self.pool()).await.unwrap();
        row.get::<Option<String>, _>(0).unwrap_or_default()
    }

    pub async fn run(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(self.pool()).await.unwrap();
    }

    /// The status and the step of an instance.
    pub async fn stands(&self, trip: &str) -> String {
        let sql =
            "select status || ' ' || step from pillarbox.saga where saga = 'trip' and id = $1";
        let found = sqlx::query_scalar(sql).bind(trip).fetch_optional(self.pool()).await.unwrap();
        found.unwrap_or_else(|| "not there".to_owned())
    }

    /// The types of the events in the outbox, in their order.
    pub async fn published(&self) -> Vec<String> {
        let sql = "select event_type from pillarbox.outbox order by position";
        sqlx::query_scalar(sql).fetch_all(self.pool()).await.unwrap()
    }

    /// The events that are scheduled.
    pub async fn scheduled(&self) -> Vec<RawEvent> {
        let sql = "select event_id::text, event_type, topic, key, headers::text, payload \
                   from pillarbox.outbox_scheduled order by due_at";
        let rows = sqlx::query(sql).fetch_all(self.pool()).await.unwrap();
        let event = |row: &sqlx::postgres::PgRow| {
            let headers: BTreeMap<String, String> = serde_json::from_str(row.get(4)).unwrap();
            let id = EventId::parse(row.get::<String, _>(0)).unwrap();
            let payload: Vec<u8> = row.get(5);
            let (event_type, topic, key) = (row.get(1), row.get(2), row.get(3));
            RawEvent::from_parts(id, event_type, topic, key, headers, payload.into()).unwrap()
        };
        rows.iter().map(event).collect()
    }

    /// The notes in the history of an instance.
    pub async fn notes(&self, trip: &str) -> Vec<String> {
        let sql =
            "select coalesce(note, '-') from pillarbox.saga_history where id = $1 order by seq";
        sqlx::query_scalar(sql).bind(trip).fetch_all(self.pool()).await.unwrap()
    }
}
