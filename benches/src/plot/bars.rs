//! Draws a bar for each column up to its median, and a dot for each of its rounds.

use anyhow::Result;
use plotters::prelude::{ChartBuilder, Circle, PathElement, Rectangle, Text};
use plotters::style::Color;

use super::style::{
    Area, BAR, CEILING, FAINT, INK, MARGIN, WIDTH, ceiling_of, label, short, stroke, title,
};
use crate::table::Table;
use crate::unit::Unit;

/// The height of a column with its name.
const ROW: u32 = 44;
const HEAD: u32 = 34;
const AXIS: u32 = 28;
/// The share of the width that is kept for the figure after a bar.
const BESIDE: f64 = 0.28;

pub(super) fn height(tables: &[Table]) -> u32 {
    tables.iter().map(panel).sum::<u32>() + MARGIN
}

fn panel(table: &Table) -> u32 {
    HEAD + ROW * table.series.len() as u32 + AXIS + MARGIN
}

pub(super) fn draw(card: &Area<'_>, tables: &[Table]) -> Result<()> {
    let mut rest = card.margin(0, MARGIN, MARGIN, MARGIN);
    for table in tables {
        let (area, below) = rest.split_vertically(panel(table));
        draw_table(&area, table)?;
        rest = below;
    }
    Ok(())
}

fn draw_table(area: &Area<'_>, table: &Table) -> Result<()> {
    area.draw(&Text::new(table.title.clone(), (0, MARGIN as i32), title()))?;
    let rows = table.series.len() as f64;
    let most = ceiling_of(table.series.iter().map(|series| series.spread.max));
    let mut chart = ChartBuilder::on(area)
        .margin_top(HEAD)
        .margin_bottom(MARGIN)
        .x_label_area_size(AXIS)
        .build_cartesian_2d(0.0..most / (1.0 - BESIDE), 0.0..rows)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_x_mesh()
        .disable_y_axis()
        .x_labels(6)
        .x_label_style(label())
        .axis_style(FAINT)
        .x_label_formatter(&|figure| if *figure <= most { short(*figure) } else { String::new() })
        .draw()?;
    // A pixel in the units of the x axis.
    let pixel = most / (1.0 - BESIDE) / f64::from(WIDTH - 2 * MARGIN);
    for (index, (series, ratio)) in table.series.iter().zip(table.ratios_to_first()).enumerate() {
        let top = rows - index as f64;
        let (upper, lower) = (top - 0.42, top - 0.9);
        let middle = f64::midpoint(upper, lower);
        let against = Some(&series.name);
        let is_ceiling = table.comparisons.iter().any(|held| held.against.as_ref() == against);
        let colour = if is_ceiling { CEILING } else { BAR };
        let spread = series.spread;
        let name = Text::new(series.name.clone(), (0.0, top - 0.06), label());
        chart.draw_series([name])?;
        let bar = Rectangle::new([(0.0, lower), (spread.median, upper)], colour.filled());
        chart.draw_series([bar])?;
        let range = PathElement::new([(spread.min, middle), (spread.max, middle)], stroke(INK, 1));
        chart.draw_series([range])?;
        let dots = series
            .rounds
            .iter()
            .map(|figure| Circle::new((*figure, middle), 3, INK.mix(0.7).filled()));
        chart.draw_series(dots)?;
        let mut figure = format!("{}{}", table.unit.show(spread.median), table.unit.suffix());
        if index > 0 && table.unit == Unit::PerSecond {
            figure = format!("{figure}  ({}×)", Unit::Ratio.show(ratio));
        }
        let beside = (spread.max.max(spread.median) + 10.0 * pixel, middle + 0.16);
        chart.draw_series([Text::new(figure, beside, label())])?;
    }
    Ok(())
}
