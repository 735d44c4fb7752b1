//! What a load is told to do, whatever its clients speak, and what they send.

use std::collections::HashMap;
use std::future::Future;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// One session of a load.
pub(crate) trait Client: Sized + Send + 'static {
    /// Opens a session through `target` and logs in; `number` tells it from the others.
    fn open(
        target: SocketAddr,
        number: u32,
    ) -> impl Future<Output = anyhow::Result<Self>> + Send + 'static;

    /// `bursts` times: so many stanzas at once, then all of their echoes. Also returns how many
    /// HTTP requests that took.
    fn echo(
        self,
        in_flight: usize,
        bursts: usize,
    ) -> impl Future<Output = anyhow::Result<(Self, u64)>> + Send + 'static;

    /// Closes the connections that no request is open on.
    fn close_spare(&mut self) {}
}

/// The size of every message, as the client sees it.
pub(crate) const STANZA_BYTES: usize = 250;

/// Carries out the orders on standard input, one a line ([`super::process::Load`]), until it ends.
/// Sessions are served only while an order runs: in between they are idle, and whatever arrives
/// waits in their sockets.
pub(crate) fn run<C: Client>() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut groups = HashMap::<String, Vec<C>>::new();
    for order in io::stdin().lines() {
        let order = order?;
        let done = runtime.block_on(async {
            match tokio::time::timeout(ORDER_TIME, carry_out(&order, &mut groups)).await {
                Ok(done) => done,
                Err(_) => bail!("not done after {ORDER_TIME:?}"),
            }
        });
        match done {
            Ok(count) => println!("done {count}"),
            Err(error) => println!("{}", format!("{error:#}").replace('\n', " ")),
        }
        io::stdout().flush()?;
    }
    Ok(())
}

/// Returns how many HTTP requests it took.
async fn carry_out<C: Client>(
    order: &str,
    groups: &mut HashMap<String, Vec<C>>,
) -> anyhow::Result<u64> {
    let words: Vec<&str> = order.split(' ').collect();
    match words[..] {
        ["open", group, target, sessions] => {
            let target: SocketAddr = target.parse()?;
            let sessions: u32 = sessions.parse()?;
            let clients = (0..sessions).map(|number| C::open(target, number));
            groups.insert(group.to_owned(), all(clients, OPENING_AT_A_TIME).await?);
        }
        ["echo", group, in_flight, bursts, concurrency] => {
            let (in_flight, bursts) = (in_flight.parse()?, bursts.parse()?);
            let clients = groups.remove(group).context("no such sessions")?;
            let echoes = clients.into_iter().map(|client| client.echo(in_flight, bursts));
            let done = all(echoes, concurrency.parse()?).await?;
            let requests = done.iter().map(|(_, requests)| requests).sum();
            groups.insert(group.to_owned(), done.into_iter().map(|(client, _)| client).collect());
            return Ok(requests);
        }
        ["close-spare", group] => {
            groups.get_mut(group).context("no such sessions")?.iter_mut().for_each(C::close_spare);
        }
        _ => bail!("an unknown order"),
    }
    Ok(0)
}

/// Runs tasks, so many at a time, until all are done or one fails.
async fn all<F, T>(tasks: impl Iterator<Item = F>, at_a_time: usize) -> anyhow::Result<Vec<T>>
where
    F: Future<Output = anyhow::Result<T>> + Send + 'static,
    T: Send + 'static,
{
    let gate = Arc::new(Semaphore::new(at_a_time));
    let mut running = JoinSet::new();
    for task in tasks {
        let gate = Arc::clone(&gate);
        running.spawn(async move {
            let _permit = gate.acquire().await?;
            task.await
        });
    }
    let mut done = Vec::with_capacity(running.len());
    while let Some(one) = running.join_next().await {
        done.push(one??);
    }
    Ok(done)
}

/// A connection to the target from an address of the client's own, so that neither ports nor
/// limits by address run out.
pub(crate) async fn connect(target: SocketAddr, number: u32) -> anyhow::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((Ipv4Addr::from(FIRST_ADDRESS + number), 0)))?;
    let stream = socket.connect(target).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One message; its id is at [`ID`].
pub(crate) fn stanza() -> Vec<u8> {
    let mut stanza = STANZA_HEAD.to_vec();
    stanza.resize(STANZA_BYTES - STANZA_TAIL.len(), b'x');
    stanza.extend_from_slice(STANZA_TAIL);
    stanza
}

/// An id of eight digits.
pub(crate) fn id(number: usize) -> [u8; 8] {
    let mut digits = [b'0'; 8];
    let mut rest = number;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    digits
}

const STANZA_HEAD: &[u8] =
    b"<message xmlns=\"jabber:client\" id=\"00000000\" to=\"echo@bench.test\" type=\"chat\"><body>";
const STANZA_TAIL: &[u8] = b"</body></message>";
/// Where the digits of the id are.
pub(crate) const ID: Range<usize> = 35..43;

/// 127.1.0.1, and upward.
const FIRST_ADDRESS: u32 = 0x7f01_0001;
const OPENING_AT_A_TIME: usize = 64;
const ORDER_TIME: Duration = Duration::from_secs(120);

/// PLAIN with the name and the password `bench`.
pub(crate) const AUTH: &str =
    "<auth xmlns=\"urn:ietf:params:xml:ns:xmpp-sasl\" mechanism=\"PLAIN\">AGJlbmNoAGJlbmNo</auth>";
/// Asks for a resource.
pub(crate) const BIND: &str = "<iq xmlns=\"jabber:client\" type=\"set\" id=\"bind\"><bind xmlns=\"urn:ietf:params:xml:ns:xmpp-bind\"/></iq>";
