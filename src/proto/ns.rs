//! XML namespaces as constants, named after their last telling part.

/// RFC 6120 section 4.8.2: stanzas between client and server.
pub const CLIENT: &str = "jabber:client";
/// RFC 6120 section 4.8.1: the stream element itself, its features and errors.
pub const STREAMS: &str = "http://etherx.jabber.org/streams";
/// RFC 6120 section 4.9.2: the conditions inside a stream error.
pub const STREAM_ERRORS: &str = "urn:ietf:params:xml:ns:xmpp-streams";
/// RFC 6120 section 8.3.2: the conditions inside a stanza error.
pub const STANZA_ERRORS: &str = "urn:ietf:params:xml:ns:xmpp-stanzas";
/// RFC 7395 section 3.3.2: `<open/>` and `<close/>` of the WebSocket framing.
pub const FRAMING: &str = "urn:ietf:params:xml:ns:xmpp-framing";
/// RFC 6120 section 6: SASL.
pub const SASL: &str = "urn:ietf:params:xml:ns:xmpp-sasl";
/// XEP-0388: Extensible SASL Profile.
pub const SASL2: &str = "urn:xmpp:sasl:2";
/// XEP-0440: SASL channel-binding type capability.
pub const SASL_CB: &str = "urn:xmpp:sasl-cb:0";
/// XEP-0484: Fast Authentication Streamlining Tokens.
pub const FAST: &str = "urn:xmpp:fast:0";
/// RFC 6120 section 7: resource binding.
pub const BIND: &str = "urn:ietf:params:xml:ns:xmpp-bind";
/// XEP-0386: Bind 2.
pub const BIND2: &str = "urn:xmpp:bind:0";
/// Bind 2 as it was named in drafts, which servers of that time still speak.
pub const BIND2_DRAFT: &str = "urn:xmpp:bind2:1";
/// XEP-0078: logins without SASL.
pub const IQ_AUTH: &str = "jabber:iq:auth";
/// XEP-0280: message carbons.
pub const CARBONS: &str = "urn:xmpp:carbons:2";
/// XEP-0198, the older version still offered by Prosody.
pub const SM2: &str = "urn:xmpp:sm:2";
/// XEP-0198: stream management.
pub const SM3: &str = "urn:xmpp:sm:3";
/// RFC 6120 section 5: STARTTLS.
pub const TLS: &str = "urn:ietf:params:xml:ns:xmpp-tls";
/// XEP-0138: the negotiation elements of stream compression.
pub const COMPRESS: &str = "http://jabber.org/protocol/compress";
/// XEP-0138: stream compression as a stream feature.
pub const COMPRESS_FEATURE: &str = "http://jabber.org/features/compress";
/// XEP-0124: BOSH `<body/>`.
pub const HTTPBIND: &str = "http://jabber.org/protocol/httpbind";
/// XEP-0206: XMPP attributes on BOSH `<body/>`.
pub const XBOSH: &str = "urn:xmpp:xbosh";
/// Namespaces in XML 1.0 section 3: what the prefix `xml` is bound to.
pub const XML: &str = "http://www.w3.org/XML/1998/namespace";
/// Namespaces in XML 1.0 section 3: what the prefix `xmlns` is bound to.
pub const XMLNS: &str = "http://www.w3.org/2000/xmlns/";
/// Ours: the attribute `reason` of the BOSH `<body/>` that ends a session.
pub const REASON: &str = "urn:bosphorus:reason";
/// Ours (UP-36): what a prefix is bound to that the server forwarded without its declaration.
pub const UNDECLARED: &str = "urn:bosphorus:undeclared";
