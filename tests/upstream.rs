//! The edge to the XMPP server over real sockets: finding it, failing over, TLS, and what is said
//! when it does not work.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

mod common {
    pub(crate) mod dns;
    pub(crate) mod fake_server;
    #[allow(dead_code, reason = "shared with tests of TLS towards clients")]
    pub(crate) mod pki;
}

use std::net::SocketAddr;
use std::time::Duration;

use bosphorus::proto::domain::{ByDomain, Domain};
use bosphorus::proto::xml::Limits;
use bosphorus::upstream::{
    self, Backoff, Blame, ClientCertificate, ConnectFault, Connector, Established, Health, Io,
    Member, OpenRequest, ProxyProtocol, Route, Server, Settings, TlsUse, Trust,
};
use proxy_header::{ParseConfig, ProxyHeader};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use common::dns::{Dns, Zone};
use common::fake_server::{
    Do, FAILURE, FakeServer, PATIENCE, PROCEED, direct_tls, features_with_login,
    features_with_starttls, header, plain, see_other_host, starttls, stream_error,
};
use common::pki::{Ca, Identity, Validity, temporary_path};

const OUR_HEADER: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
    xmlns:stream='http://etherx.jabber.org/streams' to='example.org' version='1.0'";

/// UP-03, UP-04: the header is these bytes; the language is the client's. UP-10: TCP_NODELAY.
#[tokio::test]
async fn the_header_is_as_stated() {
    let server = FakeServer::start(vec![plain()]).await;
    let established = to(&[&server]).open().await.unwrap();
    assert!(!established.secure);
    assert!(matches!(&established.io, Io::Tcp(stream) if stream.nodelay().unwrap()));
    assert_eq!(established.header.id.as_deref(), Some("s1"));
    assert_eq!(established.unread, features_with_login().as_bytes());
    assert_eq!(server.heard(0).clear, format!("{OUR_HEADER} xml:lang='tr'>"));
}

/// UP-05: where nothing leaves this machine and no TLS will follow, the client is named.
#[tokio::test]
async fn from_is_told_on_loopback_when_no_tls_can_follow() {
    let server = FakeServer::start(vec![plain()]).await;
    to(&[&server]).tls(TlsUse::Never).open().await.unwrap();
    let expected = format!("{OUR_HEADER} xml:lang='tr' from='ayse@example.org'>");
    assert_eq!(server.heard(0).clear, expected);
}

