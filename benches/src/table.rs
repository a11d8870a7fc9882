//! Variants in columns, and comparisons between them.

use std::fmt;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::columns::Columns;
use crate::rounds::interleaved;
use crate::statistics::Spread;
use crate::unit::{Goal, Unit};

/// Variants of the same task, in columns, and the rounds in which they took turns.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Table {
    /// What was measured, in a few words.
    pub title: String,
    /// The unit of all columns.
    pub unit: Unit,
    /// The columns.
    pub series: Vec<Series>,
    /// The comparisons between columns.
    pub comparisons: Vec<Comparison>,
}

/// A column: one variant, in all its rounds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Series {
    /// The name of the variant.
    pub name: String,
    /// The figure of each round.
    pub rounds: Vec<f64>,
    /// Their median, smallest and largest value.
    pub spread: Spread,
}

/// Two columns compared round by round, or one column with its goal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Comparison {
    /// The column that is compared.
    pub what: String,
    /// The column with which it is compared. `None` if it is only compared with its goal.
    pub against: Option<String>,
    /// The unit of the result.
    pub unit: Unit,
    /// The result of each round.
    pub rounds: Vec<f64>,
    /// Their median, smallest and largest value.
    pub spread: Spread,
    /// The goal, if there is one.
    pub goal: Option<Goal>,
    /// Whether the median meets the goal.
    pub met: Option<bool>,
}

impl Table {
    /// Runs the `ways` in turn, prints every round, and keeps the figures. `measure` gets the number of the variant and
    /// that of the round.
    ///
    /// # Errors
    /// The first error that `measure` returns.
    pub async fn measure(
        title: &str,
        unit: Unit,
        ways: &[&str],
        rounds: usize,
        measure: impl AsyncFnMut(usize, usize) -> Result<f64>,
    ) -> Result<Self> {
        let columns = Columns::head(title, unit, ways);
        let print = |name: &str, figures: &[f64]| columns.print(name, figures);
        let figures = interleaved(ways.len(), rounds, measure, print).await?;
        let table = Self::of(title, unit, ways.iter().copied().zip(figures));
        table.print_spreads(&columns);
        Ok(table)
    }

    /// A table of figures that were already measured: a name, and a figure for each round.
    pub fn of<'n>(
        title: &str,
        unit: Unit,
        columns: impl IntoIterator<Item = (&'n str, Vec<f64>)>,
    ) -> Self {
        let series = columns.into_iter().map(|(name, rounds)| {
            let spread = Spread::of(&rounds);
            Series { name: name.to_owned(), rounds, spread }
        });
        Self { title: title.to_owned(), unit, series: series.collect(), comparisons: Vec::new() }
    }

    /// Compares two columns as a ratio, and prints the result.
    ///
    /// # Errors
    /// If there is no such column.
    pub fn ratio(&mut self, what: &str, against: &str, goal: Option<Goal>) -> Result<()> {
        self.compare(Unit::Ratio, what, Some(against), |what, against| what / against, goal)
    }

    /// Compares two columns by their difference, and prints the result.
    ///
    /// # Errors
    /// If there is no such column.
    pub fn difference(&mut self, what: &str, against: &str, goal: Option<Goal>) -> Result<()> {
        self.compare(self.unit, what, Some(against), |what, against| what - against, goal)
    }

    /// Compares a column with a goal, and prints the result.
    ///
    /// # Errors
    /// If there is no such column.
    pub fn hold(&mut self, what: &str, goal: Goal) -> Result<()> {
        self.compare(self.unit, what, None, |what, _| what, Some(goal))
    }

    fn compare(
        &mut self,
        unit: Unit,
        what: &str,
        against: Option<&str>,
        figure: impl Fn(f64, f64) -> f64,
        goal: Option<Goal>,
    ) -> Result<()> {
        let left = self.column(what)?;
        let right = self.column(against.unwrap_or(what))?;
        let pairs = left.rounds.iter().zip(&right.rounds);
        let rounds: Vec<f64> = pairs.map(|(left, right)| figure(*left, *right)).collect();
        let spread = Spread::of(&rounds);
        let met = goal.map(|goal| goal.is_met_by(spread.median));
        let (what, against) = (what.to_owned(), against.map(str::to_owned));
        let comparison = Comparison { what, against, unit, rounds, spread, goal, met };
        println!("{comparison}");
        self.comparisons.push(comparison);
        Ok(())
    }

    fn column(&self, name: &str) -> Result<&Series> {
        let found = self.series.iter().find(|series| series.name == name);
        found.with_context(|| format!("there is no column {name:?}"))
    }

    /// Prints the whole table, for figures that were not measured by [`measure`](Self::measure).
    pub fn print(&self) {
        let names: Vec<&str> = self.series.iter().map(|series| series.name.as_str()).collect();
        let columns = Columns::head(&self.title, self.unit, &names);
        let rounds = self.series.iter().map(|series| series.rounds.len()).min().unwrap_or(0);
        for round in 0..rounds {
            let figures: Vec<f64> = self.series.iter().map(|series| series.rounds[round]).collect();
            columns.print(&(round + 1).to_string(), &figures);
        }
        self.print_spreads(&columns);
    }

    fn print_spreads(&self, columns: &Columns) {
        let all = |figure: fn(&Spread) -> f64| -> Vec<f64> {
            self.series.iter().map(|series| figure(&series.spread)).collect()
        };
        columns.print("median", &all(|spread| spread.median));
        columns.print("min", &all(|spread| spread.min));
        columns.print("max", &all(|spread| spread.max));
        if self.unit == Unit::PerSecond {
            columns.print_ratios(&self.ratios_to_first());
        }
    }

    /// For each column, the median of its ratios to the first column.
    pub fn ratios_to_first(&self) -> Vec<f64> {
        let Some(first) = self.series.first() else { return Vec::new() };
        let ratio = |series: &Series| {
            let pairs = series.rounds.iter().zip(&first.rounds);
            Spread::of(&pairs.map(|(figure, first)| figure / first).collect::<Vec<_>>()).median
        };
        self.series.iter().map(ratio).collect()
    }
}

impl Comparison {
    /// A text that says what is compared, and how.
    pub fn name(&self) -> String {
        match &self.against {
            Some(against) if self.unit == Unit::Ratio => format!("{} / {against}", self.what),
            Some(against) => format!("{} − {against}", self.what),
            None => self.what.clone(),
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |figure| self.unit.show(figure);
        let Spread { median, min, max } = self.spread;
        write!(
            f,
            "  {}: {} [{} to {}]{}",
            self.name(),
            show(median),
            show(min),
            show(max),
            self.unit.suffix()
        )?;
        match (self.goal, self.met) {
            (Some(goal), Some(true)) => write!(f, ", goal {goal}: met"),
            (Some(goal), _) => write!(f, ", goal {goal}: MISSED"),
            (None, _) => Ok(()),
        }
    }
}
