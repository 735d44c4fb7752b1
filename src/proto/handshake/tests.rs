use super::*;
use crate::proto::origins::Origins;

const GOOD: [(&str, &str); 5] = [
    ("Upgrade", "websocket"),
    ("Connection", "Upgrade"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Protocol", "xmpp"),
];

fn settings() -> Settings {
    Settings { require_subprotocol: true, require_origin: false, origins: Origins::Any }
}

fn listed() -> Settings {
    let origins = ["https://chat.example", "http://localhost:8080", "https://a.example:443/"];
    Settings {
        origins: Origins::Listed(origins.into_iter().map(Into::into).collect()),
        ..settings()
    }
}

fn judge_as(
    method: &str,
    version: Version,
    headers: &[(&str, &str)],
    settings: &Settings,
) -> Verdict {
    judge(method, version, headers.iter().map(|(name, value)| (*name, value.as_bytes())), settings)
}

fn judged(headers: &[(&str, &str)]) -> Verdict {
    judge_as("GET", Version::Http11, headers, &settings())
}

/// The good request with some headers replaced, all of a name at once, or added.
fn changed<'a>(changes: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let kept = GOOD.into_iter().filter(|(name, _)| !changes.iter().any(|(other, _)| other == name));
    kept.chain(changes.iter().copied()).collect()
}

fn without(name: &str) -> Vec<(&'static str, &'static str)> {
    GOOD.into_iter().filter(|(other, _)| *other != name).collect()
}

fn accepted(protocol: bool) -> Verdict {
    Verdict::Accept { accept_key: "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_owned(), protocol }
}

#[track_caller]
fn refused(verdict: Verdict) -> Answer {
    let Verdict::Refuse(_, answer) = verdict else { panic!("{verdict:?} is no refusal") };
    answer
}

fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.headers.iter().find(|(other, _)| *other == name).map(|(_, value)| value.as_str())
}

/// WS-01: the example of RFC 6455 §1.3.
#[test]
fn a_right_request_is_accepted() {
    assert_eq!(judged(&GOOD), accepted(true));
}

/// WS-01: header names, and the tokens of Upgrade and Connection, in any letter case and in lists.
#[test]
fn tokens_are_found_in_any_case_and_in_lists() {
    assert_eq!(
        judged(&changed(&[("Upgrade", "h2c, WebSocket"), ("Connection", "keep-alive, Upgrade")])),
        accepted(true)
    );
    assert_eq!(
        judged(&changed(&[("Connection", "keep-alive"), ("Connection", "uPGRADE")])),
        accepted(true)
    );
    let lower: Vec<_> = GOOD.iter().map(|(name, value)| (name.to_lowercase(), *value)).collect();
    let lower: Vec<_> = lower.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    assert_eq!(judged(&lower), accepted(true));
}

/// WS-01: one key, of 16 bytes in base64.
#[test]
fn a_wrong_key_is_refused() {
    for key in ["", "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25j", "not base64 at all!!!!!!!="] {
        let answer = refused(judged(&changed(&[("Sec-WebSocket-Key", key)])));
        assert_eq!(answer.status, 400, "{key}");
        assert!(answer.text.contains("Sec-WebSocket-Key"));
    }
    assert_eq!(refused(judged(&without("Sec-WebSocket-Key"))).status, 400);
    let key = ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
    assert_eq!(refused(judged(&changed(&[key, key]))).status, 400);
}

/// WS-01: a client that draws characters and not bytes is served.
#[test]
fn bits_behind_the_keys_last_byte_are_no_matter() {
    let verdict = judged(&changed(&[("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZR==")]));
    assert!(matches!(verdict, Verdict::Accept { .. }));
}

/// WS-02: `xmpp` anywhere in the client's lists, and exactly so.
#[test]
fn the_subprotocol_is_found_in_any_list() {
    let name = "Sec-WebSocket-Protocol";
    assert_eq!(judged(&changed(&[(name, "chat, xmpp")])), accepted(true));
    assert_eq!(judged(&changed(&[(name, "chat"), (name, "xmpp")])), accepted(true));
    assert_eq!(judged(&changed(&[(name, "xmpp,chat"), (name, "mqtt")])), accepted(true));
    assert_eq!(refused(judged(&changed(&[(name, "XMPP")]))).status, 400);
    assert_eq!(refused(judged(&changed(&[(name, "xmpp2")]))).status, 400);
}

