//! The server for clients: its listeners, and how each worker serves a connection from the first byte.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use actix_http::error::DispatchError;
use actix_service::{Service as _, ServiceFactory, fn_factory, fn_service, map_config};
use actix_web::dev::AppConfig;
use actix_web::http::Method;
use actix_web::{App, web};
use anyhow::Context as _;
use tokio::net::{TcpStream, UnixStream};
use tracing::{debug, info};

use super::seat::Seat;
use super::sockets::{Bound, Listener};
use super::{Running, memory};
use crate::config::Config;
use crate::http::door::Door;
use crate::http::tls::{self, Tls};
use crate::http::ws::Hook;
use crate::http::{self, Current, connection, h1, h2};
use crate::io::Io;
use crate::session::timed::Timed;
use crate::session::worker::{Shared, Worker};

/// What else the public listener serves, beside the gateway's own routes.
pub(super) type Extra = Arc<dyn Fn(&mut web::ServiceConfig) + Send + Sync>;

/// Begins to serve clients on `sockets`, with TLS on those that have one.
///
/// # Errors
/// A socket that cannot be shared or listened on.
pub(super) fn start(
    config: &Config,
    sockets: Vec<(Bound, Option<Arc<Tls>>)>,
    shared: &Shared,
    current: &Arc<Current>,
    extra: Option<Extra>,
) -> anyhow::Result<Running> {
    let workers = config
        .listen
        .workers
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    let mut builder = actix_server::Server::build()
        .workers(workers)
        .backlog(config.listen.backlog)
        .max_concurrent_connections(config.listen.max_connections)
        .disable_signals();
    // Every worker numbers its sessions from a range of its own.
    let ranges = Arc::new(AtomicU64::new(1));
    let fixed = Fixed {
        h1: h1::Limits {
            first_request: config.listen.head_timeout,
            keep_alive: config.listen.keep_alive,
            close_grace: config.upstream.close_grace,
        },
        h2: h2::Limits {
            streams: config.listen.http2_streams,
            first_request: config.listen.head_timeout,
            keep_alive: config.listen.keep_alive,
            stall: config.limits.stall_timeout,
            bodies: h2::BODIES * config.limits.body_bytes,
        },
        connections: config.listen.max_connections,
    };
    let mut listeners = Vec::new();
    for (bound, tls) in sockets {
        let address = bound.name().context("naming a listener")?;
        info!(%address, tls = tls.is_some(), "listening");
        let name = format!("public {address}");
        let (shared, current) = (shared.clone(), Arc::clone(current));
        let (ranges, extra) = (Arc::clone(&ranges), extra.clone());
        let public = Public { shared, current, ranges, extra, tls, fixed };
        builder = match bound.listener().context("sharing a listener")? {
            Listener::Tcp(listener) => {
                builder.listen(name, listener, move || public.service::<TcpStream>())?
            }
            Listener::Unix(listener) => {
                builder.listen_uds(name, listener, move || public.service::<UnixStream>())?
            }
        };
        listeners.push(bound);
    }
    let server = builder.run();
    let handle = server.handle();
    actix_rt::spawn(server);
    Ok(Running { handle, listeners })
}

/// What is served on a listener for clients.
#[derive(Clone)]
struct Public {
    shared: Shared,
    current: Arc<Current>,
    ranges: Arc<AtomicU64>,
    extra: Option<Extra>,
    tls: Option<Arc<Tls>>,
    fixed: Fixed,
}

/// What waits for the next start (see [`super::reload`]).
#[derive(Clone, Copy)]
struct Fixed {
    h1: h1::Limits,
    h2: h2::Limits,
    /// `listen.max_connections`
    connections: usize,
}

