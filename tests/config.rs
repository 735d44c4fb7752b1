//! The configuration as its users meet it: layers, errors with their places, the documented
//! default file.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use bosphorus::cli::{Cli, Command as CliCommand};
use bosphorus::config::*;
use bosphorus::proto::domain::Domain;
use clap::Parser as _;

const DOMAIN: &str = "[domains.\"example.org\"]\n";

#[test]
fn a_key_goes_through_all_four_layers() {
    let dir = Dir::new("layers");
    let file = dir.write("b.toml", &format!("[listen]\naddresses = [\"127.0.0.2:2\"]\n{DOMAIN}"));
    let empty = dir.write("empty.toml", DOMAIN);
    let variable = [("BOSPHORUS__LISTEN__ADDRESSES", "127.0.0.3:3,127.0.0.3:33")];
    let flag = ["--listen", "127.0.0.4:4", "--listen", "127.0.0.4:44"];
    let addresses = |file: &Path, environment: &[(&str, &str)], flags: &[&str]| {
        let config = serve(Some(file), environment, flags).unwrap();
        config.listen.addresses.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(addresses(&empty, &[], &[]), ["127.0.0.1:5280"]);
    assert_eq!(addresses(&file, &[], &[]), ["127.0.0.2:2"]);
    assert_eq!(addresses(&file, &variable, &[]), ["127.0.0.3:3", "127.0.0.3:33"]);
    assert_eq!(addresses(&file, &variable, &flag), ["127.0.0.4:4", "127.0.0.4:44"]);
    assert_eq!(addresses(&file, &[], &flag), ["127.0.0.4:4", "127.0.0.4:44"]);
}

#[test]
fn a_variable_is_read_as_its_key_wants_it() {
    let config = serve(
        None,
        &[
            ("BOSPHORUS__LISTEN__WORKERS", "3"),
            ("BOSPHORUS__LIMITS__ELEMENT_BYTES", "20000"),
            ("BOSPHORUS__LIMITS__PENDING_BYTES", "64 KiB"),
            ("BOSPHORUS__WS__LEGACY_FRAMING", "false"),
            ("BOSPHORUS__WS__PATHS", "/a, /b"),
            ("BOSPHORUS__WS__PING_INTERVAL", "45s"),
            ("BOSPHORUS__UPSTREAM__DNS", ""),
            ("BOSPHORUS__ADMIN__ADDRESS", ""),
            ("BOSPHORUS__DEFAULT_DOMAIN", "example.org"),
            ("BOSPHORUS__DOMAINS__EXAMPLE.ORG__SERVERS", "127.0.0.1:5222"),
            ("BOSPHORUS__DOMAINS__*__SERVERS", "unix:/run/x"),
            ("BOSPHORUS_OTHER", "not ours"),
            ("bosphorus__listen__workers", "not ours"),
        ],
        &[],
    )
    .unwrap();
    assert_eq!(config.listen.workers, Some(3));
    assert_eq!(config.limits.element_bytes, 20_000);
    assert_eq!(config.limits.pending_bytes, 65_536);
    assert!(!config.ws.legacy_framing);
    assert_eq!(config.ws.paths, ["/a", "/b"]);
    assert_eq!(config.ws.ping_interval, Duration::from_secs(45));
    assert!(config.upstream.dns.is_empty());
    assert_eq!(config.admin.address, None);
    assert_eq!(config.default_domain, Some(domain("example.org")));
    assert_eq!(
        config.domains.named[&domain("example.org")].servers,
        [at(0, tcp("127.0.0.1", 5222))]
    );
    assert_eq!(config.domains.any.unwrap().servers, [at(0, ServerAddress::Unix("/run/x".into()))]);
}

/// WS-21: names are compared prepared, in the file, in variables and in flags alike.
#[test]
fn one_domain_is_one_table_in_every_layer() {
    let dir = Dir::new("domains");
    let file = dir.write(
        "b.toml",
        "[domains.\"Example.ORG\"]\nservers = [\"a\"]\ntls = \"required\"\n\
         [domains.\"xn--bcher-kva.example\"]\nservers = [\"b:1\"]\n\
         [domains.\"*\"]\nservers = [\"c\"]\n",
    );
    let environment = [("BOSPHORUS__DOMAINS__EXAMPLE.ORG__SERVERS", "env:2")];
    let config = serve(Some(&file), &environment, &["--domain", "bücher.example"]).unwrap();
    assert_eq!(config.domains.named.len(), 2);
    let route = config.route(&domain("example.org")).unwrap();
    assert_eq!(route.servers, [at(0, tcp("env", 2))]);
    assert_eq!(route.tls, TlsMode::Required);
    // A --domain without --server leaves the file's servers.
    assert_eq!(config.route(&domain("bücher.example")).unwrap().servers, [at(0, tcp("b", 1))]);
    assert_eq!(config.route(&domain("else.example")).unwrap().servers, [at(0, tcp("c", 5222))]);

    assert_eq!(
        faults("[domains.\"a.example\"]\n[domains.\"A.Example\"]\n"),
        ["(text):2: domains.\"a.example\": the same domain is in the file twice"]
    );
}

#[test]
fn flags_are_enough_without_a_file() {
    let config = serve(
        None,
        &[],
        &[
            "--domain=a.example",
            "--domain=b.example",
            "--server=xmpps://[::1]",
            "--server=unix:/run/xmpp.sock",
            "--admin=",
            "--log-format=json",
            "--log-filter=warn,bosphorus=debug",
        ],
    )
    .unwrap();
    let servers = [
        at(0, ServerAddress::DirectTls { host: "::1".to_owned(), port: 5223 }),
        at(1, ServerAddress::Unix("/run/xmpp.sock".into())),
    ];
    for name in ["a.example", "b.example"] {
        assert_eq!(config.domains.named[&domain(name)].servers, servers);
    }
    assert_eq!(config.route(&domain("c.example")), None);
    assert_eq!(config.admin.address, None);
    assert_eq!(config.log.format, LogFormat::Json);
    assert!(Cli::try_parse_from(["bosphorus", "serve", "--server", "a"]).is_err());
}

/// A typo must not become a default: in a section, as a section, in a variable.
#[test]
fn unknown_keys_are_refused_wherever_they_are() {
    assert_eq!(
        faults("[drain]\ntimeout = \"5s\"\n\n[admin]\nadress = \"\"\n[lisen]\nx = 1\n[log.deep]\n"),
        [
            "(text):5: admin.adress: unknown key, expected `address` or `token_file`",
            "(text):6: lisen: unknown key, expected one of `default_domain`, `listen`, `tls`, `admin`, `recorder`, `ws`, \
             `bosh`, `limits`, `upstream`, `domains`, `sasl`, `discovery`, `lab`, `drain`, `log`",
            "(text):8: log.deep: unknown key, expected `format` or `filter`",
        ]
    );
    assert_eq!(
        faults("[domains.\"example.org\"]\nserver = []\n"),
        ["(text):2: domains.\"example.org\".server: unknown key, expected one of `servers`, \
          `public_url`, `allowed_origins`, `tls`, `ca_file`, `pin_sha256`, `insecure`, `client_certificate`, `client_key`"]
    );
    assert_eq!(
        refused(
            None,
            &[("BOSPHORUS__LOG__LEVEL", "info"), ("BOSPHORUS__", "x"), ("BOSPHORUS__LOG", "x")],
            &["--domain=example.org"]
        ),
        [
            "BOSPHORUS__: \"\": unknown key, expected one of `default_domain`, `listen`, `tls`, `admin`, `recorder`, `ws`, \
             `bosh`, `limits`, `upstream`, `domains`, `sasl`, `discovery`, `lab`, `drain`, `log`",
            "BOSPHORUS__LOG: log: expected a table, found string \"x\"",
            "BOSPHORUS__LOG__LEVEL: log.level: unknown key, expected `format` or `filter`",
        ]
    );
}

#[test]
fn a_wrong_type_names_line_and_expectation() {
    assert_eq!(
        faults(
            "listen = 5\n\
             drain = [\"5s\"]\n\
             [ws]\n\
             require_origin = \"yes\"\n\
             ping_interval = 30\n\
             missed_pongs = -1\n\
             paths = \"/ws\"\n\
             allowed_origins = [\n  \"*\",\n  5,\n]\n\
             [limits]\n\
             depth = 1.5\n\
             element_bytes = \"256 KB\"\n\
             [[domains]]\n"
        ),
        [
            "(text):1: listen: expected a table, found integer `5`",
            "(text):2: drain: expected a table, found a list",
            "(text):4: ws.require_origin: expected a boolean, found string \"yes\"",
            "(text):5: ws.ping_interval: expected a duration such as \"500ms\", \"30s\" or \"2m\", found integer `30`",
            "(text):6: ws.missed_pongs: expected a whole number, found integer `-1`",
            "(text):7: ws.paths: expected a list, found string \"/ws\"",
            "(text):10: ws.allowed_origins: expected a string, found integer `5`",
            "(text):13: limits.depth: expected a whole number, found floating point `1.5`",
            "(text):14: limits.element_bytes: expected a number of bytes or a size such as \"256 KiB\", found string \"256 KB\"",
            "(text):15: domains: expected a table, found a list",
        ]
    );
    assert_eq!(
        refused(
            None,
            &[("BOSPHORUS__LISTEN__BACKLOG", "many"), ("BOSPHORUS__DRAIN__TIMEOUT", "10")],
            &[]
        ),
        [
            "BOSPHORUS__DRAIN__TIMEOUT: drain.timeout: expected a duration such as \"500ms\", \"30s\" or \"2m\", \
             found string \"10\"",
            "BOSPHORUS__LISTEN__BACKLOG: listen.backlog: expected a whole number, found string \"many\"",
        ]
    );
}

/// SEC-16, SEC-19, SEC-20: networks and limits per address; what is wrong with one is told.
#[test]
fn networks_are_checked() {
    let dir = Dir::new("networks");
    let file = dir.write(
        "n.toml",
        r#"[listen]
trusted_proxies = [
  "10.0.0.0/8",
  "192.0.2.1",
  "2001:db8::/32",
  "10.0.0.1/8",
  "proxy.example",
  "::ffff:10.0.0.0/104",
]
proxy_protocol = ["10.0.0.0/33"]
proxy_protocol_timeout = "0s"
[limits]
exempt_peers = ["localhost"]
requests_per_second = 100000000
[domains."example.org"]
servers = ["127.0.0.1"]
"#,
    );
    let network =
        "expected a network such as \"10.0.0.0/8\" or \"2001:db8::/32\", or an IP address, found";
    let expected = [
        (
            6,
            "listen.trusted_proxies: expected a network without bits behind its prefix, such as \
             \"10.0.0.0/8\", found \"10.0.0.1/8\""
                .to_owned(),
        ),
        (7, format!("listen.trusted_proxies: {network} \"proxy.example\"")),
        (
            8,
            "listen.trusted_proxies: expected an IPv4 network, without ::ffff:, found \
             \"::ffff:10.0.0.0/104\""
                .to_owned(),
        ),
        (10, format!("listen.proxy_protocol: {network} \"10.0.0.0/33\"")),
        (11, "listen.proxy_protocol_timeout: expected 1ms to 24h, found 0s".to_owned()),
        (13, format!("limits.exempt_peers: {network} \"localhost\"")),
        (14, "limits.requests_per_second: expected 0 to 10000000, found 100000000".to_owned()),
    ];
    let expected = expected.map(|(line, text)| format!("{}:{line}: {text}", file.display()));
    assert_eq!(refused(Some(&file), &[], &[]), expected);

    let text = "[listen]\ntrusted_proxies = [\"192.0.2.1\", \"::/0\"]\n[limits]\n\
                exempt_peers = []\nnew_sessions_per_minute = 0\n";
    let config = Config::from_toml_str(&format!("{text}{DOMAIN}")).unwrap();
    let trusted = &config.listen.trusted_proxies;
    let listed: Vec<_> = trusted.networks.iter().map(ToString::to_string).collect();
    assert_eq!(listed, ["192.0.2.1/32", "::/0"]);
    assert_eq!(
        (config.limits.new_sessions_per_minute, config.limits.exempt_peers.len()),
        (None, 0)
    );
    assert_eq!(config.warnings.len(), 1, "every peer is believed: {:?}", config.warnings);
}

/// Every fault in one pass, each at the line, variable or flag that set it, elements of lists at their own line.
#[test]
fn wrong_values_are_all_found() {
    let dir = Dir::new("semantic");
    let file = dir.write(
        "b.toml",
        r#"default_domain = "other.example"
[listen]
addresses = [
  "127.0.0.1:5280",
  "localhost:5281",
  "127.0.0.1:5280",
]
backlog = 0
head_timeout = "0s"
[ws]
paths = ["ws"]
allowed_origins = ["https://chat.example/"]
[limits]
element_bytes = 9999
[upstream]
tls = "maybe"
dns = ["9.9.9.9"]
pin_sha256 = ["c2hvcnQ="]
ca_file = "missing.pem"
client_key = "x"
[sasl]
channel_binding = "drop"
[drain]
timeout = "25h"
[log]
format = "xml"
filter = "a=b=c"
[domains."example.org"]
servers = ["http://x", "unix:foo", "1.2.3.4:0", "::1", "[::1", "a b"]
"#,
    );
    let place = |line: usize| format!("{}:{line}", file.display());
    let server = "domains.\"example.org\".servers: expected \"xmpp://host:port\", \
                  \"xmpps://host:port\", \"host:port\" or \"unix:/path\", found";
    let expected = [
        (1, "default_domain: expected one of the domains under [domains], found \"other.example\"".to_owned()),
        (3, "listen.addresses: \"127.0.0.1:5280\" is there twice".to_owned()),
        (5, "listen.addresses: expected an IP address (not a name) and a port, such as \
             \"127.0.0.1:5280\" or \"[::1]:5280\", \"unix:/path\" or \"systemd:NAME\", found \
             \"localhost:5281\"".to_owned()),
        (8, "listen.backlog: expected 1 to 65535, found 0".to_owned()),
        (9, "listen.head_timeout: expected 1ms to 24h, found 0s".to_owned()),
        (11, "ws.paths: expected a path such as \"/ws\", found \"ws\"".to_owned()),
        (12, "ws.allowed_origins: expected an origin such as \"https://chat.example.org\" (scheme, host, \
              port if not the usual one, nothing after it), \"https://*.example.org\", \"null\" or \"*\", found \
              \"https://chat.example/\"".to_owned()),
        (14, "limits.element_bytes: expected 10000 to 1073741824 bytes, found 9999".to_owned()),
        (16, "upstream.tls: expected \"auto\", \"required\", \"if-offered\" or \"never\", found \"maybe\"".to_owned()),
        (17, "upstream.dns: expected an IP address (not a name) and a port, such as \
              \"127.0.0.1:5280\" or \"[::1]:5280\", found \"9.9.9.9\"".to_owned()),
        (18, "upstream.pin_sha256: expected the SHA-256 of a public key in base64 (44 characters), \
              found \"c2hvcnQ=\"".to_owned()),
        (19, format!("upstream.ca_file: expected a readable file, found {}: No such file or directory \
              (os error 2)", dir.0.join("missing.pem").display())),
        (20, "upstream.client_key: expected client_certificate beside it".to_owned()),
        (22, "sasl.channel_binding: expected \"passthrough\" or \"strip\", found \"drop\"".to_owned()),
        (24, "drain.timeout: expected 1ms to 24h, found 25h".to_owned()),
        (26, "log.format: expected \"human\" or \"json\", found \"xml\"".to_owned()),
        (27, "log.filter: expected a filter such as \"info\" or \"warn,bosphorus=debug\", found \"a=b=c\" \
              (error parsing level filter: expected one of \"off\", \"error\", \"warn\", \"info\", \
              \"debug\", \"trace\", or a number 0-5)".to_owned()),
        (29, format!("{server} \"http://x\": the scheme is not one of these")),
        (29, format!("{server} \"unix:foo\": the path must be absolute")),
        (29, format!("{server} \"1.2.3.4:0\": the port is not a number from 1 to 65535")),
        (29, format!("{server} \"::1\": an IPv6 address is written in brackets")),
        (29, format!("{server} \"[::1\": the bracket is not closed")),
        (29, format!("{server} \"a b\": the host is not a name or an address")),
    ];
    let expected: Vec<_> =
        expected.into_iter().map(|(line, text)| format!("{}: {text}", place(line))).collect();
    assert_eq!(refused(Some(&file), &[], &[]), expected);

    assert_eq!(
        refused(
            None,
            &[("BOSPHORUS__SASL__CHANNEL_BINDING", "x")],
            &["--admin=here", "--domain=a@b"]
        ),
        [
            "--domain: domains.\"a@b\": expected a domain name, \"*.\" and one, or \"*\": the character '@' cannot be in a domain name",
            "--admin: admin.address: expected an IP address (not a name) and a port, such as \
             \"127.0.0.1:5280\" or \"[::1]:5280\", found \"here\"",
            "BOSPHORUS__SASL__CHANNEL_BINDING: sasl.channel_binding: expected \"passthrough\" or \"strip\", found \"x\"",
        ]
    );
}

/// A fault between two keys is put on the one that was set.
#[test]
fn limits_that_contradict_each_other_are_refused() {
    assert_eq!(
        faults(&format!("[limits]\npending_bytes = 20000\n{DOMAIN}")),
        ["(text):2: limits.pending_bytes: expected at least limits.element_bytes (262144), \
          since an element that is allowed must fit the queue, found 20000"]
    );
    assert_eq!(
        faults(&format!("[limits]\n\nelement_bytes = \"2 MiB\"\n{DOMAIN}")),
        ["(text):3: limits.element_bytes: expected at most limits.pending_bytes (1048576), \
          since an element that is allowed must fit the queue, found 2097152"]
    );
    assert_eq!(
        faults(&format!("[admin]\naddress = \"127.0.0.1:5280\"\n{DOMAIN}")),
        ["(text):2: admin.address: 127.0.0.1:5280 is one of listen.addresses too"]
    );
}

/// Unix sockets and those of the service manager stand beside addresses; nothing is there twice, and
/// who has clients without addresses is told.
#[test]
fn listeners_are_addresses_paths_and_names() {
    let listen = |text: &str| Config::from_toml_str(&format!("[listen]\n{text}\n{DOMAIN}"));
    let config = listen(
        "addresses = [\"127.0.0.1:0\", \"unix:/run/b.sock\"]\nunix_mode = \"666\"\n\
         trusted_proxies = [\"10.0.0.0/8\", \"unix\"]",
    )
    .unwrap();
    let addresses: Vec<_> = config.listen.addresses.iter().map(|it| it.address.clone()).collect();
    let any = ListenAddress::Tcp("127.0.0.1:0".parse().unwrap());
    assert_eq!(addresses, [any, ListenAddress::Unix("/run/b.sock".into())]);
    assert_eq!(config.listen.addresses[1].place, "(text):2: listen.addresses");
    assert_eq!(config.listen.unix_mode, 0o666);
    let trusted = Peers { networks: vec!["10.0.0.0/8".parse().unwrap()], unix: true };
    assert_eq!(config.listen.trusted_proxies, trusted);
    assert_eq!(config.listen.proxy_protocol, Peers::default());
    assert_eq!(config.warnings, [] as [&str; 0]);

    let config = listen("addresses = [\"systemd:\", \"systemd:web\"]").unwrap();
    let addresses: Vec<_> = config.listen.addresses.iter().map(|it| it.address.clone()).collect();
    let web = ListenAddress::Systemd(Some("web".to_owned()));
    assert_eq!(addresses, [ListenAddress::Systemd(None), web]);
    let config = listen("addresses = [\"unix:/run/b.sock\"]").unwrap();
    assert_eq!(
        config.warnings,
        ["(text):2: listen.addresses: nobody who comes over unix:/run/b.sock has an address, so \
          that no limit per address holds for him; add \"unix\" to listen.trusted_proxies or \
          listen.proxy_protocol if a proxy there says who its clients are"]
    );
    assert_eq!(
        serve(None, &[], &["--listen=unix:/b", "--domain=example.org"]).unwrap().listen.addresses
            [0]
        .place,
        "--listen: listen.addresses"
    );

    let expected = "listen.addresses: expected an IP address (not a name) and a port, such as \
                    \"127.0.0.1:5280\" or \"[::1]:5280\", \"unix:/path\" or \"systemd:NAME\", found";
    let long = format!("unix:/{}", "a".repeat(107));
    let found = faults(&format!(
        "[listen]\naddresses = [\n\"unix:b.sock\",\n\"{long}\",\n\"systemd:a:b\",\n\"systemd:a\",\n\
         \"systemd:a\",\n\"unix:/b\"]\ntls_addresses = [\"unix:/b\"]\nunix_mode = \"0o660\"\n\
         [limits]\nexempt_peers = [\"unix\"]\n{DOMAIN}"
    ));
    let faults: Vec<_> = found.iter().map(String::as_str).collect();
    let expected = [
        "(text):2: listen.addresses: \"systemd:a\" is there twice".to_owned(),
        format!("(text):3: {expected} \"unix:b.sock\": the path must be absolute"),
        format!("(text):4: {expected} \"{long}\": the path is longer than a socket's may be"),
        format!("(text):5: {expected} \"systemd:a:b\": a socket's name has no colon"),
        "(text):9: listen.tls_addresses: expected tls.certificates beside it, such as certificates \
         = [{ certificate = \"fullchain.pem\", key = \"privkey.pem\" }]"
            .to_owned(),
        "(text):9: listen.tls_addresses: unix:/b is in listen.addresses too".to_owned(),
        "(text):10: listen.unix_mode: expected permissions such as \"0660\" or \"0666\", found \
         \"0o660\""
            .to_owned(),
    ];
    for text in &expected {
        assert!(faults.contains(&text.as_str()), "{text}\n{faults:#?}");
    }
    let exempt = "(text):12: limits.exempt_peers: expected a network";
    assert!(faults.iter().any(|fault| fault.starts_with(exempt)), "{faults:#?}");
}

/// WS-38: the place to go to is the URL of a WebSocket, and whoever sends clients from TLS to a
/// place without is warned.
#[test]
fn the_drain_is_checked() {
    let drain = |text: &str| Config::from_toml_str(&format!("[drain]\n{text}\n{DOMAIN}"));
    let uri = "wss://b.example:5443/ws?a=1&b";
    let config = drain(&format!("window = \"10s\"\nsee_other_uri = \"{uri}\"")).unwrap();
    assert_eq!(config.drain.window, Duration::from_secs(10));
    assert_eq!(config.drain.see_other_uri.as_deref(), Some(uri));
    assert_eq!(config.warnings, [""; 0]);
    assert_eq!(Config::default().drain.window, Duration::ZERO);
    let warnings = drain("see_other_uri = \"ws://[::1]\"").unwrap().warnings;
    assert_eq!(
        warnings,
        [
            "(text):2: drain.see_other_uri: clients that came over TLS must not be sent to a place \
             without (RFC 7395 §3.6.1)",
            "(text):2: drain.see_other_uri: nobody is sent there while drain.window is \"0s\"",
        ]
    );
    assert_eq!(
        drain("window = \"30s\"").unwrap_err().to_string(),
        "(text):2: drain.window: expected less than drain.timeout (30s), found 30s"
    );
    for text in [
        "https://b.example/",
        "wss:///ws",
        "wss://b.example/#a",
        "wss://a@b/",
        "b.example",
        "wss://b/ a",
    ] {
        let fault = drain(&format!("see_other_uri = \"{text}\"")).unwrap_err().to_string();
        let expected = "drain.see_other_uri: expected the URL of a WebSocket, such as";
        assert!(fault.contains(expected), "{text}: {fault}");
    }
}

/// BOSH-06, BOSH-16, BOSH-17, BOSH-25, SEC-02: what `[bosh]` may say.
#[test]
fn bosh_is_checked() {
    let bosh = |text: &str| Config::from_toml_str(&format!("[bosh]\n{text}\n{DOMAIN}"));
    let config = bosh("paths = []\nwait_max = \"30s\"\nallowed_headers = [\"X-A\"]").unwrap();
    assert_eq!(config.bosh.paths, [""; 0]);
    assert_eq!(config.bosh.wait_default, config.bosh.wait_max);
    assert_eq!(config.bosh.allowed_headers, ["x-a"]);
    let routes =
        bosh("route_allow = [\"Example.org:5222\", \"[::1]:1\"]").unwrap().bosh.route_allow;
    assert_eq!(routes, ["example.org:5222", "[::1]:1"]);
    // One path for both is fine: an upgrade is a GET, BOSH is a POST.
    bosh("paths = [\"/ws\"]").unwrap();
    for (text, fault) in [
        ("paths = [\"b\"]", "bosh.paths: expected a path such as \"/http-bind\", found \"b\""),
        ("paths = [\"/b\", \"/b\"]", "bosh.paths: \"/b\" is there twice"),
        ("wait_max = \"0s\"", "bosh.wait_max: expected 1s to 24h, found 0s"),
        (
            "inactivity = \"1500ms\"",
            "bosh.inactivity: expected whole seconds, as clients are told them, found 1500ms",
        ),
        (
            "wait_default = \"1m\"",
            "bosh.wait_default: expected at most bosh.wait_max (55s), found 1m",
        ),
        ("hold_max = 6", "bosh.hold_max: expected 1 to 5, found 6"),
        ("linger = \"51ms\"", "bosh.linger: expected 0s to 50ms, found 51ms"),
        (
            "overactivity = \"x\"",
            "bosh.overactivity: expected \"lenient\" or \"strict\", found \"x\"",
        ),
        (
            "legacy_unknown = \"x\"",
            "bosh.legacy_unknown: expected \"body\" or \"http\", found \"x\"",
        ),
        (
            "allowed_headers = [\"a b\"]",
            "bosh.allowed_headers: expected the name of a header such as \"X-Requested-With\", \
             found \"a b\"",
        ),
        (
            "route_allow = [\"example.org\"]",
            "bosh.route_allow: expected \"host:port\", found \"example.org\": the port is not a \
             number from 1 to 65535",
        ),
    ] {
        let text = format!("[bosh]\n{text}\n{DOMAIN}");
        assert_eq!(faults(&text), [format!("(text):2: {fault}")]);
    }

    let limits = |text: &str| Config::from_toml_str(&format!("[limits]\n{text}\n{DOMAIN}"));
    assert_eq!(limits("element_bytes = 20000").unwrap().limits.body_bytes, 24_096);
    assert_eq!(
        faults(&format!("[limits]\nbody_bytes = 262144\n{DOMAIN}")),
        ["(text):2: limits.body_bytes: expected 0, or at least limits.element_bytes and 4096 \
          (266240), since an element that is allowed must fit, found 262144"]
    );

    assert_eq!(limits("memory = 0").unwrap().limits.memory, 0);
    assert_eq!(limits("memory = \"4 MiB\"").unwrap().limits.memory, 4 << 20);
    assert_eq!(
        faults(&format!("[limits]\nmemory = 1000\n{DOMAIN}")),
        ["(text):2: limits.memory: expected 1048576 to 1099511627776 bytes, found 1000"]
    );
}

/// SEC-22: no client value chooses where the gateway connects.
#[test]
fn the_domain_star_needs_servers() {
    assert_eq!(
        faults("[domains.\"*\"]\n"),
        [
            "(text):1: domains.\"*\".servers: expected at least one server: without it a client could name \
          any host on the net as its domain"
        ]
    );
}

/// A suffix serves what is below it and nothing else; the longest wins, and a name before all.
#[test]
fn a_suffix_serves_the_domains_below_it() {
    let to = |name: &str| format!("[domains.\"{name}\"]\nservers = [\"{}:1\"]\n", name.len());
    let names = ["*.Example.org", "*.deep.example.org", "a.deep.example.org", "*.bücher.example"];
    let mut text: String = names.iter().map(|name| to(name)).collect();
    let config = Config::from_toml_str(&text).unwrap();
    let found = |config: &Config, name: &str| {
        let route = config.route(&domain(name))?;
        match &route.servers[0].address {
            ServerAddress::Tcp { host, .. } => host.parse::<usize>().ok(),
            _ => None,
        }
    };
    for (name, expected) in [
        ("a.example.org", Some("*.example.org")),
        ("b.a.EXAMPLE.org", Some("*.example.org")),
        ("deep.example.org", Some("*.example.org")),
        ("b.deep.example.org", Some("*.deep.example.org")),
        ("a.deep.example.org", Some("a.deep.example.org")),
        ("x.xn--bcher-kva.example", Some("*.bücher.example")),
        ("example.org", None),
        ("notexample.org", None),
        ("org", None),
        ("example.org.evil.example", None),
        ("127.0.0.1", None),
    ] {
        assert_eq!(found(&config, name), expected.map(str::len), "{name}");
    }
    text += &to("*");
    let config = Config::from_toml_str(&text).unwrap();
    assert_eq!(found(&config, "example.org"), Some(1));
    assert_eq!(found(&config, "a.example.org"), Some("*.example.org".len()));

    let config = Config::from_toml_str(&format!("default_domain = \"a.b\"\n{}", to("*.b")));
    assert_eq!(config.unwrap().default_domain, Some(domain("a.b")));
    let flags = ["--domain=*.example.org", "--server=a:1"];
    let environment = [("BOSPHORUS__DOMAINS__*.EXAMPLE.COM__SERVERS", "b:2")];
    let config = serve(None, &environment, &flags).unwrap();
    assert_eq!(config.route(&domain("x.example.org")).unwrap().servers, [at(0, tcp("a", 1))]);
    assert_eq!(config.route(&domain("x.example.com")).unwrap().servers, [at(0, tcp("b", 2))]);
    assert_eq!(config.route(&domain("example.org")), None);
}

/// SEC-22: a client would choose whom we look up, were there no servers.
#[test]
fn a_suffix_needs_servers_and_a_name() {
    assert_eq!(
        faults("[domains.\"*.example.org\"]\n[domains.\"*.10.0.0.1\"]\n[domains.\"a.*.b\"]\n"),
        [
            "(text):1: domains.\"*.example.org\".servers: expected at least one server: without it a \
             client could name any host below it as its domain",
            "(text):2: domains.\"*.10.0.0.1\": expected a domain name behind \"*.\", found an address",
            "(text):3: domains.\"a.*.b\": expected a domain name, \"*.\" and one, or \"*\": the character \
             '*' cannot be in a domain name",
        ]
    );
}

/// UP-08: plain addresses go in their order, tables as they say; both may be mixed.
#[test]
fn servers_are_addresses_or_tables() {
    let inline = "servers = [\n\"a\",\n\
                  { address = \"xmpps://b\", priority = 0, weight = 10, proxy_protocol = \"v2\" },\n\
                  \"c\",\n{ address = \"unix:/d\", proxy_protocol = \"v1\" },\n]\n";
    let servers = |text: &str| {
        let config = Config::from_toml_str(&format!("{DOMAIN}{text}")).unwrap();
        config.domains.named[&domain("example.org")].servers.clone()
    };
    let b = Server {
        address: ServerAddress::DirectTls { host: "b".to_owned(), port: 5223 },
        priority: 0,
        weight: 10,
        proxy_protocol: ProxyProtocol::V2,
    };
    let d = Server { proxy_protocol: ProxyProtocol::V1, ..at(3, ServerAddress::Unix("/d".into())) };
    let expected = [at(0, tcp("a", 5222)), b.clone(), at(2, tcp("c", 5222)), d];
    assert_eq!(servers(inline), expected);
    let tables = "[[domains.\"example.org\".servers]]\naddress = \"xmpps://b\"\nweight = 10\n\
                  proxy_protocol = \"v2\"\n\
                  [[domains.\"example.org\".servers]]\naddress = \"c\"\n";
    assert_eq!(servers(tables), [b, at(1, tcp("c", 5222))]);
}

/// What is wrong in a table of `servers` is told with its key and its line.
#[test]
fn faults_in_tables_of_servers_are_found() {
    assert_eq!(
        faults(&format!(
            "{DOMAIN}servers = [\n{{ address = \"a\", weight = \"x\", port = 1 }},\n5,\n\
             {{ priority = -1 }},\n]\n"
        )),
        [
            "(text):3: domains.\"example.org\".servers.weight: expected a whole number, found string \"x\"",
            "(text):3: domains.\"example.org\".servers.port: unknown key, expected one of `address`, \
             `priority`, `weight`, `proxy_protocol`",
            "(text):4: domains.\"example.org\".servers: expected an address such as \
             \"xmpp://127.0.0.1:5222\" or a table with one, found integer `5`",
            "(text):5: domains.\"example.org\".servers.priority: expected a whole number, found integer `-1`",
        ]
    );
    assert_eq!(
        faults(&format!(
            "{DOMAIN}servers = [\n{{ weight = 1 }},\n\
             {{ address = \"a\", weight = 65536, proxy_protocol = \"v3\" }},\n]\n\
             [[domains.other.servers]]\naddress = \"http://b\"\npriority = 70000\n"
        )),
        [
            "(text):3: domains.\"example.org\".servers: expected `address` in the table",
            "(text):4: domains.\"example.org\".servers.weight: expected 0 to 65535, found 65536",
            "(text):4: domains.\"example.org\".servers.proxy_protocol: expected \"off\", \"v1\" or \
             \"v2\", found \"v3\"",
            "(text):6: domains.other.servers: expected \"xmpp://host:port\", \"xmpps://host:port\", \
             \"host:port\" or \"unix:/path\", found \"http://b\": the scheme is not one of these",
            "(text):8: domains.other.servers.priority: expected 0 to 65535, found 70000",
        ]
    );
    assert_eq!(
        faults(&format!("[upstream]\nbackoff_max = \"500ms\"\n{DOMAIN}")),
        [
            "(text):2: upstream.backoff_max: expected at least upstream.backoff_min (1s), found 500ms"
        ]
    );
}

#[test]
fn serving_nothing_says_what_to_add() {
    let text = "domains: no domain is served; add a table [domains.\"example.org\"] with your XMPP \
                domain, or give --domain example.org";
    assert_eq!(refused(None, &[], &[]), [text]);
    assert_eq!(faults("[drain]\ntimeout = \"5s\"\n"), [format!("(text): {text}")]);
}

#[test]
fn broken_toml_names_the_line() {
    assert_eq!(faults("a = 1\n[b"), ["(text):2: not valid TOML: unclosed table, expected `]`"]);
    let fault = &faults("[drain]\ntimeout = \"5s\"\ntimeout = \"6s\"\n")[0];
    assert!(fault.starts_with("(text):3: not valid TOML: duplicate key"), "{fault}");
}

/// UP-14, UP-16: a domain's own settings stand in for those of `[upstream]`, each alone.
#[test]
fn a_domain_overrides_what_it_names() {
    let dir = Dir::new("override");
    let key = rcgen::generate_simple_self_signed(["example.org".to_owned()]).unwrap();
    let ca = dir.write("ca.pem", &key.cert.pem());
    let private = dir.write("key.pem", &key.signing_key.serialize_pem());
    dir.write("junk.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let pin = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let text = format!(
        "[upstream]\ntls = \"required\"\npin_sha256 = [\"{pin}\"]\nwhitespace_keepalive = \"60s\"\n\
         [domains.plain]\n\
         [domains.own]\ntls = \"never\"\nservers = [\"xmpp://localhost\"]\nca_file = \"ca.pem\"\n\
         pin_sha256 = []\nclient_certificate = \"ca.pem\"\nclient_key = \"key.pem\"\n"
    );
    let file = dir.write("b.toml", &text);
    let config = serve(Some(&file), &[], &[]).unwrap();
    assert_eq!(config.upstream.whitespace_keepalive, Some(Duration::from_secs(60)));
    let plain = &config.domains.named[&domain("plain")];
    assert_eq!(
        (plain.tls, plain.pin_sha256.as_slice()),
        (TlsMode::Required, &[SpkiPin([0; 32])][..])
    );
    assert_eq!((&plain.ca_file, &plain.client), (&None, &None));
    let own = &config.domains.named[&domain("own")];
    assert_eq!((own.tls, own.pin_sha256.as_slice()), (TlsMode::Never, &[][..]));
    // Paths in a file are relative to that file.
    assert_eq!(own.ca_file.as_ref(), Some(&ca));
    assert_eq!(own.client, Some(ClientIdentity { certificate: ca.clone(), key: private.clone() }));
    assert_eq!(config.warnings, [""; 0]);

    let file = dir.write(
        "bad.toml",
        &format!("[upstream]\nca_file = \"junk.pem\"\nclient_certificate = \"key.pem\"\nclient_key = \"ca.pem\"\n{DOMAIN}"),
    );
    let place = |line| format!("{}:{line}", file.display());
    let pem = "expected certificates in PEM (-----BEGIN CERTIFICATE-----), found";
    assert_eq!(
        refused(Some(&file), &[], &[]),
        [
            format!("{}: upstream.ca_file: {pem} {}", place(2), dir.0.join("junk.pem").display()),
            format!("{}: upstream.client_certificate: {pem} {}", place(3), private.display()),
            format!(
                "{}: upstream.client_key: expected a private key in PEM, not encrypted, found {}",
                place(4),
                ca.display()
            ),
        ]
    );
}

#[test]
fn what_is_dangerous_is_warned_about() {
    let text = r#"[admin]
address = "0.0.0.0:9280"
[ws]
allowed_origins = ["*", "null"]
[upstream]
tls = "never"
insecure = true
[sasl]
channel_binding = "strip"
[domains."dns.example"]
[domains."remote.example"]
tls = "never"
servers = ["xmpps://192.0.2.1", "xmpp://192.0.2.1:5222"]
[domains."near.example"]
tls = "never"
servers = ["127.0.0.1:5222", "[::1]", "unix:/run/x", "xmpps://192.0.2.1"]
"#;
    assert_eq!(
        Config::from_toml_str(text).unwrap().warnings,
        [
            "(text):2: admin.address: 0.0.0.0:9280 is not loopback: whoever reaches it can read the metrics",
            "(text):4: ws.allowed_origins: \"*\" allows every origin; the others change nothing",
            "(text):7: upstream.insecure: certificates are NOT verified: whoever sits between can pose as any \
             server and read every password and message; use pin_sha256 or ca_file instead",
            "(text):6: upstream.tls: passwords and messages go to the server that DNS names for dns.example \
             in the clear",
            "(text):12: domains.\"remote.example\".tls: passwords and messages go to xmpp://192.0.2.1:5222 in \
             the clear",
            "(text):9: sasl.channel_binding: \"strip\" makes clients that check the offer (XEP-0474, SCRAM's \
             \"y\" flag) refuse to log in",
        ]
    );
}

/// What has to be shown at the admin listener is in a file, and nowhere else.
#[test]
fn the_admin_token_is_checked() {
    let dir = Dir::new("token");
    dir.write("good", "0123456789abcdef\n");
    let load = |name: &str| {
        let text = format!("[admin]\ntoken_file = \"{name}\"\n{DOMAIN}");
        serve(Some(&dir.write("b.toml", &text)), &[], &[])
    };
    let token = load("good").unwrap().admin.token;
    assert_eq!(token, Some(Token::of(b"0123456789abcdef")));
    assert_eq!(format!("{token:?}"), "Some(Token(…))");
    for bad in ["", "too short", "with a blank in it", "0123456789abcdef\n0123456789abcdef"] {
        dir.write("bad", bad);
        let faults = lines(load("bad"));
        assert!(
            faults[0].contains("b.toml:2: admin.token_file: expected a file with"),
            "{faults:?}"
        );
        assert!(bad.is_empty() || !faults[0].contains(bad), "{faults:?}");
    }
    assert!(lines(load("none"))[0].contains("admin.token_file: expected a readable file"));
    assert_eq!(
        faults(&format!("[recorder]\nevents = 1001\nkeep = \"2h\"\nended = 100001\n{DOMAIN}")),
        [
            "(text):2: recorder.events: expected 0 to 1000, found 1001",
            "(text):4: recorder.ended: expected 0 to 100000, found 100001",
        ]
    );
}

/// CSWSH: what a browser sends is compared as browsers write it.
#[test]
fn origins_are_compared_as_browsers_write_them() {
    let text = format!(
        "[ws]\nallowed_origins = [\"https://Chat.Example.org:443\", \"https://*.Example.org\", \
         \"http://[::1]:8080\", \"null\"]\n{DOMAIN}"
    );
    let origins = Config::from_toml_str(&text).unwrap().ws.allowed_origins;
    let expected =
        ["https://chat.example.org", "https://*.example.org", "http://[::1]:8080", "null"];
    assert_eq!(origins, AllowedOrigins::Listed(expected.map(str::to_owned).to_vec()));
    assert_eq!(Config::default().ws.allowed_origins, AllowedOrigins::Any);
}

/// SEC-03: cookies are for pages that are named.
#[test]
fn cookies_are_for_pages_that_are_named() {
    let bosh = |bosh: &str, domain: &str| {
        let text = format!("[bosh]\nallow_credentials = true\n{bosh}\n{DOMAIN}{domain}\n");
        Config::from_toml_str(&text)
    };
    let listed = "allowed_origins = [\"https://a.test\"]";
    assert!(bosh(listed, "").is_ok());
    assert!(bosh("", listed).is_ok());
    for (general, own) in [("", ""), (listed, "allowed_origins = [\"*\"]")] {
        let fault = bosh(general, own).unwrap_err().to_string();
        assert!(
            fault.starts_with("(text):2: bosh.allow_credentials: expected the pages that may"),
            "{fault}"
        );
    }
}

/// DISC-03, DISC-08: what is published, and what is not.
#[test]
fn the_discovery_is_checked() {
    let discovery = |text: &str, domain: &str| {
        Config::from_toml_str(&format!("[discovery]\n{text}\n{DOMAIN}{domain}\n"))
    };
    let url = |config: &Config| {
        config.domains.values().next().unwrap().public_url.as_ref().map(|url| url.rest.clone())
    };
    let general = "public_url = \"https://chat.test/x/\"";
    assert_eq!(url(&discovery("", "").unwrap()), None);
    assert_eq!(url(&discovery(general, "").unwrap()).as_deref(), Some("chat.test/x"));
    assert_eq!(url(&discovery(general, "public_url = \"\"").unwrap()), None);
    let own = discovery(general, "public_url = \"https://b.test:8443\"").unwrap();
    assert_eq!(url(&own).as_deref(), Some("b.test:8443"));
    assert_eq!(
        discovery("public_url = \"http://chat.test\"", "").unwrap().warnings,
        [
            "(text):2: discovery.public_url: nothing is published of it: clients may only be sent to \
          https: and wss: (XEP-0156 §2)"
        ]
    );
    for (text, expected) in [
        ("public_url = \"chat.test\"", "discovery.public_url: expected the URL of the place"),
        (
            "links = [{ rel = \"a\" }]",
            "discovery.links: expected a URL with https: or wss: as its href",
        ),
        ("links = [{ href = \"https://a\" }]", "discovery.links: expected a relation as its rel"),
        (
            "links = [{ rel = \"a\", href = \"http://a\" }]",
            "discovery.links: expected a URL with https: or wss: as its href, found \"http://a\"",
        ),
    ] {
        let fault = discovery(text, "").unwrap_err().to_string();
        assert!(fault.starts_with(&format!("(text):2: {expected}")), "{fault}");
    }
}

#[test]
fn tls_auto_depends_on_the_peer() {
    let loopback = |text: &str| {
        let text = format!("{DOMAIN}servers = [\"{text}\"]\n");
        Config::from_toml_str(&text).unwrap().domains.named[&domain("example.org")].servers[0]
            .address
            .is_loopback()
    };
    for near in
        ["127.9.9.9", "[::1]:5222", "localhost", "a.localhost", "unix:/x", "xmpps://localhost"]
    {
        assert!(loopback(near), "{near}");
    }
    for far in ["192.0.2.1", "[2001:db8::1]", "localhost.example", "xmpps://example.org"] {
        assert!(!loopback(far), "{far}");
    }
}

/// The default file is the documentation: same values as the code, every key there, each with a comment above it.
#[test]
fn the_default_file_is_the_defaults() {
    let from_file = Config::from_toml_str(&format!("{DEFAULTS}\n{DOMAIN}")).unwrap();
    let mut expected = Config::from_toml_str(DOMAIN).unwrap();
    assert_eq!(from_file, expected);
    expected.domains.named.clear();
    assert_eq!(Config::default(), expected);

    let without_default = [
        "default_domain",
        "token_file",
        "ca_file",
        "client_certificate",
        "client_key",
        "see_other_uri",
        "public_url",
    ];
    let mut sections = known_keys("");
    sections.retain(|key| key != "domains" && key != "default_domain");
    assert_eq!(sections.len(), 13);
    let lines: Vec<&str> = DEFAULTS.lines().collect();
    for (section, keys) in sections
        .iter()
        .map(|section| (section.as_str(), known_keys(&format!("[{section}]"))))
        .chain([("", vec!["default_domain".to_owned()])])
    {
        let start = match section {
            "" => 0,
            _ => lines.iter().position(|line| *line == format!("[{section}]")).unwrap() + 1,
        };
        let length = lines[start..]
            .iter()
            .position(|line| line.starts_with('['))
            .unwrap_or(lines.len() - start);
        let part = &lines[start..start + length];
        for key in keys {
            let prefix = if without_default.contains(&key.as_str()) { "# " } else { "" };
            let at = part.iter().position(|line| line.starts_with(&format!("{prefix}{key} = ")));
            let at = at.unwrap_or_else(|| panic!("{section}.{key} is not in the default file"));
            let comment = part[at - 1].strip_prefix("# ").unwrap_or_default();
            assert!(
                comment.contains(' ') && !comment.contains(" = "),
                "{section}.{key} has no comment"
            );
        }
    }
}

/// The commented-out part is right too, once someone takes the comment signs away.
#[test]
fn the_commented_domains_of_the_default_file_are_valid() {
    let (_, tail) = DEFAULTS.split_once("# The domains.").unwrap();
    let domains: String = tail
        .lines()
        .filter_map(|line| line.strip_prefix("# "))
        .filter(|line| line.starts_with('[') || line.contains(" = "))
        .map(|line| format!("{line}\n"))
        .collect();
    for key in known_keys("[domains.x]") {
        assert!(domains.contains(&format!("{key} = ")), "{key}");
    }
    let valid: String = domains
        .lines()
        .filter(|line| !line.contains(".pem\"") && !line.contains(".key\""))
        .fold("default_domain = \"example.org\"\n".to_owned(), |text, line| text + line + "\n");
    let config = Config::from_toml_str(&valid).unwrap();
    assert!(
        config.domains.any.is_some()
            && config.domains.named.len() == 1
            && config.warnings.is_empty()
    );
}

#[test]
fn the_examples_are_valid() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/examples");
    let mut count = 0;
    for entry in std::fs::read_dir(examples).unwrap() {
        let path = entry.unwrap().path();
        // What stands beside them is the configuration of others: see tests/front_proxies.rs.
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let config = serve(Some(&path), &[], &[]).unwrap();
        assert_eq!(config.warnings, [""; 0]);
        count += 1;
    }
    assert_eq!(count, 3);
}