/// UP-05, UP-11, UP-15: two headers, the second inside TLS and with `from`; the features inside TLS
/// are the only ones handed over; SNI is the domain, and there is no ALPN.
#[tokio::test]
async fn starttls_is_negotiated_alone() {
    let ca = Ca::new();
    let server = FakeServer::start(vec![starttls(trusted(&ca).server())]).await;
    let mut established = to(&[&server]).ca(&ca).open().await.unwrap();
    assert!(established.secure && established.io.is_secure());
    assert_eq!(established.unread, features_with_login().as_bytes());
    let heard = server.heard(0);
    assert_eq!(
        heard.clear,
        format!("{OUR_HEADER} xml:lang='tr'><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
    );
    assert_eq!(heard.secret, format!("{OUR_HEADER} xml:lang='tr' from='ayse@example.org'>"));
    assert_eq!((heard.sni.as_deref(), &*heard.alpn), (Some("example.org"), &[][..]));
    established.io.write_all(b"<presence/>").await.unwrap();
    established.io.flush().await.unwrap();
    server.until(0, |heard| heard.secret.ends_with("<presence/>")).await;
}

/// UP-15: direct TLS announces `xmpp-client`, and STARTTLS is not tried inside it.
#[tokio::test]
async fn direct_tls_has_alpn_and_no_starttls() {
    let ca = Ca::new();
    let mut script = vec![Do::Tls(trusted(&ca).server())];
    let features = features_with_starttls();
    script.extend([Do::Await("version"), Do::Say(header() + &features), Do::Listen]);
    let server = FakeServer::start(vec![script]).await;
    let established = to(&[&server]).direct().ca(&ca).open().await.unwrap();
    assert!(established.secure);
    assert_eq!(established.unread, features.as_bytes());
    let heard = server.heard(0);
    assert_eq!(heard.clear, "");
    assert_eq!(heard.secret, format!("{OUR_HEADER} xml:lang='tr' from='ayse@example.org'>"));
    assert_eq!(
        (heard.sni.as_deref(), &*heard.alpn),
        (Some("example.org"), &["xmpp-client".into()][..])
    );
}

/// UP-14, SEC-24: TLS 1.2 with a certificate of ours, so far as the server has no newer version.
#[tokio::test]
async fn tls_1_2_will_do() {
    let ca = Ca::new();
    let config = trusted(&ca).server_with(&[], &[&rustls::version::TLS12]);
    let server = FakeServer::start(vec![direct_tls(config)]).await;
    assert!(to(&[&server]).direct().ca(&ca).open().await.unwrap().secure);
}

/// UP-14, UP-13: a certificate that is not this domain's, not of this day or not of a known issuer
/// ends it, the text says which of these it was, and no header goes out inside TLS.
#[tokio::test]
async fn bad_certificates_are_told_apart() {
    let ca = Ca::new();
    let stranger = Ca::named("Stranger");
    let impostor = Ca::new();
    let cases = [
        (ca.issue(&["example.org"], Validity::Past), "expired on Jan  1"),
        (ca.issue(&["example.org"], Validity::Future), "not yet valid: it begins on Jan  1"),
        (
            Identity::self_signed(&["example.org"]),
            "is self-signed (to trust its key: pin_sha256 = ",
        ),
        (
            stranger.issue(&["example.org"], Validity::Now),
            "has an unknown issuer, CN=Stranger (trust",
        ),
        (
            impostor.issue(&["example.org"], Validity::Now),
            "another key than that of the trusted CN=Bosphorus test authority",
        ),
        (
            ca.issue(&["elsewhere.org", "*.elsewhere.org"], Validity::Now),
            "wrong name: not example.org, but elsewhere.org, *.elsewhere.org",
        ),
        (ca.issue(&["xmpp.example.org"], Validity::Now), "not example.org, but xmpp.example.org"),
        (ca.issue(&[], Validity::Now), "wrong name: not example.org, but none"),
    ];
    for (identity, text) in cases {
        for direct in [false, true] {
            let script = match direct {
                true => direct_tls(identity.server()),
                false => starttls(identity.server()),
            };
            let server = FakeServer::start(vec![script]).await;
            let mut client = to(&[&server]).ca(&ca);
            if direct {
                client = client.direct();
            }
            let fault = client.fault().await;
            assert_eq!((fault.label(), fault.blame()), ("tls_certificate", Blame::Server));
            assert!(fault.to_string().contains(text), "{fault}\nshould say: {text}");
            let candidate = format!("{}: the server's certificate", server.address);
            assert!(fault.to_string().starts_with(&candidate), "{fault}");
            let heard = server.until(0, |heard| heard.closed).await;
            assert_eq!(heard.secret, "");
        }
    }
}

/// UP-14: the certificate is checked against the domain even where SRV names another host.
#[tokio::test]
async fn a_certificate_for_the_srv_target_is_not_enough() {
    let ca = Ca::new();
    let target_only = ca.issue(&["xmpp.example.org"], Validity::Now);
    let server = FakeServer::start(vec![starttls(target_only.server())]).await;
    let dns = Zone::new()
        .srv("_xmpp-client._tcp.example.org", (0, 0, server.address.port()), "xmpp.example.org")
        .address("xmpp.example.org", "127.0.0.1")
        .serve()
        .await;
    let fault = over(&dns).ca(&ca).fault().await;
    let expected = format!(
        "xmpp.example.org:{} (127.0.0.1): the server's certificate has the wrong name: \
         not example.org, but xmpp.example.org",
        server.address.port()
    );
    assert_eq!(fault.to_string(), expected);
}

/// UP-14: a pinned key is enough, whatever the certificate says; another key is not.
#[tokio::test]
async fn a_pinned_key_is_trusted_and_no_other() {
    let identity = Identity::self_signed(&["whatever"]);
    let server = FakeServer::start(vec![starttls(identity.server())]).await;
    let pins = vec![[7; 32], identity.pin];
    assert!(to(&[&server]).trust(Trust::Pins(pins)).open().await.unwrap().secure);

    let fault = to(&[&server]).trust(Trust::Pins(vec![[7; 32]])).fault().await;
    assert_eq!(fault.label(), "tls_certificate");
    assert!(fault.to_string().contains("not a pinned one"), "{fault}");

    // What the text of a refusal proposes to pin is what would have worked.
    let fault = to(&[&server]).ca(&Ca::new()).fault().await;
    use base64::Engine as _;
    let proposed = base64::engine::general_purpose::STANDARD.encode(identity.pin);
    assert!(fault.to_string().contains(&format!("pin_sha256 = [\"{proposed}\"]")), "{fault}");
}

/// UP-14: anything goes when, and only when, that was asked for.
#[tokio::test]
async fn insecure_accepts_anything() {
    let server = FakeServer::start(vec![starttls(Identity::self_signed(&["x"]).server())]).await;
    let client = to(&[&server]).trust(Trust::Insecure);
    assert!(client.open().await.unwrap().secure);
    assert_eq!(
        Connector::new(client.settings(), Health::default()).unwrap().unverified_routes(),
        1
    );
    assert_eq!(
        Connector::new(to(&[]).settings(), Health::default()).unwrap().unverified_routes(),
        0
    );
}

/// UP-16: a client certificate is shown when configured, and not otherwise.
#[tokio::test]
async fn a_client_certificate_is_shown_if_configured() {
    let ca = Ca::new();
    let server = FakeServer::start(vec![starttls(ca.mutual(&trusted(&ca)))]).await;
    let (chain, key) = ca.issue(&["gateway.example.org"], Validity::Now).files();
    let mut client = to(&[&server]).ca(&ca);
    client.route.client_certificate =
        Some(ClientCertificate { chain: chain.clone(), key: key.clone() });
    assert!(client.open().await.unwrap().identified);
    assert!(server.heard(0).client_certificate);
    std::fs::remove_file(chain).unwrap();
    std::fs::remove_file(key).unwrap();

    assert!(to(&[&server]).ca(&ca).open().await.is_err());
    assert!(!server.until(1, |heard| heard.closed).await.client_certificate);
}

/// UP-12: bytes in clear text behind `<proceed/>` end it; the handshake does not even begin.
#[tokio::test]
async fn injected_bytes_end_the_connection() {
    for injected in [features_with_login(), " ".to_owned()] {
        let server = FakeServer::start(vec![vec![
            Do::Await("version='1.0'"),
            Do::Say(header() + &features_with_starttls()),
            Do::Await("<starttls"),
            Do::Say(PROCEED.to_owned() + &injected),
            Do::Listen,
        ]])
        .await;
        let fault = to(&[&server]).ca(&Ca::new()).fault().await;
        assert_eq!(fault.label(), "injected", "{fault}");
        let heard = server.until(0, |heard| heard.closed).await;
        assert!(heard.clear.ends_with("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>"));
    }
}

/// UP-13: required TLS that is not offered, or taken back, ends it before the client sees features.
#[tokio::test]
async fn required_tls_is_required() {
    let server = FakeServer::start(vec![plain()]).await;
    let fault = to(&[&server]).tls(TlsUse::Required).fault().await;
    assert_eq!(fault.label(), "tls_required");
    assert!(fault.to_string().contains("the server does not offer STARTTLS"), "{fault}");
    let heard = server.until(0, |heard| heard.closed).await;
    assert_eq!(heard.clear, format!("{OUR_HEADER} xml:lang='tr'>"));

    let server = FakeServer::start(vec![vec![
        Do::Await("version='1.0'"),
        Do::Say(header() + &features_with_starttls()),
        Do::Await("<starttls"),
        Do::Say(FAILURE.to_owned() + "</stream:stream>"),
        Do::Listen,
    ]])
    .await;
    let fault = to(&[&server]).tls(TlsUse::Required).fault().await;
    assert_eq!(fault.label(), "tls_refused");
    server.until(0, |heard| heard.closed).await;
}

/// UP-13: a failed handshake ends it even where TLS was optional, and nothing follows in clear text.
#[tokio::test]
async fn a_failed_handshake_is_the_end() {
    let server = FakeServer::start(vec![vec![
        Do::Await("version='1.0'"),
        Do::Say(header() + &features_with_starttls()),
        Do::Await("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>"),
        Do::Say(PROCEED.to_owned()),
        Do::Await("\u{1}"),
        Do::Say("<stream:features/>".to_owned()),
        Do::Listen,
    ]])
    .await;
    let fault = to(&[&server]).fault().await;
    assert_eq!(fault.label(), "tls_handshake", "{fault}");
    let heard = server.until(0, |heard| heard.closed).await;
    assert_eq!(heard.clear.matches("<stream:stream").count(), 1);
}

/// UP-13: before required TLS not even a stream error is believed; without it the client gets it.
#[tokio::test]
async fn a_stream_error_goes_to_the_client_once_tls_is_settled() {
    let error = "<host-unknown xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>";
    let script =
        vec![Do::Await("version='1.0'"), Do::Say(header() + &stream_error(error)), Do::Listen];
    let server = FakeServer::start(vec![script]).await;
    let established = to(&[&server]).open().await.unwrap();
    assert_eq!(String::from_utf8(established.unread).unwrap(), stream_error(error));

    let fault = to(&[&server]).tls(TlsUse::Required).fault().await;
    assert_eq!(fault.label(), "stream_error");
    assert!(fault.to_string().contains("the stream error host-unknown"), "{fault}");
}

/// UP-09: followed twice with the original domain in `to` and SNI; the third time it is the end.
#[tokio::test]
async fn see_other_host_is_followed_twice() {
    let ca = Ca::new();
    let last = FakeServer::start(vec![starttls(trusted(&ca).server())]).await;
    let second = FakeServer::start(vec![see_other_host(last.address)]).await;
    let first = FakeServer::start(vec![see_other_host(second.address)]).await;
    let established = to(&[&first]).ca(&ca).tls(TlsUse::Required).open().await.unwrap();
    assert!(established.secure);
    for server in [&first, &second, &last] {
        assert!(server.heard(0).clear.starts_with(OUR_HEADER));
    }
    assert_eq!(last.heard(0).sni.as_deref(), Some("example.org"));

    let zeroth = FakeServer::start(vec![see_other_host(first.address)]).await;
    let fault = to(&[&zeroth]).ca(&ca).tls(TlsUse::Required).fault().await;
    assert_eq!(fault.label(), "see_other_host_loop", "{fault}");
    assert_eq!(last.connections(), 1);
}

/// SEC-22, UP-09: a see-other-host leads no farther inside than the server that sends it, and must
/// name a host.
#[tokio::test]
async fn see_other_host_leads_nowhere_else() {
    for (to_where, label) in [
        ("169.254.169.254:80", "address_forbidden"),
        ("[::ffff:169.254.169.254]", "address_forbidden"),
        ("user@host", "see_other_host_bad"),
        ("127.0.0.1:0", "see_other_host_bad"),
        ("", "see_other_host_bad"),
    ] {
        let server = FakeServer::start(vec![see_other_host(to_where)]).await;
        let fault = to(&[&server]).fault().await;
        assert_eq!(fault.label(), label, "{to_where}: {fault}");
    }
}

/// UP-08: who does not answer is passed over, and the fault of one is not the fault of all.
#[tokio::test]
async fn the_next_candidate_is_tried() {
    let works = FakeServer::start(vec![plain()]).await;
    let hangs_up = FakeServer::start(vec![vec![Do::Close]]).await;
    let absent = FakeServer::absent();
    let client = to(&[&absent, &hangs_up, &works]);
    assert!(client.open().await.is_ok());
    assert_eq!((hangs_up.connections(), works.connections()), (1, 1));

    let (a, b) = (FakeServer::absent(), FakeServer::absent());
    let fault = to(&[&a, &b]).fault().await;
    assert_eq!(
        fault.to_string(),
        format!("{}: connection refused; {}: connection refused", a.address, b.address)
    );
    assert_eq!(fault.label(), "refused");
}

/// UP-08: a candidate that drops packets takes only its share of `connect_timeout`.
#[tokio::test]
async fn a_candidate_in_a_black_hole_leaves_time_for_the_next() {
    // Linux drops what does not fit into the queue of connections that wait to be accepted.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let hole = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = tokio::time::timeout(SOON, tokio::net::TcpStream::connect(hole)).await {
        waiting.push(stream.unwrap());
    }
    let works = FakeServer::start(vec![plain()]).await;
    let mut client = to(&[&works]);
    client.connect_timeout = 4 * SOON;
    client.precede(tcp(hole, false));
    assert!(client.open().await.is_ok());

    client.route.servers.truncate(1);
    client.connect_timeout = SOON;
    let fault = client.fault().await;
    assert_eq!(fault.to_string(), format!("{hole}: no connection within connect_timeout"));
    assert_eq!(fault.label(), "connect_timeout");
}

