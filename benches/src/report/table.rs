//! Tables of the report: one per work, with the columns that its rows have figures for.

use std::fmt::Write as _;

use crate::{
    balance::WORKS,
    contender::{DIRECT, LENO},
    figures::name,
    plot::shown,
    results::{Row, figure, ratio, text},
    work::{self, Load, Work},
};

/// A column: its title, and what a row shows in it.
struct Column<'t> {
    title: String,
    cell: Cell<'t>,
}

type Cell<'t> = Box<dyn Fn(&Row) -> Option<String> + 't>;

pub(super) fn of_work(page: &mut String, work: &Work, rows: &[Row]) {
    let own: Vec<_> = rows.iter().filter(|row| text(row, "work") == work.name).collect();
    if own.is_empty() {
        return;
    }
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(page, "### {}\n\n{}.\n", work.name, work.about);
    let (failed, good): (Vec<_>, Vec<_>) = own.into_iter().partition(|row| row.contains_key("failed"));
    if !good.is_empty() {
        table(page, &good, "contender", &columns(work, rows));
        page.push('\n');
    }
    for row in failed {
        let _ = writeln!(page, "{} failed: {}\n", text(row, "contender"), text(row, "failed"));
    }
    notes(page, &good);
}

fn columns<'t>(work: &Work, rows: &'t [Row]) -> Vec<Column<'t>> {
    let (of_work, unit) = (work.name, work.unit());
    let main = match work.load {
        Load::Bulk { .. } => name::GBIT,
        Load::Idle { .. } => name::KIB_EACH,
        Load::Start => name::READY,
        _ => name::CPU,
    };
    let plain = |title: &str, name: &'static str| Column {
        title: title.to_owned(),
        cell: Box::new(move |row| figure(row, name).map(shown)),
    };
    let spread =
        |title: String, name: &'static str| Column { title, cell: Box::new(move |row| with_spread(row, name, 1.0)) };
    let to_direct = |name: &'static str| Column {
        title: "× direct".to_owned(),
        cell: Box::new(move |row| ratio(row, DIRECT, name).map(|ratio| format!("{ratio:.2}"))),
    };
    let cpu = match work.load {
        Load::Bulk { .. } => "CPU, ms per GB".to_owned(),
        _ => format!("CPU µs per {unit}"),
    };
    vec![
        plain(&format!("{unit}s/s"), name::RATE),
        spread("Gbit/s".to_owned(), name::GBIT),
        to_direct(if main == name::GBIT { name::GBIT } else { name::RATE }),
        plain("p50 µs", name::P50),
        plain("p99 µs", name::P99),
        plain("p999 µs", name::P999),
        spread(cpu, name::CPU),
        Column {
            title: "out + in".to_owned(),
            cell: Box::new(|row| {
                Some(format!("{} + {}", shown(figure(row, name::CPU_OUT)?), shown(figure(row, name::CPU_IN)?)))
            }),
        },
        plain("context switches", name::SWITCHES),
        plain("MiB at 1", name::RSS_1),
        plain("at 1,000", name::RSS_1000),
        plain("at 10,000", name::RSS_10000),
        plain("KiB per connection", name::KIB_EACH),
        spread("ms until ready".to_owned(), name::READY),
        Column {
            title: "Leno ÷ this".to_owned(),
            cell: Box::new(move |row| {
                let ours = rows
                    .iter()
                    .find(|other| text(other, "work") == of_work && text(other, "contender") == counterpart(row))?;
                ratio(ours, text(row, "contender"), main).map(|ratio| format!("{ratio:.2}"))
            }),
        },
        Column { title: "MiB resident".to_owned(), cell: Box::new(resident) },
    ]
}

/// Which of ours a contender is compared with.
fn counterpart(row: &Row) -> &'static str {
    if text(row, "kind") == "hop" { "leno-hop" } else { LENO }
}

/// A figure times `factor`, and in brackets the least and the most that it was.
pub(super) fn with_spread(row: &Row, name: &str, factor: f64) -> Option<String> {
    let value = shown(figure(row, name)? * factor);
    let bound = |which: &str| Some(row.get(which)?.get(name)?.as_f64()? * factor);
    Some(match (bound("min"), bound("max")) {
        (Some(min), Some(max)) if min < max => format!("{value} [{}–{}]", shown(min), shown(max)),
        _ => value,
    })
}

fn resident(row: &Row) -> Option<String> {
    let out = shown(figure(row, name::RSS_OUT)?);
    Some(figure(row, name::RSS_IN).map_or_else(|| out.clone(), |inbound| format!("{out} + {}", shown(inbound))))
}

