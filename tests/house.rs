//! The rules of the house that a compiler does not check: who may import whom, and that the core
//! stays pure. See the crate's documentation.

use std::fs;
use std::path::{Path, PathBuf};

/// From the top down; a module imports only from those below its own line.
const LAYERS: &[&str] = &["main", "cli", "app", "http", "session", "upstream", "proto"];
/// Leaves that all but `proto` may import.
const LEAVES: &[&str] = &["config", "metrics"];
/// A peer of the gateway that lives in the same program: only who starts it knows it, and it knows
/// the core at most.
const PEER: &str = "demo";

/// What no file of the core may name: IO, clocks, randomness, tasks.
const IMPURE: &[&str] = &[
    "tokio::",
    "actix",
    "rand::",
    "getrandom",
    "Instant::now",
    "SystemTime",
    "std::net::Tcp",
    "std::fs",
    "std::env",
    "async fn",
    ".await",
];

#[test]
fn imports_go_downward() {
    let mut faults = Vec::new();
    for (path, text) in sources() {
        let own = module(&path);
        for (number, line) in code(&text) {
            for target in crate_imports(line) {
                if !may_import(&own, target) {
                    faults.push(format!("{}:{number}: {own} imports {target}", path.display()));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_core_is_pure() {
    let mut faults = Vec::new();
    for (path, text) in sources() {
        if module(&path) != "proto" {
            continue;
        }
        for (number, line) in code(&text) {
            for name in IMPURE.iter().filter(|name| line.contains(**name)) {
                faults.push(format!("{}:{number}: names {name}", path.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The rules above can fail.
#[test]
fn a_wrong_import_is_seen() {
    assert!(!may_import("proto", "upstream"));
    assert!(!may_import("upstream", "session"));
    assert!(!may_import("metrics", "config"));
    assert!(may_import("session", "upstream") && may_import("http", "metrics"));
    assert!(may_import("app", "demo") && may_import("demo", "proto"));
    assert!(!may_import("session", "demo") && !may_import("http", "demo"));
    assert!(!may_import("demo", "session") && !may_import("demo", "config"));
    assert!(!may_import("metrics", "demo"));
    let found: Vec<_> = crate_imports("use crate::session::run::Run; // crate::x").collect();
    assert_eq!(found, ["session", "x"]);
}

fn may_import(own: &str, target: &str) -> bool {
    if own == target || own == "lib" {
        return true;
    }
    if target == PEER {
        return ["main", "cli", "app"].contains(&own);
    }
    let layer = |name: &str| LAYERS.iter().position(|layer| *layer == name);
    match (layer(own), layer(target)) {
        (Some(own), Some(target)) => own < target,
        (Some(_), None) => own != "proto" && LEAVES.contains(&target),
        // A leaf knows the core's words only.
        (None, _) => target == "proto",
    }
}

fn crate_imports(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("crate::").map(|(at, found)| {
        let rest = &line[at + found.len()..];
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
        &rest[..end]
    })
}

/// The lines of the code, without comments and without the tests at the end of a file.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line.trim()))
        .take_while(|(_, line)| *line != "#[cfg(test)]")
        .filter(|(_, line)| !line.starts_with("//"))
}

fn module(path: &Path) -> String {
    let first = path.components().nth(1).expect("a file below src");
    first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

/// Every source file but the tests in files of their own, by its path from the root.
fn sources() -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, root: &Path, into: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(folder).expect("a folder of the repository") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, root, into);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && path.file_stem().is_some_and(|stem| stem != "tests")
            {
                let text = fs::read_to_string(&path).expect("a source file");
                into.push((path.strip_prefix(root).expect("below the root").to_owned(), text));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = Vec::new();
    walk(&root.join("src"), root, &mut all);
    assert!(all.len() > 10, "the sources were not found");
    all
}
