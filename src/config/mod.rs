//! Configuration: defaults ← the file given ← `BOSPHORUS__SECTION__KEY` ← flags, then checked.
//!
//! Here: the entry points and the errors. `model.rs` says what each key means, `layers.rs` reads
//! and merges, `check.rs` turns what was written into a [`Config`], after which nothing can be
//! wrong with it. No file is read unasked, and an unknown key stops the start: a typo must not
//! become a default.

use std::ffi::OsString;
use std::fmt;
use std::path::Path;

mod check;
pub mod identity;
mod layers;
mod model;
mod raw;
mod units;

pub use layers::{Flag, FlagValue};
pub use model::*;

use layers::Layers;

/// `conf/bosphorus.toml`: every key with its default and its reason.
pub const DEFAULTS: &str = include_str!("../../conf/bosphorus.toml");

impl Config {
    /// Reads all layers, the later ones over the earlier: defaults, `file`, `environment`, `flags`.
    ///
    /// Of the environment only variables that begin with `BOSPHORUS__` are looked at.
    ///
    /// # Errors
    /// Every fault that could be found in one pass.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        flags: Vec<Flag>,
    ) -> Result<Self, ConfigError> {
        let mut layers = Layers::default();
        if let Some(file) = file {
            layers.read_file(file)?;
        }
        layers.environment(environment);
        layers.flags(flags);
        layers.finish()
    }

    /// Reads one TOML text over the defaults, without environment or flags.
    ///
    /// # Errors
    /// As [`Config::load`]; the file is called `(text)`.
    pub fn from_toml_str(text: &str) -> Result<Self, ConfigError> {
        let mut layers = Layers::default();
        layers.file(Path::new("(text)"), text)?;
        layers.finish()
    }
}

impl Default for Config {
    /// The defaults alone: complete, but serving no domain, which [`Config::load`] would refuse.
    fn default() -> Self {
        check::defaults()
    }
}

/// Why there is no [`Config`]: one or more [`Problem`]s. Shows one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(Vec<Problem>);

impl ConfigError {
    /// A fault found after the check, when a value is put to use: a certificate file that has gone,
    /// say.
    pub fn new(key: impl Into<String>, text: impl Into<String>) -> Self {
        Self(vec![Problem { line: None, place: String::new(), key: key.into(), text: text.into() }])
    }

    /// All of them: those of the file by line, then the others.
    pub fn problems(&self) -> &[Problem] {
        &self.0
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            fmt::Display::fmt(problem, f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// One fault. Shows as `place: key: text`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// For the order; `place` has it too.
    line: Option<usize>,
    /// `FILE:LINE`, a variable's name or a flag's; empty if no layer said anything about the key.
    pub place: String,
    /// The key with its section, as TOML writes it.
    pub key: String,
    /// What was expected and what was found.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [&self.place, &self.key] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        f.write_str(&self.text)
    }
}
