//! The events of this service. Their types, topics and fields are a contract with other services.

use pillarbox::Event;
use serde::{Deserialize, Serialize};

/// An order was placed.
#[derive(Event, Debug, Serialize, Deserialize)]
#[event(type = "order.placed", topic = "orders.placed", key = order)]
pub struct OrderPlaced {
    pub order: i64,
    pub cents: i64,
}

/// The customer was told.
#[derive(Event, Debug, Serialize, Deserialize)]
#[event(type = "order.confirmed", topic = "orders.confirmed", key = order)]
pub struct OrderConfirmed {
    pub order: i64,
}
