//! Curves of a run, as SVG and as PNG, from one drawing.

use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, ValueFormatter};
use plotters::drawing::DrawingAreaErrorKind;
use plotters::prelude::*;
use plotters::style::register_font;

use crate::error::{Error, Result};
use crate::train::files::write_atomic;
use crate::train::history::History;
use crate::train::picture::save_png;

/// Width and height of a plot, in pixels.
pub const SIZE: (u32, u32) = (960, 600);

/// A PNG is drawn this many times larger and then averaged down: plotters does not smooth the
/// edges of thick lines.
const OVERSAMPLING: u32 = 3;

/// Points that are drawn of a curve; more of them no screen can show.
const MOST_POINTS: usize = 2000;

/// Points up to which each gets a marker.
const MOST_MARKERS: usize = 60;

/// Okabe and Ito's colours, which colour-blind people tell apart.
const PALETTE: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];
/// How much of its colour a band has: what lies behind is seen through it.
const BAND: f64 = 0.35;
/// Of what is right, and of what is wrong.
pub(super) const RIGHT: RGBColor = PALETTE[2];
pub(super) const WRONG: RGBColor = PALETTE[1];
pub(super) const TEXT: RGBColor = RGBColor(40, 40, 40);
const GRID: RGBColor = RGBColor(228, 228, 228);

/// The viewer's own in an SVG; in a PNG the font that [`register`] brings.
pub(super) const FONT: &str = "sans-serif";

/// Bring the font, before anything is drawn.
pub(super) fn register() {
    // fails only where the font is none
    let _ = register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT);
}

/// How a [`Series`] is drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stroke {
    Line,
    Markers,
    Faint,
    Band,
}

/// One curve.
#[derive(Clone, Debug)]
pub struct Series {
    name: String,
    points: Vec<(f64, f64)>,
    stroke: Stroke,
}

impl Series {
    /// A line through points (x, y). Those that are not finite are left out, here and below.
    pub fn line(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self::new(name, points, Stroke::Line)
    }

    /// A line with a marker at each point.
    pub fn markers(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self::new(name, points, Stroke::Markers)
    }

    /// A thin pale line: the noisy values behind the series that follows, in that one's colour.
    pub fn faint(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self::new(name, points, Stroke::Faint)
    }

    /// The area between two curves, from points (x, low, high) in the order of x.
    pub fn band(name: impl Into<String>, mut ends: Vec<(f64, f64, f64)>) -> Self {
        ends.retain(|&(x, low, high)| [x, low, high].iter().all(|v| v.abs() < 1e30));
        // its outline: there along the low ends, back along the high ones
        let there = thin(&ends.iter().map(|&(x, low, _)| (x, low)).collect::<Vec<_>>());
        let back = thin(
            &ends
                .iter()
                .map(|&(x, _, high)| (x, high))
                .collect::<Vec<_>>(),
        );
        let outline = there.into_iter().chain(back.into_iter().rev());
        Self::new(name, outline.collect(), Stroke::Band)
    }

    fn new(name: impl Into<String>, mut points: Vec<(f64, f64)>, stroke: Stroke) -> Self {
        // far beyond any curve, and safe from overflow in what follows; false for NaN
        points.retain(|&(x, y)| x.abs() < 1e30 && y.abs() < 1e30);
        Series {
            name: name.into(),
            points,
            stroke,
        }
    }
}

/// A plot of curves over one pair of axes, with a grid, and a legend where there are several.
#[derive(Clone, Copy, Debug)]
pub struct Plot<'a> {
    /// What stands above it.
    pub title: &'a str,
    /// Below the x axis.
    pub x_label: &'a str,
    /// Beside the y axis.
    pub y_label: &'a str,
    /// The curves, later ones on top.
    pub series: &'a [Series],
}

