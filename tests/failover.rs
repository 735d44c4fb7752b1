//! Several real servers behind one gateway: which one gets the sessions when one of them dies and
//! comes back; and what a real server knows of the clients.

mod common;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::time::timeout;

use common::bosh::{CONTENT_TYPE, CREATION, creation, first_rid};
use common::client::{Client, Endpoint, Transport};
use common::gateway::Gateway;
use common::http::{Connection, Url};
use common::server::{Kind, Server, Settings};
use common::socket::Socket;
use common::{Result, block_on, eventually, in_ci};

/// A title, the server it needs, and what is done.
type Scenario = (&'static str, Kind, fn() -> Result);

/// What is run, and in front of what.
const TRIALS: &[Scenario] = &[
    ("the second server takes over, and the first comes back", Kind::Prosody, || {
        block_on(failover())
    }),
    ("servers of one priority share by weight", Kind::Prosody, || block_on(weights())),
    ("the server knows the client's address, version 1", Kind::Ejabberd, || {
        block_on(addresses("v1"))
    }),
    ("the server knows the client's address, version 2", Kind::Ejabberd, || {
        block_on(addresses("v2"))
    }),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = TRIALS.iter().map(|&(title, kind, trial)| {
        let missing = kind.missing();
        let skipped = missing.is_some() && !in_ci();
        if let Some(why) = &missing {
            println!("not run: {title}: {why}");
        }
        let run = move || {
            let result = missing.map_or_else(trial, |why| Err(anyhow!(why)));
            result.map_err(|error| Failed::from(format!("{error:#}")))
        };
        Trial::test(format!("{}: {title}", kind.name()), run).with_ignored_flag(skipped)
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// How soon a new session is to succeed after the first server has died.
const AT_ONCE: Duration = Duration::from_secs(1);

fn gauge(server: &Server) -> String {
    format!("bosphorus_upstream_server_up{{server=\"xmpp://{}\"}}", server.c2s())
}

/// Which of the servers has the sessions that begin now: how many of `count` are the first's.
async fn share(endpoint: &Endpoint, servers: [&Server; 2], count: usize) -> Result<usize> {
    let mut firsts = 0;
    for n in 0..count {
        let before = servers.map(connections);
        let client = Client::login(endpoint, &servers[0].named_account("alice")).await?;
        let counted = || servers.map(connections);
        eventually("the connection in a server's log", async || {
            (counted() != before).then_some(())
        })
        .await
        .with_context(|| format!("session {n}"))?;
        firsts += counted()[0] - before[0];
        client.quit().await?;
    }
    Ok(firsts)
}

/// Logins that a Prosody has logged.
fn connections(server: &Server) -> usize {
    server.logs(usize::MAX).matches("Authenticated as alice@").count()
}

/// Scenario: UP-08. The first of two dies, and new sessions succeed on the second within a second;
/// it starts again, and gets sessions again. Over both transports.
async fn failover() -> Result {
    let servers = [0, 1].map(|_| Server::start(Kind::Prosody, &Settings::default()));
    let [first, second] = servers;
    let (first, second) = (first?, second?);
    let gateway = Gateway::start(&format!(
        "[log]\nfilter = \"debug\"\n[upstream]\nbackoff_max = \"2s\"\nslow_start = \"0s\"\n\
         [domains.\"{}\"]\nservers = [\"xmpp://{}\", \"xmpp://{}\"]\n",
        first.domain(),
        first.c2s(),
        second.c2s(),
    ))?;
    let endpoint = |transport| Endpoint { url: gateway.url(transport), transport };
    let both = [&first, &second];
    let [ws, bosh] = [Transport::Ws, Transport::Bosh].map(endpoint);
    ensure!(share(&ws, both, 2).await? == 2, "the first takes all");
    ensure!(gateway.metric(&gauge(&first))? == 1.0, "both are up");

    first.kill();
    for endpoint in [&ws, &bosh, &ws, &bosh] {
        let account = second.named_account("bob");
        let client = timeout(AT_ONCE, Client::login(endpoint, &account)).await;
        let client = client.context("no login within a second of the first server's death")??;
        client.quit().await?;
    }
    ensure!(share(&ws, both, 2).await? == 0, "the second takes all");
    ensure!(gateway.metric(&gauge(&first))? == 0.0, "it is known to be down");
    ensure!(gateway.metric(&gauge(&second))? == 1.0, "the other is not");

    first.restart()?;
    eventually("a session on the first server again", async || {
        let client = Client::login(&bosh, &first.named_account("bob")).await.ok()?;
        client.quit().await.ok()?;
        (gateway.metric(&gauge(&first)).ok()? == 1.0).then_some(())
    })
    .await?;
    ensure!(share(&ws, both, 3).await? == 3, "the first takes all again");
    Ok(())
}

/// Scenario: UP-06 for configured servers. Who has little weight beside one that has all gets next to
/// nothing; who is alone in its priority is not asked as long as the others work.
async fn weights() -> Result {
    let servers = [0, 1].map(|_| Server::start(Kind::Prosody, &Settings::default()));
    let [first, second] = servers;
    let (first, second) = (first?, second?);
    let gateway = Gateway::start(&format!(
        "[log]\nfilter = \"debug\"\n[domains.\"{}\"]\nservers = [\n\
         {{ address = \"xmpp://{}\", priority = 5, weight = 1 }},\n\
         {{ address = \"xmpp://{}\", priority = 5, weight = 65535 }},\n\
         {{ address = \"xmpp://127.0.0.1:1\", priority = 6 }},\n]\n",
        first.domain(),
        first.c2s(),
        second.c2s(),
    ))?;
    let endpoint = Endpoint { url: gateway.ws_url(), transport: Transport::Ws };
    let firsts = share(&endpoint, [&first, &second], 6).await?;
    // Two in 65,537: a second such session in a row of six is no accident.
    ensure!(firsts <= 1, "{firsts} of 6 on the one with little weight");
    ensure!(gateway.metric("bosphorus_upstream_server_up{server=\"xmpp://127.0.0.1:1\"}")? == 1.0);
    Ok(())
}

/// Scenario: SEC-21 against a server that requires the header: its log has the client's address,
/// over both transports.
async fn addresses(version: &str) -> Result {
    let settings = Settings { proxy_protocol: true, ..Settings::default() };
    let server = Server::start(Kind::Ejabberd, &settings)?;
    let gateway = Gateway::start(&format!(
        "[log]\nfilter = \"debug\"\n[domains.\"{}\"]\nservers = \
         [{{ address = \"xmpp://{}\", proxy_protocol = \"{version}\" }}]\n",
        server.domain(),
        server.c2s(),
    ))?;
    let endpoint = Endpoint { url: gateway.ws_url(), transport: Transport::Ws };
    Client::login(&endpoint, &server.named_account("alice")).await?.quit().await?;

    let mut socket = Socket::connect_from("127.0.0.77", &gateway.ws_url()).await?;
    let to = server.domain();
    let open =
        format!("<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' to='{to}' version='1.0'/>");
    socket.send_text(&open).await?;
    let url = Url::parse(&gateway.bosh_url())?;
    let mut request = Connection::open_from("127.0.0.78", &url.authority).await?;
    let body = creation(first_rid(), &format!("to='{to}' {CREATION}"));
    request.send(&url.post(CONTENT_TYPE, &body)).await?;
    for address in ["127.0.0.77", "127.0.0.78"] {
        eventually("the client's address in the server's log", async || {
            server.logs(usize::MAX).contains(address).then_some(())
        })
        .await
        .with_context(|| format!("{address}: {}", server.logs(30)))?;
    }
    ensure!(request.prompt_answer().await?.text()?.contains("mechanisms"), "the stream stands");
    Ok(())
}
