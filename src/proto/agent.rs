//! What kind of program a `User-Agent` is of: one of a few families, for the census of who uses
//! which transport. Never more of the text than that.
//!
//! Browsers name each other: Edge says that it is Chrome, Chrome that it is Safari. So each product
//! has a rank, and the highest that occurs is what the client is.

/// Bytes of a header that are looked at. Apps in apps have long ones, with what matters before that.
const LONGEST: usize = 512;

/// A family of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Agent {
    /// No header, or an empty one.
    None,
    /// Whatever is not below.
    Other,
    /// Chrome and other browsers of its engine, but those below.
    Chrome,
    /// Firefox.
    Firefox,
    /// Safari.
    Safari,
    /// Edge, both engines.
    Edge,
    /// Internet Explorer.
    InternetExplorer,
    /// Desktop apps of web pages.
    Electron,
    /// The web view of Android apps, and Android's old browser.
    AndroidWebview,
    /// The web view of apps for Apple's systems.
    AppleWebview,
    /// Apps for Apple's systems that use the system's HTTP (CFNetwork).
    Apple,
    /// Node.js and what is like it; jsdom.
    Node,
    /// OkHttp: Smack and other apps for Android.
    Okhttp,
    /// Other HTTP clients of Java: Smack's BOSH.
    Java,
    /// Python.
    Python,
    /// Dart: Flutter apps.
    Dart,
    /// Gajim.
    Gajim,
    /// Pidgin and others of libpurple.
    Pidgin,
    /// Psi, Psi+.
    Psi,
}

impl Agent {
    /// Every family, in the order of their numbers.
    pub const ALL: [Self; 19] = [
        Self::None,
        Self::Other,
        Self::Chrome,
        Self::Firefox,
        Self::Safari,
        Self::Edge,
        Self::InternetExplorer,
        Self::Electron,
        Self::AndroidWebview,
        Self::AppleWebview,
        Self::Apple,
        Self::Node,
        Self::Okhttp,
        Self::Java,
        Self::Python,
        Self::Dart,
        Self::Gajim,
        Self::Pidgin,
        Self::Psi,
    ];

    /// The value of the label `client`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Other => "other",
            Self::Chrome => "chrome",
            Self::Firefox => "firefox",
            Self::Safari => "safari",
            Self::Edge => "edge",
            Self::InternetExplorer => "internet_explorer",
            Self::Electron => "electron",
            Self::AndroidWebview => "android_webview",
            Self::AppleWebview => "apple_webview",
            Self::Apple => "apple",
            Self::Node => "node",
            Self::Okhttp => "okhttp",
            Self::Java => "java",
            Self::Python => "python",
            Self::Dart => "dart",
            Self::Gajim => "gajim",
            Self::Pidgin => "pidgin",
            Self::Psi => "psi",
        }
    }

    /// The family that a `User-Agent` is of (RFC 9110 §10.1.5): one pass over at most 512 bytes.
    #[must_use]
    pub fn of(header: Option<&[u8]>) -> Self {
        let header = header.unwrap_or_default().trim_ascii();
        if header.is_empty() {
            return Self::None;
        }
        let header = &header[..header.len().min(LONGEST)];
        let mut best = (0, Self::Other);
        let (mut on_android, mut on_apple) = (false, false);
        for word in header.split(|byte| b" \t();,".contains(byte)) {
            let product = word.split(|byte| *byte == b'/').next().unwrap_or_default();
            match product {
                b"Android" => on_android = true,
                b"Macintosh" | b"iPhone" | b"iPad" | b"iPod" => on_apple = true,
                _ => {}
            }
            if let Some(found) = ranked(product)
                && found.0 > best.0
            {
                best = found;
            }
        }
        match best.1 {
            // What Safari says, but not Safari.
            Self::Safari if on_android => Self::AndroidWebview,
            Self::AppleWebview if !on_apple => Self::Other,
            family => family,
        }
    }
}

