//! The dashboards and rules in `grafana/` against the real program: a real Prometheus scrapes it
//! under a mixed load, and every expression has to have a value there. What needs no Prometheus is
//! checked without: that names, labels and variables exist, and that nothing lacks an explanation.

#![expect(clippy::unwrap_used, reason = "the test authority's helpers may panic")]

mod common;
#[allow(dead_code, reason = "shared with tests/upstream.rs")]
#[path = "common/pki.rs"]
mod pki;
#[path = "common/prometheus.rs"]
mod prometheus;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use common::bosh::{CREATION, Session};
use common::bridge::{self, Http2, Multiplexer};
use common::client::{Client, Endpoint, Transport};
use common::gateway::{Gateway, domain_toml};
use common::http::Url;
use common::process::{Directory, free_ports};
use common::scram::Mechanism;
use common::server::{Kind, Server};
use common::socket::Socket;
use common::{PATIENCE, Result, block_on, eventually, in_ci};
use pki::{Ca, Validity};
use prometheus::{Prometheus, Rule, promtool};
use tokio::time::timeout;

/// The name in the gateway's certificate.
const NAME: &str = "gateway.test";
/// How many scrapes of the load there are before anything is asked.
const SCRAPES: f64 = 24.0;
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

/// Who uses the gateway.
struct Load {
    server: std::sync::Arc<Server>,
    gateway: Gateway,
    toml: String,
    /// Where requests go on over HTTP/2.
    over_h2: Multiplexer,
    _files: Directory,
    _ca: Ca,
}

impl Load {
    async fn new() -> Result<Self> {
        let server = Server::prosody()?;
        let ca = Ca::new();
        let files = Directory::new("certificates")?;
        let identity = ca.issue(&[NAME], Validity::Now);
        let [chain, key] = identity.pem();
        let (chain, key) = (files.write("chain.pem", chain)?, files.write("key.pem", key)?);
        let [port] = free_ports()?;
        let toml = format!(
            "[listen]\ntls_addresses = [\"127.0.0.1:{port}\"]\n[[tls.certificates]]\n\
             certificate = {chain:?}\nkey = {key:?}\n{}",
            domain_toml(&server)
        );
        let gateway = Gateway::start(&toml)?;
        let config = bridge::client(&ca.file(), rustls::ALL_VERSIONS, &[b"h2"])?;
        let to = SocketAddr::from(([127, 0, 0, 1], port));
        let over_h2 = Multiplexer::new(Http2::connect(&config, to, NAME).await?).await?;
        Ok(Self { server, gateway, toml, over_h2, _files: files, _ca: ca })
    }

    fn endpoint(&self, transport: Transport) -> Endpoint {
        Endpoint { url: self.gateway.url(transport), transport }
    }

