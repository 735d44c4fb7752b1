//! The servers with their files of `conf/examples`, and the gateway's files for them.

use std::sync::{Arc, OnceLock};

use anyhow::anyhow;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::common::Result;
use crate::common::process::free_ports;
use crate::common::server::{Configuration, Kind, Server, Settings};
use crate::example::Example;
use crate::pki::Identity;

/// ejabberd as ejabberd.yml has it.
pub(crate) fn ejabberd() -> Result<Arc<Server>> {
    static SERVER: OnceLock<Result<Arc<Server>, String>> = OnceLock::new();
    let start = || {
        let domain = Kind::Ejabberd.domain();
        let [c2s, direct, s2s] = free_ports()?;
        let text = Example::read("ejabberd.yml")?
            .replace("/etc/letsencrypt/live/example.org", "DIRECTORY")?
            .replace("example.org", domain)?
            .replace("port: 5221", format!("port: {c2s}"))?
            .replace("port: 5222", format!("port: {direct}"))?
            .replace("port: 5269", format!("port: {s2s}"))?
            .replace("ip: \"::\"", "ip: \"127.0.0.1\"")?
            .text;
        let identity = Identity::self_signed(&[domain]);
        let names = ["fullchain.pem", "privkey.pem"].map(str::to_owned);
        let files = names.into_iter().zip(identity.pem().map(str::to_owned)).collect();
        let settings = Settings {
            proxy_protocol: true,
            configuration: Some(Configuration { text, c2s, files }),
            ..Settings::default()
        };
        Server::start(Kind::Ejabberd, &settings).map(Arc::new)
    };
    let server = SERVER.get_or_init(|| start().map_err(|error| format!("{error:#}")));
    server.clone().map_err(|why| anyhow!(why))
}

/// The gateway's side of that, but for `[listen]`.
pub(crate) fn ejabberd_toml(server: &Server) -> Result<String> {
    let toml = Example::read("ejabberd.toml")?
        .replace("addresses = [\"127.0.0.1:5281\"]\n", "")?
        .replace("[listen]\n", "")?
        .replace("\"example.org\"", format!("\"{}\"", server.domain()))?
        .replace("xmpp://127.0.0.1:5221", format!("xmpp://{}", server.c2s()))?;
    Ok(toml.text)
}

/// Prosody as prosody.cfg.lua has it, and the gateway's side of that.
pub(crate) fn prosody() -> Result<(Server, String)> {
    let domain = Kind::Prosody.domain();
    let [c2s] = free_ports()?;
    let text = Example::read("prosody.cfg.lua")?
        .replace("\"/var/lib/prosody\"", "\"DIRECTORY/data\"")?
        .replace("/run/prosody/prosody.pid", "DIRECTORY/pid")?
        .replace("/var/log/prosody/prosody.log", "DIRECTORY/server.log")?
        .replace("c2s_ports = { 5222 }", format!("c2s_ports = {{ {c2s} }}"))?
        .replace("VirtualHost", "run_as_root = true\ns2s_ports = { }\nVirtualHost")?
        .replace("\"example.org\"", format!("\"{domain}\""))?
        .text;
    let identity = Identity::self_signed(&[domain]);
    let names = ["crt", "key"].map(|suffix| format!("certs/{domain}.{suffix}"));
    let files = names.into_iter().zip(identity.pem().map(str::to_owned)).collect();
    let settings =
        Settings { configuration: Some(Configuration { text, c2s, files }), ..Settings::default() };
    let server = Server::start(Kind::Prosody, &settings)?;
    let toml = Example::read("prosody.toml")?
        .replace("addresses = [\"127.0.0.1:5280\"]\n", "")?
        .replace("\"example.org\"", format!("\"{domain}\""))?
        .replace("xmpp://127.0.0.1:5222", format!("xmpp://{}", server.c2s()))?
        .replace(
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            BASE64_STANDARD.encode(identity.pin),
        )?;
    Ok((server, toml.text))
}
