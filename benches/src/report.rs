//! `benches/report/report.md` and its plots, from results.json alone: rows measured at different times stand together
//! there, but every ratio is of one run.

mod balance;
mod table;

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};

use crate::{
    contender::{DIRECT, LENO},
    figures::name,
    plot::{Bar, Panel, chart},
    results::{self, Row, figure, text},
    targets,
    work::{self, Work},
};

pub(crate) const FILE: &str = "benches/report/report.md";

/// Families of works, in order, with their titles.
const FAMILIES: &[(&str, &str)] = &[
    ("h1", "HTTP/1.1"),
    ("paced", "HTTP/1.1 at a fixed rate"),
    ("h2", "HTTP/2 and gRPC"),
    ("large", "Large bodies"),
    ("handshake", "New connections"),
    ("tcp", "TCP"),
    ("idle", "Memory of what is idle"),
    ("start", "Start"),
];

/// Writes all files of the report.
pub(crate) fn write() -> Result<()> {
    let rows = results::read()?;
    let folder = Path::new(FILE).parent().context("the report's folder")?;
    fs::create_dir_all(folder)?;
    // Plots of works that are no more.
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "svg") {
            fs::remove_file(entry.path())?;
        }
    }
    for (file, svg) in plots(&rows).into_iter().chain(balance::plot(&rows)) {
        fs::write(folder.join(&file), svg).with_context(|| format!("write {file}"))?;
    }
    if let Some(page) = balance::markdown(&rows) {
        fs::write(balance::FILE, page).with_context(|| format!("write {}", balance::FILE))?;
    }
    fs::write(FILE, markdown(&rows)).with_context(|| format!("write {FILE}"))
}

fn markdown(rows: &[Row]) -> String {
    let mut page = String::from(
        "# What Leno costs, beside others\n\n\
         Written by `benches/run`; `benches/README.md` says how it measures, `results.json` holds all figures. \
         [Algorithms of balancing](balance.md) have a page of their own.\n\n",
    );
    let machines: BTreeSet<_> = rows.iter().map(|row| text(row, "machine")).filter(|text| !text.is_empty()).collect();
    // Writing to a String cannot fail, here and below.
    for machine in machines {
        let _ = writeln!(
            page,
            "- Machine: {machine}. Load generators and servers on its first CPU, all proxies of a contender on the second, one worker each."
        );
    }
    let versions: BTreeSet<_> =
        rows.iter().map(|row| text(row, "version")).filter(|version| !version.is_empty()).collect();
    let _ = writeln!(page, "- Versions: {}.", versions.into_iter().collect::<Vec<_>>().join("; "));
    page.push_str(
        "- Figures are medians over interleaved rounds, in brackets the least and the most. A machine like this changes its speed \
         from minute to minute: trust the ratios, which are medians of ratios within one round.\n\
         - CPU is user and system time of the proxies, per request; `out + in` are the client's proxy and the server's. \
         *Leno ÷ this* compares the pair with pairs, and one Leno sidecar with single proxies; below 1 Leno takes less (of throughput: gives less).\n\n",
    );
    summary(&mut page, rows);
    for (family, title) in FAMILIES {
        let works: Vec<_> = work::ALL.iter().filter(|work| work.family == *family).collect();
        if !works.iter().any(|work| rows.iter().any(|row| text(row, "work") == work.name)) {
            continue;
        }
        let _ = writeln!(page, "## {title}\n");
        for kind in ["cpu", "latency"] {
            if plots(rows).iter().any(|(file, _)| *file == format!("{kind}-{family}.svg")) {
                let _ = writeln!(page, "![{kind}]({kind}-{family}.svg)\n");
            }
        }
        for work in works {
            table::of_work(&mut page, work, rows);
        }
    }
    table::others(&mut page, rows);
    page
}

fn summary(page: &mut String, rows: &[Row]) {
    let targets = targets::check(rows);
    if targets.is_empty() {
        return;
    }
    let met = targets.iter().filter(|target| target.met).count();
    let _ = writeln!(page, "## Targets: {met} of {} met\n\n| | limit | found | |\n|---|---|---|---|", targets.len());
    for target in targets {
        let verdict = if target.met { "met" } else { "**missed**" };
        let _ = writeln!(page, "| {} | {} | {} | {verdict} |", target.text, target.limit, target.found);
    }
    page.push('\n');
}