/// UP-08: a candidate that accepts and says nothing takes only its share, too, whichever kind of
/// TLS it is asked for; without another candidate it has all of `negotiation_timeout`.
#[tokio::test]
async fn a_silent_candidate_leaves_time_for_the_next() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = listener.local_addr().unwrap();
    for direct_tls in [false, true] {
        let works = FakeServer::start(vec![plain()]).await;
        let mut client = to(&[&works]);
        client.connect_timeout = 4 * SOON;
        client.precede(tcp(silent, direct_tls));
        assert!(client.open().await.is_ok(), "direct TLS: {direct_tls}");
    }
}

/// UP-08: a server that answered, well or not, is not retried elsewhere.
#[tokio::test]
async fn a_server_that_answered_is_final() {
    let other = FakeServer::start(vec![plain()]).await;
    for (answer, label) in [
        ("HTTP/1.1 400 Bad Request\r\n\r\n".to_owned(), "protocol"),
        (header().replace(" version='1.0' ", " "), "protocol"),
        (header() + "<message/>", "protocol"),
        (header() + "</stream:stream>", "closed"),
    ] {
        let script = vec![Do::Await("version='1.0'"), Do::Say(answer.clone()), Do::Close];
        let server = FakeServer::start(vec![script]).await;
        let fault = to(&[&server, &other]).fault().await;
        assert_eq!(fault.label(), label, "{answer}: {fault}");
    }
    // Its certificate is an answer too.
    let wrong = Ca::new().issue(&["example.org"], Validity::Now);
    let server = FakeServer::start(vec![direct_tls(wrong.server())]).await;
    let ca = Ca::new();
    let mut client = to(&[&server, &other]).ca(&ca);
    client.route.servers[0] = member(0, tcp(server.address, true));
    assert_eq!(client.fault().await.label(), "tls_certificate");
    assert_eq!(other.connections(), 0);
}