/// What a product is of, and how much that says.
fn ranked(product: &[u8]) -> Option<(u8, Agent)> {
    Some(match product {
        // Alone only where the page is in an app.
        b"AppleWebKit" => (1, Agent::AppleWebview),
        b"Safari" => (2, Agent::Safari),
        b"Chrome" | b"CriOS" | b"Chromium" | b"HeadlessChrome" => (3, Agent::Chrome),
        b"Firefox" | b"FxiOS" => (4, Agent::Firefox),
        b"wv" => (5, Agent::AndroidWebview),
        b"Edg" | b"Edge" | b"EdgA" | b"EdgiOS" => (6, Agent::Edge),
        b"MSIE" | b"Trident" => (7, Agent::InternetExplorer),
        b"CFNetwork" => (8, Agent::Apple),
        b"Java" | b"Java-http-client" | b"Apache-HttpClient" | b"Dalvik" | b"Jetty" => {
            (8, Agent::Java)
        }
        b"node"
        | b"node-fetch"
        | b"node-XMLHttpRequest"
        | b"undici"
        | b"axios"
        | b"jsdom"
        | b"Deno"
        | b"Bun" => (9, Agent::Node),
        b"okhttp" => (9, Agent::Okhttp),
        b"Python" | b"Python-urllib" | b"python-requests" | b"python-httpx" | b"aiohttp" => {
            (9, Agent::Python)
        }
        b"Dart" => (9, Agent::Dart),
        b"Electron" => (10, Agent::Electron),
        b"Gajim" | b"gajim" => (11, Agent::Gajim),
        b"libpurple" | b"Pidgin" => (11, Agent::Pidgin),
        b"Psi" | b"Psi+" | b"psi" | b"psi-plus" => (11, Agent::Psi),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is in the field, each as its family.
    #[test]
    fn families_are_told_apart() {
        for (agent, text) in [
            (
                Agent::Chrome,
                "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) \
                 Chrome/126.0.0.0 Safari/537.36",
            ),
            (
                Agent::Chrome,
                "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) \
                 HeadlessChrome/126.0.6478.126 Safari/537.36",
            ),
            (
                Agent::Chrome,
                "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 \
                 (KHTML, like Gecko) CriOS/126.0.6478.54 Mobile/15E148 Safari/604.1",
            ),
            (
                Agent::Chrome,
                "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) \
                 Chrome/125.0.0.0 Safari/537.36 OPR/111.0.0.0",
            ),
            (
                Agent::Edge,
                "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) \
                 Chrome/126.0.0.0 Safari/537.36 Edg/126.0.2592.68",
            ),
            (
                Agent::Edge,
                "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) \
                 Chrome/70.0.3538.102 Safari/537.36 Edge/18.19042",
            ),
            (
                Agent::Firefox,
                "Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0",
            ),
            (
                Agent::Firefox,
                "Mozilla/5.0 (iPhone; CPU iPhone OS 14_5 like Mac OS X) AppleWebKit/605.1.15 \
                 (KHTML, like Gecko) FxiOS/127.0 Mobile/15E148 Safari/605.1.15",
            ),
            (
                Agent::Safari,
                "Mozilla/5.0 (Macintosh; Intel Mac OS X 14_5) AppleWebKit/605.1.15 (KHTML, like \
                 Gecko) Version/17.4.1 Safari/605.1.15",
            ),
            (
                Agent::Safari,
                "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 \
                 (KHTML, like Gecko) Version/17.5 Mobile/15E148 Safari/604.1",
            ),
            (
                Agent::AppleWebview,
                "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 \
                 (KHTML, like Gecko) Mobile/15E148",
            ),
            (
                Agent::AndroidWebview,
                "Mozilla/5.0 (Linux; Android 14; Pixel 8 Build/UQ1A.240205.002; wv) \
                 AppleWebKit/537.36 (KHTML, like Gecko) Version/4.0 Chrome/126.0.6478.71 Mobile \
                 Safari/537.36",
            ),
            (
                Agent::AndroidWebview,
                "Mozilla/5.0 (Linux; U; Android 4.0.3; de-de; GT-I9100 Build/IML74K) \
                 AppleWebKit/534.30 (KHTML, like Gecko) Version/4.0 Mobile Safari/534.30",
            ),
            (
                Agent::Electron,
                "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) \
                 Converse/10.1.6 Chrome/120.0.6099.56 Electron/28.0.0 Safari/537.36",
            ),
            (
                Agent::InternetExplorer,
                "Mozilla/5.0 (Windows NT 6.1; WOW64; Trident/7.0; rv:11.0) like Gecko",
            ),
            (
                Agent::InternetExplorer,
                "Mozilla/4.0 (compatible; MSIE 8.0; Windows NT 6.1; Trident/4.0)",
            ),
            (Agent::Node, "node"),
            (Agent::Node, "node-fetch/1.0 (+https://github.com/bitinn/node-fetch)"),
            (Agent::Node, "node-XMLHttpRequest"),
            (
                Agent::Node,
                "Mozilla/5.0 (linux) AppleWebKit/537.36 (KHTML, like Gecko) jsdom/24.1.0",
            ),
            (Agent::Okhttp, "okhttp/4.12.0"),
            (Agent::Java, "Java/17.0.11"),
            (Agent::Java, "Apache-HttpClient/4.5.14 (Java/11.0.23)"),
            (Agent::Java, "Apache-HttpClient/4.0.1 (java 1.5)"),
            (Agent::Java, "Dalvik/2.1.0 (Linux; U; Android 9; SM-G960F Build/PPR1.180610.011)"),
            (Agent::Python, "Python/3.11 aiohttp/3.9.5"),
            (Agent::Python, "Python-urllib/3.11"),
            (Agent::Python, "python-requests/2.32.3"),
            (Agent::Python, "Python/3.12 websockets/12.0"),
            (Agent::Dart, "Dart/3.4 (dart:io)"),
            (Agent::Apple, "Chat/42 CFNetwork/1496.0.7 Darwin/23.5.0"),
            (Agent::Gajim, "Gajim 1.8.4"),
            (Agent::Gajim, "Gajim/0.16.9"),
            (Agent::Pidgin, "Pidgin 2.14.12 (libpurple 2.14.12)"),
            (Agent::Pidgin, "Finch/2.13.0 (libpurple 2.13.0)"),
            (Agent::Psi, "Psi+/1.5"),
            (Agent::Other, "Go-http-client/1.1"),
            (
                Agent::Other,
                "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/605.1.15 (KHTML, like Gecko)",
            ),
            (Agent::Other, "Mozilla/5.0"),
            (Agent::Other, "/ // ()"),
            (Agent::None, ""),
            (Agent::None, " \t"),
        ] {
            assert_eq!(Agent::of(Some(text.as_bytes())), agent, "{text}");
        }
        assert_eq!(Agent::of(None), Agent::None);
        assert_eq!(Agent::of(Some(&[0xFF; 4000])), Agent::Other);
    }

    /// No more is read than that.
    #[test]
    fn only_the_beginning_counts() {
        let far = format!("{} Firefox/1", "x".repeat(LONGEST));
        assert_eq!(Agent::of(Some(far.as_bytes())), Agent::Other);
    }

    #[test]
    fn numbers_and_labels_are_distinct() {
        for (at, agent) in Agent::ALL.into_iter().enumerate() {
            assert_eq!(agent as usize, at);
        }
        let labels: std::collections::BTreeSet<_> = Agent::ALL.map(Agent::label).into();
        assert_eq!(labels.len(), Agent::ALL.len());
    }
}
