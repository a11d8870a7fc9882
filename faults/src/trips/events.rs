//! The events of trips. The key is the trip throughout.

use pillarbox_event::Event;
use serde::{Deserialize, Serialize};

/// The services, in the order in which they are asked.
pub const SERVICES: [&str; 3] = ["flight", "hotel", "payment"];

/// A trip is asked for.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(type = "trip.requested", topic = "faults.trip.requested", key = trip)]
pub struct Requested {
    /// The trip.
    pub trip: String,
}

/// A timer of the saga: this service has not answered in time.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(type = "trip.unanswered", topic = "faults.trip.unanswered", key = trip)]
pub struct Unanswered {
    /// The trip.
    pub trip: String,
    /// The service.
    pub service: String,
}

macro_rules! of_services {
    ($($doc:literal $name:ident $type:literal $topic:literal;)*) => { $(
        #[doc = $doc]
        #[derive(Event, Clone, Debug, Serialize, Deserialize)]
        #[event(type = $type, topic = $topic, key = trip)]
        pub struct $name {
            /// The trip.
            pub trip: String,
            /// The service.
            pub service: String,
        }
    )* };
}

of_services! {
    "A service must book its part." Book "service.book" "faults.ask.{service}.book";
    "A service must undo what it has booked, if it has." Cancel "service.cancel" "faults.ask.{service}.cancel";
    "A service has booked its part." Booked "service.booked" "faults.answer.{service}.booked";
    "A service has not booked its part." Refused "service.refused" "faults.answer.{service}.refused";
    "A service has undone what it had booked." Cancelled "service.cancelled" "faults.answer.{service}.cancelled";
}