/// UP-06: both kinds of SRV record are one list, ordered by priority; each has its kind of TLS.
#[tokio::test]
async fn srv_records_of_both_kinds_are_merged() {
    let ca = Ca::new();
    let config = trusted(&ca).server();
    let offered = FakeServer::start_at("127.0.0.2:0", vec![starttls(config.clone())]).await;
    let direct = FakeServer::start_at("127.0.0.3:0", vec![direct_tls(config)]).await;
    let zone = |xmpps, xmpp| {
        Zone::new()
            .srv(
                "_xmpps-client._tcp.example.org",
                (xmpps, 0, direct.address.port()),
                "d.example.org",
            )
            .srv(
                "_xmpp-client._tcp.example.org",
                (xmpp, 0, offered.address.port()),
                "s.example.org",
            )
            .address("d.example.org", "127.0.0.3")
            .address("s.example.org", "127.0.0.2")
    };
    assert!(over(&zone(10, 5).serve().await).ca(&ca).open().await.unwrap().secure);
    assert_eq!((offered.connections(), direct.connections()), (1, 0));
    assert!(over(&zone(5, 10).serve().await).ca(&ca).open().await.unwrap().secure);
    assert_eq!((offered.connections(), direct.connections()), (1, 1));
    assert_eq!(direct.heard(0).alpn, ["xmpp-client"]);

    // Without TLS, direct TLS is not an option either.
    let dns = zone(5, 10).serve().await;
    assert!(!over(&dns).tls(TlsUse::Never).open().await.unwrap().secure);
    assert!(!dns.asked().iter().any(|query| query.contains("_xmpps-client")));
    assert_eq!(direct.connections(), 1);
}

/// UP-08: over SRV too, the next target is tried, and a target without an address is passed over.
#[tokio::test]
async fn the_next_srv_target_is_tried() {
    let works = FakeServer::start_at("127.0.0.2:0", vec![plain()]).await;
    let service = "_xmpp-client._tcp.example.org";
    let absent = FakeServer::absent();
    let dns = Zone::new()
        .srv(service, (1, 0, 5222), "nowhere.example.org")
        .srv(service, (2, 0, absent.address.port()), "closed.example.org")
        .srv(service, (3, 0, works.address.port()), "works.example.org")
        .address("closed.example.org", "127.0.0.1")
        .address("works.example.org", "127.0.0.2")
        .serve()
        .await;
    assert!(over(&dns).open().await.is_ok());
}

/// UP-07: without any SRV record the domain itself is tried, on port 5222.
#[tokio::test]
async fn the_domain_itself_is_the_fallback() {
    let server = FakeServer::start_at("127.77.0.1:5222", vec![plain()]).await;
    let dns = Zone::new().address("example.org", "127.77.0.1").serve().await;
    assert!(over(&dns).open().await.is_ok());
    assert_eq!(server.connections(), 1);
}

