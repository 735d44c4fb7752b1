//! The table a test binary prints last: rows are scenarios, columns where they ran.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Mutex;

/// What a cell says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// It passed.
    Ok,
    /// It passed, and this is the address that was seen.
    Seen(IpAddr),
    /// It did not.
    Fail,
    /// It was not run: something is missing on this machine.
    Skip,
}

impl Cell {
    /// The cell of a test that was run.
    pub fn of<T, E>(result: &Result<T, E>) -> Self {
        if result.is_ok() { Self::Ok } else { Self::Fail }
    }
}

/// A table that tests fill from their threads.
pub struct Table {
    title: String,
    rows: Vec<String>,
    columns: Vec<String>,
    cells: Mutex<Vec<(String, String, Cell)>>,
}

impl Table {
    /// An empty one; `rows` and `columns` in the order they are printed.
    pub fn new(title: impl Into<String>, rows: Vec<String>, columns: Vec<String>) -> Self {
        Self { title: title.into(), rows, columns, cells: Mutex::new(Vec::new()) }
    }

    /// Fills a cell.
    pub fn set(&self, row: &str, column: &str, cell: Cell) {
        if let Ok(mut cells) = self.cells.lock() {
            cells.push((row.to_owned(), column.to_owned(), cell));
        }
    }

    /// Prints it, if any cell was filled (a filter of the test runner may have left none); also to
    /// the file `name.table` in the directory `BOSPHORUS_TABLES`, from which `tests/run` prints all
    /// tables at its end.
    pub fn print(&self, name: &str) {
        if self.cells.lock().is_ok_and(|cells| cells.is_empty()) {
            return;
        }
        println!("\n{self}\n");
        if let Some(directory) = std::env::var_os("BOSPHORUS_TABLES") {
            let path = Path::new(&directory).join(name).with_extension("table");
            if let Err(error) = std::fs::write(&path, format!("{self}\n")) {
                println!("cannot write {}: {error}", path.display());
            }
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok(cells) = self.cells.lock() else { return Err(fmt::Error) };
        let left = self.rows.iter().map(|row| row.chars().count()).max().unwrap_or(0);
        let left = left.max(self.title.chars().count());
        let text = |row: &String, column: &String| {
            let cell = cells.iter().find(|(r, c, _)| r == row && c == column);
            match cell.map(|(_, _, cell)| cell) {
                Some(Cell::Ok) => "ok".to_owned(),
                Some(Cell::Seen(address)) => format!("ok {address}"),
                Some(Cell::Fail) => "FAIL".to_owned(),
                Some(Cell::Skip) => "skip".to_owned(),
                None => "-".to_owned(),
            }
        };
        let width = |column: &String| {
            let widest = self.rows.iter().map(|row| text(row, column).len()).max();
            column.chars().count().max(widest.unwrap_or(0))
        };
        write!(out, "{:left$}", self.title)?;
        for column in &self.columns {
            write!(out, "  {column:width$}", width = width(column))?;
        }
        for row in &self.rows {
            write!(out, "\n{row:left$}")?;
            for column in &self.columns {
                write!(out, "  {:width$}", text(row, column), width = width(column))?;
            }
        }
        Ok(())
    }
}
