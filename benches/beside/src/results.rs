//! What was measured, as lines of JSON, and the tables made of it.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// One measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub round: u32,
    pub contestant: String,
    pub condition: String,
    pub measure: String,
    pub values: BTreeMap<String, f64>,
}

/// A column of a table: heading, the value of the record, and whether values of several rounds are added up.
struct Column(&'static str, &'static str, Fold);

#[derive(Clone, Copy)]
enum Fold {
    /// Median, and between which bounds.
    Median,
    /// The sum over all rounds.
    Sum,
}

/// Reads the records of earlier runs, if there are any.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let lines = BufReader::new(File::open(path)?).lines();
    lines.map(|line| Ok(serde_json::from_str(&line?)?)).collect()
}

/// Adds a record to the file.
pub fn write(path: &Path, record: &Record) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("writing {}", path.display()))?;
    writeln!(file, "{}", serde_json::to_string(record)?)?;
    Ok(())
}

/// All tables, as Markdown.
pub fn print_tables(records: &[Record]) {
    use Fold::{Median, Sum};
    for (condition, title) in [
        ("idle", "nothing else going on"),
        ("open", "one transaction left open"),
        ("churn", "after a million rows of churn, a transaction open since before"),
    ] {
        table(
            records,
            &format!("Drain of a backlog, {title}"),
            ("drain", condition),
            &[
                Column("events/s", "rate", Median),
                Column("out of key order", "out_of_order", Sum),
                Column("of messages", "messages", Sum),
                Column("lost", "lost", Sum),
                Column("repeated", "repeated", Sum),
            ],
        );
    }
    table(
        records,
        "Shipping while eight writers write as fast as they can",
        ("live", "idle"),
        &[
            Column("transactions/s", "transactions_rate", Median),
            Column("events behind at the end", "behind", Median),
            Column("out of key order", "out_of_order", Sum),
            Column("of messages", "messages", Sum),
            Column("lost", "lost", Sum),
            Column("repeated", "repeated", Sum),
        ],
    );
    for (condition, title) in [
        ("idle", "nothing else going on"),
        ("open", "one transaction left open"),
        ("churn", "after a million rows of churn, a transaction open since before"),
    ] {
        table(
            records,
            &format!("Latency at the offered rate in milliseconds, {title}"),
            ("latency", condition),
            &[
                Column("stream p50", "stream_p50", Median),
                Column("p99", "stream_p99", Median),
                Column("max", "stream_max", Median),
                Column("consumer p50", "consumer_p50", Median),
                Column("p99", "consumer_p99", Median),
                Column("max", "consumer_max", Median),
                Column("out of key order", "out_of_order", Sum),
                Column("not there in time", "missing", Sum),
            ],
        );
    }
    table(
        records,
        "Writers alone, nothing shipping",
        ("writers", "idle"),
        &[Column("transactions/s", "transactions_rate", Median)],
    );
}

fn table(records: &[Record], title: &str, (measure, condition): (&str, &str), columns: &[Column]) {
    let records: Vec<&Record> = records
        .iter()
        .filter(|record| record.measure == measure && record.condition == condition)
        .collect();
    if records.is_empty() {
        return;
    }
    let mut contestants: Vec<&str> = Vec::new();
    for record in &records {
        if !contestants.contains(&record.contestant.as_str()) {
            contestants.push(&record.contestant);
        }
    }
    let order = crate::contestant::contestants();
    contestants.sort_by_key(|name| order.iter().position(|one| one.name() == *name));
    println!("\n### {title}\n");
    let headings: Vec<&str> = columns.iter().map(|Column(heading, ..)| *heading).collect();
    println!("| | {} |", headings.join(" | "));
    println!("|---|{}", "--:|".repeat(columns.len()));
    for contestant in contestants {
        let cells: Vec<String> = columns
            .iter()
            .map(|Column(_, value, fold)| {
                let values: Vec<f64> = records
                    .iter()
                    .filter(|record| record.contestant == contestant)
                    .filter_map(|record| record.values.get(*value).copied())
                    .collect();
                cell(values, *fold)
            })
            .collect();
        println!("| {contestant} | {} |", cells.join(" | "));
    }
}

fn cell(mut values: Vec<f64>, fold: Fold) -> String {
    values.sort_by(f64::total_cmp);
    match (fold, values.first(), values.last()) {
        (Fold::Sum, Some(_), _) => number(values.iter().sum()),
        (Fold::Median, Some(&least), Some(&most)) => {
            let median = number(values[values.len() / 2]);
            if values.len() == 1 {
                median
            } else {
                format!("{median} ({}–{})", number(least), number(most))
            }
        }
        _ => "–".to_owned(),
    }
}

/// With the digits that matter, thousands apart.
fn number(value: f64) -> String {
    if value < 100.0 && value.fract() != 0.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_show_the_median_and_its_bounds() {
        assert_eq!(cell(vec![3.0, 120_000.4, 9.25], Fold::Median), "9.2 (3–120,000)");
        assert_eq!(cell(vec![1.0, 2.0], Fold::Sum), "3");
        assert_eq!(cell(vec![1234.0], Fold::Median), "1,234");
        assert_eq!(cell(vec![], Fold::Sum), "–");
    }
}
