//! What the families are called, and what they say.

/// Name, help, names of the labels.
pub(in crate::metrics) type Family = (&'static str, &'static str, &'static [&'static str]);

pub(super) const ELEMENTS: Family = (
    "bosphorus_stanzas_total",
    "Top-level elements passed; kind nonza is all that is no stanza",
    &["transport", "direction", "kind"],
);
pub(super) const PAYLOAD: Family = (
    "bosphorus_payload_bytes_total",
    "Bytes of the elements passed, without frame heads, TLS and TCP",
    &["transport", "direction"],
);
pub(super) const WIRE: Family = (
    "bosphorus_wire_bytes_total",
    "Bytes of client connections as the kernel took and gave them: TLS, HTTP heads and frame heads \
     included, TCP and IP heads not; transport none is what carried no session",
    &["transport", "http", "direction"],
);
pub(super) const CONNECTIONS: Family = (
    "bosphorus_client_connections_total",
    "Connections of clients, counted when it is known what they carry, or at their end; one that a \
     proxy uses for both transports is one of each",
    &["transport", "http"],
);
pub(super) const HANDSHAKES: Family = (
    "bosphorus_client_tls_handshakes_total",
    "TLS handshakes of clients that came to their end, counted when it is known what the connection \
     carries, or at its end; one that resumes an earlier session costs no signature",
    &["transport", "http", "resumed"],
);
pub(super) const RTT: Family = (
    "bosphorus_client_rtt_seconds",
    "Smoothed round-trip time of TCP as the kernel has it (Linux), of connections that carry sessions: \
     read at their end, and at most once a minute while something passes; behind a proxy that to \
     the proxy",
    &["transport", "http"],
);
pub(super) const RETRANSMITS: Family = (
    "bosphorus_client_retransmits_total",
    "TCP segments that the kernel has sent to clients more than once (Linux), of connections that \
     carried sessions, counted at their end",
    &["transport", "http"],
);
pub(super) const REQUESTS: Family = (
    "bosphorus_http_requests_total",
    "HTTP requests that sessions got: POSTs of BOSH, upgrades after which a stream was opened",
    &["transport", "http"],
);
pub(super) const DELIVERY: Family = (
    "bosphorus_delivery_seconds",
    "Time of an element from the last byte read on one side to the last byte handed to the kernel \
     on the other; over BOSH the wait for a request is part of it. What never arrived, or only in a \
     repeated response, is not in it",
    &["transport", "direction"],
);
pub(super) const WAITS: Family = (
    "bosphorus_bosh_wait_seconds",
    "Time that an element of the server waited for a BOSH request that it could answer",
    &[],
);

pub(super) const UNDELIVERED: Family = (
    "bosphorus_undelivered_total",
    "Elements for clients that were given up at the end of their session",
    &["transport"],
);
pub(super) const SILENCE: Family = (
    "bosphorus_client_silence_seconds",
    "Time from the last byte of a client that was lost until that was noticed",
    &["transport"],
);

pub(super) const RETURNS: Family = (
    "bosphorus_reconnects_total",
    "Logins of users of whom a session had been dropped within the minute before",
    &["transport"],
);
pub(super) const BOUND: Family = (
    "bosphorus_session_bound_seconds",
    "Time from the connection of a client, or from its request for a session on one that was there \
     already, until it could send stanzas",
    &["transport"],
);

pub(super) const BOSH_REQUESTS: Family =
    ("bosphorus_bosh_requests_total", "Requests that sessions took in the order of their rid", &[]);
pub(super) const BOSH_RESPONSES: Family = (
    "bosphorus_bosh_responses_total",
    "Responses of sessions, by why they were sent then",
    &["why"],
);
pub(super) const BOSH_OPEN: Family = (
    "bosphorus_bosh_requests_open",
    "HTTP requests open now: being read, or held for an answer",
    &[],
);

pub(super) const CPU: Family = (
    "bosphorus_cpu_seconds_total",
    "Processor time of the connections and sessions, estimated from one of 64 of their polls; \
     transport none is what carried no session. What is in none of them is the process's own: its \
     event loops, accepting, DNS, scrapes",
    &["transport"],
);

pub(super) const FIRST: Family = (
    "bosphorus_first_stanza_seconds",
    "Time from the beginning of bosphorus_session_bound_seconds until the first stanza of the server \
     behind the binding was handed to the kernel for the client",
    &["transport"],
);

pub(super) const FAMILIES: [Family; 19] = [
    ELEMENTS,
    PAYLOAD,
    WIRE,
    CONNECTIONS,
    HANDSHAKES,
    RTT,
    RETRANSMITS,
    REQUESTS,
    DELIVERY,
    WAITS,
    UNDELIVERED,
    RETURNS,
    SILENCE,
    BOUND,
    BOSH_REQUESTS,
    BOSH_RESPONSES,
    BOSH_OPEN,
    CPU,
    FIRST,
];
