//! The table a test binary prints last: rows are scenarios, columns where they ran.

use std::fmt;
use std::sync::Mutex;

/// What a cell says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// It passed.
    Ok,
    /// It did not.
    Fail,
    /// It was not run: something is missing on this machine.
    Skip,
}

/// A table that tests fill from their threads.
pub struct Table {
    title: &'static str,
    rows: Vec<String>,
    columns: Vec<String>,
    cells: Mutex<Vec<(String, String, Cell)>>,
}

impl Table {
    /// An empty one; `rows` and `columns` in the order they are printed.
    pub fn new(title: &'static str, rows: Vec<String>, columns: Vec<String>) -> Self {
        Self { title, rows, columns, cells: Mutex::new(Vec::new()) }
    }

    /// Fills a cell.
    pub fn set(&self, row: &str, column: &str, cell: Cell) {
        if let Ok(mut cells) = self.cells.lock() {
            cells.push((row.to_owned(), column.to_owned(), cell));
        }
    }

    /// Whether any cell was filled (a filter of the test runner may have left none).
    pub fn is_empty(&self) -> bool {
        self.cells.lock().is_ok_and(|cells| cells.is_empty())
    }
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok(cells) = self.cells.lock() else { return Err(fmt::Error) };
        let left = self.rows.iter().map(|row| row.chars().count()).max().unwrap_or(0);
        let left = left.max(self.title.chars().count());
        write!(out, "{:left$}", self.title)?;
        for column in &self.columns {
            write!(out, "  {column}")?;
        }
        for row in &self.rows {
            write!(out, "\n{row:left$}")?;
            for column in &self.columns {
                let cell = cells.iter().find(|(r, c, _)| r == row && c == column);
                let text = match cell.map(|(_, _, cell)| cell) {
                    Some(Cell::Ok) => "ok",
                    Some(Cell::Fail) => "FAIL",
                    Some(Cell::Skip) => "skip",
                    None => "-",
                };
                write!(out, "  {text:width$}", width = column.chars().count())?;
            }
        }
        Ok(())
    }
}
