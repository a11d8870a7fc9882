//! The events that the services exchange.
//!
//! The type says what happened. The topic is the NATS subject, and its first word is the service that publishes. The
//! key is the order, so that all events of an order are delivered in order.

use pillarbox::event::Event;
use serde::{Deserialize, Serialize};

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(type = "order.placed", topic = "orders.placed", key = order)]
pub struct OrderPlaced {
    pub order: i64,
    pub customer: String,
    pub sku: String,
    pub quantity: i64,
    pub cents: i64,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(type = "payment.taken", topic = "payments.taken", key = order)]
pub struct PaymentTaken {
    pub order: i64,
    pub sku: String,
    pub quantity: i64,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(type = "payment.refused", topic = "payments.refused", key = order)]
pub struct PaymentRefused {
    pub order: i64,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(type = "payment.refunded", topic = "payments.refunded", key = order)]
pub struct PaymentRefunded {
    pub order: i64,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(type = "stock.reserved", topic = "inventory.reserved", key = order)]
pub struct StockReserved {
    pub order: i64,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(type = "stock.out", topic = "inventory.out", key = order)]
pub struct StockOut {
    pub order: i64,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(type = "order.completed", topic = "orders.completed", key = order)]
pub struct OrderCompleted {
    pub order: i64,
    pub customer: String,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(type = "order.failed", topic = "orders.failed", key = order)]
pub struct OrderFailed {
    pub order: i64,
    pub customer: String,
    pub reason: String,
}
