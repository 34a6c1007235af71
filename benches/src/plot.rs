//! Charts as SVG: one panel per work, one bar (or one line of [`quantiles`]) per contender.

pub(crate) mod quantiles;

use std::fmt::Write as _;

/// Bars of one work.
pub(crate) struct Panel {
    pub title: String,
    pub bars: Vec<Bar>,
}

pub(crate) struct Bar {
    pub label: String,
    pub value: f64,
    /// A mark further out (p99 beside p50); none: no mark.
    pub mark: Option<f64>,
    /// Stands out.
    pub ours: bool,
}

const WIDTH: f64 = 720.0;
/// Room for labels at the left, and for figures at the right.
const LEFT: f64 = 170.0;
const RIGHT: f64 = 140.0;
const BAR: f64 = 18.0;
const STEP: f64 = 24.0;
const HEAD: f64 = 34.0;
const TITLE: f64 = 40.0;

/// The whole drawing; none if there is nothing to draw.
pub(crate) fn chart(title: &str, unit: &str, panels: &[Panel]) -> Option<String> {
    let panels: Vec<_> = panels.iter().filter(|panel| !panel.bars.is_empty()).collect();
    if panels.is_empty() {
        return None;
    }
    let height: f64 = TITLE + panels.iter().map(|panel| HEAD + STEP * panel.bars.len() as f64).sum::<f64>() + 12.0;
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
            escaped(&shortened(&panel.title))
        );
        y += HEAD;
        let extent = |bar: &Bar| bar.mark.map_or(bar.value, |mark| mark.max(bar.value));
        let longest = panel.bars.iter().map(extent).fold(0.0, f64::max);
        let scale = if longest > 0.0 { (WIDTH - LEFT - RIGHT) / longest } else { 0.0 };
        for bar in &panel.bars {
            draw(&mut svg, bar, y, scale, unit);
            y += STEP;
        }
    }
    svg.push_str("</svg>\n");
    Some(svg)
}

fn draw(svg: &mut String, bar: &Bar, y: f64, scale: f64, unit: &str) {
    let colour = if bar.ours { "#0969da" } else { "#afb8c1" };
    let weight = if bar.ours { " font-weight=\"600\"" } else { "" };
    let (middle, length) = (y + 13.0, (bar.value * scale).max(1.0));
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\" fill=\"#1f2328\"{weight}>{}</text>\n\
         <rect x=\"{LEFT}\" y=\"{y}\" width=\"{length:.1}\" height=\"{BAR}\" rx=\"2\" fill=\"{colour}\"/>",
        LEFT - 8.0,
        escaped(&bar.label),
    );
    let (mut end, mut figures) = (LEFT + length, shown(bar.value));
    if let Some(mark) = bar.mark {
        let x = LEFT + mark * scale;
        let _ = writeln!(
            svg,
            "<path d=\"M{:.1} {:.1}H{x:.1}M{x:.1} {y:.1}V{:.1}\" stroke=\"{colour}\" stroke-width=\"2\" fill=\"none\"/>",
            LEFT + length,
            y + BAR / 2.0,
            y + BAR
        );
        end = end.max(x);
        let _ = write!(figures, " / {}", shown(mark));
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{middle}\" fill=\"#1f2328\"{weight}>{figures} {}</text>",
        end + 6.0,
        escaped(unit)
    );
}

/// As many digits as one reads.
pub(crate) fn shown(value: f64) -> String {
    if value >= 1000.0 {
        return thousands(value);
    }
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$}")
}

fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// To what fits the width, at a word's end.
fn shortened(text: &str) -> String {
    const LONGEST: usize = 100;
    if text.chars().count() <= LONGEST {
        return text.to_owned();
    }
    let cut: String = text.chars().take(LONGEST).collect();
    format!("{} …", cut.rsplit_once(' ').map_or(cut.as_str(), |(whole, _)| whole).trim_end_matches([',', ';', ':']))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(label: &str, value: f64, mark: Option<f64>) -> Bar {
        Bar { label: label.to_owned(), value, mark, ours: label == "leno" }
    }

    #[test]
    fn bars_are_in_proportion() {
        let panel = Panel { title: "a < b".to_owned(), bars: vec![bar("leno", 10.0, None), bar("other", 20.0, None)] };
        let svg = chart("CPU", "µs", &[panel]).unwrap();
        assert!(svg.contains("width=\"410.0\"") && svg.contains("width=\"205.0\""), "{svg}");
        assert!(svg.contains("a &lt; b") && svg.contains("20.0 µs"));
        assert_eq!(svg.matches("#0969da").count(), 1);
    }

    #[test]
    fn a_mark_is_the_furthest_point() {
        let panel = Panel { title: String::new(), bars: vec![bar("x", 10.0, Some(40.0))] };
        let svg = chart("Latency", "µs", &[panel]).unwrap();
        assert!(svg.contains("H580.0") && svg.contains("10.0 / 40.0 µs"), "{svg}");
    }

    #[test]
    fn long_titles_end_at_a_word() {
        assert_eq!(shortened("short"), "short");
        let long = shortened(&"word, ".repeat(30));
        assert!(long.ends_with("word …") && long.len() < 110, "{long}");
    }

    #[test]
    fn nothing_to_draw() {
        assert!(chart("x", "y", &[]).is_none());
        assert!(chart("x", "y", &[Panel { title: String::new(), bars: Vec::new() }]).is_none());
    }

    #[test]
    fn figures_as_one_reads_them() {
        assert_eq!(shown(1_234_567.0), "1,234,567");
        assert_eq!((shown(999.6).as_str(), shown(12.34).as_str(), shown(1.234).as_str()), ("1000", "12.3", "1.23"));
    }
}
