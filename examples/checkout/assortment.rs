//! What the shop sells, and what its customers order.

use crate::events::OrderPlaced;

const PRODUCTS: i64 = 20;

/// Every product, and its stock for this many orders. The stock is not quite enough for all of them.
pub fn stock(orders: i64) -> impl Iterator<Item = (String, i64)> {
    (1..=PRODUCTS).map(move |product| (sku(product), (orders / 11).max(1)))
}

/// The n-th order: one to three pieces of a product. The most expensive orders exceed the card's limit.
pub fn order(number: i64) -> OrderPlaced {
    let product = number * 7 % PRODUCTS + 1;
    let quantity = number % 3 + 1;
    OrderPlaced {
        order: number,
        customer: format!("customer-{}@example.org", number % 97),
        sku: sku(product),
        quantity,
        cents: product * 500 * quantity,
    }
}

fn sku(product: i64) -> String {
    format!("tea-{product:02}")
}