/// UP-07: a target `.`, or a set that could not be fetched, forbids the fallback.
#[tokio::test]
async fn there_is_no_fallback_past_srv_records() {
    let server = FakeServer::start_at("127.77.0.2:5222", vec![plain()]).await;
    let (xmpps, xmpp) = ("_xmpps-client._tcp.example.org", "_xmpp-client._tcp.example.org");
    let zone = || Zone::new().address("example.org", "127.77.0.2");
    for (zone, text) in [
        (zone().srv(xmpps, (0, 0, 0), "."), "no such service"),
        (zone().srv(xmpp, (0, 0, 0), "."), "no such service"),
        (zone().srv(xmpp, (0, 0, 5222), "gone.example.org"), "it has no address in DNS"),
        (zone().failing(xmpp), "_xmpp-client lookup failed"),
        (zone().failing(xmpps), "_xmpps-client lookup failed"),
    ] {
        let fault = over(&zone.serve().await).fault().await;
        assert_eq!(fault.label(), "dns");
        assert!(fault.to_string().contains(text), "{fault}");
    }
    assert_eq!(server.connections(), 0);
}

/// UP-07: "not this kind" says nothing about the other kind.
#[tokio::test]
async fn a_root_target_rules_out_its_own_kind_only() {
    let server = FakeServer::start(vec![plain()]).await;
    let dns = Zone::new()
        .srv("_xmpps-client._tcp.example.org", (0, 0, 0), ".")
        .srv("_xmpp-client._tcp.example.org", (0, 0, server.address.port()), "s.example.org")
        .address("s.example.org", "127.0.0.1")
        .serve()
        .await;
    assert!(over(&dns).open().await.is_ok());
}

/// SEC-22: DNS does not lead inside unless that is allowed; a domain that is not served is not even
/// looked up.
#[tokio::test]
async fn dns_does_not_lead_inside() {
    let server = FakeServer::start(vec![plain()]).await;
    for inside in ["127.0.0.1", "169.254.169.254", "10.0.0.1", "::1", "fd00::1"] {
        let dns = Zone::new()
            .srv("_xmpp-client._tcp.example.org", (0, 0, server.address.port()), "s.example.org")
            .address("s.example.org", inside)
            .serve()
            .await;
        let mut client = over(&dns);
        client.allow_private = false;
        let fault = client.fault().await;
        assert_eq!(fault.label(), "address_forbidden");
        assert!(fault.to_string().contains(&format!("leads to {inside},")), "{fault}");

        let asked = dns.asked().len();
        client.to = "localhost";
        let fault = client.fault().await;
        assert_eq!((fault.label(), fault.blame()), ("host_not_served", Blame::Client));
        assert_eq!(dns.asked().len(), asked);
    }
    assert_eq!(server.connections(), 0);
}

/// UP-02: a configured address needs no DNS; a configured name is resolved, wherever it leads.
#[tokio::test]
async fn configured_servers_need_no_srv() {
    let server = FakeServer::start(vec![plain()]).await;
    let dns = Zone::new().address("xmpp.internal", "127.0.0.1").serve().await;
    let mut client = to(&[&server]);
    client.dns = vec![dns.address];
    client.open().await.unwrap();
    assert_eq!(dns.asked(), [""; 0]);

    let host = "xmpp.internal".to_owned();
    let named = Server::Tcp { host, port: server.address.port(), direct_tls: false };
    client.route.servers = vec![member(0, named)];
    client.open().await.unwrap();
    assert!(!dns.asked().iter().any(|query| query.starts_with("SRV")), "{:?}", dns.asked());
}

/// UP-02: domains without a name of their own go where the fallback says.
#[tokio::test]
async fn other_domains_take_the_fallback_route() {
    let server = FakeServer::start(vec![plain()]).await;
    let client = to(&[&server]);
    let mut settings = client.settings();
    settings.routes.any = std::mem::take(&mut settings.routes.named).into_values().next();
    let connector = Connector::new(settings.clone(), Health::default()).unwrap();
    let domain = Domain::parse("other.example").unwrap();
    assert!(connector.serves(&domain));
    let request = OpenRequest { domain, from: None, lang: None };
    assert!(connector.open(&request, &upstream::Client::default()).await.is_ok());
    assert!(server.heard(0).clear.contains(" to='other.example' "));

    settings.routes.any.as_mut().unwrap().servers.clear();
    assert!(Connector::new(settings, Health::default()).is_err());
}

/// UP-02, SEC-22: a suffix is for what is below it, in `to` and in SNI too; without servers it is
/// refused, and a domain that no route is for is not connected anywhere.
#[tokio::test]
async fn domains_below_a_suffix_take_its_route() {
    let ca = Ca::new();
    let identity = ca.issue(&["*.example.org"], Validity::Now);
    let server = FakeServer::start(vec![starttls(identity.server())]).await;
    let mut settings = to(&[&server]).ca(&ca).settings();
    settings.routes.suffixes = std::mem::take(&mut settings.routes.named);
    let connector = Connector::new(settings.clone(), Health::default()).unwrap();
    let open = async |name: &str| {
        let domain = Domain::parse(name).unwrap();
        assert_eq!(connector.serves(&domain), name.ends_with(".example.org"), "{name}");
        let request = OpenRequest { domain, from: None, lang: None };
        connector.open(&request, &upstream::Client::default()).await
    };
    assert!(open("a.example.org").await.unwrap().secure);
    assert!(server.heard(0).clear.contains(" to='a.example.org' "));
    assert_eq!(server.heard(0).sni.as_deref(), Some("a.example.org"));
    // The certificate is for one level: it is the client's domain that counts, not the route's.
    assert_eq!(open("b.a.example.org").await.unwrap_err().label(), "tls_certificate");
    for name in ["example.org", "notexample.org", "127.0.0.1"] {
        assert_eq!(open(name).await.unwrap_err().label(), "host_not_served", "{name}");
    }
    assert_eq!(server.connections(), 2);

    settings.routes.suffixes.values_mut().for_each(|route| route.servers.clear());
    assert!(Connector::new(settings, Health::default()).is_err());
}

