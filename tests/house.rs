//! The rules of the house that a compiler does not check: who may import whom, and that the core
//! stays pure. See the crate's documentation.

use std::fs;
use std::path::{Path, PathBuf};

/// From the top down; a module imports only from those below its own line.
const LAYERS: &[&str] = &["main", "cli", "app", "http", "session", "upstream", "proto"];
/// Leaves that all but `proto` may import.
const LEAVES: &[&str] = &["config", "io", "metrics"];
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

/// What a stanza comes through asks the kernel nothing about its connection (that is for a tick, or
/// the end), takes no lock and counts into nothing that threads share: `metrics::Local` is for that.
#[test]
fn a_stanza_meets_no_other_thread() {
    const WAY: [&str; 5] = ["run", "bosh", "link", "pending", "delivery"];
    const NAMES: [&str; 6] = ["TCP_INFO", "tcp_info", "Mutex", "RwLock", "fetch_add", "fetch_sub"];
    let mut faults = Vec::new();
    let mut seen = 0;
    for (path, text) in sources() {
        if !WAY.iter().any(|name| path.ends_with(format!("session/{name}.rs"))) {
            continue;
        }
        seen += 1;
        for (number, line) in code(&text) {
            for name in NAMES.iter().filter(|name| line.contains(**name)) {
                faults.push(format!("{}:{number}: names {name}", path.display()));
            }
        }
    }
    assert_eq!(seen, WAY.len());
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

/// What stands behind the tests of a file is code as well.
#[test]
fn code_behind_tests_is_seen() {
    let declared = "#[cfg(test)]\nmod tests;\nuse crate::behind;\n";
    assert_eq!(code(declared), [(3, "use crate::behind;")]);
    let written = "fn before() {}\n\
                   #[cfg(test)]\n\
                   #[allow(dead_code)]\n\
                   mod tests {\n    fn within() {\n    }\n}\n\
                   // use crate::comment;\n\
                   use crate::behind;\n";
    assert_eq!(code(written), [(1, "fn before() {}"), (9, "use crate::behind;")]);
    let indented = "impl A {\n    #[cfg(test)]\n    fn a() {\n        b();\n    }\n}\n";
    assert_eq!(code(indented), [(1, "impl A {"), (6, "}")]);
    // As the files that declare their tests near the top are.
    let (_, text) = sources()
        .into_iter()
        .find(|(path, _)| path.ends_with("proto/ws/mod.rs"))
        .expect("a file that declares its tests near the top");
    assert!(code(&text).iter().any(|(_, line)| *line == "use std::time::Duration;"));
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

/// The lines of the code, trimmed and with their numbers, without comments and without what follows
/// `#[cfg(test)]`: one line (`mod tests;`), or a block to the brace that closes it, which rustfmt
/// indents as the line that opened it.
fn code(text: &str) -> Vec<(usize, &str)> {
    let mut lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    let mut found = Vec::new();
    while let Some((number, line)) = lines.next() {
        let trimmed = line.trim();
        if trimmed == "#[cfg(test)]" {
            skip_item(&mut lines);
        } else if !trimmed.starts_with("//") {
            found.push((number, trimmed));
        }
    }
    found
}

/// Takes the lines of one item, and of the attributes and comments before it.
fn skip_item<'a>(lines: &mut impl Iterator<Item = (usize, &'a str)>) {
    let Some((_, first)) =
        lines.find(|(_, line)| !line.trim().starts_with("#[") && !line.trim().starts_with("//"))
    else {
        return;
    };
    if first.trim_end().ends_with([';', '}', ',']) {
        return;
    }
    let indent = &first[..first.len() - first.trim_start().len()];
    lines.find(|(_, line)| line.strip_prefix(indent) == Some("}"));
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
