//! The catalogue of requirements and the tests that pin them.
//!
//! A test pins a requirement by naming its ID in its doc comment; a scenario that runs over
//! several transports and servers, whose functions carry no `#[test]`, does so in a doc comment
//! that begins with `Scenario`. Every MUST of a group declared finished must be pinned; the
//! coverage of all groups is printed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The finished groups, by range of IDs, both ends included.
const FINISHED: &[(&str, u32, u32)] = &[
    ("WS", 1, 45),
    ("WSL", 1, 14),
    ("BOSH", 1, 91),
    ("XB", 1, 17),
    ("UP", 1, 36),
    ("DISC", 1, 9),
    ("SEC", 1, 24),
    ("SM", 1, 6),
];

#[derive(Debug)]
struct Requirement {
    level: String,
}

#[test]
fn finished_groups_are_pinned() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let catalogue = read_catalogue(&root.join("tests/REQUIREMENTS.md"));
    let mut pins: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut files = Vec::new();
    for folder in ["src", "tests"] {
        rust_files(&root.join(folder), &mut files);
    }
    for file in &files {
        let text = fs::read_to_string(file).expect("a source file of the repository");
        for (id, test) in pinned(&text) {
            let place = file.strip_prefix(root).expect("below the root").display();
            pins.entry(id).or_default().insert(format!("{place}: {test}"));
        }
    }

    let unknown: Vec<_> = pins.keys().filter(|id| !catalogue.contains_key(*id)).collect();
    assert!(unknown.is_empty(), "tests name requirements that do not exist: {unknown:?}");

    let mut groups: BTreeMap<&str, [usize; 4]> = BTreeMap::new();
    let mut missing = Vec::new();
    for (id, requirement) in &catalogue {
        let (group, number) = split(id).expect("an ID of the catalogue");
        let counts = groups.entry(group).or_default();
        let is_must = requirement.level.starts_with("MUST");
        let is_pinned = pins.contains_key(id);
        counts[0] += 1;
        counts[1] += usize::from(is_pinned);
        counts[2] += usize::from(is_must);
        counts[3] += usize::from(is_must && is_pinned);
        let finished =
            FINISHED.iter().any(|&(name, from, to)| name == group && (from..=to).contains(&number));
        if finished && is_must && !is_pinned {
            missing.push(id.as_str());
        }
    }
    let mut table = String::from("group   pinned/all   MUST pinned/all");
    for (group, [all, pinned, musts, pinned_musts]) in &groups {
        table += &format!("\n{group:<7} {pinned:>6}/{all:<6} {pinned_musts:>8}/{musts}");
    }
    println!("{table}");
    // `tests/run` prints what it finds there at its end.
    if let Some(directory) = std::env::var_os("BOSPHORUS_TABLES") {
        fs::write(Path::new(&directory).join("coverage.table"), table + "\n")
            .expect("a writable directory");
    }
    assert!(missing.is_empty(), "no test pins these MUSTs of finished groups: {missing:?}");
}

/// The check above can fail: a test without an ID pins nothing, prose pins nothing.
#[test]
fn only_tests_pin() {
    let text = "
/// WS-01: prose about a function.
fn helper() {}

/// WS-02, SEC-04: a rule.
#[test]
fn rule() {}

/// Scenario: login (SM-01).
async fn login() {}

#[test]
fn says_nothing() {}
";
    let ids: Vec<_> = pinned(text).into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, ["WS-02", "SEC-04", "SM-01"]);
}

fn read_catalogue(file: &Path) -> BTreeMap<String, Requirement> {
    let text = fs::read_to_string(file).expect("the catalogue");
    let mut all = BTreeMap::new();
    for line in text.lines() {
        let Some((id, rest)) = line.strip_prefix("- **").and_then(|rest| rest.split_once("**"))
        else {
            continue;
        };
        if split(id).is_none() {
            continue;
        }
        let level = rest.trim_start_matches([' ', '·']).split(" ·").next().unwrap_or_default();
        let requirement = Requirement { level: level.to_owned() };
        assert!(all.insert(id.to_owned(), requirement).is_none(), "{id} stands there twice");
    }
    assert_eq!(all.len(), 258, "requirements of the catalogue");
    all
}

/// `WS-07` → (`WS`, 7).
fn split(id: &str) -> Option<(&str, u32)> {
    let (group, number) = id.split_once('-')?;
    let known = ["WS", "WSL", "BOSH", "XB", "UP", "DISC", "SEC", "SM"].contains(&group);
    if !known || number.len() < 2 || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some((group, number.parse().ok()?))
}

fn rust_files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of the repository") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "node_modules") {
                rust_files(&path, into);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
    into.sort();
}

/// The (ID, test) pairs of a source text.
fn pinned(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let (mut docs, mut is_test) = (String::new(), false);
    for line in text.lines() {
        let line = line.trim();
        if let Some(doc) = line.strip_prefix("///") {
            docs.push_str(doc);
            docs.push('\n');
        } else if line.starts_with("#[") {
            is_test |= line.contains("test]") || line.contains("test(") || line == "#[test]";
        } else {
            let function = line.split("fn ").nth(1).and_then(|rest| rest.split(['(', '<']).next());
            if let Some(name) =
                function.filter(|_| is_test || docs.trim_start().starts_with("Scenario"))
            {
                let words = docs.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
                for id in words.filter(|word| split(word).is_some()) {
                    found.push((id.to_owned(), name.to_owned()));
                }
            }
            if !line.is_empty() || !is_test {
                docs.clear();
                is_test = false;
            }
        }
    }
    found
}