/// Who disturbed the measurement.
fn notes(page: &mut String, rows: &[&Row]) {
    let most = |name: &str| rows.iter().filter_map(|row| figure(row, name)).fold(0.0, f64::max);
    let (foreign, steal) = (most("foreign_max"), most("steal_max"));
    let repeats: f64 = rows.iter().filter_map(|row| figure(row, "repeats")).sum();
    let Some(rounds) = rows.iter().filter_map(|row| figure(row, "rounds")).reduce(f64::max) else { return };
    let _ = writeln!(
        page,
        "{rounds} round{}; others took at most {:.0} % of the machine, its hypervisor {:.0} %; repeated for that: {repeats}.\n",
        if rounds > 1.0 { "s" } else { "" },
        foreign * 100.0,
        steal * 100.0,
    );
}

/// Rows of other benches.
pub(super) fn others(page: &mut String, rows: &[Row]) {
    let is_other = |row: &&Row| {
        let name = text(row, "work");
        !work::ALL.iter().any(|work| work.name == name) && !WORKS.iter().any(|work| work.name == name)
    };
    let (in_cluster, rest): (Vec<_>, Vec<_>) =
        rows.iter().filter(is_other).partition(|row| text(row, "work").starts_with("kubernetes-"));
    control_plane(page, &rest);
    kubernetes(page, &in_cluster);
}

fn control_plane(page: &mut String, rows: &[&Row]) {
    if rows.is_empty() {
        return;
    }
    page.push_str(
        "## Control plane\n\n`policy-N-proxies`: from the write of a route's file to its being in force at N sidecars. \
         `control-plane-N-…`: N simulated proxies connected; a change each second of an endpoint that most of them use \
         (`endpoint`), of any endpoint (`endpoint-anywhere`), of a route; or none (`idle`).\n\n",
    );
    table(page, rows, "work", &columns_of_others());
    page.push('\n');
}

fn kubernetes(page: &mut String, rows: &[&Row]) {
    if rows.is_empty() {
        return;
    }
    page.push_str(
        "## Kubernetes\n\nThe control plane on a real API server, which runs on the same machine as all else. From before an EndpointSlice's change \
         is sent to the last answer of a proxy that it concerns, the API server's own work included: of a Service that all proxies call (`endpoint`), \
         of any (`endpoint-anywhere`); at rest, and while the leader writes the first status of each route, ten a second (`settling`).\n\n",
    );
    table(page, rows, "work", &columns_of_kubernetes());
    page.push('\n');
}

fn columns_of_kubernetes() -> Vec<Column<'static>> {
    let sizes =
        [scaled("Services", "services", 1.0), scaled("endpoints", "endpoints", 1.0), scaled("proxies", "proxies", 1.0)];
    let memory = [
        scaled("MiB at the end", "rss_mib_at_end", 1.0),
        scaled("at rest, % of a core", "cpu_percent_of_core_idle", 1.0),
        scaled("ms until ready", "ready_ms", 1.0),
    ];
    let write = scaled("of it, the API server's write, p50 ms", "api_write_p50_us", 1e-3);
    sizes.into_iter().chain(columns_of_others()).chain([write]).chain(memory).collect()
}

fn scaled(title: &str, name: &'static str, factor: f64) -> Column<'static> {
    Column { title: title.to_owned(), cell: Box::new(move |row| figure(row, name).map(|value| shown(value * factor))) }
}

fn columns_of_others() -> Vec<Column<'static>> {
    vec![
        scaled("proxies concerned", "subscribers", 1.0),
        scaled("p50 ms", name::P50, 1e-3),
        scaled("p99 ms", name::P99, 1e-3),
        scaled("most ms", "max_us", 1e-3),
        scaled("CPU ms per change", "cpu_ms_per_change", 1.0),
        scaled("CPU, % of a core", "cpu_percent_of_core", 1.0),
        scaled("KiB sent per change", "bytes_sent_per_change", 1.0 / 1024.0),
        scaled("KiB per proxy", "kib_per_proxy", 1.0),
        scaled("MiB without proxies", "rss_mib_before_proxies", 1.0),
    ]
}

/// One line for each row, which begins with one of its texts; columns that nobody has a figure for are left out.
fn table(page: &mut String, rows: &[&Row], head: &str, columns: &[Column<'_>]) {
    let columns: Vec<_> = columns.iter().filter(|column| rows.iter().any(|row| (column.cell)(row).is_some())).collect();
    let titles: Vec<_> = columns.iter().map(|column| column.title.as_str()).collect();
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(page, "| | {} |\n|---|{}", titles.join(" | "), "---|".repeat(columns.len()));
    for row in rows {
        let cells: Vec<_> = columns.iter().map(|column| (column.cell)(row).unwrap_or_else(|| "–".to_owned())).collect();
        let name = text(row, head);
        let emphasis = if name.starts_with(LENO) { "**" } else { "" };
        let _ = writeln!(page, "| {emphasis}{name}{emphasis} | {} |", cells.join(" | "));
    }
}
