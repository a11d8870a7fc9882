//! Prints a table, round by round.

use crate::unit::Unit;

/// The columns of the table that is being printed.
pub(crate) struct Columns {
    unit: Unit,
    widths: Vec<usize>,
}

impl Columns {
    /// Prints the title and the names of the columns.
    pub(crate) fn head(title: &str, unit: Unit, names: &[&str]) -> Self {
        let widths = names.iter().map(|name| name.chars().count().max(9)).collect();
        let columns = Self { unit, widths };
        println!("\n{title} ({})", unit.name());
        columns.print_cells("round", names.iter().map(|name| (*name).to_owned()));
        columns
    }

    /// Prints a row of figures.
    pub(crate) fn print(&self, name: &str, figures: &[f64]) {
        self.print_cells(name, figures.iter().map(|figure| self.unit.show(*figure)));
    }

    /// Prints a row of ratios.
    pub(crate) fn print_ratios(&self, ratios: &[f64]) {
        self.print_cells("ratio", ratios.iter().map(|ratio| Unit::Ratio.show(*ratio)));
    }

    fn print_cells(&self, name: &str, cells: impl Iterator<Item = String>) {
        print!("{name:>8}");
        for (cell, width) in cells.zip(&self.widths) {
            print!("  {cell:>width$}");
        }
        println!();
    }
}
