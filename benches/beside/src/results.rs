//! The results as lines of JSON, and the tables made from them.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use pillarbox_benches::machine::{Machine, Versions};
use pillarbox_benches::statistics::Spread;
use pillarbox_benches::unit::count;
use serde::{Deserialize, Serialize};

use crate::condition::Condition;

/// One measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub round: u32,
    pub contestant: String,
    pub condition: String,
    pub measure: String,
    pub values: BTreeMap<String, f64>,
}

/// The machine and the versions of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Surroundings {
    pub machine: Machine,
    pub versions: Versions,
}

/// A line of the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    Record(Record),
    Surroundings(Box<Surroundings>),
}

/// A column of a table: its heading, the value of a record, and how the values of several rounds are combined.
struct Column(&'static str, &'static str, Fold);

#[derive(Clone, Copy)]
enum Fold {
    /// The median, with the smallest and the largest value.
    Median,
    /// The sum over all rounds.
    Sum,
}

/// Reads the records of earlier runs, if there are any.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let mut records = Vec::new();
    for line in BufReader::new(File::open(path)?).lines() {
        if let Line::Record(record) = serde_json::from_str(&line?)? {
            records.push(record);
        }
    }
    Ok(records)
}

/// Adds a line to the file.
pub fn write(path: &Path, line: &Line) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("writing {}", path.display()))?;
    writeln!(file, "{}", serde_json::to_string(line)?)?;
    Ok(())
}

/// All tables, as Markdown.
pub fn print_tables(records: &[Record]) {
    use Fold::{Median, Sum};
    const CHECKS: [Column; 4] = [
        Column("out of key order", "out_of_order", Sum),
        Column("of messages", "messages", Sum),
        Column("lost", "lost", Sum),
        Column("repeated", "repeated", Sum),
    ];
    let [out_of_order, messages, lost, repeated] = CHECKS;
    let drain = [Column("events/s", "rate", Median), out_of_order, messages, lost, repeated];
    for condition in Condition::value_variants() {
        let title = format!("Drain of a backlog, {}", condition.title());
        table(records, &title, ("drain", *condition), &drain);
    }
    let [out_of_order, messages, lost, repeated] = CHECKS;
    let live = [
        Column("transactions/s", "transactions_rate", Median),
        Column("events behind at the end", "behind", Median),
        out_of_order,
        messages,
        lost,
        repeated,
    ];
    let title = "Shipping while eight writers write as fast as they can";
    table(records, title, ("live", Condition::Idle), &live);
    let latency = [
        Column("stream p50", "stream_p50", Median),
        Column("p99", "stream_p99", Median),
        Column("max", "stream_max", Median),
        Column("consumer p50", "consumer_p50", Median),
        Column("p99", "consumer_p99", Median),
        Column("max", "consumer_max", Median),
        Column("out of key order", "out_of_order", Sum),
        Column("not there in time", "missing", Sum),
    ];
    for condition in Condition::value_variants() {
        let title = format!("Latency in milliseconds, {}", condition.title());
        table(records, &title, ("latency", *condition), &latency);
    }
    let writers = [Column("transactions/s", "transactions_rate", Median)];
    table(records, "Writers alone, nothing shipping", ("writers", Condition::Idle), &writers);
}

fn table(
    records: &[Record],
    title: &str,
    (measure, condition): (&str, Condition),
    columns: &[Column],
) {
    let records: Vec<&Record> = records
        .iter()
        .filter(|record| record.measure == measure && record.condition == condition.name())
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
                cell(&values, *fold)
            })
            .collect();
        println!("| {contestant} | {} |", cells.join(" | "));
    }
}

fn cell(values: &[f64], fold: Fold) -> String {
    if values.is_empty() {
        return "–".to_owned();
    }
    match fold {
        Fold::Sum => number(values.iter().sum()),
        Fold::Median => {
            let Spread { median, min, max } = Spread::of(values);
            match values.len() {
                1 => number(median),
                _ => format!("{} ({}–{})", number(median), number(min), number(max)),
            }
        }
    }
}

/// A number with the digits that matter.
fn number(value: f64) -> String {
    if value < 100.0 && value.fract() != 0.0 {
        return format!("{value:.1}");
    }
    count(value.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_show_the_median_and_its_bounds() {
        assert_eq!(cell(&[3.0, 120_000.4, 9.26], Fold::Median), "9.3 (3–120,000)");
        assert_eq!(cell(&[1.0, 2.0], Fold::Sum), "3");
        assert_eq!(cell(&[1234.0], Fold::Median), "1,234");
        assert_eq!(cell(&[], Fold::Sum), "–");
    }
}