impl Plot<'_> {
    /// Write `name.svg` and `name.png`, [`SIZE`] large, into the folder `dir`.
    pub fn save(&self, dir: impl AsRef<Path>, name: &str) -> Result<()> {
        register();
        let svg_path = dir.as_ref().join(format!("{name}.svg"));
        let mut svg = String::new();
        self.draw_on(SVGBackend::with_string(&mut svg, SIZE), 1)
            .map_err(Error::io(&svg_path))?;
        write_atomic(&svg_path, |w| w.write_all(svg.as_bytes()))?;

        let png_path = dir.as_ref().join(format!("{name}.png"));
        let large = (SIZE.0 * OVERSAMPLING, SIZE.1 * OVERSAMPLING);
        let mut pixels = vec![0; (large.0 * large.1 * 3) as usize];
        self.draw_on(BitMapBackend::with_buffer(&mut pixels, large), OVERSAMPLING)
            .map_err(Error::io(&png_path))?;
        let pixels = average(&pixels, OVERSAMPLING as usize);
        save_png(&png_path, &pixels, SIZE.0, SIZE.1, png::ColorType::Rgb)
    }

    fn draw_on<DB: DrawingBackend>(&self, backend: DB, scale: u32) -> std::io::Result<()> {
        self.draw(&backend.into_drawing_area(), scale)
            .map_err(|e| std::io::Error::other(e.to_string()))
    }

    /// The drawing itself; every length is `scale` times that of an SVG.
    fn draw<DB: DrawingBackend>(
        &self,
        root: &DrawingArea<DB, Shift>,
        scale: u32,
    ) -> std::result::Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
        let px = |length: u32| length * scale;
        let font = |size: u32| (FONT, px(size)).into_font().color(&TEXT);
        let (x, y) = self.axes();
        let corner = self.emptiest_corner(&x, &y);

        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(root)
            .caption(self.title, font(26))
            .margin(px(14))
            .margin_right(px(28))
            .x_label_area_size(px(56))
            .y_label_area_size(px(84))
            .build_cartesian_2d(x, y)?;
        chart
            .configure_mesh()
            .bold_line_style(GRID.stroke_width(scale))
            .light_line_style(TRANSPARENT)
            .axis_style(TEXT.stroke_width(scale))
            .set_all_tick_mark_size(px(5))
            .label_style(font(17))
            .axis_desc_style(font(20))
            .x_desc(self.x_label)
            .y_desc(self.y_label)
            .draw()?;

        let mut colours = PALETTE.iter().cycle();
        let mut colour = PALETTE[0];
        let mut behind = false;
        for series in self.series {
            // a faint series and the one after it share a colour
            if !behind {
                colour = *colours.next().unwrap_or(&BLACK);
            }
            behind = series.stroke == Stroke::Faint;
            if series.stroke == Stroke::Band {
                let area = colour.mix(BAND);
                let outline = Polygon::new(&series.points[..], area.filled());
                let edge = series.points.iter().chain(series.points.first()).copied();
                let edge = PathElement::new(edge.collect::<Vec<_>>(), colour.stroke_width(scale));
                let drawn = chart.draw_series([outline])?.label(&series.name);
                drawn.legend(move |(x, y)| {
                    let half = px(6) as i32;
                    Rectangle::new(
                        [(x, y - half), (x + px(28) as i32, y + half)],
                        area.filled(),
                    )
                });
                chart.draw_series([edge])?;
                continue;
            }
            let style = if behind {
                pale(colour).stroke_width(scale)
            } else {
                colour.stroke_width(px(2))
            };
            let marked = series.points.len() == 1
                || series.stroke == Stroke::Markers && series.points.len() <= MOST_MARKERS;
            let radius = if marked { px(4) } else { 0 };
            let points = thin(&series.points);
            let line = if scale == 1 {
                chart.draw_series(LineSeries::new(points, style))?
            } else {
                // plotters' thick bitmap paths shoot out at sharp turns; round joints do not
                let joint = |&p| Circle::new(p, style.stroke_width / 2, style.filled());
                chart.draw_series(points.iter().map(joint))?;
                chart.draw_series(points.windows(2).map(|ends| PathElement::new(ends, style)))?
            };
            line.label(&series.name).legend(move |(x, y)| {
                let end = x + px(28) as i32;
                EmptyElement::at((0, 0))
                    + PathElement::new([(x, y), (end, y)], style)
                    + Circle::new(((x + end) / 2, y), radius, colour.filled())
            });
            if marked {
                let circle = |&p| Circle::new(p, radius, style.filled());
                chart.draw_series(series.points.iter().map(circle))?;
            }
        }
        if self.points().next().is_none() {
            let centre = ((SIZE.0 / 2 * scale) as i32, (SIZE.1 / 2 * scale) as i32);
            root.draw(&Text::new("no data", centre, font(20)))?;
        } else if self.series.len() > 1 {
            chart
                .configure_series_labels()
                .position(corner)
                .background_style(WHITE.mix(0.85))
                .border_style(GRID.stroke_width(scale))
                .label_font(font(18))
                .legend_area_size(px(36))
                .margin(px(9))
                .draw()?;
        }
        root.present()
    }

    fn points(&self) -> impl Iterator<Item = (f64, f64)> {
        self.series.iter().flat_map(|s| s.points.iter().copied())
    }

    /// The axes that hold every point, but of a faint series only the middle 98 % of its heights:
    /// a few wild steps must not press the rest flat.
    fn axes(&self) -> (Axis, Axis) {
        let xs: Vec<f64> = self.points().map(|(x, _)| x).collect();
        let mut ys = Vec::new();
        for series in self.series {
            let mut values: Vec<f64> = series.points.iter().map(|p| p.1).collect();
            if series.stroke == Stroke::Faint {
                values.sort_by(f64::total_cmp);
                let cut = values.len() / 100;
                values = values[cut..values.len() - cut].to_vec();
            }
            ys.extend(values);
        }
        // between two steps or epochs there is nothing to label
        let whole = xs.iter().all(|x| *x == x.round());
        let x = Axis::new(padded(extent(&xs), 0.02), if whole { 1.0 } else { 0.0 });
        let (low, high) = extent(&ys);
        let (mut bottom, top) = padded((low, high), 0.05);
        // what is never negative, as a loss, is best seen from 0
        if low >= 0.0 && (bottom < 0.0 || low < 0.4 * high) {
            bottom = 0.0;
        }
        (x, Axis::new((bottom, top), 0.0))
    }

    /// The corner where a legend hides the fewest points.
    fn emptiest_corner(&self, x_axis: &Axis, y_axis: &Axis) -> SeriesLabelPosition {
        let height = 0.06 * (self.series.len() + 1) as f64;
        let hidden = |right: bool, upper: bool| {
            self.points()
                .map(|(x, y)| (x_axis.share(x), y_axis.share(y)))
                .filter(|&(x, _)| if right { x > 0.7 } else { x < 0.3 })
                .filter(|&(_, y)| if upper { y > 1.0 - height } else { y < height })
                .count()
        };
        let corners = [
            (true, true, SeriesLabelPosition::UpperRight),
            (true, false, SeriesLabelPosition::LowerRight),
            (false, true, SeriesLabelPosition::UpperLeft),
            (false, false, SeriesLabelPosition::LowerLeft),
        ];
        corners
            .into_iter()
            .min_by_key(|&(right, upper, _)| hidden(right, upper))
            .map_or(SeriesLabelPosition::UpperRight, |(_, _, corner)| corner)
    }
}