/// WS-03: no upgrade without it, unless the settings say so.
#[test]
fn without_the_subprotocol_the_upgrade_is_refused() {
    for headers in
        [without("Sec-WebSocket-Protocol"), changed(&[("Sec-WebSocket-Protocol", "mqtt")])]
    {
        let answer = refused(judged(&headers));
        assert_eq!(answer.status, 400);
        assert!(answer.text.contains("xmpp"));
        let lenient = Settings { require_subprotocol: false, ..settings() };
        assert_eq!(judge_as("GET", Version::Http11, &headers, &lenient), accepted(false));
    }
}

/// WS-04: any other version, or none, is told the right one.
#[test]
fn another_version_is_told_13() {
    let name = "Sec-WebSocket-Version";
    for headers in [
        changed(&[(name, "8")]),
        changed(&[(name, "013")]),
        changed(&[(name, "13, 8")]),
        changed(&[(name, "13"), (name, "8")]),
        without(name),
    ] {
        let answer = refused(judged(&headers));
        assert_eq!(answer.status, 426);
        assert_eq!(header(&answer, name), Some("13"));
    }
}

/// WSL-13: the drafts before version 4 had two keys, or none.
#[test]
fn hixie_sockets_are_told_13() {
    let hixie_76 = [
        ("Upgrade", "WebSocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Protocol", "xmpp"),
        ("Sec-WebSocket-Key1", "4 @1  46546xW%0l 1 5"),
        ("Sec-WebSocket-Key2", "12998 5 Y3 1  .P00"),
    ];
    let hixie_75 =
        [("Upgrade", "WebSocket"), ("Connection", "Upgrade"), ("WebSocket-Protocol", "xmpp")];
    for headers in [&hixie_76[..], &hixie_75] {
        assert_eq!(refused(judged(headers)).status, 426);
    }
}

/// WS-05: a plain GET or HEAD gets a short text and the CORS headers, other methods 405.
#[test]
fn a_plain_request_is_answered() {
    for (method, status) in [("GET", 200), ("HEAD", 200), ("POST", 405), ("PUT", 405), ("get", 405)]
    {
        let plain = [("Host", "chat.example"), ("Connection", "keep-alive")];
        let Verdict::Plain(answer) = judge_as(method, Version::Http11, &plain, &settings()) else {
            panic!("an answer");
        };
        assert_eq!(answer.status, status);
        assert_eq!(header(&answer, "Access-Control-Allow-Origin"), Some("*"));
        assert_eq!(header(&answer, "Allow").is_some(), status == 405);
    }
    assert_eq!(refused(judge_as("POST", Version::Http11, &GOOD, &settings())).status, 405);
}

/// What a reverse proxy dropped is named.
#[test]
fn what_a_proxy_dropped_is_named() {
    let closing = changed(&[("Connection", "close")]);
    for (version, headers, word, expected) in [
        (Version::Http11, without("Upgrade"), "\"Upgrade: websocket\"", Refusal::NoUpgrade),
        (Version::Http11, without("Connection"), "Connection", Refusal::NoConnection),
        (Version::Http11, closing.clone(), "Connection", Refusal::NoConnection),
        (Version::Http10, closing, "HTTP/1.0", Refusal::Http10),
        (Version::Http2, without("Upgrade"), "HTTP/2", Refusal::Http2),
    ] {
        let Verdict::Refuse(why, answer) = judge_as("GET", version, &headers, &settings()) else {
            panic!("it is accepted");
        };
        assert_eq!((why, answer.status), (expected, 400));
        assert!(answer.text.contains(word), "{}", answer.text);
    }
}

