//! Clients that would cost an HTTP connection, or a core, without end: each is given up in bounded
//! time, and nothing is spent on it meanwhile. The scripts do not wait for time: they wait for the
//! end of the connection.

mod common;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use common::gateway::Gateway;
use common::{PATIENCE, Result};

/// A gateway that gives requests two seconds to come, and answers one to leave.
fn gateway() -> Result<Gateway> {
    Gateway::start(
        "[listen]\nhead_timeout = \"1s\"\n[bosh]\nbody_timeout = \"1s\"\n\
         [limits]\nstall_timeout = \"1s\"\n\
         [domains.\"limits.test\"]\nservers = [\"xmpp://127.0.0.1:9\"]\n",
    )
}

#[expect(clippy::disallowed_methods, reason = "the patience of a test is real time")]
fn now() -> Instant {
    Instant::now()
}

fn connect(gateway: &Gateway) -> Result<TcpStream> {
    let socket = TcpStream::connect(gateway.listen())?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    socket.set_write_timeout(Some(Duration::from_millis(100)))?;
    Ok(socket)
}

/// Writes and reads by turns until the connection is ended by the other side.
fn ended(socket: &mut TcpStream, mut write: impl FnMut(&mut TcpStream)) -> Result<Vec<u8>> {
    let begun = now();
    let mut got = Vec::new();
    let mut buffer = [0; 4096];
    while begun.elapsed() < PATIENCE {
        write(socket);
        match socket.read(&mut buffer) {
            Ok(0) => return Ok(got),
            Ok(n) => got.extend_from_slice(&buffer[..n]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return Ok(got),
        }
    }
    bail!("still connected after {PATIENCE:?}: {}", String::from_utf8_lossy(&got));
}

/// That limit has been hit so often, and no other ever; the end of a connection may be seen first.
fn counted(gateway: &Gateway, key: &str, times: f64) -> Result {
    let (family, begun) = ("bosphorus_limit_hits_total", now());
    while gateway.metric(&format!("{family}{{limit=\"{key}\"}}"))? != times {
        ensure!(begun.elapsed() < PATIENCE, "{key} was not counted {times} times");
        std::thread::sleep(Duration::from_millis(20));
    }
    ensure!(gateway.total(family)? == times, "another limit was counted");
    Ok(())
}

fn drip(socket: &mut TcpStream) {
    let _ = socket.write_all(b"x");
}

/// SEC-18: a head that comes byte by byte, also that of a later request on a connection.
#[test]
fn a_slow_head_is_given_up() -> Result {
    let gateway = gateway()?;
    let mut hits = 0.0;
    for first in ["", "GET /http-bind HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let mut socket = connect(&gateway)?;
        socket.write_all(first.as_bytes())?;
        socket.write_all(b"GET /http-bind HTTP/1.1\r\nX: ")?;
        let got = ended(&mut socket, drip)?;
        ensure!(first.is_empty() || got.starts_with(b"HTTP/1.1 200 "), "the first was answered");
        hits += 1.0;
        counted(&gateway, "listen.head_timeout", hits)?;
    }
    Ok(())
}

/// SEC-18: a body that nobody reads, because its head was answered already.
#[test]
fn a_slow_body_that_nobody_reads_is_given_up() -> Result {
    let gateway = gateway()?;
    for line in ["PUT /http-bind", "GET /http-bind", "POST /nothing", "GET /xmpp-websocket"] {
        let mut socket = connect(&gateway)?;
        let head =
            format!("{line} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffff\r\n");
        socket.write_all(head.as_bytes())?;
        ended(&mut socket, drip)?;
    }
    Ok(())
}

/// What is no request is answered or not, and is never a line in the log: whoever connects could
/// write as many of them as he likes.
#[test]
fn garbage_does_not_fill_the_log() -> Result {
    let gateway = gateway()?;
    let before = gateway.log();
    let long = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(200_000));
    for garbage in [
        "\r\n\r\n\0\r\nQUIT\n",
        "\u{16}\u{3}\u{1}",
        "GET / HTTP/3.0\r\n\r\n",
        "GET /\u{1} HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        "POST /http-bind HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        &long,
    ] {
        let mut socket = connect(&gateway)?;
        // It may be refused before all of it is there.
        let _ = socket.write_all(garbage.as_bytes());
        let _ = socket.shutdown(std::net::Shutdown::Write);
        ended(&mut socket, |_| {})?;
    }
    ensure!(gateway.log() == before, "{}", gateway.log_tail(20));
    Ok(())
}

