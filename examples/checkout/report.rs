//! The last screen.

use crate::books::{Books, Money, Outcome};
use crate::verdict::{Finding, euros};

/// How many problems of a kind are shown.
const SHOWN: usize = 5;

pub fn table(books: &Books) {
    println!("\nservice        heard   said   skipped   its books");
    for traffic in &books.traffic {
        let said = traffic.said.map_or("-".to_owned(), |said| said.to_string());
        let skipped = books
            .redelivered
            .iter()
            .filter(|again| again.service == traffic.service && again.skipped)
            .count();
        println!(
            "{:13} {:6} {said:>6} {skipped:9}   {}",
            traffic.service,
            traffic.heard,
            summary(traffic.service, books)
        );
    }
    println!(
        "\nheard: events handled; said: events published; skipped: events delivered again that were known\n"
    );
}

fn summary(service: &str, books: &Books) -> String {
    let ended = |outcome| books.orders.iter().filter(|order| order.outcome == outcome).count();
    let sum = |page: &[Money]| euros(&[page.iter().map(|money| money.cents).sum()]);
    match service {
        "orders" => format!(
            "{} completed, {} failed for payment, {} for stock",
            ended(Outcome::Completed),
            ended(Outcome::PaymentRefused),
            ended(Outcome::OutOfStock)
        ),
        "payments" => format!("{} taken, {} refunded", sum(&books.charges), sum(&books.refunds)),
        "inventory" => format!(
            "{} pieces reserved, {} remain",
            books.reservations.iter().map(|reserved| reserved.quantity).sum::<i64>(),
            books.stock.iter().map(|stock| stock.remaining).sum::<i64>()
        ),
        "notifications" => format!("{} mails", books.mails.len()),
        _ => format!("{} events counted", books.counted.values().sum::<i64>()),
    }
}

/// Prints the findings, and returns whether all claims hold.
pub fn findings(findings: &[Finding]) -> bool {
    for Finding { claim, figure, problems } in findings {
        let mark = if problems.is_empty() { " ok " } else { "FAIL" };
        println!("{mark}  {claim:55} {figure}");
        for problem in problems.iter().take(SHOWN) {
            println!("        {problem}");
        }
        if problems.len() > SHOWN {
            println!("        and {} more", problems.len() - SHOWN);
        }
    }
    let failed = findings.iter().filter(|finding| !finding.problems.is_empty()).count();
    if failed == 0 {
        println!("\nVERDICT: all is well. No effect is missing, and none happened twice.");
    } else {
        println!("\nVERDICT: {failed} of {} claims do not hold.", findings.len());
    }
    failed == 0
}
