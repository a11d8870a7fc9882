//! Reads the books of all five databases, with plain SQL.

use pillarbox::inbox::DeadLetters;

use crate::books::{Books, Mail, Money, Order, Outcome, Redelivered, Reservation, Stock, Traffic};
use crate::redelivery::Redelivery;
use crate::service::Service;
use crate::shop::Shop;

pub async fn read(shop: &Shop, placed: i64, redelivery: &Redelivery) -> anyhow::Result<Books> {
    let mut books = Books { placed, ..Books::default() };
    orders(shop, &mut books).await?;
    payments(shop, &mut books).await?;
    inventory(shop, &mut books).await?;
    notifications(shop, &mut books).await?;
    analytics(shop, &mut books).await?;
    for service in Service::ALL {
        inbox(shop, service, redelivery, &mut books).await?;
    }
    Ok(books)
}

async fn orders(shop: &Shop, books: &mut Books) -> sqlx::Result<()> {
    let rows: Vec<(i64, String, i64, i64, String, Option<String>)> =
        sqlx::query_as("select id, sku, quantity, cents, state, reason from orders order by id")
            .fetch_all(shop.pool(Service::Orders))
            .await?;
    for (id, sku, quantity, cents, state, reason) in rows {
        let outcome = match (state.as_str(), reason.as_deref()) {
            ("completed", None) => Outcome::Completed,
            ("failed", Some("payment refused")) => Outcome::PaymentRefused,
            ("failed", Some("out of stock")) => Outcome::OutOfStock,
            _ => Outcome::Open,
        };
        books.orders.push(Order { id, sku, quantity, cents, outcome });
    }
    Ok(())
}

async fn payments(shop: &Shop, books: &mut Books) -> sqlx::Result<()> {
    let rows: Vec<(i64, String, i64)> =
        sqlx::query_as("select order_id, kind, cents from ledger order by order_id")
            .fetch_all(shop.pool(Service::Payments))
            .await?;
    for (order, kind, cents) in rows {
        let page = if kind == "charge" { &mut books.charges } else { &mut books.refunds };
        page.push(Money { order, cents });
    }
    Ok(())
}

async fn inventory(shop: &Shop, books: &mut Books) -> sqlx::Result<()> {
    let pool = shop.pool(Service::Inventory);
    let rows: Vec<(String, i64, i64)> =
        sqlx::query_as("select sku, delivered, remaining from stock order by sku")
            .fetch_all(pool)
            .await?;
    for (sku, delivered, remaining) in rows {
        books.stock.push(Stock { sku, delivered, remaining });
    }
    let rows: Vec<(i64, String, i64)> =
        sqlx::query_as("select order_id, sku, quantity from reservation order by order_id")
            .fetch_all(pool)
            .await?;
    for (order, sku, quantity) in rows {
        books.reservations.push(Reservation { order, sku, quantity });
    }
    books.shortages = sqlx::query_scalar("select order_id from shortage order by order_id")
        .fetch_all(pool)
        .await?;
    Ok(())
}

async fn notifications(shop: &Shop, books: &mut Books) -> sqlx::Result<()> {
    let rows: Vec<(i64, String)> =
        sqlx::query_as("select order_id, subject from mailbox order by order_id")
            .fetch_all(shop.pool(Service::Notifications))
            .await?;
    books.mails = rows.into_iter().map(|(order, subject)| Mail { order, subject }).collect();
    Ok(())
}

async fn analytics(shop: &Shop, books: &mut Books) -> sqlx::Result<()> {
    let rows: Vec<(String, i64)> = sqlx::query_as("select event_type, events from counter")
        .fetch_all(shop.pool(Service::Analytics))
        .await?;
    books.counted = rows.into_iter().collect();
    Ok(())
}

/// The tables that every service has: the inbox, its dead letters, and the outbox, if there is one.
async fn inbox(
    shop: &Shop,
    service: Service,
    redelivery: &Redelivery,
    books: &mut Books,
) -> anyhow::Result<()> {
    let pool = shop.pool(service);
    let heard = sqlx::query_scalar("select count(*) from pillarbox.inbox").fetch_one(pool).await?;
    let said = if service.speaks() {
        Some(sqlx::query_scalar("select count(*) from pillarbox.outbox").fetch_one(pool).await?)
    } else {
        None
    };
    books.traffic.push(Traffic { service: service.name(), heard, said });

    let again: Vec<&str> = redelivery
        .events
        .iter()
        .filter(|event| service.hears(&event.subject))
        .map(|event| event.event_id.as_str())
        .collect();
    let skipped: Vec<String> = sqlx::query_scalar(
        "select event_id from pillarbox.inbox \
         where consumer = $1 and event_id = any($2) and processed_at < nullif($3, '')::timestamptz",
    )
    .bind(service.name())
    .bind(&again)
    .bind(&redelivery.at)
    .fetch_all(pool)
    .await?;
    for event_id in again {
        books.redelivered.push(Redelivered {
            service: service.name(),
            event_id: event_id.to_owned(),
            skipped: skipped.iter().any(|id| id == event_id),
        });
    }

    let letters = DeadLetters::new(pool.clone(), service.name())?;
    for letter in letters.list(1_000).await? {
        let (id, error) = (&letter.event_id, &letter.error);
        books.left_over.push(format!("{service} gave up on {id} of {}: {error}", letter.topic));
    }
    let tried: Vec<String> = sqlx::query_scalar(
        "select format('is still trying %s: %s', event_id, last_error) from pillarbox.inbox_failure",
    )
    .fetch_all(pool)
    .await?;
    books.left_over.extend(tried.iter().map(|text| format!("{service} {text}")));
    if service.speaks() {
        let unshipped: Vec<String> = sqlx::query_scalar(
            "select format('could not ship %s %s: %s', event_type, event_id, error) \
             from pillarbox.outbox_dead_letter",
        )
        .fetch_all(pool)
        .await?;
        books
            .left_over
            .extend(unshipped.iter().map(|text| format!("the relay of {service} {text}")));
    }
    Ok(())
}
