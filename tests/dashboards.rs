//! The dashboards and rules in `grafana/` against the real program: a real Prometheus scrapes it
//! under a mixed load, and every expression has to have a value there. What needs no Prometheus is
//! checked without: that names, labels and variables exist, and that nothing lacks an explanation.

#![expect(clippy::unwrap_used, reason = "the test authority's helpers may panic")]

mod common;
#[path = "dashboards/load.rs"]
mod load;
#[allow(dead_code, reason = "shared with tests/upstream.rs")]
#[path = "common/pki.rs"]
mod pki;
#[path = "dashboards/prometheus.rs"]
mod prometheus;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use common::process::Directory;
use common::server::Kind;
use common::{PATIENCE, Result, block_on, in_ci};
use load::Load;
use prometheus::{Prometheus, promtool};
use tokio::time::timeout;

/// Panels that have to be empty when all is well.
const EMPTY: &[(&str, &str)] = &[("bosphorus-health", "Alerts that fire")];

/// A panel's query.
struct Query {
    dashboard: String,
    panel: String,
    expression: String,
    /// Drawn over time; otherwise one value is shown.
    over_time: bool,
}

/// Every panel has a value under load, every rule works, and no alert fires while all is well.
#[test]
fn every_panel_and_rule_has_something_to_show() -> Result {
    let missing = [Kind::Prosody.missing(), prometheus::missing()].into_iter().flatten().next();
    if let Some(why) = missing {
        ensure!(!in_ci(), "{why}");
        eprintln!("SKIPPED: {why}");
        return Ok(());
    }
    block_on(async {
        let load = Load::new().await?;
        let prometheus = Prometheus::start(load.gateway.admin())?;
        let clients = timeout(6 * PATIENCE, load.run(&prometheus)).await;
        let clients = clients.context("there were not enough scrapes")??;

        let scrape = Directory::new("scrape")?;
        let metrics = scrape.write("metrics", &load.gateway.metrics()?)?;
        let said = promtool(&["check", "metrics"], Some(&metrics))?;
        let families = fs::read_to_string(&metrics)?.matches("# TYPE ").count();
        println!("promtool check metrics, {families} families: {:?}", said.trim());
        ensure!(said.is_empty(), "promtool check metrics: {said}");

        let mut table = format!(
            "{:<21} {:<42} {:<50} {:>6} {:>12}\n",
            "dashboard", "panel", "expression", "series", "sample"
        );
        let mut faults = Vec::new();
        let mut expressions = Vec::new();
        for query in queries()? {
            let found = match query.over_time {
                true => prometheus.range(&query.expression)?,
                false => prometheus.instant(&query.expression)?,
            };
            let empty = EMPTY.contains(&(&query.dashboard, &query.panel));
            row(&mut table, &query.dashboard, &query.panel, &query.expression, &found)?;
            if found.is_empty() != empty {
                faults.push(format!(
                    "{}: {}: {} series: {}",
                    query.dashboard,
                    query.panel,
                    found.len(),
                    query.expression
                ));
            }
            expressions.push(query.expression);
        }
        let rules = prometheus.rules()?;
        ensure!(rules.len() > 20, "only {} rules", rules.len());
        for rule in &rules {
            let found = prometheus.instant(&rule.expression)?;
            row(&mut table, "rules", &rule.name, &rule.expression, &found)?;
            // What is recorded has to be there under its own name, too.
            let recorded = rule.alert || !prometheus.instant(&rule.name)?.is_empty();
            if found.is_empty() != rule.alert || rule.fault.is_some() || !recorded {
                faults.push(format!("{}: {:?}, {found:?}", rule.name, rule.fault));
            }
            expressions.push(rule.expression.clone());
        }
        // An expression that has to be empty, or is a sum, may be so because of a label that is
        // written wrong.
        let mut selectors = BTreeSet::new();
        expressions.iter().for_each(|expression| selectors.extend(simple_selectors(expression)));
        ensure!(selectors.len() > 50, "only {} selectors", selectors.len());
        selectors.retain(|selector| !selector.starts_with("ALERTS"));
        for selector in selectors {
            if prometheus.instant(&format!("count({selector})"))?.is_empty() {
                faults.push(format!("nothing is selected by {selector}"));
            }
        }
        println!("{table}");
        if let Some(tables) = std::env::var_os("BOSPHORUS_TABLES") {
            fs::write(Path::new(&tables).join("dashboards.table"), &table)?;
        }
        ensure!(faults.is_empty(), "{}", faults.join("\n"));
        drop(clients);
        load.go_wrong(&prometheus, &rules).await
    })
}

