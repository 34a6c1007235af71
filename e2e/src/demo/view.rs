//! What the demo shows: a frame that is drawn again in place on a terminal, plain lines elsewhere.

use std::{
    fmt::Write as _,
    io::{IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use super::{mesh::Status, traffic::Tally};

/// How often a frame is drawn, and a line printed.
pub(super) const FRAME: Duration = Duration::from_millis(250);
const LINE: Duration = Duration::from_secs(2);

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
        let terminal = !plain && std::io::stdout().is_terminal();
        Self { begun: Instant::now(), terminal, drawn: 0, last_line: None }
    }

    /// Something happened: stays on the screen, above the frame.
    pub(super) fn event(&mut self, text: &str) {
        self.clear();
        let (bold, reset) = if self.terminal { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        println!("{:7.1}s  {bold}{text}{reset}", self.begun.elapsed().as_secs_f64());
    }

    /// What goes on now.
    pub(super) fn frame(&mut self, step: &str, weights: &str, tally: &Tally, status: &Status) {
        let now = Instant::now();
        if !self.terminal {
            if self.last_line.is_none_or(|last| now.duration_since(last) >= LINE) {
                self.last_line = Some(now);
                println!("{}", self.line(now, weights, tally, status));
            }
            return;
        }
        let frame = frame(now, step, weights, tally, status);
        self.clear();
        print!("{frame}");
        self.drawn = frame.lines().count();
        // A frame that cannot be shown is no reason to stop.
        let _ = std::io::stdout().flush();
    }

    fn line(&self, now: Instant, weights: &str, tally: &Tally, status: &Status) -> String {
        let mut line = format!("{:7.1}s ", self.begun.elapsed().as_secs_f64());
        for (name, backend) in &tally.backends {
            let live = backend.live(now);
            let _ = write!(line, " {name} {:.0}/s p99 {:.1} ms |", live.per_second, ms(live.p99_us));
        }
        let _ = write!(
            line,
            " failed {} | weights {weights} generation {} at {}/{} proxies",
            tally.failed, status.generation, status.programmed, status.subscribed
        );
        line
    }

    fn clear(&mut self) {
        if self.drawn > 0 {
            print!("\x1b[{}A\x1b[J", self.drawn);
            self.drawn = 0;
        }
    }
}

fn frame(now: Instant, step: &str, weights: &str, tally: &Tally, status: &Status) -> String {
    let mut out = String::new();
    let _ = writeln!(out);
    let _ = writeln!(out, "  \x1b[36m{step}\x1b[0m");
    let _ = writeln!(
        out,
        "  \x1b[2m{:10} {:>7} {:>9} {:>9} {:>10}  instances\x1b[0m",
        "backend", "req/s", "p50", "p99", "total"
    );
    for (name, backend) in &tally.backends {
        let live = backend.live(now);
        let _ = writeln!(
            out,
            "  {name:10} {:7.0} {:>6.2} ms {:>6.2} ms {:>10}  {}",
            live.per_second,
            ms(live.p50_us),
            ms(live.p99_us),
            backend.requests,
            backend.instances.keys().cloned().collect::<Vec<_>>().join(" ")
        );
    }
    let total = tally.requests();
    let share = if total == 0 { 100.0 } else { 100.0 * (total - tally.failed) as f64 / total as f64 };
    let colour = if tally.failed == 0 { "\x1b[32m" } else { "\x1b[31m" };
    let _ = writeln!(out, "  success    {colour}{share:.3} %\x1b[0m  ({} of {total} failed)", tally.failed);
    let _ = writeln!(
        out,
        "  policy     weights {weights}, generation {} in force at {}/{} subscribed proxies",
        status.generation, status.programmed, status.subscribed
    );
    let _ = writeln!(
        out,
        "  endpoints  {}; {} proxies connected; certificates renewed at {}",
        status.endpoints, status.connected, status.renewed
    );
    let identities: std::collections::BTreeSet<_> =
        tally.backends.values().flat_map(|backend| &backend.identities).collect();
    let identities = identities.into_iter().map(String::as_str).collect::<Vec<_>>().join(" ");
    let _ = writeln!(out, "  callers    {}", if identities.is_empty() { "none yet" } else { &identities });
    out
}

fn ms(micros: u32) -> f64 {
    f64::from(micros) / 1000.0
}
