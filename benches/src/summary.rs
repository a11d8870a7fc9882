//! The goals of all programs in one table.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::report::Report;
use crate::table::{Comparison, Table};

/// Writes `summary.md` from the JSON files in a folder: each comparison that has a goal, as a table in Markdown.
///
/// # Errors
/// If a file cannot be read or written.
pub(crate) fn write(folder: &Path) -> Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            files.push(path);
        }
    }
    files.sort();
    let mut text = String::from("| program | compared | goal | measured | medians | |\n");
    text += "|---|---|---|---|---|---|\n";
    for file in files {
        let Ok(report) = serde_json::from_str::<Report>(&fs::read_to_string(&file)?) else {
            eprintln!(
                "skipping {}: another version wrote it; run that benchmark again",
                file.display()
            );
            continue;
        };
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
    let show = |figure| unit.show(figure);
    let median = |name: &str| {
        let column = table.series.iter().find(|series| series.name == name);
        column.map(|column| {
            format!("{}{}", table.unit.show(column.spread.median), table.unit.suffix())
        })
    };
    let against = comparison.against.as_deref().and_then(median);
    let figures = [median(&comparison.what), against].into_iter().flatten().collect::<Vec<_>>();
    writeln!(
        text,
        "| `{}` | {}: {} | {goal} | {} [{} to {}]{} | {} | {} |",
        report.program,
        table.title,
        comparison.name(),
        show(spread.median),
        show(spread.min),
        show(spread.max),
        unit.suffix(),
        figures.join(" against "),
        if *met == Some(true) { "met" } else { "**missed**" },
    )?;
    Ok(())
}