impl Public {
    /// The service of one worker for one listener, the connections of which are `S`.
    fn service<S: Into<Io> + 'static>(
        &self,
    ) -> impl ServiceFactory<S, Config = (), Response = (), Error = DispatchError> + use<S> {
        let Self { shared, current, ranges, extra, tls, fixed } = self.clone();
        let range = ranges.fetch_add(1, Ordering::Relaxed);
        memory::give_back();
        let hook = Rc::new(Hook {
            worker: Worker::start(shared.clone(), range << 40),
            current: Arc::clone(&current),
        });
        let app = App::new()
            .configure(|app| extra.iter().for_each(|extra| extra(app)))
            .configure(http::configure(Arc::clone(&current), Rc::clone(&hook.worker)))
            .wrap_fn(|mut request, service| {
                if request.method() == Method::POST {
                    http::take_headers(&mut request);
                }
                let answered = service.call(request);
                async move { answered.await.map(http::let_go) }
            });
        let app = map_config(app, |()| AppConfig::default());
        fn_factory(move || {
            let app = app.new_service(());
            let (shared, tls, current) = (shared.clone(), tls.clone(), Arc::clone(&current));
            let hook = Rc::clone(&hook);
            async move {
                let app = Rc::new(app.await?);
                http::fill_pool(&app);
                let local = Arc::clone(&hook.worker.local);
                let http =
                    Rc::new(h1::service(Rc::clone(&app), hook, fixed.h1).new_service(()).await?);
                Ok::<_, ()>(fn_service(move |socket: S| {
                    let mut io: Io = socket.into();
                    let (http, app, tls) = (Rc::clone(&http), Rc::clone(&app), tls.clone());
                    let (live, metrics) = (current.load(), Arc::clone(&shared.metrics));
                    let seat = Seat::take(fixed.connections, &metrics.limits);
                    let sessions = Arc::clone(&shared.sessions);
                    let addresses = Arc::clone(sessions.addresses());
                    let (settings, local) = (Arc::clone(&live.door), Arc::clone(&local));
                    let door = Door { settings, addresses, metrics, local };
                    let limits = live.connection;
                    // Boxed, as actix puts it into its task twice.
                    Box::pin(async move {
                        let _seat = seat;
                        let Some(mut entered) = door.enter(&mut io).await else {
                            return Ok(());
                        };
                        let io = io.counted(Arc::clone(entered.meter.traffic()));
                        // Without it an answer waits for the acknowledgement of the one before.
                        io.set_nodelay();
                        let meter = Rc::clone(&entered.meter);
                        // Boxed, so that nothing of it is left behind it.
                        let accepted = match tls {
                            None => Some((io, tls::Protocol::Http1)),
                            Some(tls) => {
                                entered.arrival.secure = true;
                                let handshake = async move { tls.accept(io).await };
                                Box::pin(Timed::new(handshake, Rc::clone(&meter))).await
                            }
                        };
                        let (entered, metrics) = (Rc::new(entered), &*door.metrics);
                        accepted.iter().for_each(|(io, _)| entered.meter.over_tls(io.is_resumed()));
                        match accepted {
                            None => Ok(()),
                            Some((io, tls::Protocol::Http1)) => {
                                let serving = connection::serve(io, entered, http, limits, metrics);
                                let served = Timed::new(serving, meter).await;
                                if let Err(error) = &served {
                                    debug!(%error, "http1_connection_ended");
                                }
                                served
                            }
                            Some((io, tls::Protocol::Http2)) => {
                                let is_draining = || sessions.is_draining();
                                let stall = limits.guard.stall;
                                let bodies = h2::BODIES * limits.guard.body_bytes;
                                let limits = h2::Limits { stall, bodies, ..fixed.h2 };
                                let served =
                                    h2::serve(io, entered, app, limits, is_draining, metrics);
                                // Boxed: it is larger than what HTTP/1.1 leaves at rest.
                                if let Err(error) = Box::pin(Timed::new(served, meter)).await {
                                    debug!(%error, "http2_connection_ended");
                                }
                                Ok(())
                            }
                        }
                    })
                }))
            }
        })
    }
}
