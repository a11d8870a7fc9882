//! The events that the services exchange.
//!
//! The type says what happened. The topic is the NATS subject, and its first word is the service that publishes. The
//! key is the order, so that all events of an order are delivered in order.

use std::borrow::Cow;

use pillarbox::event::Event;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OrderPlaced {
    pub order: i64,
    pub customer: String,
    pub sku: String,
    pub quantity: i64,
    pub cents: i64,
}

impl Event for OrderPlaced {
    const TYPE: &'static str = "order.placed";
    fn topic(&self) -> Cow<'_, str> {
        "orders.placed".into()
    }
    fn key(&self) -> Option<Cow<'_, str>> {
        Some(self.order.to_string().into())
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub struct PaymentTaken {
    pub order: i64,
    pub sku: String,
    pub quantity: i64,
}

impl Event for PaymentTaken {
    const TYPE: &'static str = "payment.taken";
    fn topic(&self) -> Cow<'_, str> {
        "payments.taken".into()
    }
    fn key(&self) -> Option<Cow<'_, str>> {
        Some(self.order.to_string().into())
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub struct PaymentRefused {
    pub order: i64,
}

impl Event for PaymentRefused {
    const TYPE: &'static str = "payment.refused";
    fn topic(&self) -> Cow<'_, str> {
        "payments.refused".into()
    }
    fn key(&self) -> Option<Cow<'_, str>> {
        Some(self.order.to_string().into())
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub struct PaymentRefunded {
    pub order: i64,
}

impl Event for PaymentRefunded {
    const TYPE: &'static str = "payment.refunded";
    fn topic(&self) -> Cow<'_, str> {
        "payments.refunded".into()
    }
    fn key(&self) -> Option<Cow<'_, str>> {
        Some(self.order.to_string().into())
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub struct StockReserved {
    pub order: i64,
}

impl Event for StockReserved {
    const TYPE: &'static str = "stock.reserved";
    fn topic(&self) -> Cow<'_, str> {
        "inventory.reserved".into()
    }
    fn key(&self) -> Option<Cow<'_, str>> {
        Some(self.order.to_string().into())
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub struct StockOut {
    pub order: i64,
}

impl Event for StockOut {
    const TYPE: &'static str = "stock.out";
    fn topic(&self) -> Cow<'_, str> {
        "inventory.out".into()
    }
    fn key(&self) -> Option<Cow<'_, str>> {
        Some(self.order.to_string().into())
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub struct OrderCompleted {
    pub order: i64,
    pub customer: String,
}

impl Event for OrderCompleted {
    const TYPE: &'static str = "order.completed";
    fn topic(&self) -> Cow<'_, str> {
        "orders.completed".into()
    }
    fn key(&self) -> Option<Cow<'_, str>> {
        Some(self.order.to_string().into())
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub struct OrderFailed {
    pub order: i64,
    pub customer: String,
    pub reason: String,
}

impl Event for OrderFailed {
    const TYPE: &'static str = "order.failed";
    fn topic(&self) -> Cow<'_, str> {
        "orders.failed".into()
    }
    fn key(&self) -> Option<Cow<'_, str>> {
        Some(self.order.to_string().into())
    }
}
