//! The page on balancing: one table for each work, and a plot of them all.

use std::{collections::BTreeSet, fmt::Write as _};

use super::table::with_spread;
use crate::{
    balance::{self, WORKS, Work},
    contender::LENO,
    figures::name,
    plot::{
        quantiles::{Line, Panel, chart},
        shown,
    },
    results::{Row, figure, text},
};

pub(super) const FILE: &str = "benches/report/balance.md";
const PLOT: &str = "balance.svg";

/// The plot's file and drawing.
pub(super) fn plot(rows: &[Row]) -> Option<(String, String)> {
    let panel = |work: &Work| Panel {
        title: work.title.to_owned(),
        lines: of_work(rows, work).into_iter().filter_map(line).collect(),
    };
    let panels: Vec<_> = WORKS.iter().map(panel).collect();
    let svg = chart("Latency by balancing algorithm: p50 (hollow), p99, p999", "ms", &panels)?;
    Some((PLOT.to_owned(), svg))
}

fn line(row: &Row) -> Option<Line> {
    let label = text(row, "contender").to_owned();
    let millis = |name| figure(row, name).map(|us| us / 1000.0);
    Some(Line {
        ours: label.starts_with(LENO),
        quantiles: [millis(name::P50)?, millis(name::P99)?, millis(name::P999).or_else(|| millis(name::P99))?],
        label,
    })
}

/// The fastest at p99 first.
fn of_work<'r>(rows: &'r [Row], work: &Work) -> Vec<&'r Row> {
    let mut own: Vec<_> = rows.iter().filter(|row| text(row, "work") == work.name).collect();
    let p99 = |row: &Row| figure(row, name::P99).unwrap_or(f64::MAX);
    own.sort_by(|a, b| p99(a).total_cmp(&p99(b)));
    own
}

/// None if nothing was measured.
pub(super) fn markdown(rows: &[Row]) -> Option<String> {
    let all: Vec<_> = rows.iter().filter(|row| WORKS.iter().any(|work| work.name == text(row, "work"))).collect();
    if all.is_empty() {
        return None;
    }
    let texts = |name: &str| {
        let set: BTreeSet<_> = all.iter().map(|row| text(row, name)).filter(|text| !text.is_empty()).collect();
        set.into_iter().collect::<Vec<_>>().join("; ")
    };
    let mut page = format!(
        "# Balancing algorithms, beside others\n\n\
         Written by `benches/run balance`; `benches/README.md` says what stands behind it and what is fair about it, `results.json` holds all figures, \
         `docs/balancing.md` says what to choose.\n\n\
         - {}\n\
         - Machine: {}.\n\
         - Versions: {}.\n\
         - Milliseconds from the moment a request was due, of those that were answered well: medians over interleaved rounds, in brackets the least and \
         the most; p999 is of all rounds together, where that is 20 answers at least. In each round all contenders get the same requests, and antagonists at the same times.\n\n\
         ![latency]({PLOT})\n\n",
        balance::description(),
        texts("machine"),
        texts("version"),
    );
    for work in WORKS {
        let own = of_work(rows, &work);
        if !own.is_empty() {
            table(&mut page, &work, &own);
        }
    }
    Some(page)
}

fn table(page: &mut String, work: &Work, rows: &[&Row]) {
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(page, "## {}\n", work.title);
    if work.failing {
        page.push_str("For the middle half of the time one of the faster servers answers 503 at once.\n\n");
    }
    page.push_str("| | p50 | p99 | p999 | failed, % | requests/s |\n|---|---|---|---|---|---|\n");
    for row in rows {
        let millis = |name: &str| with_spread(row, name, 1e-3).unwrap_or_else(|| "–".to_owned());
        let plain = |name: &str| figure(row, name).map_or_else(|| "–".to_owned(), shown);
        let name = text(row, "contender");
        let emphasis = if name.starts_with(LENO) { "**" } else { "" };
        let _ = writeln!(
            page,
            "| {emphasis}{name}{emphasis} | {} | {} | {} | {} | {} |",
            millis(name::P50),
            millis(name::P99),
            millis(name::P999),
            plain(name::FAILED),
            plain(name::RATE),
        );
    }
    let most = |name: &str| rows.iter().filter_map(|row| figure(row, name)).fold(0.0, f64::max);
    let rounds = most("rounds");
    let _ = writeln!(
        page,
        "\n{rounds} round{}; the CPU of load and servers was at most {:.0} % busy, that of the proxies {:.0} %{}; others took at most {:.0} % of \
         the machine, its hypervisor {:.0} %.\n",
        if rounds > 1.0 { "s" } else { "" },
        busiest(rows, name::BUSY_LOAD),
        busiest(rows, name::BUSY_PROXIES),
        saturated(rows),
        100.0 * most("foreign_max"),
        100.0 * most("steal_max"),
    );
}

/// Percent of a CPU, of all rounds.
fn busiest(rows: &[&Row], cpu: &str) -> f64 {
    let most = |row: &&Row| row.get("max")?.get(cpu)?.as_f64();
    rows.iter().filter_map(most).fold(0.0, f64::max)
}

/// Whose figures say more of a CPU than of balancing.
fn saturated(rows: &[&Row]) -> String {
    let is_saturated = |row: &&&Row| {
        [name::BUSY_LOAD, name::BUSY_PROXIES].iter().any(|cpu| busiest(&[**row], cpu) > balance::SATURATED_PERCENT)
    };
    let names: Vec<_> = rows.iter().filter(is_saturated).map(|row| text(row, "contender")).collect();
    if names.is_empty() {
        " (neither was saturated)".to_owned()
    } else {
        format!(" (**saturated**, so that their figures mean little: {})", names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_fastest_comes_first() {
        let row = |contender: &str, p99: f64| {
            json!({"work": "balance-80", "contender": contender, "machine": "a machine", "p50_us": 40_000.0, "p99_us": p99,
                   "p999_us": 900_000.0, "failed_percent": 0.5, "rps": 896.0, "rounds": 3, "foreign_max": 0.02, "steal_max": 0,
                   "min": {"p99_us": p99 - 1000.0}, "max": {"p99_us": p99 + 1000.0, "busy_load_percent": 31.0, "busy_proxies_percent": p99 / 5000.0}})
        };
        let rows: Vec<Row> =
            serde_json::from_value(json!([row("envoy-round-robin", 500_000.0), row("leno-prequal", 200_000.0)]))
                .unwrap();
        let page = markdown(&rows).unwrap();
        let (ours, theirs) = (page.find("| **leno-prequal**").unwrap(), page.find("| envoy-round-robin").unwrap());
        assert!(ours < theirs, "{page}");
        assert!(page.contains("200 [199–201]") && page.contains("31 % busy"), "{page}");
        assert!(page.contains(
            "that of the proxies 100 % (**saturated**, so that their figures mean little: envoy-round-robin)"
        ));
        assert!(plot(&rows).unwrap().1.contains("leno-prequal"));
        assert!(markdown(&[]).is_none() && plot(&[]).is_none());
    }
}