#[test]
fn the_program_checks_files_and_says_so_in_its_status() {
    let dir = Dir::new("program");
    let good = dir.write("good.toml", &format!("[admin]\naddress = \"0.0.0.0:1\"\n{DOMAIN}"));
    let bad = dir.write("bad.toml", &format!("[drain]\ntimeout = 5\n{DOMAIN}"));

    let output = bosphorus(&["config", "check", good.to_str().unwrap()], &[]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        format!(
            "{0}: ok\nwarning: {0}:2: admin.address: 0.0.0.0:1 is not loopback: whoever reaches it can read the metrics\n",
            good.display()
        )
    );

    let fault = format!(
        "{}:2: drain.timeout: expected a duration such as \"500ms\", \"30s\" or \"2m\", found integer `5`\n",
        bad.display()
    );
    for arguments in
        [["config", "check", bad.to_str().unwrap()], ["serve", "--config", bad.to_str().unwrap()]]
    {
        let output = bosphorus(&arguments, &[]);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(said.contains(fault.trim_end()), "{arguments:?}: {said}");
    }

    let missing = dir.0.join("missing.toml");
    let output = bosphorus(&["config", "check", missing.to_str().unwrap()], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        format!("{}: cannot be read: No such file or directory (os error 2)\n", missing.display())
    );

    let variable = [("BOSPHORUS__DRAIN__TIMEOUT", "soon")];
    let output = bosphorus(&["config", "check", good.to_str().unwrap()], &variable);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .starts_with("BOSPHORUS__DRAIN__TIMEOUT: drain.timeout: ")
    );

    for arguments in [&["serve", "--admin", "here"][..], &["serve", "--nonsense"], &["serve"], &[]]
    {
        assert_eq!(bosphorus(arguments, &[]).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn the_program_prints_its_defaults_version_and_help() {
    let output = bosphorus(&["config", "defaults"], &[("BOSPHORUS__DRAIN__TIMEOUT", "soon")]);
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), DEFAULTS);
    let output = bosphorus(&["--version"], &[]);
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        format!("bosphorus {}\n", env!("CARGO_PKG_VERSION"))
    );
    for help in [&["--help"][..], &["serve", "--help"], &["config", "check", "--help"]] {
        let output = bosphorus(help, &[]);
        assert!(output.status.success());
        assert!(String::from_utf8(output.stdout).unwrap().contains("Example"), "{help:?}");
    }
}

