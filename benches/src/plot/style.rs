//! Colours and sizes.

use plotters::coord::Shift;
use plotters::prelude::{DrawingArea, IntoFont, RGBColor, SVGBackend, TextStyle};
use plotters::style::Color;

/// The size of a whole image, in pixels.
pub(super) const WIDTH: u32 = 760;
/// The margin around everything.
pub(super) const MARGIN: u32 = 16;

pub(super) const INK: RGBColor = RGBColor(0x24, 0x29, 0x2f);
pub(super) const FAINT: RGBColor = RGBColor(0xd8, 0xde, 0xe4);
/// The colour of what others are compared with.
pub(super) const CEILING: RGBColor = RGBColor(0xc4, 0xcb, 0xd3);
/// The colour of what is compared.
pub(super) const BAR: RGBColor = RGBColor(0x74, 0xae, 0xe6);
/// The colours of lines, in turn.
pub(super) const COLOURS: [RGBColor; 4] = [
    RGBColor(0x1f, 0x6f, 0xb4),
    RGBColor(0xd0, 0x6a, 0x1c),
    RGBColor(0x2e, 0x8b, 0x57),
    RGBColor(0x8a, 0x4f, 0xa3),
];

/// The area in which a figure is drawn.
pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

pub(super) fn title() -> TextStyle<'static> {
    ("sans-serif", 16).into_font().color(&INK)
}

pub(super) fn label() -> TextStyle<'static> {
    ("sans-serif", 13).into_font().color(&INK)
}

/// The end of an axis, a little above the largest figure.
pub(super) fn ceiling_of(figures: impl Iterator<Item = f64>) -> f64 {
    figures.fold(f64::MIN_POSITIVE, f64::max) * 1.05
}

/// A number on an axis: 1,500,000 as `1.5 M`.
pub(super) fn short(number: f64) -> String {
    let text = |number: f64, unit: &str| {
        let digits = format!("{number:.1}");
        format!("{}{unit}", digits.strip_suffix(".0").unwrap_or(&digits))
    };
    match number {
        1e6.. => text(number / 1e6, " M"),
        1e3.. => text(number / 1e3, " k"),
        _ => text(number, ""),
    }
}

/// A style that colours an outline.
pub(super) fn stroke(colour: RGBColor, width: u32) -> plotters::style::ShapeStyle {
    colour.stroke_width(width)
}
