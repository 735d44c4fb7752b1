//! TLS between the gateway and real servers: which certificates are trusted, and what is said of
//! those that are not. The table is printed last.

#![expect(clippy::unwrap_used, reason = "the test authority's helpers may panic")]

mod common;
#[allow(dead_code, reason = "shared with tests/upstream.rs")]
#[path = "common/pki.rs"]
mod pki;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{anyhow, bail, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use libtest_mimic::{Arguments, Failed, Trial};

use common::client::{Client, Endpoint, Transport};
use common::gateway::Gateway;
use common::server::{Certificate, Kind, Server, Settings};
use common::table::{Cell, Table};
use common::{Result, block_on, in_ci};
use pki::{Ca, Identity, Validity};

/// A row: the certificate a server shows, and what becomes of it.
type Case = (&'static str, fn(Kind) -> Result);

/// The rows of the table.
const CASES: &[Case] = &[
    ("issued by the test CA", trusted),
    ("self-signed, its key pinned", pinned),
    ("expired: refused", |kind| {
        let ca = Ca::new();
        refused(kind, &ca.issue(&[kind.domain()], Validity::Past), Some(&ca), &["expired"])
    }),
    ("self-signed: refused", |kind| {
        let ca = Ca::new();
        refused(kind, &Identity::self_signed(&[kind.domain()]), Some(&ca), &["self-signed"])
    }),
    ("wrong name: refused", |kind| {
        let ca = Ca::new();
        let identity = ca.issue(&["other.test"], Validity::Now);
        refused(kind, &identity, Some(&ca), &["wrong name", "other.test"])
    }),
    ("unknown CA: refused", |kind| {
        let identity = Ca::named("Somebody").issue(&[kind.domain()], Validity::Now);
        refused(kind, &identity, Some(&Ca::new()), &["certificate"])
    }),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let table = Arc::new(Table::new(
        "certificate (STARTTLS and direct TLS)",
        CASES.iter().map(|(title, _)| (*title).to_owned()).collect(),
        Kind::ALL.map(|kind| kind.name().to_owned()).to_vec(),
    ));
    let mut trials = Vec::new();
    for kind in Kind::ALL {
        for (title, case) in CASES {
            let table = Arc::clone(&table);
            let missing = kind.missing();
            let skipped = missing.is_some() && !in_ci();
            let run = move || {
                let result = missing.map_or_else(|| case(kind), |why| Err(anyhow!(why)));
                table.set(title, kind.name(), Cell::of(&result));
                result.map_err(|error| Failed::from(format!("{error:#}")))
            };
            let name = format!("{}: {title}", kind.name());
            trials.push(Trial::test(name, run).with_ignored_flag(skipped));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    for kind in Kind::ALL {
        if let Some(why) = kind.missing() {
            CASES.iter().for_each(|(title, _)| table.set(title, kind.name(), Cell::Skip));
            println!("not run with {}: {why}", kind.name());
        }
    }
    table.print("tls");
    conclusion.exit_code()
}

/// A server that shows this certificate.
fn server(kind: Kind, identity: &Identity) -> Result<Server> {
    let (chain, key) = identity.files();
    let certificate = Certificate { chain: chain.clone(), key: key.clone() };
    let server = Server::start(kind, &Settings { tls: Some(certificate), ..Settings::default() });
    std::fs::remove_file(chain)?;
    std::fs::remove_file(key)?;
    server
}

/// Gateways to its STARTTLS port and to its direct TLS port, each with its name.
fn gateways(server: &Server, trust: &str) -> Result<Vec<(&'static str, Gateway)>> {
    let Some(direct_tls) = server.direct_tls() else { bail!("the server has no direct TLS port") };
    [
        ("STARTTLS", format!("xmpp://{}", server.c2s())),
        ("direct TLS", format!("xmpps://{direct_tls}")),
    ]
    .into_iter()
    .map(|(name, url)| {
        let gateway = Gateway::start(&format!(
            "[domains.\"{}\"]\nservers = [\"{url}\"]\ntls = \"required\"\n{trust}\n",
            server.domain()
        ))?;
        Ok((name, gateway))
    })
    .collect()
}

/// Logs in and writes to itself, through each gateway.
fn works(server: &Server, trust: &str) -> Result {
    for (name, gateway) in gateways(server, trust)? {
        let endpoint = Endpoint { url: gateway.ws_url(), transport: Transport::Ws };
        let account = server.account();
        let talk = block_on(async {
            let mut client = Client::online(&endpoint, &account).await?;
            ensure!(!client.features_text().contains("urn:ietf:params:xml:ns:xmpp-tls"), "UP-17");
            let jid = client.jid.clone();
            client.message(&jid, "through TLS").await?;
            ensure!(client.body().await? == "through TLS");
            client.quit().await
        });
        talk.map_err(|error| error.context(format!("{name}\n{}", gateway.log_tail(20))))?;
    }
    Ok(())
}

/// UP-11, UP-14, UP-15: verified with `ca_file` against the domain.
fn trusted(kind: Kind) -> Result {
    let ca = Ca::new();
    let server = server(kind, &ca.issue(&[kind.domain()], Validity::Now))?;
    works(&server, &format!("ca_file = \"{}\"", ca.file().display()))
}

/// UP-14: the certificate a server was installed with, trusted by its key.
fn pinned(kind: Kind) -> Result {
    let identity = Identity::self_signed(&[kind.domain()]);
    let server = server(kind, &identity)?;
    works(&server, &format!("pin_sha256 = [\"{}\"]", BASE64_STANDARD.encode(identity.pin)))
}

/// UP-13, UP-14: the client sees `remote-connection-failed`, the operator reads why.
fn refused(kind: Kind, identity: &Identity, ca: Option<&Ca>, words: &[&str]) -> Result {
    let server = server(kind, identity)?;
    let trust = ca.map(|ca| format!("ca_file = \"{}\"", ca.file().display())).unwrap_or_default();
    for (name, gateway) in gateways(&server, &trust)? {
        let endpoint = Endpoint { url: gateway.ws_url(), transport: Transport::Ws };
        let ending = block_on(async {
            let mut client = Client::connect(&endpoint).await?;
            client.send_open(server.domain()).await?;
            client.ending().await
        })?;
        ensure!(
            ending.condition.as_deref() == Some("remote-connection-failed") && ending.closed,
            "{name}: {ending:?}\n{}",
            gateway.log_tail(20)
        );
        let log = gateway.log();
        for word in words {
            ensure!(log.contains(word), "{name}: the log does not say {word:?}:\n{log}");
        }
        ensure!(!log.contains(common::server::PASSWORD), "{name}: the password is in the log");
    }
    Ok(())
}
