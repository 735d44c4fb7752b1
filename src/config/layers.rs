//! The layers, and where each value came from.
//!
//! Every value is tried alone against the typed [`Raw`] before it is merged, so that each fault is
//! found, with its place, and not only the first. The span-aware parse of `toml_edit` gives the
//! lines; the `config` crate merges. Domain names are prepared before merging:
//! `[domains."Example.org"]` and a variable for `example.org` are one.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::ops::Range;
use std::path::{Path, PathBuf};

use ::config::{Map, Source, Value, ValueKind};
use toml_edit::{Array, Document, DocumentMut, InlineTable, Item, Table, TableLike};

use super::raw::Raw;
use super::{Config, ConfigError, Problem, check};
use crate::proto::domain::Domain;

/// A value given on the command line.
#[derive(Debug, Clone)]
pub struct Flag {
    /// As the user wrote it, for errors: `--listen`.
    pub name: &'static str,
    /// Section and key.
    pub path: Vec<String>,
    /// What it sets.
    pub value: FlagValue,
}

/// The value of a [`Flag`].
#[derive(Debug, Clone)]
pub enum FlagValue {
    /// A text.
    Text(String),
    /// A list of texts; it replaces the list of the layers below.
    List(Vec<String>),
    /// The key is a table that is to exist; what the layers below put into it stays.
    Table,
}

/// The layers read so far.
#[derive(Default)]
pub(super) struct Layers {
    layers: Vec<Layer>,
    origins: Origins,
    problems: Vec<Problem>,
}

