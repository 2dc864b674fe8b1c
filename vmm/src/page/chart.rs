//! Charts as SVG: two axes, and lines, steps, bars or dots over them. Colours and sizes are the stylesheet's; points
//! say their values when pointed at.

use std::fmt::Write;

use maud::{Markup, PreEscaped, html};

/// The drawing's size in its own units; on the page it is as wide as there is room.
const SIZE: (f64, f64) = (440.0, 260.0);
/// Room around the plot: left, right, above, below.
const MARGIN: (f64, f64, f64, f64) = (58.0, 12.0, 10.0, 44.0);
/// About so many marks on an axis.
const TICKS: f64 = 5.0;

/// How an axis maps values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// From 0.
    Linear,
    /// By powers of ten; what is not above 0 lies at the bottom.
    Log,
    /// One place for each whole number from 0, named by the axis.
    Places,
}

/// An axis.
#[derive(Debug, Clone)]
pub struct Axis {
    /// What it shows, with the unit.
    pub label: String,
    /// How.
    pub scale: Scale,
    /// At least up to here.
    pub reach: f64,
    /// The names of places.
    pub places: Vec<String>,
}

impl Axis {
    /// From 0 up.
    pub fn linear(label: &str) -> Self {
        Self {
            label: label.to_owned(),
            scale: Scale::Linear,
            reach: 0.0,
            places: Vec::new(),
        }
    }

    /// By powers of ten.
    pub fn log(label: &str) -> Self {
        Self {
            scale: Scale::Log,
            ..Self::linear(label)
        }
    }

    /// One place for each name.
    pub fn places(label: &str, places: Vec<String>) -> Self {
        Self {
            scale: Scale::Places,
            places,
            ..Self::linear(label)
        }
    }

    /// The same, and at least so far.
    pub fn reaching(self, reach: f64) -> Self {
        Self { reach, ..self }
    }
}

/// A point, and what it says when pointed at.
#[derive(Debug, Clone)]
pub struct Point {
    /// Along the horizontal axis.
    pub x: f64,
    /// Along the vertical one.
    pub y: f64,
    /// In words.
    pub says: String,
}

/// How points are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Joined by straight lines, with a dot each.
    Line,
    /// Each holds until the next.
    Steps,
    /// Standing on the horizontal axis.
    Bars,
    /// By themselves.
    Dots,
    /// A dashed line without dots, to compare with.
    Guide,
}

/// Points that belong together.
#[derive(Debug, Clone)]
pub struct Series {
    /// Their name in the legend.
    pub name: String,
    /// Which of the stylesheet's colours.
    pub colour: usize,
    /// How they are shown.
    pub mark: Mark,
    /// In the order of the horizontal axis.
    pub points: Vec<Point>,
}

/// A chart.
#[derive(Debug, Clone)]
pub struct Chart {
    /// Its headline.
    pub title: String,
    /// What to see in it.
    pub note: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// What it shows.
    pub series: Vec<Series>,
}