/// SEC-01: with a list, an Origin that is present must be on it, and a missing one passes unless
/// required.
#[test]
fn only_listed_origins_are_served() {
    let status = |origins: &[&'static str], settings: &Settings| {
        let origins: Vec<_> = origins.iter().map(|origin| ("Origin", *origin)).collect();
        match judge_as("GET", Version::Http11, &changed(&origins), settings) {
            Verdict::Accept { .. } => 101,
            Verdict::Refuse(_, answer) | Verdict::Plain(answer) => answer.status,
        }
    };
    for origin in [
        "https://chat.example",
        "HTTPS://Chat.Example",
        "https://chat.example:443",
        "http://localhost:8080",
        "https://a.example",
    ] {
        assert_eq!(status(&[origin], &listed()), 101, "{origin}");
    }
    for origin in [
        "null",
        "",
        "http://chat.example",
        "https://chat.example:8443",
        "https://chat.example.evil.example",
        "https://evil.example/https://chat.example",
        "http://localhost",
        "https://chat.example, https://evil.example",
    ] {
        assert_eq!(status(&[origin], &listed()), 403, "{origin}");
    }
    assert_eq!(status(&["https://chat.example", "https://chat.example"], &listed()), 403);
    assert_eq!(status(&[], &listed()), 101);
    assert_eq!(status(&[], &Settings { require_origin: true, ..listed() }), 403);
    assert_eq!(status(&["null"], &settings()), 101);
    let null = Settings { origins: Origins::Listed(vec!["null".into()]), ..settings() };
    assert_eq!(status(&["null"], &null), 101);
}

/// SEC-02: a listed origin is echoed, another is told nothing, and caches are told that it matters.
#[test]
fn answers_carry_cors_headers() {
    let answer = |origin, settings: &Settings| {
        refused(judge_as(
            "GET",
            Version::Http11,
            &changed(&[("Origin", origin), ("Sec-WebSocket-Version", "8")]),
            settings,
        ))
    };
    let good = answer("https://chat.example", &listed());
    assert_eq!(header(&good, "Access-Control-Allow-Origin"), Some("https://chat.example"));
    assert_eq!(header(&good, "Vary"), Some("Origin"));
    let other = answer("https://evil.example", &listed());
    assert_eq!(header(&other, "Access-Control-Allow-Origin"), None);
    assert_eq!(header(&other, "Vary"), Some("Origin"));
    let any = answer("https://evil.example", &settings());
    assert_eq!(header(&any, "Access-Control-Allow-Origin"), Some("*"));
    assert_eq!(header(&any, "Vary"), None);
}

/// WS-02, WS-07: one protocol, no extension, nothing else.
#[test]
fn the_101_is_rendered() {
    let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                Sec-WebSocket-Accept: abc=\r\n";
    let bytes = switching_protocols("abc=", true);
    assert_eq!(bytes, format!("{head}Sec-WebSocket-Protocol: xmpp\r\n\r\n").into_bytes());
    assert_eq!(switching_protocols("abc=", false), format!("{head}\r\n").into_bytes());
}

/// SEC-16: too much is 503 with Retry-After and the CORS headers.
#[test]
fn overload_is_503_and_rendered_whole() {
    let bytes = overload(7, &Origins::Any, None).to_http1(false);
    let text = String::from_utf8(bytes).expect("text");
    let (head, body) = text.split_once("\r\n\r\n").expect("a body");
    assert!(head.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{head}");
    for line in [
        "Retry-After: 7",
        "Access-Control-Allow-Origin: *",
        "Connection: close",
        &format!("Content-Length: {}", body.len()),
    ] {
        assert!(head.lines().any(|other| other == line), "{line} in {head}");
    }
    let head_only = overload(7, &Origins::Any, None).to_http1(true);
    assert_eq!(head_only, format!("{head}\r\n\r\n").into_bytes());
}

/// RFC 9110 §7.8, §15.5.22: a 426 names the protocol, and Connection names the header that does.
#[test]
fn a_426_says_what_to_upgrade_to() {
    let answer = refused(judged(&without("Sec-WebSocket-Version")));
    let text = String::from_utf8(answer.to_http1(false)).expect("text");
    assert!(text.contains("\r\nUpgrade: websocket\r\n"));
    assert!(text.contains("\r\nConnection: close, Upgrade\r\n"));
}
