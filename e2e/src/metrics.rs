//! Prometheus' text format, read back.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

/// One scrape.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    samples: Vec<Sample>,
}

/// One line of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

impl Metrics {
    /// Reads the exposition format, comments left out.
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let samples = lines.map(|line| sample(line).with_context(|| format!("metrics line {line:?}")));
        Ok(Self { samples: samples.collect::<Result<_>>()? })
    }

    /// Adds up the samples of that name that carry all of `labels`; 0 if there are none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|sample| sample.value).sum()
    }

    /// The samples of that name that carry all of `labels`.
    pub fn matching(&self, name: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name
                && labels.iter().all(|(key, value)| sample.labels.get(*key).map(String::as_str) == Some(*value))
        })
    }

    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }
}

fn sample(line: &str) -> Result<Sample> {
    let (series, rest) = match line.find('}') {
        Some(_) => {
            let end = closing_brace(line).context("no closing brace")?;
            line.split_at(end + 1)
        }
        None => line.split_once(' ').context("no value")?,
    };
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, parse_labels(labels.trim_end_matches('}'))?),
        None => (series, BTreeMap::new()),
    };
    let value = rest.split_whitespace().next().context("no value")?;
    let value = value.parse().with_context(|| format!("value {value:?}"))?;
    Ok(Sample { name: name.to_owned(), labels, value })
}

/// The first `}` outside quotes.
fn closing_brace(line: &str) -> Option<usize> {
    let mut quoted = false;
    let mut escaped = false;
    line.char_indices().find_map(|(at, c)| {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            '}' if !quoted => return Some(at),
            _ => {}
        }
        None
    })
}

fn parse_labels(text: &str) -> Result<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (key, after) = rest.split_once("=\"").context("a label without value")?;
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().context("an unclosed label value")? {
                (_, '\\') => match chars.next().context("a cut escape")?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (at, '"') => break at,
                (_, other) => value.push(other),
            }
        };
        labels.insert(key.trim().to_owned(), value);
        rest = after.get(end + 1..).unwrap_or_default().trim_start_matches(',').trim_start();
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_prometheus_writes() {
        let text =
            "# HELP a b\n# TYPE a counter\na{x=\"1\",y=\"a\\\"}b\"} 3\na{x=\"1\",y=\"z\"} 4 1700000000\nb 1.5e3\n";
        let metrics = Metrics::parse(text).unwrap();
        assert_eq!(metrics.sum("a", &[("x", "1")]), 7.0);
        assert_eq!(metrics.sum("a", &[("y", "a\"}b")]), 3.0);
        assert_eq!(metrics.sum("b", &[]), 1500.0);
        assert_eq!(metrics.sum("c", &[]), 0.0);
        assert!(Metrics::parse("nonsense").is_err());
    }
}
