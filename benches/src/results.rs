//! `benches/report/results.json`: a list of objects, one per work and contender, holding medians over rounds.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use crate::{
    contender::{DIRECT, Kind, LENO},
    figures::{Series, median},
    machine, work,
};

pub(crate) const FILE: &str = "benches/report/results.json";

/// One object of the file.
pub(crate) type Row = Map<String, Value>;

/// What a contender did.
pub(crate) struct Finished {
    pub kind: Kind,
    pub series: Series,
    /// Why it could not go on.
    pub failed: Option<String>,
}

/// One row for each contender of a work.
pub(crate) fn rows(work: &str, all: &[Finished], versions: &BTreeMap<String, String>) -> Vec<Row> {
    all.iter()
        .map(|one| {
            let mut row = row(work, one, all);
            row.insert("version".to_owned(), json!(versions.get(&one.series.contender)));
            row
        })
        .collect()
}

fn row(work: &str, one: &Finished, all: &[Finished]) -> Row {
    let (series, mut row) = (&one.series, Row::new());
    let mut put = |name: &str, value: Value| row.insert(name.to_owned(), value);
    put("work", json!(work));
    put("contender", json!(series.contender));
    put(
        "kind",
        json!(match one.kind {
            Kind::Direct => "direct",
            Kind::Hop => "hop",
            Kind::Pair => "pair",
        }),
    );
    put("machine", json!(machine::description()));
    put("measured", json!(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())));
    if let Some(reason) = &one.failed {
        put("failed", json!(reason));
        return row;
    }
    let (mut least, mut most) = (Row::new(), Row::new());
    for name in series.names() {
        let values = series.values(name);
        let (min, max) =
            values.iter().fold((f64::MAX, f64::MIN), |(min, max), &value| (value.min(min), value.max(max)));
        put(name, rounded(median(values).unwrap_or_default()));
        least.insert(name.to_owned(), rounded(min));
        most.insert(name.to_owned(), rounded(max));
    }
    put("min", Value::Object(least));
    put("max", Value::Object(most));
    // To everybody for ours, whom it is about; to no proxy at all for the others.
    let ours = series.contender.starts_with(LENO);
    let mut ratios = Row::new();
    for other in all.iter().filter(|other| other.failed.is_none()) {
        let other = &other.series;
        if other.contender == series.contender || (!ours && other.contender != DIRECT) {
            continue;
        }
        let of_figures: Row = series
            .names()
            .into_iter()
            .filter_map(|name| Some((name.to_owned(), rounded(series.ratio_to(other, name)?))))
            .collect();
        ratios.insert(other.contender.clone(), Value::Object(of_figures));
    }
    put("ratio_to", Value::Object(ratios));
    let worst = |figure: fn(&crate::figures::Sample) -> f64| series.samples.iter().map(figure).fold(0.0, f64::max);
    put("rounds", json!(series.samples.len()));
    put("repeats", json!(series.samples.iter().map(|sample| sample.repeats).sum::<u32>()));
    put("foreign_max", rounded(worst(|sample| sample.foreign)));
    put("steal_max", rounded(worst(|sample| sample.steal)));
    row
}

/// Four significant digits, which is more than they mean.
fn rounded(value: f64) -> Value {
    if value == 0.0 || !value.is_finite() {
        return json!(0);
    }
    let digits = 3 - value.abs().log10().floor() as i32;
    let factor = 10f64.powi(digits.clamp(0, 6));
    json!((value * factor).round() / factor)
}

/// Replaces the rows of the same work and contender, keeps the others.
pub(crate) fn save(rows: Vec<Row>) -> Result<()> {
    let mut all = read()?;
    let same = |a: &Row, b: &Row| a.get("work") == b.get("work") && a.get("contender") == b.get("contender");
    all.retain(|old| !rows.iter().any(|new| same(old, new)));
    all.extend(rows);
    all.sort_by_key(place);
    if let Some(folder) = Path::new(FILE).parent() {
        fs::create_dir_all(folder)?;
    }
    // One row to a line, so that changes can be read.
    let lines: Vec<_> = all.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
    fs::write(FILE, format!("[\n{}\n]\n", lines.join(",\n"))).with_context(|| format!("write {FILE}"))
}

/// In the report's order: by work; nobody first, then ours, then the others as they are listed.
fn place(row: &Row) -> (usize, usize) {
    let work = work::ALL.iter().position(|work| work.name == text(row, "work")).unwrap_or(work::ALL.len());
    let contender = match text(row, "contender") {
        DIRECT => 0,
        name if name.starts_with(LENO) => 1,
        _ => 2,
    };
    (work, contender)
}

/// What was found so far.
pub(crate) fn read() -> Result<Vec<Row>> {
    match fs::read(FILE) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("read {FILE}")),
        Err(_) => Ok(Vec::new()),
    }
}

/// A figure of a row.
pub(crate) fn figure(row: &Row, name: &str) -> Option<f64> {
    row.get(name)?.as_f64()
}

/// A ratio of a row to another contender, in the same rounds.
pub(crate) fn ratio(row: &Row, to: &str, name: &str) -> Option<f64> {
    row.get("ratio_to")?.get(to)?.get(name)?.as_f64()
}

/// A text of a row; empty if there is none.
pub(crate) fn text<'r>(row: &'r Row, name: &str) -> &'r str {
    row.get(name).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::{Sample, name};

    fn finished(contender: &str, kind: Kind, cpus: &[f64]) -> Finished {
        let sample = |&cpu: &f64| Sample { figures: [(name::CPU, cpu)].into(), foreign: 0.1, ..Sample::default() };
        let samples = cpus.iter().map(sample).collect();
        Finished { kind, series: Series { contender: contender.to_owned(), samples }, failed: None }
    }

    #[test]
    fn a_row_holds_medians_spread_and_ratios() {
        let all =
            [finished("leno", Kind::Pair, &[10.0, 20.0, 12.0]), finished("other", Kind::Pair, &[20.0, 40.0, 24.0])];
        let rows = rows(work::ALL[0].name, &all, &[("leno".to_owned(), "1.0".to_owned())].into());
        let row = &rows[0];
        assert_eq!((text(row, "work"), text(row, "contender"), text(row, "version")), ("h1-c1", "leno", "1.0"));
        assert_eq!(figure(row, name::CPU), Some(12.0));
        assert_eq!(row["min"][name::CPU], json!(10.0));
        assert_eq!(row["max"][name::CPU], json!(20.0));
        assert_eq!(ratio(row, "other", name::CPU), Some(0.5));
        assert_eq!(ratio(&rows[1], "leno", name::CPU), None);
        assert_eq!((figure(row, "rounds"), figure(row, "foreign_max")), (Some(3.0), Some(0.1)));
    }

    #[test]
    fn who_failed_has_no_figures() {
        let failed = Finished { failed: Some("no".to_owned()), ..finished("leno", Kind::Pair, &[1.0]) };
        let rows = rows(work::ALL[0].name, &[failed], &BTreeMap::new());
        assert_eq!((text(&rows[0], "failed"), figure(&rows[0], name::CPU)), ("no", None));
    }

    #[test]
    fn four_digits() {
        assert_eq!(rounded(123_456.7), json!(123_457.0));
        assert_eq!(rounded(0.123_456), json!(0.1235));
        assert_eq!(rounded(0.0), json!(0));
        assert_eq!(rounded(f64::NAN), json!(0));
    }
}