/// One axis: its ends, and the distance of its ticks.
struct Axis {
    low: f64,
    high: f64,
    step: f64,
}

impl Axis {
    /// With up to eight or so ticks, at multiples of 1, 2 or 5 times a power of ten that is not
    /// under `least`.
    fn new((low, high): (f64, f64), least: f64) -> Self {
        let rough = (high - low) / 8.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0]
            .map(|m| m * power)
            .into_iter()
            .find(|&step| step >= rough)
            .unwrap_or(10.0 * power)
            .max(least);
        Axis { low, high, step }
    }

    /// Where a value lies, 0 at the low end and 1 at the high one; those outside at the ends.
    fn share(&self, value: f64) -> f64 {
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    fn ticks(&self) -> Vec<f64> {
        let first = (self.low / self.step).ceil() as i64;
        let last = (self.high / self.step).floor() as i64;
        (first..=last).map(|i| i as f64 * self.step).collect()
    }

    /// A tick's number, with the digits that tell it from its neighbours.
    fn label(&self, tick: f64) -> String {
        let place = |v: f64| (v.abs().log10() + 1e-9).floor();
        if tick.abs() < 0.5 * self.step {
            "0".into()
        } else if tick.abs() >= 1e6 || self.step < 1e-4 {
            let digits = (place(tick) - place(self.step)).max(0.0) as usize;
            format!("{tick:.digits$e}")
        } else {
            let digits = (-place(self.step)).max(0.0) as usize;
            format!("{tick:.digits$}")
        }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (start, end): (i32, i32)) -> i32 {
        start + (self.share(*value) * (end - start) as f64).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks()
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, tick: &f64) -> String {
        self.label(*tick)
    }
}