/// The rules are sound, and say what their cases want.
#[test]
fn the_rules_pass_their_cases() -> Result {
    if let Some(why) = prometheus::missing() {
        ensure!(!in_ci(), "{why}");
        eprintln!("SKIPPED: {why}");
        return Ok(());
    }
    let rules = folder("rules");
    for arguments in [
        &["check", "rules", "recording.yml", "alerts.yml"][..],
        &["check", "config", "../prometheus.yml"],
        &["test", "rules", "tests.yml"],
    ] {
        let said = prometheus::promtool_in(&rules, arguments, None)?;
        ensure!(said.contains("SUCCESS") && !said.contains("FAILED"), "{arguments:?}: {said}");
    }
    // Every alert has a case in which it fires.
    let cases = fs::read_to_string(rules.join("tests.yml"))?;
    for line in fs::read_to_string(rules.join("alerts.yml"))?.lines() {
        if let Some(alert) = line.trim().strip_prefix("- alert: ") {
            ensure!(cases.contains(&format!("alertname=\"{alert}\"")), "{alert} has no case");
        }
    }
    Ok(())
}

/// Whatever is called a metric is one: a family of README's table, which a test of its own compares
/// with the program, or a recording rule.
#[test]
fn names_exist() -> Result {
    let readme = fs::read_to_string(folder("../README.md"))?;
    let (_, table) = readme.split_once("\n## Metrics\n").context("no section \"Metrics\"")?;
    let table = table.split("\n## ").next().unwrap_or_default();
    let mut known: BTreeSet<String> = words(table).map(str::to_owned).collect();
    let rules = fs::read_to_string(folder("rules/recording.yml"))?;
    let records = rules.lines().filter_map(|line| line.trim().strip_prefix("- record: "));
    known.extend(records.map(str::to_owned));
    let mut used = BTreeSet::new();
    for file in ["rules/recording.yml", "rules/alerts.yml", "rules/tests.yml"]
        .map(folder)
        .into_iter()
        .chain(dashboard_files()?)
    {
        let text = fs::read_to_string(&file)?;
        for word in words(&text) {
            let is_name = word.starts_with("bosphorus_")
                || word.starts_with("process_")
                || word.starts_with("job_") && word.contains(':')
                || word.starts_with("job:bosphorus");
            if !is_name {
                continue;
            }
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| word.strip_suffix(suffix).filter(|it| known.contains(*it)))
                .unwrap_or(word);
            ensure!(known.contains(family), "{}: there is no {word}", file.display());
            used.insert(family.to_owned());
        }
    }
    ensure!(used.len() > 40, "only {used:?}");
    Ok(())
}

