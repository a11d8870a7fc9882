//! Draws latency by percentile. The axes are logarithmic: each step to the right is ten times rarer.

use anyhow::Result;
use plotters::prelude::{ChartBuilder, LineSeries, PathElement, SeriesLabelPosition, Text};
use plotters::style::{Color, WHITE};

use super::Curve;
use super::style::{Area, COLOURS, FAINT, MARGIN, label, stroke, title};
use crate::statistics::percentile;

pub(super) const HEIGHT: u32 = 420;
/// Points of a curve for each step of ten.
const FINENESS: usize = 40;

pub(super) fn draw(card: &Area<'_>, curves: &[Curve]) -> Result<()> {
    let area = card.margin(0, MARGIN, MARGIN, MARGIN);
    area.draw(&Text::new("Latency by percentile, milliseconds", (0, MARGIN as i32), title()))?;
    let most = curves.iter().map(|curve| curve.sorted.len()).max().unwrap_or(1).max(10);
    let tens = (most as f64).log10().floor();
    let ends = curves.iter().flat_map(|curve| [curve.sorted.first(), curve.sorted.last()]);
    let ends: Vec<f64> = ends.flatten().map(|latency| latency.max(1e-3).log10()).collect();
    let lowest = ends.iter().copied().fold(f64::INFINITY, f64::min).floor().min(0.0);
    let highest = ends.iter().copied().fold(f64::NEG_INFINITY, f64::max).ceil().max(1.0);
    let mut chart = ChartBuilder::on(&area)
        .margin_top(40)
        .margin_right(24)
        .x_label_area_size(28)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..tens, lowest..highest)?;
    chart
        .configure_mesh()
        .light_line_style(FAINT)
        .bold_line_style(FAINT)
        .axis_style(FAINT)
        .label_style(label())
        .max_light_lines(1)
        .x_labels(tens as usize + 1)
        .y_labels((highest - lowest) as usize + 1)
        .x_label_formatter(&|tens| percent(*tens))
        .y_label_formatter(&|power| format!("{}", 10_f64.powf(*power)))
        .draw()?;
    for (curve, colour) in curves.iter().zip(COLOURS) {
        let last = (curve.sorted.len() as f64).log10().min(tens);
        let points = (0..=(last * FINENESS as f64) as usize).map(|point| {
            let x = point as f64 / FINENESS as f64;
            let latency = percentile(&curve.sorted, 1.0 - 10_f64.powf(-x));
            (x, latency.max(1e-3).log10())
        });
        chart
            .draw_series(LineSeries::new(points, stroke(colour, 2)))?
            .label(curve.name.clone())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], stroke(colour, 2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font(label())
        .background_style(WHITE.mix(0.85))
        .border_style(FAINT)
        .draw()?;
    Ok(())
}

/// 2 as `p99`, 3 as `p99.9`.
fn percent(tens: f64) -> String {
    match tens.round() as i32 {
        0 => "p0".to_owned(),
        1 => "p90".to_owned(),
        2 => "p99".to_owned(),
        more => format!("p99.{}", "9".repeat(more.max(2) as usize - 2)),
    }
}
