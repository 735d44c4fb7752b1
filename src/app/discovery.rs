//! What of the configuration is published about its domains.

use std::sync::Arc;

use crate::config::{Config, Route};
use crate::proto::host_meta::{BOSH, Discovery, Link, Published, WEBSOCKET};

/// The documents of all domains.
pub(super) fn discovery(config: &Config) -> Discovery {
    let besides: Vec<_> = config
        .discovery
        .links
        .iter()
        .map(|link| self::link(&link.rel, link.href.clone()))
        .collect();
    let published = |route: &Route| {
        let url = route.public_url.as_ref()?;
        let mut links = Vec::new();
        if url.secure {
            // The first path of each is the one that it is known by.
            links.extend(
                config
                    .ws
                    .paths
                    .first()
                    .map(|path| link(WEBSOCKET, format!("wss://{}{path}", url.rest))),
            );
            links.extend(
                config
                    .bosh
                    .paths
                    .first()
                    .map(|path| link(BOSH, format!("https://{}{path}", url.rest))),
            );
        }
        Some(Arc::new(Published::new(&links, &besides)))
    };
    config.domains.map(published)
}

fn link(rel: &str, href: String) -> Link {
    Link { rel: rel.into(), href: href.into() }
}