/// An axis with its ends, laid along the drawing.
struct Span<'a> {
    axis: &'a Axis,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl<'a> Span<'a> {
    fn new(axis: &'a Axis, values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let values: Vec<f64> = values.filter(|v| v.is_finite()).collect();
        let most = values.iter().copied().fold(axis.reach, f64::max);
        let (low, high) = match axis.scale {
            Scale::Linear => {
                let step = nice(if most > 0.0 { most } else { 1.0 } / TICKS);
                let top = if most > 0.0 {
                    (most / step).ceil() * step
                } else {
                    1.0
                };
                (0.0, top)
            }
            Scale::Log => {
                let above = values.iter().copied().filter(|v| *v > 0.0);
                let least = above.fold(f64::INFINITY, f64::min).min(most);
                let (least, most) = if most > 0.0 {
                    (least, most)
                } else {
                    (1.0, 10.0)
                };
                let low = least.log10().floor();
                (low, most.log10().ceil().max(low + 1.0))
            }
            Scale::Places => (-0.5, axis.places.len().max(1) as f64 - 0.5),
        };
        Self {
            axis,
            low,
            high,
            from,
            to,
        }
    }

    /// Where a value lies.
    fn at(&self, value: f64) -> f64 {
        let value = match self.axis.scale {
            Scale::Log if value > 0.0 => value.log10(),
            Scale::Log => self.low,
            // Nowhere is at the bottom.
            _ if value.is_nan() => self.low,
            _ => value,
        };
        let share = (value - self.low) / (self.high - self.low);
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }

    /// Values with their texts.
    fn ticks(&self) -> Vec<(f64, String)> {
        match self.axis.scale {
            Scale::Linear => {
                let step = nice(self.high / TICKS);
                let count = (self.high / step).round().min(20.0);
                let mut tick = 0.0;
                let mut ticks = Vec::new();
                while tick <= count {
                    ticks.push((tick * step, short(tick * step)));
                    tick += 1.0;
                }
                ticks
            }
            Scale::Log => {
                // Some powers between, where there are few of ten.
                let fine: &[f64] = match self.high - self.low {
                    decades if decades <= 2.0 => &[1.0, 2.0, 5.0],
                    _ => &[1.0],
                };
                let mut ticks = Vec::new();
                let mut power = self.low;
                while power <= self.high {
                    for digit in fine {
                        let value = digit * 10f64.powf(power);
                        if value <= 10f64.powf(self.high) * 1.001 {
                            ticks.push((value, short(value)));
                        }
                    }
                    power += 1.0;
                }
                ticks
            }
            Scale::Places => {
                let places = self.axis.places.iter().enumerate();
                places.map(|(at, name)| (at as f64, name.clone())).collect()
            }
        }
    }
}

/// The next of 1, 2, 2.5, 5, 10 at or above, in its power of ten.
fn nice(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let digit = value / power;
    let steps = [1.0, 2.0, 2.5, 5.0, 10.0];
    let step = steps.into_iter().find(|step| *step >= digit - 1e-9);
    step.unwrap_or(10.0) * power
}

/// A number in few letters.
pub fn short(value: f64) -> String {
    let (value, unit) = match value.abs() {
        v if v >= 1e13 || v < 1e-3 && v > 0.0 => return format!("{value:.0e}"),
        v if v >= 1e9 => (value / 1e9, "G"),
        v if v >= 1e6 => (value / 1e6, "M"),
        v if v >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let text = match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    };
    let text = match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    };
    text + unit
}

impl Chart {
    /// The chart, with its headline, legend and note.
    pub fn figure(&self) -> Markup {
        let named = self.series.iter().filter(|series| !series.name.is_empty());
        html! {
            figure {
                figcaption { (self.title) }
                div.legend {
                    @for series in named {
                        span class={ "key c" (series.colour) (if series.mark == Mark::Guide { " guide" } else { "" }) } {
                            (series.name)
                        }
                    }
                }
                (PreEscaped(self.svg()))
                @if !self.note.is_empty() { p.note { (self.note) } }
            }
        }
    }

    fn svg(&self) -> String {
        let (width, height) = SIZE;
        format!(
            "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\">{}</svg>",
            escape(&self.title),
            self.drawing()
        )
    }