/// Values by their number, from 1.
fn numbered(values: &[f64], scale: f64) -> Vec<(f64, f64)> {
    (1..)
        .zip(values)
        .map(|(i, v)| (i as f64, scale * v))
        .collect()
}

/// Write `loss.svg` and `.png` (the loss of each step), `epoch_loss.svg` and `.png` (each epoch's mean, and
/// validation after it) and `accuracy.svg` and `.png` (training and validation after each epoch) into the
/// folder `dir`; of a model that is judged by its loss there are no accuracies. The names of what was written,
/// without their kinds.
pub fn save_curves(dir: impl AsRef<Path>, history: &History) -> Result<Vec<&'static str>> {
    let losses = &history.loss_history;
    Plot {
        title: "Training loss",
        x_label: "step",
        y_label: "loss",
        series: &[
            Series::faint("each step", numbered(losses, 1.0)),
            Series::line(
                "smoothed",
                numbered(&smooth(losses, losses.len() / 50), 1.0),
            ),
        ],
    }
    .save(&dir, "loss")?;
    Plot {
        title: "Loss",
        x_label: "epoch",
        y_label: "loss",
        series: &[
            Series::markers("training", numbered(&history.epoch_losses(), 1.0)),
            Series::markers("validation", numbered(&history.val_loss_history, 1.0)),
        ],
    }
    .save(&dir, "epoch_loss")?;
    let mut names = vec!["loss", "epoch_loss"];
    if history.is_judged_by_loss() {
        return Ok(names);
    }
    names.push("accuracy");
    Plot {
        title: "Accuracy",
        x_label: "epoch",
        y_label: "accuracy (%)",
        series: &[
            Series::markers("training", numbered(&history.train_acc_history, 100.0)),
            Series::markers("validation", numbered(&history.val_acc_history, 100.0)),
        ],
    }
    .save(&dir, "accuracy")?;
    Ok(names)
}

/// Write `val_acc.svg` and `.png` (the validation accuracy after each epoch) and `loss.svg` and `.png`
/// (each epoch's mean training loss) of several runs, by their names, into the folder `dir`.
pub fn save_comparison(
    dir: impl AsRef<Path>,
    title: &str,
    runs: &[(String, History)],
) -> Result<()> {
    let save = |name: &str, y_label: &str, of: fn(&History) -> Vec<(f64, f64)>| {
        let line = |(name, history): &(String, History)| Series::markers(name, of(history));
        Plot {
            title,
            x_label: "epoch",
            y_label,
            series: &runs.iter().map(line).collect::<Vec<_>>(),
        }
        .save(&dir, name)
    };
    save("val_acc", "validation accuracy (%)", |h| {
        numbered(&h.val_acc_history, 100.0)
    })?;
    save("loss", "training loss", |h| {
        numbered(&h.epoch_losses(), 1.0)
    })
}

/// The exponential moving average over about `window` values, without the bias toward its start
/// (Kingma and Ba 2015, section 3). A value that is not finite is passed over.
fn smooth(values: &[f64], window: usize) -> Vec<f64> {
    let keep = 1.0 - 1.0 / window.max(1) as f64;
    let (mut sum, mut weight) = (0.0, 0.0);
    values
        .iter()
        .map(|&v| {
            if v.is_finite() {
                sum = keep * sum + v;
                weight = keep * weight + 1.0;
            }
            sum / weight
        })
        .collect()
}

