//! The order, and the tables, which are the same before and after.

use pillarbox::event::Event;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;

pub const TABLES: &str = "
    create table orders (
        id       bigint generated always as identity primary key,
        customer bigint not null,
        cents    bigint not null
    );
    create table mails (customer bigint not null)";

/// The body of `POST /orders`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NewOrder {
    pub customer: i64,
    pub cents: i64,
}

/// Its answer.
#[derive(Debug, Serialize, Deserialize)]
pub struct Placed {
    pub order: i64,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(type = "order.placed", topic = "orders.placed", key = customer)]
pub struct OrderPlaced {
    pub order: i64,
    pub customer: i64,
}

/// The result at the end, counted in customers.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Books {
    pub customers: i64,
    pub ordered_once: i64,
    pub ordered_again: i64,
    pub mailed_once: i64,
    pub mailed_again: i64,
    /// Customers who were told an order number that is not theirs.
    pub misinformed: i64,
}

pub async fn audit(pool: &PgPool, customers: i64, told: &[(i64, i64)]) -> anyhow::Result<Books> {
    let (ordered_once, ordered_again) = counts(pool, "orders").await?;
    let (mailed_once, mailed_again) = counts(pool, "mails").await?;
    let orders: Vec<(i64, i64)> =
        sqlx::query_as("select customer, id from orders").fetch_all(pool).await?;
    let misinformed = told.iter().filter(|told| !orders.contains(told)).count().try_into()?;
    Ok(Books { customers, ordered_once, ordered_again, mailed_once, mailed_again, misinformed })
}

/// How many customers are in a table exactly once, and how many more often.
pub async fn counts(pool: &PgPool, table: &'static str) -> anyhow::Result<(i64, i64)> {
    let sql = format!(
        "select count(*) filter (where n = 1), count(*) filter (where n > 1) \
         from (select count(*) as n from {table} group by customer) as each"
    );
    Ok(sqlx::query_as(sqlx::AssertSqlSafe(sql)).fetch_one(pool).await?)
}