/// A dashboard can be imported anywhere, and each panel says what it shows and in what unit.
#[test]
fn dashboards_are_complete() -> Result {
    let mut uids = BTreeSet::new();
    for file in dashboard_files()? {
        let dashboard = read(&file)?;
        let name = file.display();
        let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
        ensure!(uids.insert(text(&dashboard, "uid")), "{name}: the uid is another's");
        ensure!(dashboard["schemaVersion"].as_u64() >= Some(39), "{name}: an old schema");
        ensure!(dashboard["id"].is_null(), "{name}: an id of some installation");
        let variables: Vec<_> = list(&dashboard["templating"]["list"])
            .iter()
            .map(|variable| text(variable, "name"))
            .collect();
        ensure!(variables == ["datasource", "job", "instance"], "{name}: {variables:?}");
        let mut faults = Vec::new();
        data_sources(&dashboard, &mut faults);
        let mut ids = BTreeSet::new();
        let mut taken = BTreeMap::new();
        for panel in list(&dashboard["panels"]) {
            let title = text(panel, "title");
            let mut want = |fault: &str, good: bool| {
                if !good {
                    faults.push(format!("{title:?}: {fault}"));
                }
            };
            want("no title", !title.is_empty());
            want("an id twice", panel["id"].as_u64().is_some_and(|id| ids.insert(id)));
            let place = |key: &str| panel["gridPos"][key].as_u64().unwrap_or(u64::MAX);
            let [x, y, w, h] = ["x", "y", "w", "h"].map(place);
            want("too wide", x.saturating_add(w) <= 24 && h < 20);
            if x.saturating_add(w) <= 24 && h < 20 {
                for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
                    want("over another", taken.insert(cell, ()).is_none());
                }
            }
            if panel["type"] == "row" {
                continue;
            }
            let defaults = &panel["fieldConfig"]["defaults"];
            want("no description", text(panel, "description").len() > 10);
            want("no unit", !text(defaults, "unit").is_empty());
            want("no thresholds", !list(&defaults["thresholds"]["steps"]).is_empty());
            want("no data source", panel["datasource"]["uid"] == "${datasource}");
            let targets = list(&panel["targets"]);
            want("no query", !targets.is_empty());
            for target in targets {
                let expression = text(target, "expr");
                want("no expression", !expression.is_empty());
                want("no data source", target["datasource"]["uid"] == "${datasource}");
                // Whatever is chosen above the panels holds for all of them.
                let chosen = expression.matches("$job").count();
                want("not of the job", chosen > 0 && chosen == expression.matches('{').count());
            }
        }
        ensure!(ids.len() > 10, "{name}: hardly any panels");
        ensure!(faults.is_empty(), "{name}:\n{}", faults.join("\n"));
    }
    ensure!(uids.len() == 3, "{uids:?}");
    Ok(())
}

/// The Debian package has every file.
#[test]
fn all_of_it_is_packaged() -> Result {
    let manifest = fs::read_to_string(folder("../Cargo.toml"))?;
    let mut folders = vec![folder(".")];
    while let Some(place) = folders.pop() {
        for entry in fs::read_dir(&place)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let place = place.strip_prefix(folder("."))?.join("").display().to_string();
            let leaf = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let packaged = ["*", &leaf].iter().any(|name| {
                let target = format!("usr/share/doc/bosphorus/grafana/{place}");
                manifest.contains(&format!("[\"grafana/{place}{name}\", \"{target}\", \"644\"]"))
            });
            ensure!(packaged, "{} is in no package", path.display());
        }
    }
    Ok(())
}

/// What the checks above go by can fail.
#[test]
fn selectors_are_taken_apart() {
    let found = |expression: &str| simple_selectors(expression).into_iter().collect::<Vec<_>>();
    assert_eq!(
        found("sum by (a) (rate(x_total{b=~\"c|d\", e!=\"f\"}[5m])) / y{g=\"h|i\"}"),
        ["x_total{b=\"c\", e!=\"f\"}", "x_total{b=\"d\", e!=\"f\"}", "y{g=\"h|i\"}"]
    );
    assert_eq!(found("z{a=~\"b.*|c\"} > 0 and z{}"), ["z{a=~\"b.*|c\"}", "z{}"]);
    assert_eq!(substituted("a{job=~\"$job\"}[$__range:$__interval]"), "a{job=~\".+\"}[60s:1s]");
}

fn row(
    table: &mut String,
    dashboard: &str,
    panel: &str,
    expression: &str,
    found: &[f64],
) -> Result {
    let cut = |text: &str, width| text.chars().take(width).collect::<String>();
    let sample = found.iter().find(|value| **value != 0.0).or(found.first());
    let sample = sample.map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"));
    let expression = expression.replace("job=~\".+\", instance=~\".+\"", "").replace("{, ", "{");
    let expression = expression.split_whitespace().collect::<Vec<_>>().join(" ");
    writeln!(
        table,
        "{:<21} {:<42} {:<50} {:>6} {sample:>12}",
        dashboard,
        cut(panel, 42),
        cut(&expression, 50),
        found.len(),
    )?;
    Ok(())
}

