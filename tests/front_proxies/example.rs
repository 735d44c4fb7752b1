//! The files of `conf/examples`, fitted into where a test runs, and the programs they are for.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use crate::common::Result;
use crate::common::process::{Directory, find};

/// The name in the certificate for clients: that of the examples in the server's domain.
pub(crate) const NAME: &str = "chat.ejabberd.test";

/// Where Debian has nginx's modules, of which nginx-stream.conf needs that one.
pub(crate) const MODULES: &str = "/usr/lib/nginx/modules";
pub(crate) const STREAM_MODULE: &str = "ngx_stream_module.so";

/// A file of `conf/examples`.
pub(crate) struct Example {
    name: String,
    /// What it says, as far as it was replaced.
    pub(crate) text: String,
}

impl Example {
    /// Reads it.
    pub(crate) fn read(name: &str) -> Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/examples").join(name);
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(Self { name: name.to_owned(), text })
    }

    /// With that replaced wherever it stands. It has to stand there: the file is what is tested.
    pub(crate) fn replace(mut self, from: &str, to: impl ToString) -> Result<Self> {
        ensure!(self.text.contains(from), "{}: {from:?} is not in it", self.name);
        self.text = self.text.replace(from, &to.to_string());
        Ok(self)
    }

    /// What its comment says of `bosphorus.toml`.
    pub(crate) fn for_bosphorus(&self) -> Result<Self> {
        let mut lines = self.text.lines().skip_while(|line| *line != "# In bosphorus.toml:");
        lines.next().with_context(|| format!("{} does not say what is on our side", self.name))?;
        let lines = lines.map_while(|line| line.strip_prefix("#   "));
        let text = lines.fold(String::new(), |text, line| text + line + "\n");
        Ok(Self { name: format!("the comment in {}", self.name), text })
    }
}

/// What an example is fitted into.
pub(crate) struct Surroundings {
    /// Where certificates are, and the proxy runs.
    pub(crate) directory: Directory,
    /// The proxy's.
    pub(crate) port: u16,
    /// The gateway's, for what the proxy passes on.
    pub(crate) inner: SocketAddr,
    /// The gateway's, for its health.
    pub(crate) admin: SocketAddr,
}

impl Surroundings {
    fn path(&self, leaf: &str) -> String {
        self.directory.join(leaf).display().to_string()
    }

    /// Writes the file and gives the command for it.
    fn command(&self, program: &str, example: &Example) -> Result<(Command, String)> {
        let path = self.directory.write(&example.name, &example.text)?;
        let command = Command::new(find(program).with_context(|| format!("no `{program}`"))?);
        Ok((command, path.display().to_string()))
    }
}

/// The certificate of the examples.
pub(crate) const CERTIFICATE: &str = "/etc/letsencrypt/live/chat.example.org/fullchain.pem";
/// And its key.
pub(crate) const KEY: &str = "/etc/letsencrypt/live/chat.example.org/privkey.pem";

/// What both files of nginx have in common.
fn nginx_command(surroundings: &Surroundings, example: Example) -> Result<Command> {
    // Another user could not read the directory.
    let example =
        example.replace("user www-data;", "user root;")?.replace("/run/nginx.pid", "pid")?;
    let (mut command, path) = surroundings.command("nginx", &example)?;
    // Debian names modules relative to the prefix.
    std::os::unix::fs::symlink(MODULES, surroundings.directory.join("modules"))?;
    let prefix = format!("{}/", surroundings.directory.path().display());
    command.args(["-p", &prefix, "-c", &path, "-g", "daemon off; error_log stderr notice;"]);
    Ok(command)
}

pub(crate) fn nginx(surroundings: &Surroundings, example: Example) -> Result<Command> {
    // Where Debian's nginx has them is root's.
    let places = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {name};"))
        .join(" ");
    let example = example
        .replace("http {\n", format!("http {{\naccess_log off; {places}\n"))?
        .replace("listen 443 ", format!("listen 127.0.0.1:{} ", surroundings.port))?
        .replace("        listen [::]:443 ssl http2;\n", "")?
        .replace(CERTIFICATE, surroundings.path("chain.pem"))?
        .replace(KEY, surroundings.path("key.pem"))?
        .replace("chat.example.org", NAME)?
        .replace("server 127.0.0.1:5281;", format!("server {};", surroundings.inner))?;
    nginx_command(surroundings, example)
}

pub(crate) fn nginx_stream(surroundings: &Surroundings, example: Example) -> Result<Command> {
    let example = example
        .replace("listen 443;", format!("listen 127.0.0.1:{};", surroundings.port))?
        .replace("        listen [::]:443;\n", "")?
        .replace("proxy_pass 127.0.0.1:5282;", format!("proxy_pass {};", surroundings.inner))?;
    nginx_command(surroundings, example)
}

/// What both files of HAProxy have in common.
fn haproxy_command(surroundings: &Surroundings, example: Example) -> Result<Command> {
    let example = example
        .replace("    user haproxy\n    group haproxy\n", "")?
        // More is not everybody's to ask for.
        .replace("maxconn 20000", "maxconn 200")?
        .replace("bind :::443 v4v6", format!("bind 127.0.0.1:{}", surroundings.port))?
        .replace("check port 9280", format!("check port {}", surroundings.admin.port()))?;
    let (mut command, path) = surroundings.command("haproxy", &example)?;
    command.args(["-db", "-f", &path]);
    Ok(command)
}

pub(crate) fn haproxy(surroundings: &Surroundings, example: Example) -> Result<Command> {
    let example = example
        .replace("/etc/haproxy/chat.example.org.pem", surroundings.path("both.pem"))?
        .replace("bosphorus 127.0.0.1:5281 ", format!("bosphorus {} ", surroundings.inner))?;
    haproxy_command(surroundings, example)
}

pub(crate) fn haproxy_tcp(surroundings: &Surroundings, example: Example) -> Result<Command> {
    let example = example
        .replace("bosphorus 127.0.0.1:5282 ", format!("bosphorus {} ", surroundings.inner))?;
    haproxy_command(surroundings, example)
}

pub(crate) fn caddy(surroundings: &Surroundings, example: Example) -> Result<Command> {
    // The harness names no host, and no authority gives certificates for what there is here.
    let site = format!(
        "{{\n\tadmin off\n\tauto_https disable_redirects\n}}\n:{} {{\n\tbind 127.0.0.1\n\ttls {} {}\n",
        surroundings.port,
        surroundings.path("chain.pem"),
        surroundings.path("key.pem"),
    );
    let example = example
        .replace("chat.example.org {\n", site)?
        .replace("@xmpp 127.0.0.1:5281 {", format!("@xmpp {} {{", surroundings.inner))?;
    let (mut command, path) = surroundings.command("caddy", &example)?;
    command.args(["run", "--adapter", "caddyfile", "--config", &path]);
    for name in ["HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"] {
        command.env(name, surroundings.directory.path());
    }
    Ok(command)
}
