use super::*;
use proptest::prelude::*;

fn networks(list: &[&str]) -> Networks {
    let list: Vec<IpNet> = list.iter().map(|text| text.parse().unwrap()).collect();
    Networks::new(&list)
}

/// What a proxy at 10.0.0.1 says, with 10/8 and 2001:db8:ffff::/48 trusted: address and scheme.
fn told(headers: &[(&str, &str)]) -> (Option<String>, Option<bool>) {
    let trusted = networks(&["10.0.0.0/8", "2001:db8:ffff::/48"]);
    let headers = headers.iter().map(|(name, value)| (*name, value.as_bytes()));
    let told = read("10.0.0.1".parse().unwrap(), &trusted, headers);
    (told.address.map(|address| address.to_string()), told.secure)
}

fn for_xff(lines: &[&str]) -> Option<String> {
    let headers: Vec<_> = lines.iter().map(|line| ("X-Forwarded-For", *line)).collect();
    told(&headers).0
}

fn for_forwarded(lines: &[&str]) -> (Option<String>, Option<bool>) {
    let headers: Vec<_> = lines.iter().map(|line| ("forwarded", *line)).collect();
    told(&headers)
}

/// SEC-19: a peer that is not trusted says nothing, whatever it sends.
#[test]
fn strangers_are_not_believed() {
    let headers = [
        ("X-Forwarded-For", &b"192.0.2.1"[..]),
        ("X-Forwarded-Proto", b"https"),
        ("Forwarded", b"for=192.0.2.1;proto=https"),
    ];
    for (trusted, peer) in [
        (&[][..], "127.0.0.1"),
        (&["10.0.0.0/8"], "11.0.0.1"),
        (&["10.0.0.0/8"], "::1"),
        (&["2001:db8::/32"], "2001:db9::1"),
        (&["192.0.2.7/32"], "192.0.2.8"),
    ] {
        let told = read(peer.parse().unwrap(), &networks(trusted), headers);
        assert_eq!(told, Told::default(), "{trusted:?} {peer}");
    }
    // An IPv4 address in IPv6's clothes is the same.
    let told = read("::ffff:10.0.0.1".parse().unwrap(), &networks(&["10.0.0.0/8"]), headers);
    assert_eq!(told.address, Some("192.0.2.1:0".parse().unwrap()));
}

/// SEC-19: the rightmost address that is not trusted; several lines are one list; malformed, where
/// the walk comes by, is no address at all.
#[test]
fn the_client_is_the_rightmost_that_is_not_trusted() {
    for (lines, client) in [
        (&["192.0.2.1"][..], Some("192.0.2.1:0")),
        (&["198.51.100.7, 192.0.2.1"], Some("192.0.2.1:0")),
        (&["192.0.2.1, 10.0.0.2"], Some("192.0.2.1:0")),
        (&["198.51.100.7", "192.0.2.1, 10.9.9.9", "10.0.0.2"], Some("192.0.2.1:0")),
        (&["192.0.2.1 ,\t10.0.0.2 ,, 10.0.0.3,"], Some("192.0.2.1:0")),
        (&["192.0.2.1, 2001:db8:ffff::1"], Some("192.0.2.1:0")),
        (&["2001:db8::1"], Some("[2001:db8::1]:0")),
        (&["[2001:db8::1]"], Some("[2001:db8::1]:0")),
        (&["[2001:db8::1]:4711"], Some("[2001:db8::1]:4711")),
        (&["192.0.2.1:4711"], Some("192.0.2.1:4711")),
        (&["::ffff:192.0.2.1"], Some("192.0.2.1:0")),
        (&["::ffff:10.0.0.2"], Some("10.0.0.2:0")),
        // Who lives among the proxies.
        (&["10.0.0.3, 10.0.0.2"], Some("10.0.0.3:0")),
        // What the client invents does not spoil what a proxy says.
        (&["<script>, \", ,x, 192.0.2.1"], Some("192.0.2.1:0")),
        (&["unknown", "192.0.2.1"], Some("192.0.2.1:0")),
        (&["10.0.0.1, \u{e4}, 192.0.2.1, 10.0.0.2"], Some("192.0.2.1:0")),
        // Malformed, or not told.
        (&[""], None),
        (&[" , ,"], None),
        (&["unknown"], None),
        (&["192.0.2.1, unknown"], None),
        (&["192.0.2.1, x, 10.0.0.2"], None),
        (&["192.0.2"], None),
        (&["192.0.2.1.5"], None),
        (&["192.0.2.1:"], None),
        (&["192.0.2.1:x"], None),
        (&["192.0.2.1:65536"], None),
        (&["192.0.2.1:+80"], None),
        (&["192.0.2.01"], None),
        (&["[192.0.2.1]"], None),
        (&["[2001:db8::1"], None),
        (&["[2001:db8::1]:"], None),
        (&["[2001:db8::1]80"], None),
        (&["fe80::1%eth0"], None),
        (&["\"192.0.2.1\""], None),
        (&["192.0.2.1 10.0.0.2"], None),
        (&["for=192.0.2.1"], None),
    ] {
        assert_eq!(for_xff(lines).as_deref(), client, "{lines:?}");
    }
}

