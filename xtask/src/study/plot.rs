//! Validation loss against steps, as SVG.

use std::collections::BTreeMap;

use plotters::{
    coord::{
        Shift,
        ranged1d::{AsRangedCoord, Ranged, ValueFormatter},
    },
    prelude::*,
};

use super::{
    results::{Row, Table, mean_and_deviation},
    variants::VARIANTS,
};

/// The plots' folder, seen from the page that shows them.
pub const FOLDER: &str = "plots";

const SIZE: (u32, u32) = (800, 480);

/// Told apart with every kind of colour vision (Okabe and Ito), one for each main variant in the order of the table.
const COLOURS: [RGBColor; 4] = [
    RGBColor(0, 0, 0),
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
];

/// From this ratio of the largest loss to the smallest the axis is logarithmic; with less it would have few labels.
const LOGARITHMIC: f64 = 20.0;

/// A main variant's mean over its seeds.
struct Line {
    name: &'static str,
    colour: RGBColor,
    points: Vec<(f64, f64)>,
}

/// The name of a table's plot.
pub fn file_name(table: &Table) -> String {
    format!("{}-{}.svg", table.recipe.name(), table.scale.name())
}

/// Whether a table has a plot.
pub fn has_lines(table: &Table) -> bool {
    !lines(table).is_empty()
}

/// The plot of a table's main variants; none where no run of them is finished.
pub fn svg(table: &Table) -> Result<Option<String>, String> {
    let lines = lines(table);
    if lines.is_empty() {
        return Ok(None);
    }
    let title = format!("{}, {}", table.recipe.name(), table.scale.title());
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        draw(&area, &title, &lines).map_err(|e| format!("the plot of {title}: {e}"))?;
    }
    Ok(Some(svg))
}

fn lines(table: &Table) -> Vec<Line> {
    let main = VARIANTS.iter().filter(|variant| variant.is_main());
    let lines = main
        .zip(COLOURS.into_iter().cycle())
        .filter_map(|(variant, colour)| {
            let row = table
                .rows
                .iter()
                .find(|row| row.variant.name == variant.name)?;
            Some(Line {
                name: variant.name,
                colour,
                points: mean_by_step(row),
            })
        });
    lines.filter(|line| !line.points.is_empty()).collect()
}

/// The mean loss at the steps that all runs have.
fn mean_by_step(row: &Row) -> Vec<(f64, f64)> {
    let mut losses: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for (&step, &loss) in row.runs.iter().flat_map(|run| &run.validation.losses) {
        losses.entry(step).or_default().push(loss);
    }
    losses.retain(|_, losses| losses.len() == row.runs.len());
    let means = losses.into_iter();
    means
        .map(|(step, losses)| (step as f64, mean_and_deviation(&losses).0))
        .collect()
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type DrawError = DrawingAreaErrorKind<std::io::Error>;

fn draw(area: &Area, title: &str, lines: &[Line]) -> Result<(), DrawError> {
    let losses = || {
        lines
            .iter()
            .flat_map(|line| &line.points)
            .map(|point| point.1)
    };
    let least = losses().fold(f64::INFINITY, f64::min);
    let most = losses().fold(f64::NEG_INFINITY, f64::max);
    if least > 0.0 && most / least >= LOGARITHMIC {
        let range = least / 1.3..most * 1.3;
        draw_on(
            area,
            title,
            lines,
            "validation loss, nats (logarithmic)",
            range.log_scale(),
        )
    } else {
        let margin = (0.05 * (most - least)).max(1e-3);
        draw_on(
            area,
            title,
            lines,
            "validation loss, nats",
            least - margin..most + margin,
        )
    }
}

/// Draws on any kind of vertical axis.
fn draw_on<Y>(
    area: &Area,
    title: &str,
    lines: &[Line],
    loss: &str,
    range: Y,
) -> Result<(), DrawError>
where
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let steps = lines
        .iter()
        .flat_map(|line| &line.points)
        .map(|point| point.0);
    let last = steps.fold(1.0, f64::max);
    // White, as a page may be dark.
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 24))
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
        .x_desc("step")
        .y_desc(loss)
        .x_label_formatter(&|step| format!("{step:.0}"))
        .y_label_formatter(&|loss| short(*loss))
        .draw()?;
    for line in lines {
        let style = line.colour.stroke_width(2).filled();
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

/// A number of an axis, without the digits that only rounding made.
fn short(value: f64) -> String {
    format!("{}", (value * 1e6).round() / 1e6)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{
        results::{Finished, Validation},
        variants::{Recipe, Scale},
    };
    use super::*;

    fn run(losses: impl Iterator<Item = (u64, f64)>) -> Finished {
        Finished {
            parameters: 1,
            max_digits: 15,
            seconds: 1.0,
            results: vec![],
            lengths: BTreeMap::new(),
            validation: Validation {
                losses: losses.collect(),
                layers: BTreeMap::new(),
            },
        }
    }

    fn table(rows: Vec<Row>) -> Table {
        Table {
            recipe: Recipe::Reverse,
            scale: Scale::SameSize,
            rows,
            missing: vec![],
        }
    }

    #[test]
    fn a_line_is_the_mean_over_seeds_at_the_steps_that_all_have() {
        let runs = vec![
            run([(1, 2.0), (2, 1.0)].into_iter()),
            run([(1, 4.0)].into_iter()),
        ];
        let variant = &VARIANTS[0];
        assert_eq!(mean_by_step(&Row { variant, runs }), [(1.0, 3.0)]);
    }

    #[test]
    fn there_is_no_plot_without_a_main_variant() {
        let runs = vec![run([(1, 2.0)].into_iter())];
        let variant = VARIANTS.iter().find(|variant| !variant.is_main()).unwrap();
        let table = table(vec![Row { variant, runs }]);
        assert_eq!((svg(&table), has_lines(&table)), (Ok(None), false));
    }

    #[test]
    fn plots_name_their_lines_and_stay_small() {
        let rows = VARIANTS.iter().filter(|variant| variant.is_main());
        for fall in [0.1_f64, 0.001] {
            let rows = rows.clone().map(|variant| Row {
                variant,
                runs: vec![run(
                    (1..=100).map(|i| (250 * i, 2.0 * (-fall * i as f64).exp()))
                )],
            });
            let svg = svg(&table(rows.collect())).unwrap().unwrap();
            for text in [
                "rwkv7",
                "learned",
                "validation loss",
                "step",
                "reverse, at equal",
            ] {
                assert!(svg.contains(text), "{text} is missing");
            }
            assert!(svg.len() < 60_000, "{} bytes", svg.len());
        }
    }
}