    /// Clients over all transports talk, others come and go or fail, until there are enough
    /// scrapes. Those that are still there.
    async fn run(&self, prometheus: &Prometheus) -> Result<Vec<Client>> {
        let mut endpoints: Vec<_> = [Transport::Ws, Transport::Ws, Transport::WsLegacy]
            .into_iter()
            .chain([Transport::Bosh])
            .map(|transport| self.endpoint(transport))
            .collect();
        let url = format!("http://{}/http-bind", self.over_h2.address);
        endpoints.push(Endpoint { url, transport: Transport::Bosh });
        let mut clients = Vec::new();
        for endpoint in &endpoints {
            clients.push(Client::online(endpoint, &self.server.account()).await?);
        }
        // One that says nothing.
        let url = Url::parse(&self.gateway.bosh_url())?;
        let attributes = format!("to='{}' {CREATION}", self.server.domain());
        let attributes = attributes.replace("wait='60'", "wait='1'");
        let mut silent = Session::create_with(&url, &attributes).await?;
        let account = self.server.account();
        silent.login(&account.name, &account.password).await?;
        let mut idle = silent.next("", "").await?;

        let begun = prometheus.scrapes()?;
        let (mut round, mut reloaded) = (0, false);
        loop {
            let scrapes = prometheus.scrapes()? - begun;
            if scrapes >= SCRAPES {
                break;
            }
            if scrapes > SCRAPES / 3.0 && !reloaded {
                self.reload(&self.toml, "ok").await?;
                reloaded = true;
            }
            for client in &mut clients {
                let (jid, text) = (client.jid.clone(), format!("{round} {}", "x".repeat(200)));
                client.message(&jid, &text).await?;
                ensure!(client.body().await? == text);
            }
            match round % 8 {
                0 => self.visit(&self.server.account()).await?,
                1 => self.fail_to_log_in().await?,
                2 => self.lose().await?,
                3 => self.ask_for_nothing(&url).await?,
                _ => {}
            }
            if round % 40 == 30 {
                // The first answer comes when its wait is over.
                idle.body().await?;
                silent.keep(idle);
                idle = silent.next("", "").await?;
            }
            round += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(clients)
    }

    /// Sessions with a beginning and an end.
    async fn visit(&self, account: &common::server::Account) -> Result {
        for transport in Transport::ALL {
            Client::online(&self.endpoint(transport), account).await?.quit().await?;
        }
        Ok(())
    }

    /// Wrong passwords.
    async fn fail_to_log_in(&self) -> Result {
        let account = self.server.account();
        for transport in [Transport::Ws, Transport::Bosh] {
            let mut client = Client::connect(&self.endpoint(transport)).await?;
            client.open(&account.domain).await?;
            let answer = client.authenticate(Mechanism::ScramSha1, &account.name, "wrong").await?;
            ensure!(answer.is_err(), "a wrong password was taken");
            client.quit().await?;
        }
        Ok(())
    }

    /// Lines that are cut, a rid that is none, a domain that is not served.
    async fn lose(&self) -> Result {
        let account = self.server.account();
        for transport in [Transport::Ws, Transport::WsLegacy] {
            Client::online(&self.endpoint(transport), &account).await?.cut()?;
        }
        let url = Url::parse(&self.gateway.bosh_url())?;
        let mut session = Session::create(&url, self.server.domain()).await?;
        let mut pending = session.post(session.rid + 1000, "", "").await?;
        ensure!(pending.body().await?.terminate().is_some(), "a rid too high was taken");
        let mut stranger = Client::connect(&self.endpoint(Transport::Ws)).await?;
        ensure!(stranger.open("elsewhere.test").await.is_err(), "any domain is served");
        Ok(())
    }

    /// An upgrade without the subprotocol, a request of no session.
    async fn ask_for_nothing(&self, url: &Url) -> Result {
        let headers = "Sec-WebSocket-Protocol: chat\r\n";
        let refused = Socket::request(&self.gateway.ws_url(), headers).await?;
        ensure!(refused.is_err(), "another subprotocol was taken");
        let mut session = Session::create(url, self.server.domain()).await?;
        let sid = std::mem::replace(&mut session.sid, "nobody".to_owned());
        let body = session.ask("", "").await?;
        ensure!(body.terminate().is_some(), "a sid that is none was taken");
        // That rid was none of the session's.
        session.sid = sid;
        session.rid -= 1;
        session.ask("type='terminate'", "").await?;
        Ok(())
    }

    /// Has a configuration read.
    async fn reload(&self, toml: &str, outcome: &str) -> Result {
        self.gateway.write_config(toml)?;
        self.gateway.signal("HUP")?;
        let reloads = format!("bosphorus_config_reloads_total{{outcome=\"{outcome}\"}}");
        eventually("the reload", async || (self.gateway.metric(&reloads).ok()? > 0.0).then_some(()))
            .await
    }

    /// The server is gone, a configuration is refused, and then the gateway is gone as well: alerts
    /// whose expressions say so, besides those that the cases of the rules have.
    async fn go_wrong(&self, prometheus: &Prometheus, rules: &[Rule]) -> Result {
        let wrong = async |alerts: &[&str]| {
            for alert in alerts {
                let rule = rules.iter().find(|rule| rule.name == *alert);
                let rule = rule.with_context(|| format!("no alert {alert}"))?;
                eventually(alert, async || {
                    let found = prometheus.instant(&rule.expression).ok()?;
                    (!found.is_empty()).then_some(())
                })
                .await?;
            }
            Ok::<_, anyhow::Error>(())
        };
        self.server.kill();
        for _ in 0..20 {
            let mut client = Client::connect(&self.endpoint(Transport::Ws)).await?;
            ensure!(client.open(self.server.domain()).await.is_err(), "the server lives");
        }
        self.reload("[limits]\nsessions = 0\n", "failed").await?;
        wrong(&[
            "BosphorusServerDown",
            "BosphorusNoServer",
            "BosphorusSessionsFindNoServer",
            "BosphorusReloadFailed",
        ])
        .await?;
        self.gateway.kill()?;
        wrong(&["BosphorusDown"]).await
    }
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
