//! The programs that drive web clients: node with the packages in `tests/npm`, and Chromium.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::find;

/// The names Chromium has on various systems.
const BROWSERS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

/// Why no page can be tried in a browser here, if so.
pub fn missing_browser() -> Option<String> {
    if chromium().is_none() {
        return Some("no `chromium` on this machine (Debian package `chromium`)".to_owned());
    }
    if !directory().join("node_modules/puppeteer-core").is_dir() {
        return Some("the npm packages are not installed (`npm ci` in tests/npm)".to_owned());
    }
    let Some(node) = node() else { return Some("no `node` on this machine".to_owned()) };
    let output = Command::new(node).arg("--version").output().ok()?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let major = version.trim_start_matches('v').split('.').next().and_then(|n| n.parse().ok());
    match major {
        Some(20_u32..) => None,
        _ => Some(format!("node {version} is older than 20")),
    }
}

/// Chromium.
pub fn chromium() -> Option<PathBuf> {
    BROWSERS.into_iter().find_map(find)
}

/// The npm package `node`, if `tests/run` took one because the system's is too old; else the
/// system's.
pub fn node() -> Option<PathBuf> {
    let own = directory().join("node_modules/node/bin/node");
    if own.is_file() { Some(own) } else { find("node") }
}

/// Where the scripts and their packages are.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/npm")
}