/// At most about [`MOST_POINTS`] points, by keeping the lowest and the highest of each stretch:
/// it looks the same, and an SVG of a million steps stays small.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= MOST_POINTS {
        return points.to_vec();
    }
    let stretch = (2 * points.len()).div_ceil(MOST_POINTS);
    let mut kept = Vec::with_capacity(MOST_POINTS + 2);
    kept.push(points[0]);
    for part in points.chunks(stretch) {
        let by_height = |&a: &usize, &b: &usize| part[a].1.total_cmp(&part[b].1);
        let low = (0..part.len()).min_by(by_height).unwrap_or(0);
        let high = (0..part.len()).max_by(by_height).unwrap_or(0);
        kept.extend([part[low.min(high)], part[low.max(high)]]);
    }
    kept.push(points[points.len() - 1]);
    kept
}

/// Least and greatest; (0, 1) of nothing.
fn extent(values: &[f64]) -> (f64, f64) {
    if values.is_empty() {
        return (0.0, 1.0);
    }
    values
        .iter()
        .fold((f64::MAX, f64::MIN), |(l, h), &v| (l.min(v), h.max(v)))
}

/// A little wider, by `share` of its width; around a single value, wide enough to see it.
fn padded((low, high): (f64, f64), share: f64) -> (f64, f64) {
    // below this width neighbouring ticks would be one and the same float
    let narrow = high - low <= 1e-9 * low.abs().max(high.abs());
    let pad = match (narrow, low == 0.0) {
        (true, true) => 1.0,
        (true, false) => 0.5 * low.abs(),
        (false, _) => share * (high - low),
    };
    (low - pad, high + pad)
}

/// A colour mixed with twice as much white.
fn pale(RGBColor(r, g, b): RGBColor) -> RGBColor {
    let mix = |v: u8| ((v as u32 + 2 * 255) / 3) as u8;
    RGBColor(mix(r), mix(g), mix(b))
}

