//! Builds everything once, top to bottom; starts the servers; reloads and drains on signals.

mod convert;
#[cfg(feature = "demo")]
pub mod demo;
mod discovery;
mod memory;
mod notify;
mod public;
mod reload;
mod seat;
mod signals;
mod sockets;

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use actix_web::{App, HttpServer};
use anyhow::Context as _;
use tracing::{info, warn};

use self::public::Extra;
use self::signals::{Signal, Signals};
use self::sockets::{Bound, Sockets};
use crate::config::{Config, ConfigError};
use crate::http::admin::{Access, Admin};
use crate::http::lab::Lab;
use crate::http::tls::Tls;
use crate::http::{self, Current, Live, Routes};
use crate::metrics::{MEASURES, Metrics};
use crate::session::addresses::Addresses;
use crate::session::budget::Budget;
use crate::session::recorder::Recorder;
use crate::session::registry::Registry;
use crate::session::timer::clock;
use crate::session::worker::{self, Drain, Sessions, Shared};
use crate::upstream::{Connector, Health};

/// How long requests without a session may take to be answered when all sessions have ended: a body
/// that is still coming in has no claim to more.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);

/// Reads the configuration again: the same file, environment and flags as at the start.
pub type Load = Box<dyn Fn() -> Result<Config, ConfigError>>;

/// Runs the gateway until a signal has ended it. Returns once every session is over, or when
/// `drain.timeout` has passed. On SIGHUP `load` gives the configuration for all that begins then.
///
/// # Errors
/// A listener that cannot be bound, certificates that cannot be loaded, a runtime that cannot be
/// started. Configuration errors have been told before this is called.
pub fn run(config: Config, load: Load) -> anyhow::Result<()> {
    raise_file_limit(config.limits.sessions);
    if !MEASURES {
        warn!("built with the feature no-metrics: what passes is not counted");
    }
    actix_rt::System::new().block_on(async {
        let mut signals = Signals::new().context("listening for signals")?;
        let sockets = Sockets::bind(&config)?;
        let gateway = Gateway::start(config, sockets, None)?;
        notify::ready();
        notify::watchdog();
        gateway.run(&mut signals, Some(load)).await;
        Ok(())
    })
}

/// A session is two sockets, and the usual soft limit of 1024 files would end at 500 of them.
fn raise_file_limit(sessions: usize) {
    let wanted = 2 * sessions as u64 + 256;
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(files) if files >= wanted => {}
        Ok(files) => warn!(
            files,
            wanted, "the limit of open files is lower than limits.sessions needs (two each)"
        ),
        Err(error) => warn!(%error, "the limit of open files could not be raised"),
    }
}

/// A gateway that serves.
struct Gateway {
    public: Running,
    admin: Option<Running>,
    sessions: Arc<Sessions>,
    metrics: Arc<Metrics>,
    /// The BOSH sessions, and what the dead ones of them have still to say.
    registry: Arc<Registry>,
    recorder: Arc<Recorder>,
    /// Who may ask about sessions.
    access: Arc<Access>,
    /// The certificates, where there is a listener with TLS.
    tls: Option<Arc<Tls>>,
    /// What a reload replaces.
    current: Arc<Current>,
    /// What it remembers of the servers is kept.
    health: Health,
    /// The configuration in force.
    config: Config,
}

impl Gateway {
    /// Builds it and begins to serve; to be called on an actix system.
    fn start(config: Config, sockets: Sockets, extra: Option<Extra>) -> anyhow::Result<Self> {
        memory::give_back();
        let metrics = Metrics::register().context("registering the metrics")?;
        let health = Health::default();
        let live = live(&config, &health)?;
        reload::note(&metrics, &live);
        let addresses = Arc::new(Addresses::new(convert::addresses(&config)));
        let budget = Budget::new(config.limits.memory, Arc::clone(&metrics));
        let sessions = Arc::new(Sessions::new(config.limits.sessions, addresses, budget));
        let shared = Shared {
            metrics: Arc::clone(&metrics),
            registry: Arc::new(
                Registry::new(config.limits.sessions).context("drawing the tag of this process")?,
            ),
            sessions: Arc::clone(&sessions),
            recorder: Arc::new(Recorder::new(convert::recorder(&config))),
        };
        actix_rt::spawn(Arc::clone(&shared.recorder).watch());
        actix_rt::spawn(forget(Arc::clone(&sessions)));
        let current = Arc::new(Current::new(live));
        let access = Arc::new(Access::new(convert::token(&config)));
        let admin = match sockets.admin {
            Some(listener) => Some(start_admin(listener, &shared, &access)?),
            None => None,
        };
        let tls = match sockets.secure.is_empty() {
            true => None,
            false => Some(Tls::new(&convert::tls(&config), &metrics).context("preparing TLS")?),
        };
        if let Some(tls) = &tls {
            actix_rt::spawn(Arc::clone(tls).watch());
        }
        let plain = sockets.public.into_iter().map(|listener| (listener, None));
        let secure = sockets.secure.into_iter().map(|listener| (listener, tls.clone()));
        let listeners = plain.chain(secure).collect();
        let lab = config.lab.enabled.then(|| {
            let (current, account) = (Arc::clone(&current), config.lab.account.clone());
            Lab::new(current, Arc::clone(&metrics), Arc::clone(&sessions), account)
        });
        let extra: Extra = Arc::new(move |app| {
            extra.iter().for_each(|extra| extra(app));
            lab.iter().for_each(|lab| lab.configure(app));
        });
        let public = public::start(&config, listeners, &shared, &current, Some(extra))?;
        let Shared { registry, recorder, .. } = shared;
        Ok(Self {
            public,
            admin,
            sessions,
            metrics,
            registry,
            recorder,
            access,
            tls,
            current,
            health,
            config,
        })
    }