/// What `serve` would run with.
fn serve(
    file: Option<&Path>,
    environment: &[(&str, &str)],
    flags: &[&str],
) -> Result<Config, ConfigError> {
    let mut arguments = vec![OsString::from("bosphorus"), "serve".into()];
    if let Some(file) = file {
        arguments.extend(["--config".into(), file.into()]);
    }
    arguments.extend(flags.iter().map(OsString::from));
    let CliCommand::Serve(serve) = Cli::try_parse_from(arguments).unwrap().command else {
        panic!("not serve");
    };
    serve.load(environment.iter().map(|&(name, value)| (name.into(), value.into())))
}

fn refused(file: Option<&Path>, environment: &[(&str, &str)], flags: &[&str]) -> Vec<String> {
    lines(serve(file, environment, flags))
}

fn faults(text: &str) -> Vec<String> {
    lines(Config::from_toml_str(text))
}

fn lines(result: Result<Config, ConfigError>) -> Vec<String> {
    result.unwrap_err().problems().iter().map(ToString::to_string).collect()
}

/// The keys of a section, which the error for an unknown one lists.
fn known_keys(section: &str) -> Vec<String> {
    let fault = faults(&format!("{section}\nunheard_of = 1\n")).remove(0);
    let (_, list) = fault.split_once("expected ").unwrap();
    list.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn domain(name: &str) -> Domain {
    Domain::parse(name).unwrap()
}

/// An entry of `servers` of which only the address is given.
fn at(priority: u16, address: ServerAddress) -> Server {
    Server { priority, ..Server::at(address) }
}

fn tcp(host: &str, port: u16) -> ServerAddress {
    ServerAddress::Tcp { host: host.to_owned(), port }
}

/// Runs the program to its end, with no `BOSPHORUS__` variables but these.
fn bosphorus(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bosphorus"));
    command.args(arguments).env_clear().envs(environment.iter().copied());
    command.output().unwrap()
}

/// A directory of one test, gone at its end.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("config-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