/// Each `factor` x `factor` pixels of a picture `factor` times [`SIZE`] to their mean.
fn average(pixels: &[u8], factor: usize) -> Vec<u8> {
    let (width, height) = (SIZE.0 as usize, SIZE.1 as usize);
    let row = width * factor * 3;
    let mut sums = vec![0u32; width * 3];
    let mut small = Vec::with_capacity(width * height * 3);
    for rows in pixels.chunks_exact(row * factor) {
        sums.fill(0);
        for line in rows.chunks_exact(row) {
            for (sum, square) in sums.chunks_exact_mut(3).zip(line.chunks_exact(factor * 3)) {
                for pixel in square.chunks_exact(3) {
                    for (sum, &byte) in sum.iter_mut().zip(pixel) {
                        *sum += byte as u32;
                    }
                }
            }
        }
        let count = (factor * factor) as u32;
        small.extend(sums.iter().map(|&s| ((s + count / 2) / count) as u8));
    }
    small
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::picture::tests::decode;

    /// A run of `epochs` epochs of 100 steps whose loss falls, with noise.
    fn run(epochs: usize) -> History {
        let mut h = History::default();
        for e in 1..=epochs {
            for i in 0..100 {
                let t = (e * 100 + i) as f64 / 100.0;
                let noise = ((e * 100 + i) as f64 * 12.9898).sin() * 43758.5453;
                h.loss_history
                    .push(2.3 / t.sqrt() + 0.4 * (noise - noise.floor() - 0.5));
            }
            let e = e as f64;
            h.end_epoch([0.9 - 0.6 / e, 0.78 - 0.5 / e], 2.0 / e, 1e-3, 1.0);
        }
        h
    }

    /// How many pixels are not white.
    fn ink(pixels: &[u8]) -> usize {
        pixels.chunks(3).filter(|p| *p != [255; 3]).count()
    }

    #[test]
    fn curves_of_a_run() {
        let dir = tempfile::tempdir().unwrap();
        save_curves(dir.path(), &run(6)).unwrap();
        let svg = |name| std::fs::read_to_string(dir.path().join(name)).unwrap();
        let loss = svg("loss.svg");
        for text in ["Training loss", "step", "loss", "each step", "smoothed"] {
            assert!(loss.contains(&format!("\n{text}\n")), "{text}");
        }
        assert!(loss.contains("stroke=\"#0072B2\""), "the smoothed line");
        assert!(loss.contains("stroke=\"#AAD0E5\""), "the faint line");
        let longest = loss
            .lines()
            .filter(|l| l.starts_with("<polyline"))
            .map(|l| l.matches(',').count())
            .max();
        assert!(longest >= Some(600), "a point per step: {longest:?}");

        let accuracy = svg("accuracy.svg");
        for text in [
            "Accuracy",
            "epoch",
            "accuracy (%)",
            "training",
            "validation",
        ] {
            assert!(accuracy.contains(&format!("\n{text}\n")), "{text}");
        }
        assert_eq!(
            accuracy.matches("<circle").count(),
            2 * (6 + 1),
            "and two in the legend"
        );
        for name in ["loss.png", "accuracy.png"] {
            let (w, h, c, pixels) = decode(&dir.path().join(name));
            assert_eq!((w, h, c), (960, 600, 3));
            let ink = ink(&pixels);
            assert!((10_000..300_000).contains(&ink), "{name}: {ink}");
        }
    }

    #[test]
    fn odd_histories_are_drawn_too() {
        let dir = tempfile::tempdir().unwrap();
        let one = History {
            loss_history: vec![2.3],
            train_acc_history: vec![0.0],
            val_acc_history: vec![1.0],
            ..History::default()
        };
        let wild = History {
            loss_history: vec![
                f64::NAN,
                2.0,
                f64::INFINITY,
                1e300,
                1.5,
                -1e29,
                f64::NEG_INFINITY,
            ],
            train_acc_history: vec![f64::NAN; 3],
            val_acc_history: vec![0.5; 3],
            ..History::default()
        };
        let all_nan = History {
            loss_history: vec![f64::NAN; 5],
            ..History::default()
        };
        for (history, no_data) in [
            (History::default(), true),
            (one, false),
            (wild, false),
            (all_nan, true),
        ] {
            save_curves(dir.path(), &history).unwrap();
            let svg = std::fs::read_to_string(dir.path().join("loss.svg")).unwrap();
            assert_eq!(svg.contains("no data"), no_data);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            let (_, _, _, pixels) = decode(&dir.path().join("loss.png"));
            assert!(ink(&pixels) > 2000);
        }
        let e = save_curves(dir.path().join("nowhere"), &History::default()).unwrap_err();
        assert!(matches!(e, Error::Io { .. }), "{e}");
    }

    #[test]
    fn a_name_is_text_and_not_markup() {
        let dir = tempfile::tempdir().unwrap();
        let plot = Plot {
            title: "<b> & co",
            x_label: "x",
            y_label: "y",
            series: &[
                Series::line("a < b", vec![(0.0, 1.0), (0.5, 2.0)]),
                Series::line("b", vec![(0.5, 1.0)]),
            ],
        };
        plot.save(dir.path(), "p").unwrap();
        let svg = std::fs::read_to_string(dir.path().join("p.svg")).unwrap();
        assert!(svg.contains("&lt;b&gt; &amp; co") && svg.contains("a &lt; b"));
    }

    #[test]
    fn a_band_is_an_area_whose_ends_are_all_finite() {
        let dir = tempfile::tempdir().unwrap();
        let ends = (0..5000).map(|i| (i as f64, 1.0, 2.0 + (i % 7) as f64));
        let mut ends: Vec<(f64, f64, f64)> = ends.collect();
        ends[10].2 = f64::INFINITY;
        ends[20].1 = -3.0;
        let series = [
            Series::band("wide", ends),
            Series::band("none", Vec::new()),
            Series::line("on top", vec![(0.0, 1.5), (4999.0, 1.5)]),
        ];
        let plot = Plot {
            title: "",
            x_label: "",
            y_label: "",
            series: &series,
        };
        let (x, y) = plot.axes();
        assert!(x.high > 4999.0 && y.low < -3.0 && y.high > 8.0 && y.high < 9.0);
        plot.save(dir.path(), "band").unwrap();
        let svg = std::fs::read_to_string(dir.path().join("band.svg")).unwrap();
        let area = svg.lines().find(|l| l.starts_with("<polygon")).unwrap();
        assert!(
            area.contains("opacity=\"0.35\" fill=\"#0072B2\""),
            "{}",
            &area[..80]
        );
        let points = area.matches(',').count();
        assert!((2000..=2 * (MOST_POINTS + 2)).contains(&points), "{points}");
        let (_, _, _, pixels) = decode(&dir.path().join("band.png"));
        assert!(ink(&pixels) > 30_000);
    }

    #[test]
    fn ticks_are_round() {
        let labels = |range, least| {
            let axis = Axis::new(range, least);
            let labels: Vec<String> = axis.ticks().iter().map(|&t| axis.label(t)).collect();
            labels.join(" ")
        };
        assert_eq!(labels((0.0, 2.4), 0.0), "0 0.5 1.0 1.5 2.0");
        assert_eq!(labels((0.9, 4.1), 1.0), "1 2 3 4");
        assert_eq!(labels((-30.0, 100.0), 0.0), "-20 0 20 40 60 80 100");
        assert_eq!(labels((0.0, 49_000.0), 1.0), "0 10000 20000 30000 40000");
        assert_eq!(
            labels((0.0, 1e-3), 0.0),
            "0 0.0002 0.0004 0.0006 0.0008 0.0010"
        );
        assert_eq!(
            labels((1e-4, 1.9e-4), 0.0),
            "1.0e-4 1.2e-4 1.4e-4 1.6e-4 1.8e-4"
        );
        assert_eq!(
            labels((0.0, 3e6), 1.0),
            "0 500000 1.0e6 1.5e6 2.0e6 2.5e6 3.0e6"
        );
    }

    #[test]
    fn ranges_show_the_bulk_from_zero() {
        let plot = |series: &[Series]| {
            let (_, y) = Plot {
                title: "",
                x_label: "",
                y_label: "",
                series,
            }
            .axes();
            (y.low, y.high)
        };
        let mut spiky: Vec<(f64, f64)> =
            (0..200).map(|i| (i as f64, 1.0 + (i % 5) as f64)).collect();
        spiky[3].1 = 1e6;
        assert_eq!(plot(&[Series::faint("", spiky)]), (0.0, 5.2));
        let high = [Series::line("", vec![(0.0, 80.0), (1.0, 90.0)])];
        assert_eq!(plot(&high), (79.5, 90.5));
        assert_eq!(plot(&[Series::line("", vec![(0.0, 4.0)])]), (2.0, 6.0));
        assert_eq!(plot(&[Series::line("", vec![(0.0, 0.0)])]), (0.0, 1.0));
        assert_eq!(plot(&[]), (0.0, 1.05));
    }

    #[test]
    fn smoothing_starts_without_bias_and_passes_over_nan() {
        let flat = smooth(&[3.0; 50], 10);
        assert!(flat.iter().all(|v| (v - 3.0).abs() < 1e-12));
        assert_eq!(smooth(&[1.0, 5.0, 2.0], 0), [1.0, 5.0, 2.0]);
        let s = smooth(&[f64::NAN, 1.0, f64::INFINITY, 4.0], 2);
        assert!(s[0].is_nan());
        assert_eq!(s[1..], [1.0, 1.0, 3.0]);
    }

    #[test]
    fn thinning_keeps_ends_and_extremes() {
        let mut points: Vec<(f64, f64)> =
            (0..100_000).map(|i| (i as f64, (i % 7) as f64)).collect();
        points[54_321].1 = 99.0;
        points[12_345].1 = -99.0;
        let thinned = thin(&points);
        assert!(thinned.len() <= MOST_POINTS + 2, "{}", thinned.len());
        assert_eq!(
            (thinned[0], thinned[thinned.len() - 1]),
            (points[0], points[99_999])
        );
        assert!(thinned.contains(&(54_321.0, 99.0)) && thinned.contains(&(12_345.0, -99.0)));
        assert!(thinned.is_sorted_by_key(|p| p.0));
        assert_eq!(thin(&points[..10]), points[..10]);
    }

    #[test]
    fn the_legend_avoids_the_curve() {
        let rising = |sign: f64| {
            let points = (0..50).map(|i| (i as f64, sign * i as f64)).collect();
            let series = [Series::line("", points)];
            let plot = Plot {
                title: "",
                x_label: "",
                y_label: "",
                series: &series,
            };
            let (x, y) = plot.axes();
            plot.emptiest_corner(&x, &y)
        };
        assert_eq!(rising(1.0), SeriesLabelPosition::LowerRight);
        assert_eq!(rising(-1.0), SeriesLabelPosition::UpperRight);
    }
}
