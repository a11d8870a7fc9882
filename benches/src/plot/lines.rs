//! Draws figures that change with the number of events.

use anyhow::Result;
use plotters::prelude::{ChartBuilder, LineSeries, Text};

use super::Line;
use super::style::{Area, COLOURS, FAINT, MARGIN, ceiling_of, label, short, stroke, title};

const PANEL: u32 = 220;

pub(super) fn height(lines: &[Line]) -> u32 {
    PANEL * lines.len() as u32 + MARGIN
}

pub(super) fn draw(card: &Area<'_>, lines: &[Line]) -> Result<()> {
    let inner = card.margin(0, MARGIN, MARGIN, MARGIN);
    for (area, line) in inner.split_evenly((lines.len().max(1), 1)).iter().zip(lines) {
        area.draw(&Text::new(line.title.clone(), (0, MARGIN as i32), title()))?;
        let last = line.points.last().map_or(1.0, |(events, _)| *events);
        let most = ceiling_of(line.points.iter().map(|(_, figure)| *figure));
        let mut chart = ChartBuilder::on(area)
            .margin_top(40)
            .x_label_area_size(28)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..last, 0.0..most)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(FAINT)
            .bold_line_style(FAINT)
            .axis_style(FAINT)
            .label_style(label())
            .x_labels(6)
            .y_labels(5)
            .max_light_lines(1)
            .x_label_formatter(&|events| short(*events))
            .y_label_formatter(&|figure| short(*figure))
            .draw()?;
        chart.draw_series(LineSeries::new(line.points.iter().copied(), stroke(COLOURS[0], 2)))?;
    }
    Ok(())
}
