//! The goals of all programs in one table.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::report::Report;
use crate::table::{Comparison, Table};

/// Writes `summary.md` from the JSON files in a folder: each comparison that has a goal, as a table in Markdown.
///
/// # Errors
/// If a file cannot be read or written.
pub fn write(folder: &Path) -> Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            files.push(path);
        }
    }
    files.sort();
    let mut text = String::from("| program | figure | goal | median | min | max | |\n");
    text += "|---|---|---|---|---|---|---|\n";
    for file in files {
        let report: Report = serde_json::from_str(&fs::read_to_string(&file)?)
            .with_context(|| format!("{} was written by another version", file.display()))?;
        for table in &report.tables {
            for comparison in &table.comparisons {
                row(&mut text, &report, table, comparison)?;
            }
        }
    }
    fs::write(folder.join("summary.md"), text)?;
    Ok(())
}

fn row(text: &mut String, report: &Report, table: &Table, comparison: &Comparison) -> Result<()> {
    let Comparison { unit, spread, goal: Some(goal), met, .. } = comparison else {
        return Ok(());
    };
    let name = comparison.name();
    let show = |figure| format!("{}{}", unit.show(figure), unit.suffix());
    let verdict = if *met == Some(true) { "met" } else { "**missed**" };
    writeln!(
        text,
        "| `{}` | {}: {name} | {goal}{} | {} | {} | {} | {verdict} |",
        report.program,
        table.title,
        unit.suffix(),
        show(spread.median),
        show(spread.min),
        show(spread.max),
    )?;
    Ok(())
}
