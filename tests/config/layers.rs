//! A value on its way through the file, variables and flags, and what cannot be one.

use std::path::Path;
use std::time::Duration;

use bosphorus::cli::Cli;
use bosphorus::config::*;
use clap::Parser as _;

use super::{DOMAIN, Dir, at, domain, faults, refused, serve, tcp};

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

#[test]
fn broken_toml_names_the_line() {
    assert_eq!(faults("a = 1\n[b"), ["(text):2: not valid TOML: unclosed table, expected `]`"]);
    let fault = &faults("[drain]\ntimeout = \"5s\"\ntimeout = \"6s\"\n")[0];
    assert!(fault.starts_with("(text):3: not valid TOML: duplicate key"), "{fault}");
}
