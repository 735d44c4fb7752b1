//! What each section may say, and what two keys may not say together.

use std::time::Duration;

use bosphorus::config::*;

use super::{DOMAIN, Dir, faults, lines, refused, serve};

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
