//! How things look: columns, and colours where a person looks at a terminal.

use std::{
    env,
    fmt::Write as _,
    io::{IsTerminal as _, Write as _},
};

/// As `print!`, for a reader that may have gone (`leno get | head`): then this command is done too.
macro_rules! out {
    ($($text:tt)*) => {
        $crate::cli::print::write(format_args!($($text)*))
    };
}

/// As [`out!`], with the end of the line.
macro_rules! outln {
    () => {
        $crate::cli::print::write(format_args!("\n"))
    };
    ($($text:tt)*) => {
        $crate::cli::print::write(format_args!("{}\n", format_args!($($text)*)))
    };
}

/// Writes to standard output; ends the process if nobody reads it.
pub(super) fn write(text: std::fmt::Arguments<'_>) {
    if std::io::stdout().write_fmt(text).is_err() {
        std::process::exit(i32::from(super::FAILURE));
    }
}

/// Whether to colour, decided once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    colours: bool,
}

impl Style {
    /// For standard output. NO_COLOR (no-color.org), and a terminal that says it is dumb, are respected.
    pub(super) fn of_stdout() -> Self {
        let refused =
            env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty()) || env::var_os("TERM").is_some_and(|t| t == "dumb");
        Self { colours: std::io::stdout().is_terminal() && !refused }
    }

    #[cfg(test)]
    pub(super) fn plain() -> Self {
        Self { colours: false }
    }

    pub(super) fn red(self, text: &str) -> String {
        self.paint("31", text)
    }

    pub(super) fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub(super) fn yellow(self, text: &str) -> String {
        self.paint("33", text)
    }

    pub(super) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Text from the configuration or from proxies, made safe for a terminal: control characters are shown, not obeyed.
pub(super) fn clean(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            if c.is_control() { c.escape_default().collect::<String>() } else { c.to_string() }
                .chars()
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Rows under a heading, each column as wide as its widest cell. Colours come after the width is known.
pub(super) struct Table {
    heading: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

/// One cell.
pub(super) struct Cell {
    text: String,
    paint: Option<fn(Style, &str) -> String>,
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text: clean(&text), paint: None }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl Cell {
    pub(super) fn painted(text: &str, paint: fn(Style, &str) -> String) -> Self {
        Self { text: clean(text), paint: Some(paint) }
    }
}

impl Table {
    pub(super) fn new(heading: &[&'static str]) -> Self {
        Self { heading: heading.to_vec(), rows: Vec::new() }
    }

    pub(super) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    pub(super) fn render(&self, style: Style) -> String {
        let width = |text: &str| text.chars().count();
        let mut widths: Vec<usize> = self.heading.iter().map(|h| width(h)).collect();
        for row in &self.rows {
            for (cell, widest) in row.iter().zip(&mut widths) {
                *widest = width(&cell.text).max(*widest);
            }
        }
        let last = widths.len().saturating_sub(1);
        let mut text = String::new();
        let mut line = |cells: Vec<(usize, String)>| {
            for (column, ((shown, cell), widest)) in cells.into_iter().zip(&widths).enumerate() {
                let gap = if column == last { 0 } else { widest - shown + 2 };
                // Writing to a String cannot fail.
                let _ = write!(text, "{cell}{:gap$}", "");
            }
            text.truncate(text.trim_end_matches(' ').len());
            text.push('\n');
        };
        line(self.heading.iter().map(|h| (width(h), style.bold(h))).collect());
        for row in &self.rows {
            let painted = |cell: &Cell| cell.paint.map_or_else(|| cell.text.clone(), |paint| paint(style, &cell.text));
            line(row.iter().map(|cell| (width(&cell.text), painted(cell))).collect());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["KIND", "NAME", "STATUS"]);
        table.row(vec!["Service".into(), "a".into(), "ok".into()]);
        table.row(vec!["Pod".into(), "longer".into(), Cell::painted("bad", Style::red)]);
        let plain = table.render(Style { colours: false });
        assert_eq!(plain, "KIND     NAME    STATUS\nService  a       ok\nPod      longer  bad\n");
        let coloured = table.render(Style { colours: true });
        assert!(coloured.contains("Pod      longer  \x1b[31mbad\x1b[0m\n"), "{coloured:?}");
    }

    #[test]
    fn control_characters_are_shown_not_obeyed() {
        assert_eq!(clean("a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
    }
}
