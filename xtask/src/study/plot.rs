//! Validation loss along an axis, as SVG.

use plotters::{
    coord::{
        Shift,
        ranged1d::{AsRangedCoord, Ranged, ValueFormatter},
    },
    prelude::*,
};

/// The plots' folder, seen from the page that shows them.
pub const FOLDER: &str = "plots";

const SIZE: (u32, u32) = (800, 480);

/// Told apart with every kind of colour vision (Okabe and Ito, and grey), one for each line.
const COLOURS: [RGBColor; 9] = [
    RGBColor(0, 0, 0),
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(128, 128, 128),
    RGBColor(240, 228, 66),
];

/// From this ratio of the largest loss to the smallest the axis is logarithmic; with less it would have few labels.
const LOGARITHMIC: f64 = 20.0;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type DrawError = DrawingAreaErrorKind<std::io::Error>;

/// A plot in [`FOLDER`].
pub struct Plot {
    /// The file's name.
    pub file: String,
    pub title: String,
    /// The label of the horizontal axis.
    pub x: &'static str,
    pub lines: Vec<Line>,
}

/// Losses along the axis.
pub struct Line {
    pub name: &'static str,
    /// Without any the line is not drawn, and the others keep their colours.
    pub points: Vec<(f64, f64)>,
}

impl Plot {
    /// The image in Markdown.
    pub fn image(&self, text: &str) -> String {
        format!("\n![{text}]({FOLDER}/{})\n", self.file)
    }

    pub fn svg(&self) -> Result<String, String> {
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            self.draw(&area)
                .map_err(|e| format!("{}: {e}", self.file))?;
        }
        Ok(svg)
    }

    fn draw(&self, area: &Area) -> Result<(), DrawError> {
        let losses = || {
            self.lines
                .iter()
                .flat_map(|line| &line.points)
                .map(|point| point.1)
        };
        let least = losses().fold(f64::INFINITY, f64::min);
        let most = losses().fold(f64::NEG_INFINITY, f64::max);
        if least > 0.0 && most / least >= LOGARITHMIC {
            let range = least / 1.3..most * 1.3;
            self.draw_on(
                area,
                "validation loss, nats (logarithmic)",
                range.log_scale(),
            )
        } else {
            let margin = (0.05 * (most - least)).max(1e-3);
            self.draw_on(area, "validation loss, nats", least - margin..most + margin)
        }
    }

    /// Draws on any kind of vertical axis.
    fn draw_on<Y>(&self, area: &Area, loss: &str, range: Y) -> Result<(), DrawError>
    where
        Y: AsRangedCoord<Value = f64>,
        Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let along = self.lines.iter().flat_map(|line| &line.points);
        let last = along.map(|point| point.0).fold(1.0, f64::max);
        // White, as a page may be dark.
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, ("sans-serif", 24))
            .margin(14)
            .margin_right(30)
            .x_label_area_size(46)
            .y_label_area_size(72)
            .build_cartesian_2d(0.0..last, range)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(RGBColor(220, 220, 220))
            .label_style(("sans-serif", 17))
            .axis_desc_style(("sans-serif", 19))
            .x_desc(self.x)
            .y_desc(loss)
            .x_label_formatter(&|x| short(*x))
            .y_label_formatter(&|loss| short(*loss))
            .draw()?;
        for (line, colour) in self.lines.iter().zip(COLOURS.into_iter().cycle()) {
            if line.points.is_empty() {
                continue;
            }
            let style = colour.stroke_width(2).filled();
            let series = LineSeries::new(line.points.iter().copied(), style).point_size(3);
            chart
                .draw_series(series)?
                .label(line.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 24, y)], style));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE)
            .border_style(RGBColor(190, 190, 190))
            .legend_area_size(30)
            .label_font(("sans-serif", 18))
            .draw()?;
        area.present()
    }
}

/// A number of an axis, without the digits that only rounding made.
fn short(value: f64) -> String {
    format!("{}", (value * 1e6).round() / 1e6)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn plots_name_their_lines_and_stay_small() {
        for fall in [0.1_f64, 0.001] {
            let points =
                (1..=100).map(|i| (f64::from(250 * i), 2.0 * (-fall * f64::from(i)).exp()));
            let points: Vec<_> = points.collect();
            let line = |name| Line {
                name,
                points: points.clone(),
            };
            let plot = Plot {
                file: "plot.svg".into(),
                title: "reverse, at equal size".into(),
                x: "step",
                lines: ["rwkv7", "paper", "practical", "learned"].map(line).into(),
            };
            let svg = plot.svg().unwrap();
            for text in ["rwkv7", "learned", "validation loss", "step", &plot.title] {
                assert!(svg.contains(text), "{text} is missing");
            }
            assert!(svg.len() < 60_000, "{} bytes", svg.len());
        }
    }

    #[test]
    fn a_line_without_points_is_not_named_and_keeps_its_colour() {
        let line = |name, points| Line { name, points };
        let plot = Plot {
            file: "plot.svg".into(),
            title: String::new(),
            x: "step",
            lines: vec![line("first", vec![]), line("second", vec![(1.0, 2.0)])],
        };
        let svg = plot.svg().unwrap();
        assert!(svg.contains("second") && svg.contains("#D55E00"), "{svg}");
        assert!(!svg.contains("first"));
    }
}