/// SEC-19, RFC 7239 §4 to §6: quoted strings, brackets, ports, obfuscated and unknown nodes.
#[test]
fn the_standard_header_is_read() {
    for (lines, client, secure) in [
        (&["for=192.0.2.1"][..], Some("192.0.2.1:0"), None),
        (&["For=\"192.0.2.1\";Proto=HTTPS"], Some("192.0.2.1:0"), Some(true)),
        (&["for=\"192.0.2.1:4711\" ; proto=\"http\""], Some("192.0.2.1:4711"), Some(false)),
        (&["FOR=\"[2001:db8:cafe::17]:4711\""], Some("[2001:db8:cafe::17]:4711"), None),
        (&["for=\"[2001:db8:cafe::17]\""], Some("[2001:db8:cafe::17]:0"), None),
        (&["for=\"192.0.2.1:_port\""], Some("192.0.2.1:0"), None),
        (
            &["by=203.0.113.43;;host=\"a,b\";for=192.0.2.1;proto=ws;"],
            Some("192.0.2.1:0"),
            Some(false),
        ),
        (&["proto=http;for=192.0.2.1, for=10.0.0.2;proto=https"], Some("192.0.2.1:0"), Some(false)),
        (&["for=192.0.2.1;proto=wss", "for=\"10.0.0.2\""], Some("192.0.2.1:0"), Some(true)),
        (&["for=\"\\1\\9\\2.0.2.1\""], Some("192.0.2.1:0"), None),
        (&["for=10.0.0.3;proto=https, for=10.0.0.2"], Some("10.0.0.3:0"), Some(true)),
        // What the client invents does not spoil what a proxy says.
        (&["for=\"open, for=192.0.2.1;proto=https"], Some("192.0.2.1:0"), Some(true)),
        (&["for=\"open\\\", for=192.0.2.1, for=\"10.0.0.2\""], Some("192.0.2.1:0"), None),
        (&["for=\"a\\\\\",for=\"192.0.2.1\""], Some("192.0.2.1:0"), None),
        (&["=;=,\u{e4}", "for=192.0.2.1"], Some("192.0.2.1:0"), None),
        // Not told, or malformed; the scheme is told where the element as such is sound.
        (&["for=unknown;proto=https"], None, Some(true)),
        (&["for=_hidden;proto=http"], None, Some(false)),
        (&["for=\"_SEVKISEK:_x\""], None, None),
        (&["proto=https"], None, Some(true)),
        (&["for=192.0.2.1, for=_hidden"], None, None),
        (&["for=192.0.2.1;for=192.0.2.2"], None, None),
        (&["for=192.0.2.1;proto=https;proto=http"], None, None),
        (&["for=192.0.2.1:80"], None, None),
        (&["for=[2001:db8::1]"], None, None),
        (&["for=\"2001:db8::1\""], None, None),
        (&["for=\"192.0.2.1:_po rt\""], None, None),
        (&["for=\"192.0.2.1"], None, None),
        (&["for=192.0.2.1\""], None, None),
        (&["for=\"192.0.2.1\"x"], None, None),
        (&["for =192.0.2.1"], None, None),
        (&["for= 192.0.2.1"], None, None),
        (&["for=192.0.2.1 proto=https"], None, None),
        (&["192.0.2.1"], None, None),
        (&["for="], None, None),
        (&[""], None, None),
    ] {
        let (address, scheme) = for_forwarded(lines);
        assert_eq!((address.as_deref(), scheme), (client, secure), "{lines:?}");
    }
}

