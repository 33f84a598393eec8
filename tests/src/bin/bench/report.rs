//! What a part found: a table, verdicts on the targets, and the same as JSON.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Value, json};

use crate::arguments::Part;
use crate::measure::Samples;

/// The findings of one part.
pub(crate) struct Report {
    title: String,
    columns: Vec<&'static str>,
    rows: Vec<(Vec<String>, Value)>,
    targets: Vec<Target>,
    notes: Vec<String>,
}

/// A figure and the bound it should keep.
struct Target {
    what: String,
    measured: f64,
    most: f64,
}

impl Report {
    /// A report whose rows have the given columns, the first of which names the row.
    pub(crate) fn new(title: String, columns: &[&'static str]) -> Self {
        Self { title, columns: columns.to_vec(), rows: Vec::new(), targets: Vec::new(), notes: Vec::new() }
    }

    /// Adds a row: as shown, and as data.
    pub(crate) fn row(&mut self, cells: Vec<String>, data: Value) {
        self.rows.push((cells, data));
    }

    /// Adds a figure that should be at most so much.
    pub(crate) fn target(&mut self, what: impl Into<String>, measured: f64, most: f64) {
        self.targets.push(Target { what: what.into(), measured, most });
    }

    /// Adds a sentence on how to read the table.
    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Writes the report as JSON into `target/bench`.
    pub(crate) fn write(&self, part: Part) -> io::Result<()> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
        fs::create_dir_all(&dir)?;
        let major = postbox_tests::major();
        let report = json!({
            "part": part.to_string(),
            "title": self.title,
            "postgresql": major,
            "processors": std::thread::available_parallelism().map_or(1, usize::from),
            "rows": self.rows.iter().map(|(_, data)| data).collect::<Vec<_>>(),
            "targets": self.targets.iter().map(Target::data).collect::<Vec<_>>(),
            "notes": self.notes,
        });
        fs::write(dir.join(format!("pg{major}-{part}.json")), format!("{report:#}\n"))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{} (PostgreSQL {})", self.title, postbox_tests::major())?;
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|(cells, _)| cells.get(column)).map(String::as_str);
            cells.chain([self.columns[column]]).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let line = |f: &mut fmt::Formatter<'_>, cells: &mut dyn Iterator<Item = &str>| {
            for (column, (cell, &width)) in cells.zip(&widths).enumerate() {
                if column == 0 { write!(f, "  {cell:<width$}")? } else { write!(f, "  {cell:>width$}")? }
            }
            writeln!(f)
        };
        line(f, &mut self.columns.iter().copied())?;
        line(f, &mut widths.iter().map(|&width| "-".repeat(width)).collect::<Vec<_>>().iter().map(String::as_str))?;
        for (cells, _) in &self.rows {
            line(f, &mut cells.iter().map(String::as_str))?;
        }
        for target in &self.targets {
            writeln!(f, "  {target}")?;
        }
        for note in &self.notes {
            writeln!(f, "  Note: {note}")?;
        }
        Ok(())
    }
}

impl Target {
    fn is_met(&self) -> bool {
        self.measured <= self.most
    }

    fn data(&self) -> Value {
        json!({ "what": self.what, "measured": self.measured, "most": self.most, "met": self.is_met() })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, measured, most } = self;
        if !measured.is_finite() {
            write!(f, "UNCLEAR: {what}: the differences drown in noise, target at most {most:.2}")
        } else if self.is_met() {
            write!(f, "met:    {what}: {measured:.2}, target at most {most:.2}")
        } else if *most == 0.0 {
            write!(f, "MISSED: {what}: {measured:.2}, target 0")
        } else {
            let over = (measured / most - 1.0) * 100.0;
            write!(f, "MISSED: {what}: {measured:.2}, target at most {most:.2} (over by {over:.0} %)")
        }
    }
}

/// Samples as data.
pub(crate) fn data(samples: &Samples) -> Value {
    json!({ "median": samples.median(), "min": samples.min(), "max": samples.max(), "all": samples.values() })
}

/// Least and greatest as a cell.
pub(crate) fn range(samples: &Samples) -> String {
    format!("{:.0}–{:.0}", samples.min(), samples.max())
}
