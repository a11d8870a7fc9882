//! Judges the books, order by order and not only in total.

use std::collections::{BTreeMap, BTreeSet};

use super::books::{Books, Money, Order, Outcome};

/// One claim, and the evidence against it.
#[derive(Debug)]
pub struct Finding {
    pub claim: &'static str,
    /// The figure that belongs to it.
    pub figure: String,
    /// Empty if the claim holds.
    pub problems: Vec<String>,
}

pub fn judge(books: &Books) -> Vec<Finding> {
    let effects = Effects::by_order(books);
    vec![
        every_order_is_final(books),
        money_taken_is_money_owed(books, &effects),
        refunds_are_for_stock_outs(books, &effects),
        stock_matches_reservations(books, &effects),
        one_mail_for_each_order(books, &effects),
        everything_is_counted_once(books),
        nothing_for_orders_never_placed(books, &effects),
        redelivered_events_were_skipped(books),
        Finding {
            claim: "no dead letters, nothing left undone",
            figure: format!("{} events", books.left_over.len()),
            problems: books.left_over.clone(),
        },
    ]
}

/// Everything that was done for one order.
#[derive(Clone, Debug, Default)]
struct Effects {
    charges: Vec<i64>,
    refunds: Vec<i64>,
    reserved: Vec<(String, i64)>,
    shortages: usize,
    mails: Vec<String>,
}

impl Effects {
    fn by_order(books: &Books) -> BTreeMap<i64, Self> {
        let mut all: BTreeMap<i64, Self> = BTreeMap::new();
        for order in &books.orders {
            all.entry(order.id).or_default();
        }
        for charge in &books.charges {
            all.entry(charge.order).or_default().charges.push(charge.cents);
        }
        for refund in &books.refunds {
            all.entry(refund.order).or_default().refunds.push(refund.cents);
        }
        for reservation in &books.reservations {
            let item = (reservation.sku.clone(), reservation.quantity);
            all.entry(reservation.order).or_default().reserved.push(item);
        }
        for order in &books.shortages {
            all.entry(*order).or_default().shortages += 1;
        }
        for mail in &books.mails {
            all.entry(mail.order).or_default().mails.push(mail.subject.clone());
        }
        all
    }
}

/// The orders that have ended, each with everything that was done for it.
fn ended<'a>(
    books: &'a Books,
    effects: &'a BTreeMap<i64, Effects>,
) -> impl Iterator<Item = (&'a Order, &'a Effects)> {
    let ended = books.orders.iter().filter(|order| order.outcome != Outcome::Open);
    ended.filter_map(|order| Some((order, effects.get(&order.id)?)))
}

fn every_order_is_final(books: &Books) -> Finding {
    let open = books.orders.iter().filter(|order| order.outcome == Outcome::Open);
    let mut problems: Vec<String> =
        open.map(|order| format!("order {} has neither completed nor failed", order.id)).collect();
    let found = books.orders.len() as i64;
    if found != books.placed {
        problems.push(format!("{} orders were placed, but there are {found}", books.placed));
    }
    Finding {
        claim: "every order is completed or failed",
        figure: format!("{found} orders"),
        problems,
    }
}

fn money_taken_is_money_owed(books: &Books, effects: &BTreeMap<i64, Effects>) -> Finding {
    let mut owed = 0;
    let mut problems = Vec::new();
    for (order, done) in ended(books, effects) {
        let charges = match order.outcome {
            Outcome::PaymentRefused => vec![],
            _ => vec![order.cents],
        };
        if order.outcome == Outcome::Completed {
            owed += order.cents;
        }
        if done.charges != charges {
            problems.push(format!(
                "order {} ({:?}) was charged {}; expected {}",
                order.id,
                order.outcome,
                euros(&done.charges),
                euros(&charges)
            ));
        }
    }
    let sum = |page: &[Money]| page.iter().map(|money| money.cents).sum::<i64>();
    let taken = sum(&books.charges) - sum(&books.refunds);
    if taken != owed {
        problems.push(format!("{} taken, {} owed", euros(&[taken]), euros(&[owed])));
    }
    Finding { claim: "money taken = money owed, order by order", figure: euros(&[owed]), problems }
}

fn refunds_are_for_stock_outs(books: &Books, effects: &BTreeMap<i64, Effects>) -> Finding {
    let mut problems = Vec::new();
    for (order, done) in ended(books, effects) {
        let (refunds, shortages) = match order.outcome {
            Outcome::OutOfStock => (vec![order.cents], 1),
            _ => (vec![], 0),
        };
        if done.refunds != refunds {
            problems.push(format!(
                "order {} ({:?}) was refunded {}; expected {}",
                order.id,
                order.outcome,
                euros(&done.refunds),
                euros(&refunds)
            ));
        }
        if done.shortages != shortages {
            problems.push(format!(
                "order {} ({:?}) was found out of stock {} times; expected {shortages}",
                order.id, order.outcome, done.shortages
            ));
        }
    }
    Finding {
        claim: "refunds are exactly for what was out of stock",
        figure: format!("{} refunds", books.refunds.len()),
        problems,
    }
}

