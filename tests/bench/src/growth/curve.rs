//! Curves as pictures: both axes logarithmic, so that what grows by a power of what it is drawn over is a straight line, and
//! a thin grey one of slope 1 beside it shows what linear would be.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

const COLOURS: [RGBColor; 6] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
    RGBColor(255, 127, 14),
    RGBColor(23, 190, 207),
];

/// One line of a picture.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    /// What it shows.
    pub(crate) name: String,
    /// Where it goes through, from left to right.
    pub(crate) points: Vec<(f64, f64)>,
}

impl Line {
    /// A line; what cannot be drawn on a logarithmic axis is left out.
    pub(crate) fn new(name: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        let drawn = |(x, y): &(f64, f64)| *x > 0.0 && *y > 0.0 && y.is_finite();
        Self {
            name: name.into(),
            points: points.into_iter().filter(drawn).collect(),
        }
    }
}

/// A picture.
#[derive(Debug, Clone)]
pub(crate) struct Picture {
    /// Its file, `NAME.svg`.
    pub(crate) name: &'static str,
    /// What stands above it.
    pub(crate) title: String,
    /// What is below and beside it, with units.
    pub(crate) axes: (&'static str, &'static str),
    /// What is in it.
    pub(crate) lines: Vec<Line>,
}

impl Picture {
    /// Draws it into a directory; nothing if there is nothing to draw.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn draw(&self, dir: &Path) -> Result<()> {
        let all = || self.lines.iter().flat_map(|line| &line.points);
        let (Some(x), Some(y)) = (extent(all().map(|p| p.0)), extent(all().map(|p| p.1))) else {
            return Ok(());
        };
        let path = dir.join(format!("{}.svg", self.name));
        self.plot(&path, x, y)
            .map_err(|error| anyhow!("drawing {}: {error}", path.display()))
    }

    fn plot(&self, path: &Path, x: (f64, f64), y: (f64, f64)) -> Result<(), Box<dyn std::error::Error>> {
        let area = SVGBackend::new(path, (760, 420)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(&self.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d((x.0..x.1).log_scale(), (y.0..y.1).log_scale())?;
        chart
            .configure_mesh()
            .x_desc(self.axes.0)
            .y_desc(self.axes.1)
            .x_label_formatter(&|v| label(*v))
            .y_label_formatter(&|v| label(*v))
            .light_line_style(WHITE)
            .draw()?;
        for line in &self.lines {
            if let Some(first) = line.points.first() {
                // To where it leaves the picture.
                let factor = (x.1 / first.0).min(y.1 / first.1);
                let end = (first.0 * factor, first.1 * factor);
                chart.draw_series(LineSeries::new([*first, end], BLACK.mix(0.15)))?;
            }
        }
        for (line, colour) in self.lines.iter().zip(COLOURS.iter().cycle()) {
            chart
                .draw_series(
                    LineSeries::new(line.points.iter().copied(), colour.stroke_width(2)).point_size(3),
                )?
                .label(&line.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.2))
            .draw()?;
        area.present()?;
        Ok(())
    }
}

/// From a little below the smallest to a little above the largest.
fn extent(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let (mut low, mut high) = (f64::INFINITY, 0.0_f64);
    for value in values {
        (low, high) = (low.min(value), high.max(value));
    }
    (high > 0.0).then_some((low / 1.5, high * 2.0))
}

fn label(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{}M", v / 1e6),
        v if v >= 1e3 => format!("{}k", v / 1e3),
        v if v >= 1.0 => format!("{v:.0}"),
        v => format!("{v:.2}").trim_end_matches('0').to_owned(),
    }
}
