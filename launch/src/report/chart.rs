//! What all charts have in common: sizes, styles, and the frame of axes and grid.

use plotters::prelude::*;
use serde::Serialize;

use super::colours::Colour;
use crate::exit::Failure;

/// Units of a drawing in one pixel: the library places everything at whole units, which would be seen as steps.
pub(super) const PIXEL: i32 = 4;

/// A chart as SVG, without the element around it.
#[derive(Serialize)]
pub(super) struct Drawing {
    width: i32,
    height: i32,
    units: i32,
    body: String,
}

/// What goes wrong while drawing, which writes into memory.
pub(super) type Problem = DrawingAreaErrorKind<std::io::Error>;

/// Draws something of this size, in pixels.
pub(super) fn drawing(
    (width, height): (i32, i32),
    draw: impl FnOnce(&DrawingArea<SVGBackend, plotters::coord::Shift>) -> Result<(), Problem>,
) -> Result<Drawing, Failure> {
    let size = ((width * PIXEL).unsigned_abs(), (height * PIXEL).unsigned_abs());
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        draw(&area)
            .and_then(|()| area.present())
            .map_err(|problem| Failure::running(format!("A chart could not be drawn: {problem}.")))?;
    }
    let inside = svg.split_once('>').map_or("", |(_, inside)| inside);
    Ok(Drawing {
        width,
        height,
        units: PIXEL,
        body: inside.trim_end().trim_end_matches("</svg>").trim().to_owned(),
    })
}

/// The style of the words of a chart.
pub(super) fn words() -> TextStyle<'static> {
    // The library divides sizes by 1.24.
    FontDesc::new(FontFamily::SansSerif, 12.5 * 1.24 * f64::from(PIXEL), FontStyle::Normal).color(&Colour::Text.rgb())
}

/// A stroke of so many pixels.
pub(super) fn stroke(colour: Colour, pixels: f64, opacity: f64) -> ShapeStyle {
    ShapeStyle {
        color: colour.rgb().mix(opacity),
        filled: false,
        stroke_width: (pixels * f64::from(PIXEL)).round() as u32,
    }
}

/// A range that has room around the values in it; none without values.
pub(super) fn range(values: impl Iterator<Item = f64>, room: f64) -> Option<std::ops::Range<f64>> {
    let (low, high) = values
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        });
    if low > high {
        return None;
    }
    // One value alone stands in the middle.
    let wide = (high - low).max(high.abs().max(low.abs()) * 1e-6);
    let pad = if high > low {
        wide * room
    } else {
        (high.abs() * 0.1).max(0.5)
    };
    Some(low - pad..high + pad)
}
