//! Prometheus as Debian packages it, as a child process with a directory and a port of its own, and
//! what it says over HTTP.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::common::Result;
use crate::common::gateway::http_get;
use crate::common::process::{Directory, Process, find, free_ports, tail, wait_ready};

/// The configuration that is shipped, and what it says there.
const CONFIG: &str = include_str!("../../grafana/prometheus.yml");

/// Why it cannot be run here, if it cannot.
pub(crate) fn missing() -> Option<String> {
    let program = ["prometheus", "promtool"].into_iter().find(|program| find(program).is_none())?;
    Some(format!("no `{program}` on this machine (Debian package `prometheus`)"))
}

/// A running Prometheus that scrapes one gateway, twice each second.
pub(crate) struct Prometheus {
    address: SocketAddr,
    begun: f64,
    _process: Process,
    _directory: Directory,
}

/// A rule as it was loaded.
pub(crate) struct Rule {
    /// The alert, or what is recorded.
    pub(crate) name: String,
    /// What it evaluates.
    pub(crate) expression: String,
    /// An alert, which is to be empty.
    pub(crate) alert: bool,
    /// What went wrong with it.
    pub(crate) fault: Option<String>,
}

impl Prometheus {
    /// Starts it with the configuration and the rules of `grafana/`.
    pub(crate) fn start(target: SocketAddr) -> Result<Self> {
        let [port] = free_ports()?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let directory = Directory::new("prometheus")?;
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("grafana/rules");
        let mut config = CONFIG.to_owned();
        for (shipped, here) in [
            (
                "scrape_interval: 15s",
                "scrape_interval: 500ms\n    scrape_timeout: 500ms".to_owned(),
            ),
            ("127.0.0.1:9280", target.to_string()),
            ("- rules/", format!("- {}/", rules.display())),
        ] {
            ensure!(config.contains(shipped), "no {shipped:?} in grafana/prometheus.yml");
            config = config.replace(shipped, &here);
        }
        config += "\nglobal:\n  evaluation_interval: 500ms\n";
        let file = directory.write("prometheus.yml", &config)?;
        let mut command = Command::new(find("prometheus").context("no `prometheus`")?);
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
            .arg(format!("--web.listen-address={address}"));
        let mut process = Process::spawn(command, &directory, "prometheus.log")?;
        wait_ready(&mut process, || {
            http_get(address, "/-/ready").is_ok_and(|(status, _)| status == 200)
        })
        .with_context(|| {
            format!("no Prometheus:\n{}", tail(&directory.join("prometheus.log"), 40))
        })?;
        Ok(Self { address, begun: now()?, _process: process, _directory: directory })
    }

    /// How often it has scraped the gateway with success.
    pub(crate) fn scrapes(&self) -> Result<f64> {
        let found = self.instant("sum(sum_over_time(up{job=\"bosphorus\"}[10m]))")?;
        Ok(found.first().copied().unwrap_or(0.0))
    }

    /// A finite value of each series that has one now.
    pub(crate) fn instant(&self, expression: &str) -> Result<Vec<f64>> {
        self.series(&format!("/api/v1/query?query={}", encoded(expression)))
    }

    /// The last finite value of each series that had one since the start, a second apart.
    pub(crate) fn range(&self, expression: &str) -> Result<Vec<f64>> {
        let (query, begun, now) = (encoded(expression), self.begun, now()?);
        self.series(&format!("/api/v1/query_range?query={query}&start={begun}&end={now}&step=1"))
    }

    /// All rules.
    pub(crate) fn rules(&self) -> Result<Vec<Rule>> {
        let data = self.get("/api/v1/rules")?;
        let groups = data["groups"].as_array().context("no groups")?;
        let rules = groups.iter().filter_map(|group| group["rules"].as_array()).flatten();
        let text = |rule: &Value, key: &str| rule[key].as_str().unwrap_or_default().to_owned();
        Ok(rules
            .map(|rule| Rule {
                name: text(rule, "name"),
                expression: text(rule, "query"),
                alert: rule["type"] == "alerting",
                fault: (rule["health"] != "ok").then(|| rule.to_string()),
            })
            .collect())
    }

    fn series(&self, path: &str) -> Result<Vec<f64>> {
        let data = self.get(path)?;
        let result = data["result"].as_array().context("no result")?;
        let number =
            |pair: &Value| pair[1].as_str()?.parse().ok().filter(|it: &f64| it.is_finite());
        Ok(result
            .iter()
            .filter_map(|series| match series["values"].as_array() {
                Some(values) => values.iter().rev().find_map(number),
                None => number(&series["value"]),
            })
            .collect())
    }

    fn get(&self, path: &str) -> Result<Value> {
        let (status, body) = http_get(self.address, path)?;
        ensure!(status == 200, "{status} for {path}: {body}");
        Ok(serde_json::from_str::<Value>(&body)?["data"].take())
    }
}

/// What `promtool` says; a failure is an `Err`.
pub(crate) fn promtool(arguments: &[&str], input: Option<&Path>) -> Result<String> {
    promtool_in(Path::new("."), arguments, input)
}

/// The same in some directory.
pub(crate) fn promtool_in(
    directory: &Path,
    arguments: &[&str],
    input: Option<&Path>,
) -> Result<String> {
    let input = input.map(fs::File::open).transpose()?;
    let output = Command::new(find("promtool").context("no `promtool`")?)
        .args(arguments)
        .current_dir(directory)
        .stdin(input.map_or_else(Stdio::null, Stdio::from))
        .output()?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(output.status.success(), "promtool {arguments:?}: {said}");
    Ok(said)
}

/// For the query of a URL (RFC 3986 §2.3).
fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

/// Seconds since 1970.
fn now() -> Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64())
}
