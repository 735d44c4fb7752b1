//! What the tests share: real XMPP servers and the gateway as child processes, and a client that
//! speaks XMPP over WebSocket in both framings and over BOSH. Nothing here knows a scenario.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

pub mod bosh;
pub mod bridge;
pub mod client;
pub mod gateway;
pub mod http;
pub mod npm;
pub mod peer;
pub mod process;
pub mod random;
pub mod scene;
pub mod scram;
pub mod server;
pub mod socket;
pub mod table;

use std::time::Duration;

/// How long any test waits for any one thing. Tests wait for conditions, so that a fast machine
/// does not notice how large this is.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Result of everything that may fail in a test; the text is what the failing test prints.
pub type Result<T = (), E = anyhow::Error> = std::result::Result<T, E>;

/// Whether a missing server or tool is a failure (continuous integration) or a visible skip (a
/// person's machine).
pub fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true" || value == "1")
}

/// Runs one scenario on a runtime of its own, so that nothing of it outlives it.
pub fn block_on<T>(scenario: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(scenario)
}

/// Asks until the answer is `Some`, or fails after [`PATIENCE`] naming what it waited for.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> Result<T> {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking)
        .await
        .map_err(|_| anyhow::anyhow!("waited {PATIENCE:?} in vain for {what}"))
}
