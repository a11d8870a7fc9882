//! The records of the five services, side by side.

use std::collections::BTreeMap;

#[derive(Clone, Debug, Default)]
pub struct Books {
    /// How many orders were placed.
    pub placed: i64,
    // orders
    pub orders: Vec<Order>,
    // payments
    pub charges: Vec<Money>,
    pub refunds: Vec<Money>,
    // inventory
    pub stock: Vec<Stock>,
    pub reservations: Vec<Reservation>,
    pub shortages: Vec<i64>,
    // notifications
    pub mails: Vec<Mail>,
    // analytics
    pub counted: BTreeMap<String, i64>,
    /// Events that were delivered again, counted once for each service that receives them.
    pub redelivered: Vec<Redelivered>,
    /// Events that a service gave up, or has not handled yet.
    pub left_over: Vec<String>,
    pub traffic: Vec<Traffic>,
}

#[derive(Clone, Debug)]
pub struct Order {
    pub id: i64,
    pub sku: String,
    pub quantity: i64,
    pub cents: i64,
    pub outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Open,
    Completed,
    PaymentRefused,
    OutOfStock,
}

#[derive(Clone, Debug)]
pub struct Money {
    pub order: i64,
    pub cents: i64,
}

#[derive(Clone, Debug)]
pub struct Stock {
    pub sku: String,
    pub delivered: i64,
    pub remaining: i64,
}

#[derive(Clone, Debug)]
pub struct Reservation {
    pub order: i64,
    pub sku: String,
    pub quantity: i64,
}

#[derive(Clone, Debug)]
pub struct Mail {
    pub order: i64,
    pub subject: String,
}

#[derive(Clone, Debug)]
pub struct Redelivered {
    pub service: &'static str,
    pub event_id: String,
    /// The inbox row exists, and is older than the redelivery.
    pub skipped: bool,
}

/// What went through a service.
#[derive(Clone, Debug)]
pub struct Traffic {
    pub service: &'static str,
    /// Rows of its inbox.
    pub heard: i64,
    /// Rows of its outbox, if it has one.
    pub said: Option<i64>,
}