/// File names and drawings.
fn plots(rows: &[Row]) -> Vec<(String, String)> {
    let mut plots = Vec::new();
    for (family, title) in FAMILIES {
        let works: Vec<_> = work::ALL.iter().filter(|work| work.family == *family).collect();
        let panels = |value: &str, mark: Option<&str>| -> Vec<Panel> {
            works.iter().map(|work| panel(work, rows, value, mark)).collect()
        };
        let what = match *family {
            "tcp" => "CPU, ms per GB, all proxies of a contender",
            _ => "CPU µs per request, all proxies of a contender",
        };
        let unit = if *family == "tcp" { "ms" } else { "µs" };
        let cpu = chart(&format!("{title}: {what}"), unit, &panels(name::CPU, None));
        plots.extend(cpu.map(|svg| (format!("cpu-{family}.svg"), svg)));
        let latency = chart(&format!("{title}: latency, p50 / p99"), "µs", &panels(name::P50, Some(name::P99)));
        plots.extend(latency.map(|svg| (format!("latency-{family}.svg"), svg)));
    }
    plots
}

fn panel(work: &Work, rows: &[Row], value: &str, mark: Option<&str>) -> Panel {
    let bars = rows
        .iter()
        .filter(|row| text(row, "work") == work.name)
        .filter_map(|row| {
            let contender = text(row, "contender");
            Some(Bar {
                label: contender.to_owned(),
                value: figure(row, value)?,
                mark: mark.and_then(|mark| figure(row, mark)),
                ours: contender.starts_with(LENO),
            })
        })
        .filter(|bar| mark.is_some() || bar.label != DIRECT)
        .collect();
    Panel { title: format!("{}: {}", work.name, work.about), bars }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rows() -> Vec<Row> {
        serde_json::from_value(json!([
            {"work": "h1-c16", "contender": "direct", "kind": "direct", "machine": "a machine", "rps": 100_000.0, "p50_us": 100.0, "p99_us": 200.0},
            {"work": "h1-c16", "contender": "leno", "kind": "pair", "version": "leno-proxy 1", "rps": 30_000.0, "p50_us": 400.0,
             "p99_us": 800.0, "cpu_us_per_request": 20.0, "cpu_us_out": 11.0, "cpu_us_in": 9.0,
             "min": {"cpu_us_per_request": 19.0}, "max": {"cpu_us_per_request": 22.0},
             "ratio_to": {"direct": {"rps": 0.3}, "haproxy-chain-h2": {"cpu_us_per_request": 0.66}}},
            {"work": "h1-c16", "contender": "haproxy-chain-h2", "kind": "pair", "rps": 20_000.0, "cpu_us_per_request": 30.0,
             "ratio_to": {"direct": {"rps": 0.2}}},
            {"work": "h1-c16", "contender": "envoy-hop", "kind": "hop", "failed": "no answer"},
            {"work": "policy-20-proxies", "contender": "leno", "p50_us": 15_000.0, "p99_us": 18_000.0},
            {"work": "kubernetes-endpoint", "contender": "leno", "services": 2000, "p50_us": 40_000.0, "p99_us": 250_000.0}
        ]))
        .unwrap()
    }

    #[test]
    fn the_page_holds_tables_targets_and_plots() {
        let page = markdown(&rows());
        for expected in [
            "Machine: a machine",
            "## Targets: 1 of 2 met",
            "| h1-c16: CPU per request, of HAProxy's best pair's | ≤ 0.75× | 0.66× | met |",
            "![cpu](cpu-h1.svg)",
            "20.0 [19.0–22.0]",
            "11.0 + 9.0",
            "| haproxy-chain-h2 |",
            "envoy-hop failed: no answer",
            "| policy-20-proxies | 15.0 | 18.0 |",
            "at rest, p99 | ≤ 200 ms | 250.0 ms | **missed** |",
            "## Kubernetes",
            "| kubernetes-endpoint | 2,000 | 40.0 | 250 |",
        ] {
            assert!(page.contains(expected), "{expected:?} is not in\n{page}");
        }
    }

    #[test]
    fn plots_leave_out_what_was_not_measured() {
        let plots = plots(&rows());
        let names: Vec<_> = plots.iter().map(|(file, _)| file.as_str()).collect();
        assert_eq!(names, ["cpu-h1.svg", "latency-h1.svg"]);
        assert!(!plots[0].1.contains("direct") && plots[1].1.contains("direct"));
    }
}
