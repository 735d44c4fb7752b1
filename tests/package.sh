#!/usr/bin/env bash
# Builds the Debian package, installs it, runs the unit's command as its user, logs in through it,
# and removes it again. Needs root, cargo-deb and minutes, so that it is not among `cargo test`:
#
#   tests/package.sh
#
# Where something is missing it says so and does nothing. What is installed meanwhile is the package
# `bosphorus` and the user of that name, nothing else; ports are 15222, 15280 and 19280 on loopback.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '%s\n' "tests/package.sh: $*"; }
skip() { say "SKIPPED: $*"; exit 0; }
fail() { say "FAILED: $*" >&2; exit 1; }

cargo=${CARGO:-cargo}
"$cargo" deb --version >/dev/null 2>&1 || skip "cargo-deb is not installed (cargo install cargo-deb)"
for tool in dpkg adduser curl setpriv python3; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "$tool" >/dev/null || skip "$tool is not installed"
done
[ "$(id -u)" = 0 ] || skip "dpkg needs root"
! dpkg -s bosphorus >/dev/null 2>&1 || skip "a package bosphorus is installed already"

work=$(mktemp -d)
pids=()
clean() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    dpkg --purge bosphorus >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap clean EXIT

say "building the package"
"$cargo" deb --locked --output "$work/bosphorus.deb" ${CARGO_DEB_ARGUMENTS:-}
dpkg-deb --contents "$work/bosphorus.deb"

say "installing it"
dpkg -i "$work/bosphorus.deb"
[ "$(stat -c '%U:%G %a' /etc/bosphorus/bosphorus.toml)" = "root:bosphorus 640" ] || fail "the configuration's owner"
unit=$(dpkg -L bosphorus | grep '/bosphorus\.service$') || fail "no unit"
command=$(sed -n 's/^ExecStart=//p' "$unit")

if command -v systemd-analyze >/dev/null; then
    systemd-analyze verify "$unit" || fail "systemd-analyze verify"
    systemd-analyze security --offline=true "$unit" | tail -n 1
fi

say "running $command as bosphorus"
/usr/bin/bosphorus demo-server --listen 127.0.0.1:15222 & pids+=($!)
chmod 755 "$work"
python3 - "$work/notify" > "$work/heard" <<'PYTHON' & pids+=($!)
import os, socket, sys
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o777)
while True:
    print(manager.recv(4096).decode().replace("\n", " "), flush=True)
PYTHON
wait_for() {
    local left=200
    until eval "$1"; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || { cat "$work/heard" "$work/log"; fail "waited in vain for: $1"; }
        sleep 0.05
    done
}
wait_for '[ -S "$work/notify" ]'
export NOTIFY_SOCKET="$work/notify" BOSPHORUS__LISTEN__ADDRESSES=127.0.0.1:15280 \
    BOSPHORUS__ADMIN__ADDRESS=127.0.0.1:19280 BOSPHORUS__DOMAINS__LOCALHOST__SERVERS=127.0.0.1:15222
# The unit has no shell either: its words are separated by blanks.
# shellcheck disable=SC2086
setpriv --reuid=bosphorus --regid=bosphorus --clear-groups --no-new-privs $command 2> "$work/log" &
gateway=$!
pids+=("$gateway")
wait_for 'grep -q READY=1 "$work/heard"'
curl -fsS http://127.0.0.1:19280/ready

say "a login"
python3 - <<'PYTHON'
import base64, re, urllib.request
rid, sid = 1000, ""
def ask(attributes, payload=""):
    global rid
    rid += 1
    body = f"<body xmlns='http://jabber.org/protocol/httpbind' rid='{rid}'{sid} {attributes}>{payload}</body>"
    request = urllib.request.Request("http://127.0.0.1:15280/http-bind", body.encode(), {"Content-Type": "text/xml"})
    return urllib.request.urlopen(request, timeout=20).read().decode()
made = ask("to='localhost' wait='10' hold='1' ver='1.11' xmpp:version='1.0' xmlns:xmpp='urn:xmpp:xbosh'")
sid = " sid='" + re.search("sid=.([^'\"]*)", made)[1] + "'"
plain = base64.b64encode(b"\0alice\0alice").decode()
answer = ask("", f"<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{plain}</auth>")
assert "<success" in answer, answer
PYTHON

kill -HUP "$gateway"
wait_for 'grep -q RELOADING=1 "$work/heard"'
kill -TERM "$gateway"
wait_for 'grep -q STOPPING=1 "$work/heard"'
wait "$gateway" || fail "the exit status is $?"
cat "$work/heard"

if [ -d /run/systemd/system ]; then
    say "systemd is process 1: starting the unit"
    printf '[domains."localhost"]\nservers = ["127.0.0.1:15222"]\n' >> /etc/bosphorus/bosphorus.toml
    systemctl start bosphorus && systemctl reload bosphorus && systemctl stop bosphorus || fail "systemctl"
else
    say "systemd is not process 1: the unit was not started by it"
fi

say "removing it"
dpkg -r bosphorus
[ ! -e /usr/bin/bosphorus ] || fail "the program is still there"
say "passed"
