//! The listeners: those that we bind, Unix sockets among them, and those that the service manager
//! has bound and passes to us (sd_listen_fds(3)).

use std::collections::HashSet;
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use listenfd::ListenFd;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tracing::{debug, warn};

use crate::config::{self, Config, ListenAddress};

/// Listeners that are bound and not yet served.
pub(super) struct Sockets {
    pub(super) public: Vec<Bound>,
    /// With TLS.
    pub(super) secure: Vec<Bound>,
    pub(super) admin: Option<TcpListener>,
}

impl Sockets {
    /// Binds what the configuration names, or takes it over.
    pub(super) fn bind(config: &Config) -> anyhow::Result<Self> {
        let admin = config.admin.address.map(bind_admin).transpose().context("admin.address")?;
        let listen = &config.listen;
        let mut passed = Passed::take(listen.addresses.iter().chain(&listen.tls_addresses));
        let mut all = |listeners: &[config::Listener]| {
            let mut sockets = Vec::new();
            for listener in listeners {
                let bound = match &listener.address {
                    ListenAddress::Tcp(to) => bind(*to, listen.backlog).map(|it| vec![it.into()]),
                    ListenAddress::Unix(path) => bind_unix(path, listen).map(|it| vec![it]),
                    ListenAddress::Systemd(name) => passed.called(name.as_deref()),
                };
                sockets.extend(bound.with_context(|| listener.place.clone())?);
            }
            anyhow::Ok(sockets)
        };
        let sockets =
            Self { public: all(&listen.addresses)?, secure: all(&listen.tls_addresses)?, admin };
        passed.warn_of_the_rest();
        Ok(sockets)
    }
}

/// A listener, of which the last copy takes the file of its Unix socket along.
pub(super) struct Bound {
    listener: Listener,
    /// The service manager has it as well, and goes on with it.
    is_shared: bool,
    _file: Option<SocketFile>,
}

/// A listening socket.
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

impl From<TcpListener> for Bound {
    fn from(listener: TcpListener) -> Self {
        Self { listener: Listener::Tcp(listener), is_shared: false, _file: None }
    }
}

impl Bound {
    /// The same socket, to be served.
    pub(super) fn listener(&self) -> io::Result<Listener> {
        Ok(match &self.listener {
            Listener::Tcp(listener) => Listener::Tcp(listener.try_clone()?),
            Listener::Unix(listener) => Listener::Unix(listener.try_clone()?),
        })
    }

    /// Its address as the configuration would write it.
    pub(super) fn name(&self) -> io::Result<String> {
        Ok(match &self.listener {
            Listener::Tcp(listener) => listener.local_addr()?.to_string(),
            Listener::Unix(listener) => match listener.local_addr()?.as_pathname() {
                Some(path) => format!("unix:{}", path.display()),
                None => "unix:".to_owned(),
            },
        })
    }

    /// A listener that nobody accepts from still takes connections into the kernel's queue, where
    /// they would hang until the end of the drain. Shut down, it refuses them, and clients look
    /// elsewhere at once. In a socket of the service manager they wait for the next process, which
    /// is what it is for.
    pub(super) fn refuse_connections(&self) {
        if self.is_shared {
            return;
        }
        if let Err(error) = SockRef::from(&self.listener).shutdown(std::net::Shutdown::Both) {
            debug!(%error, "a listener stays open while draining");
        }
    }
}

/// Listens for the metrics.
pub(super) fn bind_admin(address: SocketAddr) -> anyhow::Result<TcpListener> {
    bind(address, 128)
}

/// Listens on TCP.
pub(super) fn bind(address: SocketAddr, backlog: u32) -> anyhow::Result<TcpListener> {
    let open = || -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            // 0.0.0.0 and [::] may be listed side by side.
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())?;
        socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
        Ok(socket.into())
    };
    open().with_context(|| format!("listening on {address}"))
}

/// Listens on a Unix socket, in the place of one that was left behind.
fn bind_unix(path: &Path, listen: &config::Listen) -> anyhow::Result<Bound> {
    let open = || -> anyhow::Result<Bound> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        let address = SockAddr::unix(path)?;
        if let Err(error) = socket.bind(&address) {
            if error.kind() != ErrorKind::AddrInUse {
                return Err(error.into());
            }
            remove_stale(path, &address)?;
            socket.bind(&address)?;
        }
        let file = SocketFile::at(path)?;
        // Nobody can connect before it listens, and then the permissions are right.
        fs::set_permissions(path, Permissions::from_mode(listen.unix_mode))
            .context("listen.unix_mode cannot be set")?;
        socket.listen(i32::try_from(listen.backlog).unwrap_or(i32::MAX))?;
        let listener = Listener::Unix(OwnedFd::from(socket).into());
        Ok(Bound { listener, is_shared: false, _file: Some(file) })
    };
    open().with_context(|| format!("listening on unix:{}", path.display()))
}