fn folder(leaf: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("grafana").join(leaf)
}

fn dashboard_files() -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder("dashboards"))? {
        files.push(entry?.path());
    }
    files.sort();
    Ok(files)
}

fn read(file: &Path) -> Result<Value> {
    let text = fs::read_to_string(file)?;
    serde_json::from_str(&text).with_context(|| format!("{}", file.display()))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Names every data source that is not the variable.
fn data_sources(value: &Value, faults: &mut Vec<String>) {
    if let Some(source) = value.get("datasource") {
        let builtin = source["type"] == "grafana";
        if source["uid"] != "${datasource}" && !builtin {
            faults.push(format!("a data source of its own: {source}"));
        }
    }
    match value {
        Value::Array(values) => values.iter().for_each(|value| data_sources(value, faults)),
        Value::Object(map) => map.values().for_each(|value| data_sources(value, faults)),
        _ => {}
    }
}

/// Every query of every dashboard, annotations too.
fn queries() -> Result<Vec<Query>> {
    let mut queries = Vec::new();
    for file in dashboard_files()? {
        let dashboard = read(&file)?;
        let uid = dashboard["uid"].as_str().context("no uid")?;
        let mut add = |panel: &Value, target: &Value, over_time: bool| {
            let expression = target["expr"].as_str().unwrap_or_default();
            queries.push(Query {
                dashboard: uid.to_owned(),
                panel: panel.as_str().unwrap_or_default().to_owned(),
                expression: substituted(expression),
                over_time,
            });
        };
        for panel in list(&dashboard["panels"]) {
            for target in list(&panel["targets"]) {
                add(&panel["title"], target, target["instant"] != true);
            }
        }
        for annotation in list(&dashboard["annotations"]["list"]) {
            if annotation["builtIn"] != 1 {
                add(&annotation["name"], annotation, true);
            }
        }
    }
    if queries.len() < 60 {
        bail!("only {} queries", queries.len());
    }
    Ok(queries)
}

/// As Grafana does it, with all jobs and instances chosen. The rate interval is four scrapes.
fn substituted(expression: &str) -> String {
    expression
        .replace("$__rate_interval", "2s")
        .replace("$__interval", "1s")
        .replace("$__range", "60s")
        .replace("$job", ".+")
        .replace("$instance", ".+")
}

/// The words of a text that could be a metric's name.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
        .map(|word| word.trim_end_matches(':'))
}

/// The selectors of an expression, those with a choice of words once for each of them.
fn simple_selectors(expression: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in expression.match_indices('{') {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        let name = expression[..at].rsplit(|c| !is_name(c)).next().unwrap_or_default();
        // No label here has a brace in its value.
        let inner = expression[at + 1..].split('}').next().unwrap_or_default();
        let mut variants = vec![Vec::new()];
        for matcher in inner.split(", ").filter(|matcher| !matcher.is_empty()) {
            let words = matcher.split_once("=~\"").and_then(|(label, value)| {
                let value = value.strip_suffix('"')?;
                let plain = value.chars().all(|c| c.is_ascii_alphanumeric() || "_-|".contains(c));
                plain.then(|| value.split('|').map(move |word| format!("{label}=\"{word}\"")))
            });
            let choices: Vec<_> = words.map_or_else(|| vec![matcher.to_owned()], Iterator::collect);
            variants = variants
                .iter()
                .flat_map(|variant| {
                    choices.iter().map(move |choice| {
                        let mut longer: Vec<String> = variant.clone();
                        longer.push(choice.clone());
                        longer
                    })
                })
                .collect();
        }
        found.extend(variants.iter().map(|variant| format!("{name}{{{}}}", variant.join(", "))));
    }
    found
}
