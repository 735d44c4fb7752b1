//! The listener and the thread the server lives on.

use std::cell::RefCell;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::router::Router;
use super::{Settings, connection, limits};

/// How long the connections may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

/// A running server; stopped when it is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `listener`, which is to be on a loopback address, on a thread of its own.
    ///
    /// # Errors
    /// A listener without an address, a thread or a runtime that cannot be started.
    pub fn start(listener: TcpListener, settings: Settings) -> io::Result<Self> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let thread =
            std::thread::Builder::new().name("demo-server".to_owned()).spawn(move || {
                LocalSet::new().block_on(&runtime, serve(listener, settings, stopped));
            })?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: TcpListener, settings: Settings, stopped: oneshot::Receiver<()>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the demo server cannot listen"),
    };
    let router = Rc::new(RefCell::new(Router::new(settings)));
    let places = Arc::new(Semaphore::new(limits::CONNECTIONS));
    let accepting = async {
        loop {
            match listener.accept().await {
                Ok((socket, _)) => {
                    // One too many is closed at once.
                    let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
                    let router = Rc::clone(&router);
                    spawn_local(async move {
                        connection::run(socket, router).await;
                        drop(place);
                    });
                }
                // No files left, most likely: better times may come.
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    };
    let ticking = async {
        let mut second = interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            second.tick().await;
            router.borrow_mut().tick();
        }
    };
    tokio::select! {
        () = accepting => {}
        () = ticking => {}
        _ = stopped => {}
    }
    router.borrow_mut().shutdown();
    let all = u32::try_from(limits::CONNECTIONS).unwrap_or(u32::MAX);
    let _ = timeout(GOODBYE, places.acquire_many(all)).await;
}
