//! What the demo shows: a frame that is drawn again in place on a terminal, plain lines elsewhere.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{status::Status, traffic::Tally};

/// How often a frame is drawn, and a line printed.
pub(super) const FRAME: Duration = Duration::from_millis(250);
const LINE: Duration = Duration::from_secs(2);

const BOLD: &str = "\x1b[1m";
const CYAN: &str = "\x1b[36m";
const DIM: &str = "\x1b[2m";
const GREEN: &str = "\x1b[32m";
const RED: &str = "\x1b[31m";
const PLAIN: &str = "";

/// Draws frames and prints events.
#[derive(Debug)]
pub(super) struct View {
    begun: Instant,
    terminal: bool,
    drawn: usize,
    last_line: Option<Instant>,
}

impl View {
    pub(super) fn new(plain: bool) -> Self {
        let terminal = !plain && io::stdout().is_terminal();
        Self { begun: Instant::now(), terminal, drawn: 0, last_line: None }
    }

    /// Something happened: stays on the screen, above the frame.
    pub(super) fn event(&mut self, text: &str) -> Result<()> {
        let at = self.begun.elapsed().as_secs_f64();
        let text = if self.terminal { format!("{BOLD}{text}\x1b[0m") } else { text.to_owned() };
        self.print(&format!("{at:7.1}s  {text}\n"), 0)
    }

    /// Lines that stay, after an empty one.
    pub(super) fn text(&mut self, lines: &[String]) -> Result<()> {
        self.print(&format!("\n{}\n", lines.join("\n")), 0)
    }

    /// What goes on now.
    pub(super) fn frame(&mut self, step: &str, tally: &Tally, status: &Status) -> Result<()> {
        let now = Instant::now();
        if self.terminal {
            let lines = frame(now, step, tally, status);
            // Lines that do not fit are cut, not wrapped: their number must be known to draw over them.
            let mut text = "\x1b[?7l\n".to_owned();
            for (colour, line) in &lines {
                // Writing to a String cannot fail.
                let _ = writeln!(text, "  {colour}{line}\x1b[0m");
            }
            return self.print(&format!("{text}\x1b[?7h"), lines.len() + 1);
        }
        if self.last_line.is_none_or(|last| now.duration_since(last) >= LINE) {
            self.last_line = Some(now);
            let line = format!("{:7.1}s  {}\n", self.begun.elapsed().as_secs_f64(), line(now, tally, status));
            return self.print(&line, 0);
        }
        Ok(())
    }

    /// In place of the last frame; `lines` of it will be drawn over.
    fn print(&mut self, text: &str, lines: usize) -> Result<()> {
        let clear = if self.drawn > 0 { format!("\x1b[{}A\x1b[J", self.drawn) } else { String::new() };
        self.drawn = lines;
        let mut out = io::stdout().lock();
        out.write_all(format!("{clear}{text}").as_bytes())
            .and_then(|()| out.flush())
            .context("write to standard output")
    }
}

fn line(now: Instant, tally: &Tally, status: &Status) -> String {
    let mut line = String::new();
    for (name, backend) in &tally.backends {
        let live = backend.live(now);
        let p99 = if live.per_second == 0.0 { String::new() } else { format!(" p99 {:.1} ms", ms(live.p99_us)) };
        let _ = write!(line, "{name} {:.0}/s{p99} | ", live.per_second);
    }
    let Status { weights, generation, programmed, subscribed, .. } = status;
    let _ = write!(
        line,
        "failed {} | {weights}: generation {generation} ACKed by {programmed}/{subscribed} proxies",
        tally.failed
    );
    line
}

/// Lines of up to 78 columns, each with its colour.
fn frame(now: Instant, step: &str, tally: &Tally, status: &Status) -> Vec<(&'static str, String)> {
    let mut lines = vec![(CYAN, step.to_owned())];
    let head = ["backend", "req/s", "success", "p50", "p99", "total"];
    let [backend, rate, success, p50, p99, total] = head;
    lines.push((DIM, format!("{backend:10} {rate:>6} {success:>9} {p50:>9} {p99:>9} {total:>8}  endpoints")));
    for (name, backend) in &tally.backends {
        let (live, held) = (backend.live(now), status.backends.get(name).cloned().unwrap_or_default());
        let endpoints = held.endpoints.iter().filter(|(_, count)| **count > 0);
        let endpoints = endpoints.map(|(state, count)| format!("{count} {state}")).collect::<Vec<_>>().join(", ");
        let quiet = live.per_second == 0.0;
        let latency = |micros| if quiet { "–".to_owned() } else { format!("{:.2} ms", ms(micros)) };
        let (rate, p50, p99) = (live.per_second, latency(live.p50_us), latency(live.p99_us));
        let (success, total) = (percent(backend.requests, held.failed), backend.requests);
        let colour = if held.failed == 0 { PLAIN } else { RED };
        lines.push((colour, format!("{name:10} {rate:6.0} {success:>9} {p50:>9} {p99:>9} {total:>8}  {endpoints}")));
    }
    let (total, failed, retries) = (tally.requests(), tally.failed, status.retries);
    let colour = if failed == 0 { GREEN } else { RED };
    let success = percent(total - failed, failed);
    lines.push((
        colour,
        format!("clients    {success} of {total} well, {failed} failed; sidecars tried {retries} again"),
    ));
    let Status { weights, generation, programmed, subscribed, connected, proxies, .. } = status;
    let colour = if programmed == subscribed { PLAIN } else { RED };
    lines.push((colour, format!("policy     HTTPRoute shop: {weights}")));
    lines.push((
        colour,
        format!("           generation {generation} ACKed by {programmed} of {subscribed} subscribed proxies"),
    ));
    let renewed = status.renewed();
    lines.push((PLAIN, format!("proxies    {connected} of {proxies} connected; certificates renewed at {renewed}")));
    for (n, (identity, count)) in status.identities.iter().enumerate() {
        let called: Vec<_> = tally.callers().remove(identity.as_str()).unwrap_or_default();
        let called = if called.is_empty() { String::new() } else { format!(" → {}", called.join(", ")) };
        let label = if n == 0 { "identities" } else { "" };
        lines.push((PLAIN, format!("{label:10} {identity} ×{count}{called}")));
    }
    lines.extend(status.problems.iter().map(|problem| (RED, problem.clone())));
    lines
}

fn percent(well: u64, failed: u64) -> String {
    let all = well + failed;
    // Rounded down: 100 % is only what all of it is.
    let share = if all == 0 { 100.0 } else { (10_000.0 * well as f64 / all as f64).floor() / 100.0 };
    format!("{share:.2} %")
}

fn ms(micros: u32) -> f64 {
    f64::from(micros) / 1000.0
}