impl Layers {
    /// Reads the file and adds it. Fails at once if it cannot be read or is not TOML.
    pub(super) fn read_file(&mut self, file: &Path) -> Result<(), ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|error| {
            ConfigError(vec![Problem {
                line: None,
                place: file.display().to_string(),
                key: String::new(),
                text: format!("cannot be read: {error}"),
            }])
        })?;
        self.file(file, &text)
    }

    /// Adds the text of a file. Fails at once if it is not TOML.
    pub(super) fn file(&mut self, file: &Path, text: &str) -> Result<(), ConfigError> {
        self.origins.file = Some(file.to_owned());
        let document = Document::parse(text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_at(text, span.start));
            ConfigError(vec![Problem {
                line: Some(line),
                place: format!("{}:{line}", file.display()),
                key: String::new(),
                text: format!("not valid TOML: {}", error.message().trim().replace('\n', ", ")),
            }])
        })?;
        let mut layer = Layer::default();
        self.walk(&mut layer, document.as_table(), &[], text);
        self.layers.push(layer);
        Ok(())
    }

    /// Adds the variables that begin with [`PREFIX`].
    pub(super) fn environment(&mut self, vars: impl IntoIterator<Item = (OsString, OsString)>) {
        let vars: BTreeMap<OsString, OsString> = vars
            .into_iter()
            .filter(|(name, _)| name.to_string_lossy().starts_with(PREFIX))
            .collect();
        let mut layer = Layer::default();
        let mut seen = BTreeSet::new();
        for (name, value) in vars {
            let shown = name.to_string_lossy().into_owned();
            let mut path: Vec<String> =
                shown[PREFIX.len()..].split("__").map(str::to_lowercase).collect();
            let origin = Origin::Named(shown);
            let Some(value) = value.to_str() else {
                self.problem(&path, &origin, "expected UTF-8 text");
                continue;
            };
            if let Err(text) = prepare_domain(&mut path) {
                self.problem(&path, &origin, text);
                continue;
            }
            if !seen.insert(path.clone()) {
                self.problem(&path, &origin, "set by another variable too");
                continue;
            }
            match readings(value).into_iter().map(|item| (probe(&path, &item), item)).reduce(
                // The first reading that fits; if none does, what the first one was refused for.
                |first, next| match (&first.0, &next.0) {
                    (Err(_), Ok(())) => next,
                    _ => first,
                },
            ) {
                Some((Ok(()), item)) => self.insert(&mut layer, &path, item, origin),
                Some((Err(text), _)) => self.problem(&path, &origin, text),
                None => {}
            }
        }
        self.layers.push(layer);
    }

    /// Adds the flags.
    pub(super) fn flags(&mut self, flags: Vec<Flag>) {
        let mut layer = Layer::default();
        for flag in flags {
            let mut path = flag.path;
            let origin = Origin::Named(flag.name.to_owned());
            let item = match flag.value {
                FlagValue::Text(text) => toml_edit::value(text),
                FlagValue::List(list) => toml_edit::value(list.into_iter().collect::<Array>()),
                FlagValue::Table => Item::Table(Table::new()),
            };
            match prepare_domain(&mut path).and_then(|()| probe(&path, &item)) {
                Ok(()) => self.insert(&mut layer, &path, item, origin),
                Err(text) => self.problem(&path, &origin, text),
            }
        }
        self.layers.push(layer);
    }

    /// Merges the layers over the defaults and checks the result.
    pub(super) fn finish(mut self) -> Result<Config, ConfigError> {
        let mut builder = ::config::Config::builder();
        for layer in self.layers {
            builder = builder.add_source(layer);
        }
        let raw = match builder.build().and_then(::config::Config::try_deserialize::<Raw>) {
            Ok(raw) => raw,
            // Each value alone was fine, so this says something about the merge itself.
            Err(error) => {
                let error = ConfigError::new("", error.to_string());
                self.problems.extend(error.0);
                return Err(ConfigError(self.problems));
            }
        };
        check::check(raw, &self.origins, self.problems).map_err(|mut problems| {
            problems.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
            ConfigError(problems)
        })
    }

    /// Takes what is well typed of one table of the file into the layer, and reports the rest.
    fn walk(&mut self, layer: &mut Layer, table: &dyn TableLike, parent: &[String], text: &str) {
        let mut seen = BTreeSet::new();
        for (key, item) in table.iter() {
            let span = table.key(key).and_then(toml_edit::Key::span).or_else(|| item.span());
            let origin = Origin::Line(span.map_or(1, |span| line_at(text, span.start)));
            let mut path = parent.to_vec();
            path.push(key.to_owned());
            if let Err(text) = prepare_domain(&mut path) {
                self.problem(&path, &origin, text);
                continue;
            }
            if !seen.insert(path.clone()) {
                self.problem(&path, &origin, "the same domain is in the file twice");
                continue;
            }
            let inner = item.as_table_like();
            let alone = if inner.is_some() { Item::Table(Table::new()) } else { item.clone() };
            if let Err(why) = probe(&path, &alone) {
                if !self.elements(item, &path, text) {
                    self.problem(&path, &origin, why);
                }
                continue;
            }
            self.insert(layer, &path, alone, origin);
            if let Some(inner) = inner {
                self.walk(layer, inner, &path, text);
            }
            for (index, element) in elements(item).iter().enumerate() {
                let mut place = |path: &[String], span: Option<Range<usize>>| {
                    if let Some(span) = span {
                        let line = Origin::Line(line_at(text, span.start));
                        self.origins.places.insert(path.to_vec(), line);
                    }
                };
                path.push(index.to_string());
                place(&path, element.span());
                for (key, _) in element.as_table_like().into_iter().flat_map(TableLike::iter) {
                    path.push(key.to_owned());
                    place(&path, key_span(element, key));
                    path.pop();
                }
                path.pop();
            }
        }
    }

    /// Reports what is wrong in the elements of a list of which something is; false if that is
    /// nothing of any one of them.
    fn elements(&mut self, item: &Item, path: &[String], text: &str) -> bool {
        let mut found = false;
        let mut report = |this: &mut Self, path: &[String], span: Option<Range<usize>>, why| {
            let origin = Origin::Line(span.map_or(1, |span| line_at(text, span.start)));
            this.problem(path, &origin, why);
            found = true;
        };
        for element in &elements(item) {
            let alone = |value: toml_edit::Value| toml_edit::value(Array::from_iter([value]));
            let Some(table) = element.as_table_like() else {
                let Some(value) = element.as_value() else { continue };
                if let Err(why) = probe(path, &alone(value.clone())) {
                    report(self, path, element.span(), why);
                }
                continue;
            };
            for (key, item) in table.iter() {
                let Ok(value) = item.clone().into_value() else { continue };
                let table = InlineTable::from_iter([(key, value)]);
                if let Err(why) = probe(path, &alone(table.into())) {
                    let path = [path, &[key.to_owned()]].concat();
                    report(self, &path, key_span(element, key), why);
                }
            }
        }
        found
    }

    fn insert(&mut self, layer: &mut Layer, path: &[String], item: Item, origin: Origin) {
        let table = item.is_table();
        layer.insert(path, item);
        if table {
            self.origins.places.entry(path.to_vec()).or_insert(origin);
        } else {
            // What a lower layer said about the elements of a list is over.
            self.origins.places.retain(|known, _| !known.starts_with(path));
            for depth in 1..path.len() {
                self.origins.places.entry(path[..depth].to_vec()).or_insert_with(|| origin.clone());
            }
            self.origins.places.insert(path.to_vec(), origin);
        }
    }

    fn problem(&mut self, path: &[String], origin: &Origin, text: impl Into<String>) {
        let line = match origin {
            Origin::Line(line) => Some(*line),
            Origin::Named(_) => None,
        };
        let place = self.origins.show(origin);
        self.problems.push(Problem { line, place, key: show_key(path), text: text.into() });
    }
}