/// SEC-19: the scheme of the client's own connection, wherever proxies add theirs.
#[test]
fn the_scheme_is_that_of_the_client() {
    let told = |xff: &[&'static str], proto: &[&'static str]| {
        let mut headers: Vec<_> = xff.iter().map(|line| ("x-forwarded-for", *line)).collect();
        headers.extend(proto.iter().map(|line| ("X-FORWARDED-PROTO", *line)));
        told(&headers).1
    };
    for (xff, proto, secure) in [
        (&["192.0.2.1"][..], &["https"][..], Some(true)),
        (&["192.0.2.1"], &["HTTP"], Some(false)),
        (&["192.0.2.1"], &["wss"], Some(true)),
        (&["192.0.2.1"], &[], None),
        (&["192.0.2.1"], &["h2"], None),
        (&["192.0.2.1"], &[""], None),
        (&[], &["https"], Some(true)),
        // One that is kept or replaced on the way.
        (&["192.0.2.1, 10.0.0.2"], &["https"], Some(true)),
        // Each adds its own; what the client has sent stands further left.
        (&["192.0.2.1, 10.0.0.2"], &["https, http"], Some(true)),
        (&["192.0.2.1, 10.0.0.2"], &["http", "https"], Some(false)),
        (&["192.0.2.1"], &["https, http"], Some(false)),
        (&["x, 192.0.2.1, 10.0.0.2"], &["https, http, https"], Some(false)),
    ] {
        assert_eq!(told(xff, proto), secure, "{xff:?} {proto:?}");
    }
}

/// SEC-19: where both headers are there, the one that nearly every proxy writes.
#[test]
fn x_forwarded_for_wins() {
    let both = [("Forwarded", "for=198.51.100.7;proto=https"), ("X-Forwarded-For", "192.0.2.1")];
    assert_eq!(told(&both), (Some("192.0.2.1:0".to_owned()), None));
    // Nor does one repair the other.
    let broken = [("Forwarded", "for=198.51.100.7"), ("X-Forwarded-For", "x")];
    assert_eq!(told(&broken), (None, None));
    let proto = [("Forwarded", "for=198.51.100.7"), ("X-Forwarded-Proto", "https")];
    assert_eq!(told(&proto), (Some("198.51.100.7:0".to_owned()), None));
}

/// SEC-19: work is bounded: no more proxies are followed, and no larger elements read.
#[test]
fn long_lists_are_not_followed() {
    let list = |proxies: usize| format!("192.0.2.1{}", ", 10.0.0.2".repeat(proxies));
    assert_eq!(for_xff(&[&list(HOPS - 1)]).as_deref(), Some("192.0.2.1:0"));
    assert_eq!(for_xff(&[&list(HOPS)]), None);
    assert_eq!(for_xff(&[&list(100_000)]), None);
    let standard = |proxies| list(proxies).replace("10.0", "for=10.0");
    assert_eq!(
        for_forwarded(&[&format!("for={}", standard(HOPS - 1))]).0.as_deref(),
        Some("192.0.2.1:0")
    );
    assert_eq!(for_forwarded(&[&format!("for={}", standard(HOPS))]).0, None);
    let padded = |bytes| format!("for=192.0.2.1;host={}", "x".repeat(bytes));
    assert!(for_forwarded(&[&padded(900)]).0.is_some());
    assert_eq!(for_forwarded(&[&padded(2000)]).0, None);
}

proptest! {
    /// SEC-19: whatever bytes come, there is no panic, and what a proxy adds at the end counts.
    #[test]
    fn garbage_never_panics_nor_spoils(
        lines in proptest::collection::vec(
            "[ -~\t\u{80}-\u{ff}]{0,40}|[\"\\\\,;=:\\[\\]for10.]{0,60}",
            0..6,
        ),
        raw in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        let trusted = networks(&["10.0.0.0/8"]);
        let peer = "10.0.0.1".parse().unwrap();
        let client = Some("192.0.2.1:0".parse().unwrap());
        let mut values: Vec<Vec<u8>> = lines.into_iter().map(String::into_bytes).collect();
        values.push(raw);
        for (name, own) in [
            ("X-Forwarded-For", "192.0.2.1"),
            ("Forwarded", "for=192.0.2.1;by=\"[::1]:8\""),
        ] {
            let read = |values: &[Vec<u8>]| {
                read(peer, &trusted, values.iter().map(|value| (name, value.as_slice())))
            };
            let _ = read(&values);
            // On a line of its own, and at the end of the last one.
            let mut apart = values.clone();
            apart.push(own.into());
            prop_assert_eq!(read(&apart).address, client);
            let mut joined = values.clone();
            joined.last_mut().unwrap().extend(format!(", {own}").bytes());
            prop_assert_eq!(read(&joined).address, client);
        }
    }
}