/// SEC-17: who pipelines requests and reads no answer is given up, and costs nothing meanwhile.
#[test]
fn answers_that_nobody_takes_are_given_up() -> Result {
    let gateway = gateway()?;
    let mut socket = connect(&gateway)?;
    let requests = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2000);
    let begun = now();
    loop {
        match socket.write(&requests) {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return Ok(()),
        }
        ensure!(begun.elapsed() < PATIENCE, "still connected after {PATIENCE:?}");
    }
}

/// SEC-17, BOSH-05: much more than a little behind a request that is held ends the connection.
#[test]
fn a_flood_behind_a_held_request_is_given_up() -> Result {
    // The kernel takes the connection, and nobody speaks on it.
    let server = TcpListener::bind("127.0.0.1:0")?;
    let gateway = Gateway::start(&format!(
        "[bosh]\nfirst_response_timeout = \"30s\"\n\
         [domains.\"limits.test\"]\nservers = [\"xmpp://{}\"]\n",
        server.local_addr()?
    ))?;
    let mut socket = connect(&gateway)?;
    // The creation waits for the server.
    let body = "<body xmlns='http://jabber.org/protocol/httpbind' rid='1' to='limits.test' \
                wait='60' hold='1' ver='1.11'/>";
    let head =
        format!("POST /http-bind HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    socket.write_all((head + body).as_bytes())?;
    let more = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n".repeat(500);
    let got = ended(&mut socket, |socket| drop(socket.write(&more)))?;
    ensure!(got.is_empty(), "answered: {}", String::from_utf8_lossy(&got));
    Ok(())
}

/// SEC-17: what thousands of connections needed is given back to the system when they have left, also
/// where nothing happens afterwards.
#[test]
fn what_many_connections_took_is_given_back() -> Result {
    const CONNECTIONS: usize = 2000;
    rlimit::increase_nofile_limit(u64::MAX)?;
    let gateway = gateway()?;
    let resident = || -> Result<u64> { Ok(gateway.resident()?.all) };
    let before = resident()?;
    let mut sockets = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut socket = connect(&gateway)?;
        socket.write_all(b"GET /nothing HTTP/1.1\r\nX: ")?;
        sockets.push(socket);
    }
    for socket in &mut sockets {
        ended(socket, |_| ())?;
    }
    let most = resident()?;
    let grown = most - before;
    ensure!(grown > 10 << 20, "{CONNECTIONS} connections took only {grown} bytes");
    let begun = now();
    let mut left = grown;
    while left > grown / 10 {
        ensure!(begun.elapsed() < PATIENCE, "{left} of {grown} bytes are still there");
        std::thread::sleep(Duration::from_millis(20));
        left = resident()?.saturating_sub(before);
    }
    println!("{CONNECTIONS} connections took {grown} bytes, and left {left}");
    Ok(())
}

/// SEC-16: a worker with as many connections as it may have takes the next one when another has left,
/// and it is counted that somebody may have had to wait.
#[test]
fn a_worker_takes_as_many_connections_as_it_may() -> Result {
    let gateway = Gateway::start(
        "[listen]\nworkers = 1\nmax_connections = 2\n\
         [domains.\"limits.test\"]\nservers = [\"xmpp://127.0.0.1:9\"]\n",
    )?;
    let ask = |socket: &mut TcpStream| -> Result<bool> {
        socket.write_all(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")?;
        Ok(answered(socket))
    };
    let mut first = connect(&gateway)?;
    ensure!(ask(&mut first)?, "the first was not answered");
    counted(&gateway, "listen.max_connections", 0.0)?;
    let mut second = connect(&gateway)?;
    ensure!(ask(&mut second)?, "the second was not answered");
    counted(&gateway, "listen.max_connections", 1.0)?;
    let mut third = connect(&gateway)?;
    ensure!(!ask(&mut third)?, "the third was answered");
    ensure!(ask(&mut second)?, "the second was answered no more");
    drop(first);
    let begun = now();
    while !answered(&mut third) {
        ensure!(begun.elapsed() < PATIENCE, "the third was never answered");
    }
    counted(&gateway, "listen.max_connections", 2.0)
}

/// Something came within the socket's patience.
fn answered(socket: &mut TcpStream) -> bool {
    socket.read(&mut [0; 4096]).is_ok_and(|bytes| bytes > 0)
}