/// Who set which key.
#[derive(Default)]
pub(super) struct Origins {
    file: Option<PathBuf>,
    /// Keys, tables, and elements of lists (by their index).
    places: BTreeMap<Vec<String>, Origin>,
}

#[derive(Debug, Clone)]
enum Origin {
    /// A line of the file.
    Line(usize),
    /// A variable or a flag.
    Named(String),
}

impl Origins {
    /// A problem or a warning with the place where the key, or else the nearest thing around it,
    /// was set: `FILE:LINE`, a variable, a flag; the file if it could have been set there, nothing
    /// if there is no file.
    pub(super) fn problem(&self, path: &[&str], key: &[&str], text: String) -> Problem {
        let (line, place) = match self.find(path) {
            Some(origin @ Origin::Line(line)) => (Some(*line), self.show(origin)),
            Some(origin) => (None, self.show(origin)),
            None => (None, self.file.as_ref().map(|f| f.display().to_string()).unwrap_or_default()),
        };
        Problem { line, place, key: show_key(key), text }
    }

    /// Whether any layer sets the key.
    pub(super) fn is_set(&self, path: &[&str]) -> bool {
        self.places.keys().any(|known| known.iter().map(String::as_str).eq(path.iter().copied()))
    }

    /// A path in the file is relative to the file; one from elsewhere to the working directory.
    pub(super) fn resolve(&self, path: &[&str], text: &str) -> PathBuf {
        match (self.find(path), self.file.as_deref().and_then(Path::parent)) {
            (Some(Origin::Line(_)), Some(directory)) => directory.join(text),
            _ => PathBuf::from(text),
        }
    }

    fn find(&self, path: &[&str]) -> Option<&Origin> {
        (1..=path.len()).rev().find_map(|depth| {
            let path: Vec<String> = path[..depth].iter().map(|&part| part.to_owned()).collect();
            self.places.get(&path)
        })
    }

    fn show(&self, origin: &Origin) -> String {
        match (origin, &self.file) {
            (Origin::Line(line), Some(file)) => format!("{}:{line}", file.display()),
            (Origin::Line(line), None) => format!("line {line}"),
            (Origin::Named(name), _) => name.clone(),
        }
    }
}

/// `domains."example.org".servers`
fn show_key(path: &[impl AsRef<str>]) -> String {
    let mut shown = String::new();
    for (index, part) in path.iter().map(AsRef::as_ref).enumerate() {
        if index > 0 {
            shown.push('.');
        }
        if !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c)) {
            shown.push_str(part);
        } else {
            shown.push_str(&format!("{part:?}"));
        }
    }
    shown
}

/// One layer's values as nested tables.
#[derive(Debug, Clone, Default)]
struct Layer(Table);

impl Layer {
    fn insert(&mut self, path: &[String], item: Item) {
        let Some((key, parents)) = path.split_last() else { return };
        let mut table = &mut self.0;
        for parent in parents {
            let inner = table.entry(parent).or_insert_with(|| Item::Table(Table::new()));
            // Only tables are descended into: probe() has refused all else.
            let Some(inner) = inner.as_table_mut() else { return };
            table = inner;
        }
        if !(item.is_table() && table.contains_table(key)) {
            table.insert(key, item);
        }
    }
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ::config::ConfigError> {
        Ok(self.0.iter().map(|(key, item)| (key.to_owned(), merged_value(item))).collect())
    }
}

