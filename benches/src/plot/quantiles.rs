//! Quantiles of several contenders, one line each, on a logarithmic scale.

use std::fmt::Write as _;

use super::{escaped, shown};

/// Lines of one work.
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) lines: Vec<Line>,
}

pub(crate) struct Line {
    pub(crate) label: String,
    /// In order: p50, p99, p999.
    pub(crate) quantiles: [f64; 3],
    /// Stands out.
    pub(crate) ours: bool,
}

const WIDTH: f64 = 760.0;
const LEFT: f64 = 170.0;
/// Room for figures at the right.
const RIGHT: f64 = 170.0;
const STEP: f64 = 22.0;
const HEAD: f64 = 34.0;
const TITLE: f64 = 40.0;
/// The axis below each panel.
const FOOT: f64 = 22.0;

/// The whole drawing; none if there is nothing to draw.
pub(crate) fn chart(title: &str, unit: &str, panels: &[Panel]) -> Option<String> {
    let panels: Vec<_> = panels.iter().filter(|panel| !panel.lines.is_empty()).collect();
    let values = || panels.iter().flat_map(|panel| &panel.lines).flat_map(|line| line.quantiles).filter(|it| *it > 0.0);
    let least = values().reduce(f64::min)?;
    let most = values().reduce(f64::max)?;
    let scale = Scale { from: least.log10().floor(), to: most.log10().ceil().max(least.log10().floor() + 1.0) };
    let rows: usize = panels.iter().map(|panel| panel.lines.len()).sum();
    let height = TITLE + (HEAD + FOOT) * panels.len() as f64 + STEP * rows as f64 + 12.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"16\" y=\"26\" font-size=\"16\" font-weight=\"600\" fill=\"#1f2328\">{}</text>\n",
        escaped(title)
    );
    let mut y = TITLE;
    for panel in panels {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(
            svg,
            "<text x=\"16\" y=\"{}\" font-weight=\"600\" fill=\"#59636e\">{}</text>",
            y + 22.0,
            escaped(&panel.title)
        );
        y += HEAD;
        axis(&mut svg, scale, y, STEP * panel.lines.len() as f64, unit);
        for line in &panel.lines {
            draw(&mut svg, line, y, scale, unit);
            y += STEP;
        }
        y += FOOT;
    }
    svg.push_str("</svg>\n");
    Some(svg)
}

/// Powers of ten at either end.
#[derive(Clone, Copy)]
struct Scale {
    from: f64,
    to: f64,
}

impl Scale {
    fn x(self, value: f64) -> f64 {
        let place = (value.log10() - self.from) / (self.to - self.from);
        LEFT + place.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }
}

fn axis(svg: &mut String, scale: Scale, y: f64, height: f64, unit: &str) {
    for power in scale.from as i32..=scale.to as i32 {
        let value = 10f64.powi(power);
        let (x, bottom) = (scale.x(value), y + height);
        let _ = writeln!(
            svg,
            "<path d=\"M{x:.1} {y:.1}V{bottom:.1}\" stroke=\"#d1d9e0\"/>\n\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#59636e\">{value} {}</text>",
            bottom + 14.0,
            escaped(unit)
        );
    }
}

fn draw(svg: &mut String, line: &Line, y: f64, scale: Scale, unit: &str) {
    let colour = if line.ours { "#0969da" } else { "#818b98" };
    let weight = if line.ours { " font-weight=\"600\"" } else { "" };
    let middle = y + STEP / 2.0;
    let [p50, p99, p999] = line.quantiles;
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#1f2328\"{weight}>{}</text>\n\
         <path d=\"M{:.1} {middle:.1}H{:.1}\" stroke=\"{colour}\" stroke-width=\"2\"/>",
        LEFT - 8.0,
        middle + 4.0,
        escaped(&line.label),
        scale.x(p50),
        scale.x(p999),
    );
    for (value, radius, fill) in [(p50, 3.5, "#ffffff"), (p99, 5.0, colour), (p999, 3.5, colour)] {
        let _ = writeln!(
            svg,
            "<circle cx=\"{:.1}\" cy=\"{middle:.1}\" r=\"{radius}\" fill=\"{fill}\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            scale.x(value)
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{:.1}\" fill=\"#1f2328\"{weight}>{} / {} / {} {}</text>",
        WIDTH - RIGHT + 14.0,
        middle + 4.0,
        shown(p50),
        shown(p99),
        shown(p999),
        escaped(unit)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_the_scale_is_a_power_of_ten() {
        let line = |label: &str, quantiles| Line { label: label.to_owned(), quantiles, ours: label == "leno" };
        let lines = vec![line("leno", [10.0, 100.0, 1000.0]), line("a < b", [20.0, 300.0, 400.0])];
        let svg = chart("Latency", "ms", &[Panel { title: "80 %".to_owned(), lines }]).unwrap();
        for x in ["cx=\"170.0\"", "cx=\"380.0\"", "cx=\"590.0\"", "a &lt; b", "10.0 / 100 / 1,000 ms"] {
            assert!(svg.contains(x), "{x} is not in {svg}");
        }
    }

    #[test]
    fn nothing_to_draw() {
        assert!(chart("x", "ms", &[Panel { title: String::new(), lines: Vec::new() }]).is_none());
    }
}
