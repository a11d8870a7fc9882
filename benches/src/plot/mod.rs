//! The SVG files. They have a white background, so they can be read on light and dark pages.

mod bars;
mod lines;
mod percentiles;
mod style;

use anyhow::Result;
use plotters::prelude::{IntoDrawingArea, SVGBackend};
use plotters::style::WHITE;

use crate::table::Table;

/// How a program's figures are drawn.
#[derive(Clone, Debug)]
pub enum Plot {
    /// The tables: a bar for each column, a dot for each of its rounds.
    Bars,
    /// Figures that change with the number of events, one plot below the other.
    Lines(Vec<Line>),
    /// Latency by percentile.
    Percentiles(Vec<Curve>),
}

/// A line of [`Plot::Lines`].
#[derive(Clone, Debug)]
pub struct Line {
    /// What it shows, and its unit.
    pub title: String,
    /// The number of events, and the figure at that point.
    pub points: Vec<(f64, f64)>,
}

/// A curve of [`Plot::Percentiles`].
#[derive(Clone, Debug)]
pub struct Curve {
    /// What it shows.
    pub name: String,
    /// Latencies in milliseconds, in ascending order.
    pub sorted: Vec<f64>,
}

impl Plot {
    /// Draws it, as the text of an SVG file.
    ///
    /// # Errors
    /// If something cannot be drawn.
    pub fn draw(&self, tables: &[Table]) -> Result<String> {
        let height = match self {
            Self::Bars => bars::height(tables),
            Self::Lines(lines) => lines::height(lines),
            Self::Percentiles(_) => percentiles::HEIGHT,
        };
        let mut text = String::new();
        {
            let card = SVGBackend::with_string(&mut text, (style::WIDTH, height));
            let card = card.into_drawing_area();
            card.fill(&WHITE)?;
            match self {
                Self::Bars => bars::draw(&card, tables)?,
                Self::Lines(lines) => lines::draw(&card, lines)?,
                Self::Percentiles(curves) => percentiles::draw(&card, curves)?,
            }
            card.present()?;
        }
        Ok(text)
    }
}
