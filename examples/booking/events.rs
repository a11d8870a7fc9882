//! The events: commands to the providers, and their answers. The key is the trip throughout.

use pillarbox::event::Event;
use serde::{Deserialize, Serialize};

/// The providers, in the order in which they are asked.
pub const PROVIDERS: [&str; 4] = ["flight", "hotel", "car", "payment"];

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(type = "trip.requested", topic = "trips.requested", key = trip)]
pub struct TripRequested {
    pub trip: i64,
    pub cents: i64,
}

/// A timer of the saga: this provider has not answered in time.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(type = "trip.unanswered", topic = "trips.unanswered", key = trip)]
pub struct Unanswered {
    pub trip: i64,
    pub provider: String,
}

macro_rules! of_providers {
    ($($name:ident $type:literal $topic:literal { $($field:ident: $kind:ty)? })*) => { $(
        #[derive(Event, Clone, Debug, Serialize, Deserialize)]
        #[event(type = $type, topic = $topic, key = trip)]
        pub struct $name {
            pub trip: i64,
            pub provider: String,
            $(pub $field: $kind,)?
        }
    )* };
}

of_providers! {
    Book "provider.book" "commands.{provider}.book" { cents: i64 }
    Cancel "provider.cancel" "commands.{provider}.cancel" {}
    Booked "provider.booked" "answers.{provider}.booked" {}
    Refused "provider.refused" "answers.{provider}.refused" {}
    Cancelled "provider.cancelled" "answers.{provider}.cancelled" {}
}