    /// The chart as a file of its own, with headline and legend in it.
    pub fn image(&self) -> String {
        let (width, height) = SIZE;
        let named: Vec<_> = self.series.iter().filter(|s| !s.name.is_empty()).collect();
        let mut head = format!(
            "<text class=\"title\" x=\"12\" y=\"20\">{}</text>",
            escape(&self.title)
        );
        let mut top = 26.0;
        for pair in named.chunks(2) {
            top += 16.0;
            for (column, series) in pair.iter().enumerate() {
                let x = 12.0 + width / 2.0 * column as f64;
                let class = if series.mark == Mark::Guide {
                    "guide"
                } else {
                    ""
                };
                let _ = write!(
                    head,
                    "<g class=\"c{0}\"><line class=\"{class}\" x1=\"{x}\" x2=\"{1}\" y1=\"{2}\" y2=\"{2}\"/></g><text x=\"{3}\" y=\"{top}\">{4}</text>",
                    series.colour,
                    x + 16.0,
                    top - 4.0,
                    x + 22.0,
                    escape(&series.name)
                );
            }
        }
        top += 10.0;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {1}\" width=\"{2}\"><style>{3}{4}</style><rect class=\"card\" width=\"{width}\" height=\"{1}\" rx=\"8\"/>{head}<g transform=\"translate(0 {top})\" class=\"plot\">{0}</g></svg>\n",
            self.drawing(),
            top + height,
            width * 1.6,
            super::COLOURS,
            super::CHARTS
        )
    }

    /// Axes and marks.
    fn drawing(&self) -> String {
        let (left, right, above, below) = MARGIN;
        let (width, height) = SIZE;
        let points = || self.series.iter().flat_map(|series| &series.points);
        let x = Span::new(&self.x, points().map(|p| p.x), left, width - right);
        let y = Span::new(&self.y, points().map(|p| p.y), height - below, above);
        let mut svg = String::new();
        grid(&mut svg, &x, &y);
        let bars = self.series.iter().filter(|s| s.mark == Mark::Bars).count();
        let mut bar = 0;
        for series in &self.series {
            let _ = write!(svg, "<g class=\"c{}\">", series.colour);
            match series.mark {
                Mark::Line => line(&mut svg, series, &x, &y),
                Mark::Steps => steps(&mut svg, series, &x, &y),
                Mark::Bars => {
                    bars_of(&mut svg, series, &x, &y, bar, bars);
                    bar += 1;
                }
                Mark::Dots => dots(&mut svg, series, &x, &y),
                Mark::Guide => {
                    let way = way(series, &x, &y);
                    let _ = write!(svg, "<polyline class=\"guide\" points=\"{way}\"/>");
                }
            }
            svg.push_str("</g>");
        }
        svg
    }
}

/// Lines, numbers and names of both axes.
fn grid(svg: &mut String, x: &Span<'_>, y: &Span<'_>) {
    let (left, right, above, below) = MARGIN;
    let (width, height) = SIZE;
    for (value, text) in y.ticks() {
        let at = y.at(value);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{left}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            width - right,
            left - 6.0,
            at + 4.0,
            escape(&text)
        );
    }
    for (value, text) in x.ticks() {
        let at = x.at(value);
        let _ = write!(
            svg,
            "<line class=\"tick\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{}\" y2=\"{}\"/><text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            height - below,
            height - below + 4.0,
            height - below + 17.0,
            escape(&text)
        );
    }
    let _ = write!(
        svg,
        "<line class=\"axis\" x1=\"{left}\" x2=\"{}\" y1=\"{1}\" y2=\"{1}\"/><text class=\"label\" x=\"{2}\" y=\"{3}\" text-anchor=\"end\">{4}</text><text class=\"label\" transform=\"translate(12 {5}) rotate(-90)\" text-anchor=\"end\">{6}</text>",
        width - right,
        height - below,
        width - right,
        height - 8.0,
        escape(&x.axis.label),
        above + 2.0,
        escape(&y.axis.label)
    );
}

fn way(series: &Series, x: &Span<'_>, y: &Span<'_>) -> String {
    let mut way = String::new();
    for point in &series.points {
        let _ = write!(way, "{:.1},{:.1} ", x.at(point.x), y.at(point.y));
    }
    way
}

fn line(svg: &mut String, series: &Series, x: &Span<'_>, y: &Span<'_>) {
    let _ = write!(svg, "<polyline points=\"{}\"/>", way(series, x, y));
    dots(svg, series, x, y);
}

fn steps(svg: &mut String, series: &Series, x: &Span<'_>, y: &Span<'_>) {
    let mut way = String::new();
    let mut level = None;
    for point in &series.points {
        let (at, now) = (x.at(point.x), y.at(point.y));
        if let Some(level) = level {
            let _ = write!(way, "{at:.1},{level:.1} ");
        }
        let _ = write!(way, "{at:.1},{now:.1} ");
        level = Some(now);
    }
    let _ = write!(svg, "<polyline points=\"{way}\"/>");
    for point in &series.points {
        spot(svg, x.at(point.x), y.at(point.y), 6.0, "touch", &point.says);
    }
}

