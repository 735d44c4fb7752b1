//! `[domains]`: names, suffixes and the star, their servers, and what they override.

use std::time::Duration;

use bosphorus::config::*;

use super::{DOMAIN, Dir, at, domain, faults, refused, serve, tcp};

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