/// A value for the `config` crate. Only kinds that [`Raw`] knows get here.
fn merged_value(item: &Item) -> Value {
    let kind = match item {
        Item::Table(table) => merged_table(table),
        Item::Value(toml_edit::Value::InlineTable(table)) => merged_table(table),
        Item::ArrayOfTables(tables) => ValueKind::Array(
            tables.iter().map(|table| Value::new(None, merged_table(table))).collect(),
        ),
        Item::Value(toml_edit::Value::String(text)) => ValueKind::String(text.value().clone()),
        Item::Value(toml_edit::Value::Integer(number)) => ValueKind::I64(*number.value()),
        Item::Value(toml_edit::Value::Boolean(truth)) => ValueKind::Boolean(*truth.value()),
        Item::Value(toml_edit::Value::Array(array)) => ValueKind::Array(
            array.iter().map(|element| merged_value(&Item::Value(element.clone()))).collect(),
        ),
        _ => ValueKind::Nil,
    };
    Value::new(None, kind)
}

fn merged_table(table: &dyn TableLike) -> ValueKind {
    ValueKind::Table(table.iter().map(|(key, item)| (key.to_owned(), merged_value(item))).collect())
}

/// Whether [`Raw`] has such a key and the value is of its type; if not, what was expected.
fn probe(path: &[String], item: &Item) -> Result<(), String> {
    // serde would take a list for a table, by position.
    if (item.is_array() || item.is_array_of_tables())
        && typed(path, Item::Table(Table::new())).is_ok()
    {
        return Err("expected a table, found a list".to_owned());
    }
    typed(path, item.clone())
}

/// A document of this one key, read as [`Raw`].
fn typed(path: &[String], mut item: Item) -> Result<(), String> {
    for key in path.iter().rev() {
        let mut table = Table::new();
        table.insert(key, item);
        item = Item::Table(table);
    }
    let Item::Table(root) = item else { return Ok(()) };
    match toml_edit::de::from_document::<Raw>(DocumentMut::from(root)) {
        Ok(_) => Ok(()),
        Err(error) => Err(reword(error.message())),
    }
}

/// serde's words → "expected …, found …".
fn reword(message: &str) -> String {
    if let Some((_, expected)) =
        message.strip_prefix("unknown field ").and_then(|rest| rest.split_once(", expected "))
    {
        return format!("unknown key, expected {expected}");
    }
    let plain =
        message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "));
    match plain.and_then(|rest| rest.rsplit_once(", expected ")) {
        Some((found, "a sequence")) => format!("expected a list, found {found}"),
        Some((found, expected)) => format!("expected {expected}, found {found}"),
        None => message.to_owned(),
    }
}

/// What the text of a variable may mean: the key's type decides.
fn readings(text: &str) -> Vec<Item> {
    let mut readings = vec![toml_edit::value(text)];
    if let Ok(number) = text.parse::<i64>() {
        readings.push(toml_edit::value(number));
    }
    if let Ok(truth) = text.parse::<bool>() {
        readings.push(toml_edit::value(truth));
    }
    let list = text.split(',').map(str::trim).filter(|element| !element.is_empty());
    readings.push(toml_edit::value(list.collect::<Array>()));
    readings
}

/// Replaces the name in `domains."NAME"…` by its prepared form.
fn prepare_domain(path: &mut [String]) -> Result<(), String> {
    let [section, name, ..] = path else { return Ok(()) };
    if section != "domains" || name == "*" {
        return Ok(());
    }
    let (star, parsed) = match name.strip_prefix("*.") {
        None => ("", Domain::parse(name)),
        Some(below) => ("*.", Domain::parse(below)),
    };
    match parsed {
        Ok(domain) if domain.ip().is_some() && !star.is_empty() => {
            Err("expected a domain name behind \"*.\", found an address".to_owned())
        }
        Ok(domain) => {
            *name = format!("{star}{domain}");
            Ok(())
        }
        Err(bad) => Err(format!("expected a domain name, \"*.\" and one, or \"*\": {bad}")),
    }
}

/// The elements of a list, which TOML can write as `[…]` or as `[[…]]`.
fn elements(item: &Item) -> Vec<Item> {
    match item {
        Item::Value(toml_edit::Value::Array(array)) => {
            array.iter().map(|value| Item::Value(value.clone())).collect()
        }
        Item::ArrayOfTables(tables) => tables.iter().map(|to| Item::Table(to.clone())).collect(),
        _ => Vec::new(),
    }
}

fn key_span(table: &Item, key: &str) -> Option<Range<usize>> {
    table.as_table_like()?.key(key)?.span()
}

/// Counted from 1.
fn line_at(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|&byte| byte == b'\n').count()
}

/// What a variable begins with to be ours.
const PREFIX: &str = "BOSPHORUS__";