fn dots(svg: &mut String, series: &Series, x: &Span<'_>, y: &Span<'_>) {
    for point in &series.points {
        if point.x.is_finite() && point.y.is_finite() {
            spot(svg, x.at(point.x), y.at(point.y), 3.4, "dot", &point.says);
        }
    }
}

fn spot(svg: &mut String, x: f64, y: f64, radius: f64, class: &str, says: &str) {
    let _ = write!(
        svg,
        "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\"><title>{}</title></circle>",
        escape(says)
    );
}

/// Bars of several series stand beside each other.
fn bars_of(svg: &mut String, series: &Series, x: &Span<'_>, y: &Span<'_>, which: usize, of: usize) {
    let places = (x.high - x.low).max(1.0);
    let room = (x.to - x.from) / places * 0.8;
    let wide = (room / of.max(1) as f64).max(1.0);
    for point in &series.points {
        let left = x.at(point.x) - room / 2.0 + wide * which as f64;
        let top = y.at(point.y);
        let _ = write!(
            svg,
            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"1.5\"><title>{}</title></rect>",
            (wide - 1.0).max(0.8),
            (y.from - top).max(0.0),
            escape(&point.says)
        );
    }
}

/// Text within SVG.
fn escape(text: &str) -> String {
    html! { (text) }.into_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(y: Axis, ys: &[f64]) -> Chart {
        let point = |(at, y): (usize, &f64)| Point {
            x: at as f64,
            y: *y,
            says: "a < b".to_owned(),
        };
        let points: Vec<Point> = ys.iter().enumerate().map(point).collect();
        let marks = [Mark::Line, Mark::Steps, Mark::Bars, Mark::Dots, Mark::Guide];
        let series = |(colour, &mark): (usize, &Mark)| Series {
            name: format!("{mark:?}"),
            colour,
            mark,
            points: points.clone(),
        };
        Chart {
            title: "<title>".to_owned(),
            note: String::new(),
            x: Axis::places("x", vec!["one".to_owned(), "&two".to_owned()]),
            y,
            series: marks.iter().enumerate().map(series).collect(),
        }
    }

    #[test]
    fn axes_have_round_marks() {
        let axis = Axis::linear("");
        let ticks = |most: f64| -> Vec<String> {
            let span = Span::new(&axis, [most].into_iter(), 0.0, 100.0);
            span.ticks().into_iter().map(|(_, text)| text).collect()
        };
        assert_eq!(ticks(97.0), ["0", "20", "40", "60", "80", "100"]);
        assert_eq!(ticks(0.0), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(ticks(1.2e9), ["0", "250M", "500M", "750M", "1G", "1.25G"]);
        let axis = Axis::log("");
        let span = Span::new(&axis, [3.0, 4000.0].into_iter(), 0.0, 400.0);
        assert_eq!((span.low, span.high), (0.0, 4.0));
        assert!((span.at(100.0) - 200.0).abs() < 1e-9);
        assert_eq!(span.at(0.0), 0.0);
    }

    #[test]
    fn no_value_breaks_a_drawing() {
        for y in [Axis::linear("y"), Axis::log("y")] {
            for ys in [
                &[][..],
                &[0.0],
                &[1.0, 2.0],
                &[-1.0, f64::NAN, f64::INFINITY, 1e300, 1e-300],
            ] {
                let drawn = chart(y.clone(), ys).figure().into_string();
                assert!(!drawn.contains("NaN") && !drawn.contains("inf"), "{drawn}");
                assert!(
                    !drawn.contains("a < b") && !drawn.contains("&two"),
                    "{drawn}"
                );
                assert!(!drawn.contains("<title><title>"), "{drawn}");
            }
        }
    }
}
