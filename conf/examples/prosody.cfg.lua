-- Prosody behind Bosphorus; a whole file, of which a Prosody that runs already needs the lines with c2s_. Written for
-- Prosody 0.12 of Debian 12. The gateway's side is prosody.toml beside this file, which also says how to get a certificate.
-- Without further modules Prosody reads no PROXY header: to it, all clients have the gateway's address.

data_path = "/var/lib/prosody"
pidfile = "/run/prosody/prosody.pid"
log = { info = "/var/log/prosody/prosody.log" }
certificates = "certs"

modules_enabled = {
	"roster"; "saslauth"; "tls"; "dialback"; "disco"; "blocklist"; "bookmarks"; "carbons"; "csi_simple"; "pep"; "ping";
	"private"; "vcard4"; "vcard_legacy"; "posix";
	-- Sessions that are resumed, through the same gateway or another.
	"smacks";
}

-- For Bosphorus alone; leave it out if clients connect directly, too.
c2s_interfaces = { "127.0.0.1" }
c2s_ports = { 5222 }
-- Prosody offers no login without TLS, on loopback neither.
c2s_require_encryption = true
-- limits.element_bytes of Bosphorus, which is Prosody's own value.
c2s_stanza_size_limit = 262144
s2s_secure_auth = true
authentication = "internal_hashed"

-- Not "limits", whose rate of 10 kB/s for each connection is little for a web client that loads an archive.

VirtualHost "example.org"
