//! The table of metrics in README.md is what the program shows: every family, its labels, and the
//! values of those whose values are listed.

#![expect(clippy::unwrap_used, reason = "the test authority's helpers may panic")]

mod common;
#[allow(dead_code, reason = "shared with tests/upstream.rs")]
#[path = "common/pki.rs"]
mod pki;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};

use common::client::{Client, Endpoint, Transport};
use common::gateway::{Gateway, domain_toml};
use common::server::{Kind, Server};
use common::{Result, block_on};
use pki::{Ca, Validity};

/// Families with their labels, and the values of these.
type Families = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

/// SEC-15: what operators build upon is told, and nothing else is.
#[test]
fn the_readme_has_what_the_program_shows() -> Result {
    block_on(async {
        let server = Server::shared(Kind::Demo)?;
        let identity = Ca::new().issue(&["gateway.test"], Validity::Now);
        let gateway = Gateway::start_tls(&domain_toml(&server), identity.pem())?;
        // Some families have nothing to show before that.
        let endpoint = Endpoint { url: gateway.ws_url(), transport: Transport::Ws };
        Client::online(&endpoint, &server.named_account("alice")).await?.quit().await?;

        let shown = shown(&gateway.metrics()?);
        let (told, rows) = told()?;
        let names = |families: &Families| families.keys().cloned().collect::<Vec<_>>();
        ensure!(names(&told) == names(&shown), "{:#?}\nshown: {:#?}", names(&told), names(&shown));
        ensure!(rows == told.len(), "a family is there twice");
        for (family, labels) in &told {
            let of_family = &shown[family];
            ensure!(
                labels.keys().eq(of_family.keys()),
                "{family}: {:?}, shown: {:?}",
                labels.keys(),
                of_family.keys()
            );
            for (label, values) in labels.iter().filter(|(_, values)| !values.is_empty()) {
                let of_label = &of_family[label];
                ensure!(values == of_label, "{family}: {label}: {values:?}, shown: {of_label:?}");
            }
        }
        Ok(())
    })
}

/// A family that is not shown yet is in the table, too.
#[test]
fn the_readme_has_what_is_registered() -> Result {
    let mut registered = BTreeSet::new();
    let mut folders = vec![root().join("src/metrics")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(path)?;
            let text = text.split("#[cfg(test)]").next().unwrap_or_default();
            registered.extend(
                text.split("\"bosphorus_").skip(1).map(|rest| {
                    format!("bosphorus_{}", rest.split('"').next().unwrap_or_default())
                }),
            );
        }
    }
    let (told, _) = told()?;
    // Those of the process are of the library's making.
    let told: BTreeSet<_> =
        told.into_keys().filter(|family| family.starts_with("bosphorus_")).collect();
    ensure!(told == registered, "{told:#?}\nregistered: {registered:#?}");
    Ok(())
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The table, and how many families its rows name. Values are those of a label behind which there
/// is nothing but values, in parentheses.
fn told() -> Result<(Families, usize)> {
    let readme = fs::read_to_string(root().join("README.md"))?;
    let (_, section) = readme.split_once("\n## Metrics\n").context("no section \"Metrics\"")?;
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut rows = 0;
    let mut families = Families::new();
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let mut cells = row.trim_matches('|').split(" | ");
        let (names, labels) = (cells.next().context("no names")?, cells.next().unwrap_or_default());
        let labels = labels_of(labels.trim().trim_end_matches('|'))?;
        for name in names.split(',').map(|name| name.trim().trim_matches('`')) {
            rows += 1;
            families.insert(name.to_owned(), labels.clone());
        }
    }
    ensure!(!families.is_empty(), "no table");
    Ok((families, rows))
}

/// `` `label` (`value`, `value`), `label`: some words ``.
fn labels_of(mut cell: &str) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut labels = BTreeMap::new();
    while let Some(rest) = cell.strip_prefix('`') {
        let (label, rest) = rest.split_once('`').context("an open quotation")?;
        let mut values = BTreeSet::new();
        cell = rest;
        if let Some((inner, rest)) = rest.strip_prefix(" (").and_then(|rest| rest.split_once(')')) {
            let mut parts = inner.split('`');
            let words = parts.next().unwrap_or_default();
            let (quoted, between): (Vec<_>, Vec<_>) =
                parts.enumerate().partition(|(at, _)| at % 2 == 0);
            if words.is_empty()
                && between.iter().all(|(_, text)| [", ", ", or ", ""].contains(text))
            {
                values.extend(quoted.into_iter().map(|(_, value)| value.to_owned()));
            }
            cell = rest;
        }
        labels.insert(label.to_owned(), values);
        cell = cell.strip_prefix(", ").unwrap_or_default();
    }
    Ok(labels)
}

/// What is in an answer of `/metrics`.
fn shown(text: &str) -> Families {
    let mut families = Families::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            current = family.split(' ').next().unwrap_or_default().to_owned();
            families.entry(current.clone()).or_default();
            continue;
        }
        let Some((_, labels)) = line.split_once('{') else { continue };
        let labels = labels.rsplit_once('}').map_or(labels, |(labels, _)| labels);
        let family = families.entry(current.clone()).or_default();
        for (name, value) in labels.split("\",").filter_map(|label| label.split_once("=\"")) {
            // The buckets of a histogram are none of its labels.
            if name != "le" {
                let values = family.entry(name.to_owned()).or_default();
                values.insert(value.trim_end_matches('"').to_owned());
            }
        }
    }
    families
}