/// Removes the file of a socket on which nobody listens any more.
fn remove_stale(path: &Path, address: &SockAddr) -> anyhow::Result<()> {
    let is_socket = fs::symlink_metadata(path)?.file_type().is_socket();
    ensure!(is_socket, "there is a file already, and it is no socket");
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // One whose queue is full would have us wait.
    probe.set_nonblocking(true)?;
    match probe.connect(address).map_err(|error| (error.kind(), error)) {
        Ok(()) | Err((ErrorKind::WouldBlock, _)) => bail!("another process listens on it"),
        Err((ErrorKind::NotFound, _)) => Ok(()),
        Err((ErrorKind::ConnectionRefused, _)) => {
            fs::remove_file(path).context("nobody listens on it, but it cannot be removed")
        }
        Err((_, error)) => {
            bail!("there is a socket already, and who listens on it cannot be told: {error}")
        }
    }
}

/// The file of a Unix socket that we have made; removed when this is dropped, unless another one
/// has taken its place by then.
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn at(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let path = &self.path;
        let removed = match identity(path) {
            Ok(identity) if identity == self.identity => fs::remove_file(path),
            other => other.map(drop),
        };
        if let Err(error) = removed {
            debug!(path = %path.display(), %error, "the file of a socket stays");
        }
    }
}

/// Device and inode.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

/// What the service manager has passed to this process.
struct Passed {
    sockets: ListenFd,
    /// Of each socket, as long as nobody has taken it.
    names: Vec<Option<String>>,
    /// Names that are asked for somewhere.
    wanted: HashSet<String>,
}

impl Passed {
    fn take<'a>(listeners: impl Iterator<Item = &'a config::Listener>) -> Self {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        // Whether they are for this process is looked at there.
        let sockets = ListenFd::from_env();
        // "unknown" is sd_listen_fds_with_names(3)'s word.
        let names = names.split(':').chain(std::iter::repeat(""));
        let named = |name: &str| if name.is_empty() { "unknown" } else { name }.to_owned();
        let names = names.take(sockets.len()).map(|name| Some(named(name))).collect();
        let wanted = listeners.filter_map(|listener| match &listener.address {
            ListenAddress::Systemd(name) => name.clone(),
            _ => None,
        });
        Self { sockets, names, wanted: wanted.collect() }
    }

    /// The sockets of this name; without one, all that are called by no name in the configuration.
    fn called(&mut self, name: Option<&str>) -> anyhow::Result<Vec<Bound>> {
        ensure!(
            !self.names.is_empty(),
            "the service manager has passed no sockets: the service has to be started by a \
             .socket unit, or with it"
        );
        let is_meant = |own: &str| match name {
            Some(name) => own == name,
            None => !self.wanted.contains(own),
        };
        let meant: Vec<usize> = (0..self.names.len())
            .filter(|&index| self.names[index].as_deref().is_some_and(is_meant))
            .collect();
        if meant.is_empty() {
            let all: Vec<_> = self.names.iter().flatten().map(String::as_str).collect();
            let all = if all.is_empty() { "all are taken".into() } else { all.join(", ") };
            bail!(
                "the service manager has passed no such socket, only: {all} (FileDescriptorName= \
                 in its unit is the name)"
            );
        }
        meant.into_iter().map(|index| self.one(index)).collect()
    }

    fn one(&mut self, index: usize) -> anyhow::Result<Bound> {
        let name = self.names[index].take().unwrap_or_default();
        let tcp = self.sockets.take_tcp_listener(index).ok().flatten().map(Listener::Tcp);
        let unix = || self.sockets.take_unix_listener(index).ok().flatten().map(Listener::Unix);
        let listener = tcp.or_else(unix).with_context(|| {
            format!("the socket {name:?} is neither one of TCP nor a Unix stream socket")
        })?;
        let listens = SockRef::from(&listener).is_listener()?;
        ensure!(listens, "the socket {name:?} does not listen: its unit has to say Accept=no");
        Ok(Bound { listener, is_shared: true, _file: None })
    }

    fn warn_of_the_rest(&self) {
        for name in self.names.iter().flatten() {
            warn!(
                name,
                "socket_unused: it was passed by the service manager and is in no list of [listen]"
            );
        }
    }
}