/// UP-08: who failed is left alone by the sessions that follow, until its time is over; then it is
/// tried again. Where all have failed, all are tried.
#[tokio::test]
async fn a_server_that_failed_goes_last() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let works = FakeServer::start(vec![plain()]).await;
    let mut client = to(&[&works]);
    client.connect_timeout = 4 * SOON;
    client.backoff.least = Duration::from_secs(60);
    client.precede(tcp(silent.local_addr().unwrap(), false));
    client.open().await.unwrap();
    let again = async {
        for _ in 0..5 {
            client.open().await.unwrap();
        }
    };
    tokio::time::timeout(SOON, again).await.expect("nobody waits for the silent one");
    assert_eq!(works.connections(), 6);

    let (a, b) = (FakeServer::absent(), FakeServer::absent());
    let client = to(&[&a, &b]);
    for _ in 0..2 {
        let fault = client.fault().await.to_string();
        assert_eq!(fault.matches("connection refused").count(), 2, "{fault}");
    }
}

/// UP-08: a server that is back is found by one session at the end of the wait, and gets all of
/// them again.
#[tokio::test]
async fn a_server_that_is_back_is_found() {
    let works = FakeServer::start(vec![plain()]).await;
    let returns = FakeServer::start(vec![vec![Do::Close], plain()]).await;
    let mut client = to(&[&returns, &works]);
    client.backoff =
        Backoff { least: Duration::from_millis(50), slow_start: Duration::ZERO, ..client.backoff };
    client.open().await.unwrap();
    assert_eq!((returns.connections(), works.connections()), (1, 1));
    let found = async {
        while returns.connections() < 2 {
            client.open().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, found).await.expect("it is tried again");
    let others = works.connections();
    for _ in 0..5 {
        client.open().await.unwrap();
    }
    assert_eq!((returns.connections(), works.connections()), (7, others));
}

/// UP-06, UP-08: what DNS named is remembered in the same way: names, and the addresses of one.
#[tokio::test]
async fn srv_targets_that_failed_go_last() {
    let silent = tokio::net::TcpListener::bind("127.0.0.2:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let _works = FakeServer::start_at(&format!("127.0.0.3:{port}"), vec![plain()]).await;
    let service = "_xmpp-client._tcp.example.org";
    let two_names = Zone::new()
        .srv(service, (1, 0, port), "silent.example.org")
        .srv(service, (2, 0, port), "works.example.org")
        .address("silent.example.org", "127.0.0.2")
        .address("works.example.org", "127.0.0.3");
    let two_addresses = Zone::new()
        .srv(service, (1, 0, port), "both.example.org")
        .address("both.example.org", "127.0.0.2")
        .address("both.example.org", "127.0.0.3");
    for zone in [two_names, two_addresses] {
        let dns = zone.serve().await;
        let mut client = over(&dns);
        client.connect_timeout = 4 * SOON;
        client.backoff.least = Duration::from_secs(60);
        client.open().await.unwrap();
        let again = async {
            for _ in 0..5 {
                client.open().await.unwrap();
            }
        };
        tokio::time::timeout(SOON, again).await.expect("nobody waits for the silent one");
    }
}

/// SEC-21: the header comes before XML, and names the client; version 1 and 2, and an IPv6 client of
/// a server that has IPv4.
#[tokio::test]
async fn the_server_is_told_the_client() {
    let server = FakeServer::start(vec![plain()]).await;
    let mut client = to(&[&server]);
    let mut opened = 0;
    let mut heard = async |client: &Client| {
        client.open().await.unwrap();
        opened += 1;
        server.heard(opened - 1)
    };
    client.route.servers[0].proxy_protocol = ProxyProtocol::V1;
    let unknown = heard(&client).await.clear;
    assert_eq!(unknown, format!("PROXY UNKNOWN\r\n{OUR_HEADER} xml:lang='tr'>"));
    client.client = upstream::Client {
        address: "192.0.2.77:7777".parse().ok(),
        local: "198.51.100.1:443".parse().ok(),
        secure: true,
        id: 42,
    };
    let known = heard(&client).await.clear;
    assert!(known.starts_with("PROXY TCP4 192.0.2.77 198.51.100.1 7777 443\r\n<?xml"), "{known}");
    client.client.address = "[2001:db8::7]:7777".parse().ok();
    let mixed = heard(&client).await.clear;
    let line = "PROXY TCP6 2001:db8::7 ::ffff:198.51.100.1 7777 443\r\n<?xml";
    assert!(mixed.starts_with(line), "{mixed}");

    client.route.servers[0].proxy_protocol = ProxyProtocol::V2;
    let bytes = heard(&client).await.bytes;
    let (header, length) = ProxyHeader::parse(&bytes, ParseConfig::default()).unwrap();
    assert!(bytes[length..].starts_with(b"<?xml"));
    let addresses = header.proxied_address().unwrap();
    assert_eq!(addresses.source, client.client.address.unwrap());
    assert_eq!(addresses.destination, "[::ffff:198.51.100.1]:443".parse().unwrap());
    assert_eq!(header.authority(), Some("example.org"));
    assert_eq!(header.unique_id(), Some(&b"00000000002a"[..]));
    assert!(header.ssl().unwrap().client_ssl() && header.crc32c().is_some());

    // Where the socket that the client came by is not known, the server's is named.
    client.client = upstream::Client { local: None, ..client.client };
    let bytes = heard(&client).await.bytes;
    let (header, _) = ProxyHeader::parse(&bytes, ParseConfig::default()).unwrap();
    let mapped = format!("[::ffff:127.0.0.1]:{}", server.address.port());
    assert_eq!(header.proxied_address().unwrap().destination, mapped.parse().unwrap());

    client.client = upstream::Client::default();
    let bytes = heard(&client).await.bytes;
    assert!(bytes.starts_with(b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0<?xml"), "{bytes:?}");
}

/// SEC-21: the header comes before TLS, too, and is not repeated within.
#[tokio::test]
async fn the_client_is_told_before_tls() {
    let ca = Ca::new();
    let mut script = vec![Do::Line];
    script.extend(direct_tls(trusted(&ca).server()));
    let server = FakeServer::start(vec![script]).await;
    let mut client = to(&[&server]).direct().ca(&ca);
    client.route.servers[0].proxy_protocol = ProxyProtocol::V1;
    client.client.address = "192.0.2.77:7777".parse().ok();
    assert!(client.open().await.unwrap().secure);
    let heard = server.heard(0);
    let port = server.address.port();
    assert_eq!(heard.clear, format!("PROXY TCP4 192.0.2.77 127.0.0.1 7777 {port}\r\n"));
    assert!(heard.secret.starts_with(OUR_HEADER));
}

/// UP-06: the resolver serves every worker's runtime, and outlives each of them.
#[test]
fn the_resolver_is_bound_to_no_runtime() {
    const NAMES: [&str; 3] = ["one.example", "two.example", "three.example"];
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let servers = runtime();
    let (server, dns) = servers.block_on(async {
        let server = FakeServer::start(vec![plain()]).await;
        let mut zone = Zone::new();
        for name in NAMES {
            let srv = (0, 0, server.address.port());
            zone = zone.srv(&format!("_xmpp-client._tcp.{name}"), srv, name);
            zone = zone.address(name, "127.0.0.1");
        }
        (server, zone.serve().await)
    });
    std::thread::spawn(move || servers.block_on(std::future::pending::<()>()));
    let mut settings = over(&dns).settings();
    let route = settings.routes.values().next().unwrap().clone();
    let domains = NAMES.map(|name| Domain::parse(name).unwrap());
    settings.routes.named = domains.iter().map(|domain| (domain.clone(), route.clone())).collect();
    let connector = Connector::new(settings, Health::default()).unwrap();
    for domain in domains {
        let request = OpenRequest { domain, from: None, lang: None };
        runtime().block_on(connector.open(&request, &upstream::Client::default())).unwrap();
    }
    assert_eq!(server.connections(), NAMES.len());
}

/// UP-08: the negotiation has an end, and the fault says how far it came.
#[tokio::test]
async fn negotiation_has_an_end() {
    let (nothing, header_alone, no_tls) = tokio::join!(
        fault_after(String::new(), false),
        fault_after(header(), false),
        fault_after(String::new(), true),
    );
    assert!(nothing.contains("(we waited for the stream header)"), "{nothing}");
    assert!(header_alone.contains("(we waited for stream features)"), "{header_alone}");
    assert!(no_tls.contains("(we negotiated TLS)"), "{no_tls}");
}

/// UP-08: lookups are part of `connect_timeout`.
#[tokio::test]
async fn looking_up_has_an_end() {
    let dns = Zone::silent().serve().await;
    let mut client = over(&dns);
    client.connect_timeout = SOON;
    let fault = client.fault().await;
    assert_eq!(fault.label(), "dns", "{fault}");
}

/// UP-22: over a Unix socket, TLS is used if offered and not missed otherwise.
#[tokio::test]
async fn a_unix_socket_will_do() {
    let ca = Ca::new();
    let scripts = vec![plain(), starttls(trusted(&ca).server())];
    let path = temporary_path("xmpp.sock");
    let server = FakeServer::start_unix(&path, scripts).await;
    let mut client = to(&[]).ca(&ca);
    client.route.servers = vec![member(0, Server::Unix(path.clone()))];
    assert!(!client.open().await.unwrap().secure);
    assert!(client.open().await.unwrap().secure);
    assert_eq!(server.heard(1).sni.as_deref(), Some("example.org"));
    std::fs::remove_file(&path).unwrap();
    let fault = client.fault().await;
    assert!(fault.to_string().starts_with(&format!("unix:{}: ", path.display())), "{fault}");
}

/// UP-11: however the bytes arrive, nothing behind the first element is lost.
#[tokio::test]
async fn what_follows_the_features_is_handed_over() {
    let behind = "<message><body>early</body></message><iq ";
    let whole = header() + &features_with_login() + behind;
    let mut drops = vec![Do::Await("version='1.0'")];
    drops.extend(whole.chars().map(|c| Do::Say(c.to_string())));
    drops.push(Do::Listen);
    let at_once = vec![Do::Await("version='1.0'"), Do::Say(whole.clone()), Do::Listen];
    let server = FakeServer::start(vec![at_once, drops]).await;
    for _ in 0..2 {
        let mut established = to(&[&server]).open().await.unwrap();
        let mut read = established.unread;
        let expected = features_with_login() + behind;
        while read.len() < expected.len() {
            assert_ne!(established.io.read_buf(&mut read).await.unwrap(), 0);
        }
        assert_eq!(String::from_utf8(read).unwrap(), expected);
    }
}

/// UP-01: every stream has a connection of its own, and dropping one leaves the others.
#[tokio::test]
async fn connections_are_not_shared() {
    let server = FakeServer::start(vec![plain()]).await;
    let connector = Connector::new(to(&[&server]).settings(), Health::default()).unwrap();
    let request = to(&[&server]).request();
    let one = connector.open(&request, &upstream::Client::default()).await.unwrap();
    let _two = connector.open(&request, &upstream::Client::default()).await.unwrap();
    let _three = connector.open(&request, &upstream::Client::default()).await.unwrap();
    assert_eq!(server.connections(), 3);
    drop(one);
    server.until(0, |heard| heard.closed).await;
    assert!(!server.heard(1).closed && !server.heard(2).closed);
}

/// A file that does not hold what it should stops the start, and is named.
#[tokio::test]
async fn files_of_no_use_are_refused_at_the_start() {
    let path = common::pki::temporary_file("empty.pem", "");
    for file in [path.clone(), temporary_path("absent.pem")] {
        let client = to(&[]).trust(Trust::CaFile(file.clone()));
        let error = Connector::new(client.settings(), Health::default()).unwrap_err();
        assert!(error.to_string().starts_with(&file.display().to_string()), "{error}");
    }
    std::fs::remove_file(path).unwrap();
}

/// How a test asks for a stream to `example.org`.
struct Client {
    route: Route,
    dns: Vec<SocketAddr>,
    allow_private: bool,
    connect_timeout: Duration,
    negotiation_timeout: Duration,
    to: &'static str,
    backoff: Backoff,
    client: upstream::Client,
    health: Health,
}

/// Through these servers, in this order.
fn to(servers: &[&FakeServer]) -> Client {
    Client {
        route: Route {
            servers: (0..).zip(servers).map(|(n, to)| member(n, tcp(to.address, false))).collect(),
            tls: TlsUse::Auto,
            trust: Trust::System,
            client_certificate: None,
        },
        dns: vec![([127, 0, 0, 1], 1).into()],
        allow_private: false,
        connect_timeout: PATIENCE,
        negotiation_timeout: PATIENCE,
        to: "example.org",
        backoff: Backoff::default(),
        client: upstream::Client::default(),
        health: Health::default(),
    }
}

/// Through DNS alone, which may lead to loopback.
fn over(dns: &Dns) -> Client {
    Client { dns: vec![dns.address], allow_private: true, ..to(&[]) }
}

impl Client {
    fn tls(mut self, tls: TlsUse) -> Self {
        self.route.tls = tls;
        self
    }

    fn trust(mut self, trust: Trust) -> Self {
        self.route.trust = trust;
        self
    }

    fn ca(self, ca: &Ca) -> Self {
        self.trust(Trust::CaFile(ca.file()))
    }

    fn direct(mut self) -> Self {
        for server in &mut self.route.servers {
            if let Server::Tcp { direct_tls, .. } = &mut server.server {
                *direct_tls = true;
            }
        }
        self
    }

    /// Puts a server before the others.
    fn precede(&mut self, server: Server) {
        self.route.servers.insert(0, member(0, server));
        for (member, n) in self.route.servers.iter_mut().zip(0..) {
            member.priority = n;
        }
    }

    fn settings(&self) -> Settings {
        Settings {
            routes: ByDomain {
                named: [(Domain::parse("example.org").unwrap(), self.route.clone())].into(),
                ..ByDomain::default()
            },
            dns: self.dns.clone(),
            allow_private: self.allow_private,
            connect_timeout: self.connect_timeout,
            negotiation_timeout: self.negotiation_timeout,
            backoff: self.backoff,
            limits: Limits::SERVER,
        }
    }

    fn request(&self) -> OpenRequest {
        OpenRequest {
            domain: Domain::parse(self.to).unwrap(),
            from: Some("ayse@example.org".into()),
            lang: Some("tr".into()),
        }
    }

    fn connector(&self) -> Connector {
        Connector::new(self.settings(), self.health.clone()).unwrap()
    }

    async fn open(&self) -> Result<Established, ConnectFault> {
        self.connector().open(&self.request(), &self.client).await
    }

    async fn fault(&self) -> ConnectFault {
        self.open().await.map(|_| ()).unwrap_err()
    }
}

/// The fault in front of a server that says `said` and then nothing.
async fn fault_after(said: String, direct: bool) -> String {
    let server = FakeServer::start(vec![vec![Do::Say(said), Do::Listen]]).await;
    let mut client = to(&[&server]);
    if direct {
        client = client.direct();
    }
    client.negotiation_timeout = SOON;
    let fault = client.fault().await;
    assert_eq!(fault.label(), "negotiation_timeout");
    server.until(0, |heard| heard.closed).await;
    fault.to_string()
}

/// A member of a route as a plain list has it at place `n`.
fn member(n: u16, server: Server) -> Member {
    Member { server, priority: n, weight: 1, proxy_protocol: ProxyProtocol::Off }
}

fn tcp(address: SocketAddr, direct_tls: bool) -> Server {
    Server::Tcp { host: address.ip().to_string(), port: address.port(), direct_tls }
}

fn trusted(ca: &Ca) -> Identity {
    ca.issue(&["example.org"], Validity::Now)
}

/// Long enough for a loopback exchange to be under way, short enough to wait for.
const SOON: Duration = Duration::from_secs(1);