fn stock_matches_reservations(books: &Books, effects: &BTreeMap<i64, Effects>) -> Finding {
    let mut problems = Vec::new();
    for (order, done) in ended(books, effects) {
        let reserved = match order.outcome {
            Outcome::Completed => vec![(order.sku.clone(), order.quantity)],
            _ => vec![],
        };
        if done.reserved != reserved {
            problems.push(format!(
                "order {} ({:?}) has {:?} reserved; expected {reserved:?}",
                order.id, order.outcome, done.reserved
            ));
        }
    }
    for stock in &books.stock {
        let reserved = books.reservations.iter().filter(|reserved| reserved.sku == stock.sku);
        let reserved: i64 = reserved.map(|reserved| reserved.quantity).sum();
        if stock.remaining < 0 || stock.remaining != stock.delivered - reserved {
            problems.push(format!(
                "{}: {} delivered, {reserved} reserved, but {} remaining",
                stock.sku, stock.delivered, stock.remaining
            ));
        }
    }
    Finding {
        claim: "stock is never negative, and matches the reservations",
        figure: format!("{} reservations", books.reservations.len()),
        problems,
    }
}

fn one_mail_for_each_order(books: &Books, effects: &BTreeMap<i64, Effects>) -> Finding {
    let mut problems = Vec::new();
    for (order, done) in ended(books, effects) {
        let subject = match order.outcome {
            Outcome::PaymentRefused => "We are sorry: payment refused",
            Outcome::OutOfStock => "We are sorry: out of stock",
            Outcome::Completed | Outcome::Open => "Your order is on its way",
        };
        if done.mails != [subject] {
            problems.push(format!(
                "order {} ({:?}) was mailed {:?}; expected one {subject:?}",
                order.id, order.outcome, done.mails
            ));
        }
    }
    Finding {
        claim: "one mail for each order, and the right one",
        figure: format!("{} mails", books.mails.len()),
        problems,
    }
}

/// How the orders ended determines which events should have been published.
fn everything_is_counted_once(books: &Books) -> Finding {
    let ended = |outcomes: &[Outcome]| {
        books.orders.iter().filter(|order| outcomes.contains(&order.outcome)).count() as i64
    };
    use Outcome::{Completed, OutOfStock, PaymentRefused};
    let said = [
        ("order.placed", books.orders.len() as i64),
        ("payment.taken", ended(&[Completed, OutOfStock])),
        ("payment.refused", ended(&[PaymentRefused])),
        ("stock.reserved", ended(&[Completed])),
        ("stock.out", ended(&[OutOfStock])),
        ("payment.refunded", ended(&[OutOfStock])),
        ("order.completed", ended(&[Completed])),
        ("order.failed", ended(&[PaymentRefused, OutOfStock])),
    ];
    let mut problems = Vec::new();
    for (event_type, said) in said {
        let counted = books.counted.get(event_type).copied().unwrap_or(0);
        if counted != said {
            problems.push(format!("{event_type}: {said} times, but counted {counted}"));
        }
    }
    let known = |event_type: &String| said.iter().any(|(known, _)| known == event_type);
    let strange = books.counted.keys().filter(|event_type| !known(event_type));
    problems
        .extend(strange.map(|event_type| format!("{event_type} was never published, but counted")));
    Finding {
        claim: "analytics counted everything once",
        figure: format!("{} events", books.counted.values().sum::<i64>()),
        problems,
    }
}

fn nothing_for_orders_never_placed(books: &Books, effects: &BTreeMap<i64, Effects>) -> Finding {
    let placed: BTreeSet<i64> = books.orders.iter().map(|order| order.id).collect();
    let strangers = effects.iter().filter(|(order, _)| !placed.contains(order));
    Finding {
        claim: "nothing was done for orders that were rolled back",
        figure: String::new(),
        problems: strangers
            .map(|(order, done)| format!("order {order} does not exist, but there is {done:?}"))
            .collect(),
    }
}

fn redelivered_events_were_skipped(books: &Books) -> Finding {
    let handled_again = books.redelivered.iter().filter(|again| !again.skipped);
    let mut problems: Vec<String> = handled_again
        .map(|again| format!("{} has handled event {} again", again.service, again.event_id))
        .collect();
    if books.redelivered.is_empty() {
        problems.push("no event was delivered again".to_owned());
    }
    Finding {
        claim: "events delivered again were skipped",
        figure: format!("{} deliveries", books.redelivered.len()),
        problems,
    }
}

pub fn euros(cents: &[i64]) -> String {
    if cents.is_empty() {
        return "nothing".to_owned();
    }
    let amounts: Vec<String> =
        cents.iter().map(|cents| format!("{:.2}", *cents as f64 / 100.0)).collect();
    format!("{} EUR", amounts.join(" + "))
}