    /// Serves until a signal, then drains. A second signal ends the draining. SIGHUP reloads the
    /// configuration if it can be loaded again, and else is a signal like the others.
    async fn run(mut self, signals: &mut Signals, load: Option<Load>) {
        let cause = loop {
            match (signals.next().await, &load) {
                (Signal::Hangup, Some(load)) => self.reload(load),
                (signal, _) => break signal.name(),
            }
        };
        notify::stopping(self.config.drain.timeout + ANSWER_PATIENCE);
        info!(signal = cause, sessions = self.sessions.open(), "draining");
        let sessions = || self.sessions.open();
        let drained = async {
            if !self.drain().await {
                warn!(sessions = sessions(), "sessions cut off at the end of drain.timeout");
            }
            // What ended the BOSH sessions is on its way to their clients.
            until(ANSWER_PATIENCE, || self.metrics.open_requests() == 0).await;
        };
        tokio::select! {
            () = drained => {}
            cause = signals.end() => {
                warn!(signal = cause, sessions = sessions(), "second signal: not waiting any longer");
            }
        }
        self.public.stop(false).await;
        if let Some(admin) = self.admin {
            admin.stop(false).await;
        }
        info!("stopped");
    }

    /// Ends all sessions; false if some are left at the end of `drain.timeout`.
    ///
    /// Until the window has passed connections are taken: requests of BOSH sessions come over new
    /// ones, too, and whoever opens a stream is told where to go. A new session is refused.
    async fn drain(&self) -> bool {
        let crate::config::Drain { timeout, window, .. } = self.config.drain;
        let drain = Drain { begun: clock(), window };
        let none_open = || self.sessions.open() == 0;
        if window.is_zero() {
            // First, so that what is in an accepted connection is all that `admit` has to refuse.
            self.close_listeners().await;
            self.sessions.drain(drain);
        } else {
            self.sessions.drain(drain);
            // What a BOSH session ends with may have to wait for its client's next request.
            let all_told = || none_open() && self.registry.is_empty();
            until((window + ANSWER_PATIENCE).min(timeout), all_told).await;
            self.close_listeners().await;
        }
        let left = (drain.begun + timeout).saturating_duration_since(clock());
        until(left, none_open).await
    }

    async fn close_listeners(&self) {
        self.public.handle().pause().await;
        self.public.refuse_connections();
    }
}

/// What the configuration makes of all that begins from now on. Whatever can go wrong with a
/// configuration that was checked goes wrong here, where nothing has changed yet.
fn live(config: &Config, health: &Health) -> anyhow::Result<Live> {
    let connector = Connector::new(convert::upstream(config), health.clone())
        .context("preparing the connections to the XMPP servers")?;
    let trust = Arc::new(convert::trust(config));
    Ok(Live {
        routes: Routes::new(&config.ws.paths, &config.bosh.paths, convert::handshake(config)),
        face: Arc::new(convert::face(config, Arc::clone(&trust))),
        door: Arc::new(convert::door(config, Arc::clone(&trust))),
        discovery: discovery::discovery(config),
        trust,
        connection: convert::connection(config),
        sessions: Arc::new(worker::Live {
            connector,
            settings: Arc::new(convert::websocket(config)),
            bosh: Arc::new(convert::bosh(config)),
            websocket_origins: convert::origins(config, &config.ws.allowed_origins),
            bosh_origins: convert::origins(config, &config.bosh.allowed_origins),
            stall_timeout: config.limits.stall_timeout,
        }),
    })
}

/// How often addresses that have left are forgotten; a fraction of the minute that the slowest of
/// their rates take to recover.
const FORGET_EVERY: Duration = Duration::from_secs(10);

/// Forgets addresses that have left, as long as the system runs.
async fn forget(sessions: Arc<Sessions>) {
    loop {
        tokio::time::sleep(FORGET_EVERY).await;
        sessions.addresses().forget(clock());
        sessions.fallbacks().forget(clock());
    }
}

/// Waits until it is so; false if `timeout` passed first.
async fn until(timeout: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let wait = async {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        while !is_so() {
            tick.tick().await;
        }
    };
    tokio::time::timeout(timeout, wait).await.is_ok()
}

/// A server that runs in the background.
struct Running {
    handle: actix_server::ServerHandle,
    listeners: Vec<Bound>,
}

impl Running {
    fn handle(&self) -> actix_server::ServerHandle {
        self.handle.clone()
    }

    /// For a listener that is paused.
    fn refuse_connections(&self) {
        self.listeners.iter().for_each(Bound::refuse_connections);
    }

    async fn stop(self, graceful: bool) {
        self.handle.stop(graceful).await;
    }
}

fn start_admin(
    listener: TcpListener,
    shared: &Shared,
    access: &Arc<Access>,
) -> anyhow::Result<Running> {
    let address = listener.local_addr().context("naming a listener")?;
    info!(%address, "admin listening");
    let admin = Admin {
        metrics: Arc::clone(&shared.metrics),
        sessions: Arc::clone(&shared.sessions),
        recorder: Arc::clone(&shared.recorder),
        access: Arc::clone(access),
        is_loopback: address.ip().is_loopback(),
    };
    let server = HttpServer::new(move || {
        memory::give_back();
        App::new().configure(http::admin::configure(admin.clone()))
    })
    .workers(1)
    .disable_signals()
    .listen(listener)?
    .run();
    let handle = server.handle();
    actix_rt::spawn(server);
    Ok(Running { handle, listeners: Vec::new() })
}
