//! The body of a request: read within its size and its time, and uncompressed.

use std::convert::Infallible;
use std::io::{self, Read as _, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use actix_web::body::{BodySize, MessageBody};
use actix_web::error::PayloadError;
use actix_web::http::header::{self, HeaderMap};
use actix_web::web;
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};

use super::super::h2;
use crate::session::budget::Arriving;

/// SEC-18: each KiB that has come gives its sender another second.
const BYTES_PER_SECOND: u64 = 1024;

/// Why a body could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It is larger than the limit, as it came or uncompressed (BOSH-06, SEC-13).
    TooBig,
    /// Its coding is not read here (BOSH-09).
    Coded,
    /// It took too long (SEC-18).
    Slow,
    /// More than enough comes at once over its HTTP/2 connection.
    Crowded,
    /// It is large, and all memory is taken.
    Full,
    /// It ended early, or is not what its coding says.
    Broken,
}

/// The size that the head announces.
pub(super) fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// Reads at most `limit` bytes of a body. `start` is now; all of it has to be there `timeout` later,
/// and a second more for each KiB that came: a slow uplink gets its time, who sends drop by drop
/// does not. What has come is on the account of `arriving`.
///
/// # Errors
/// [`Failure`], as soon as it is certain.
pub(super) async fn read(
    payload: &mut (impl Stream<Item = Result<Bytes, PayloadError>> + Unpin),
    limit: usize,
    timeout: Duration,
    start: Instant,
    mut arriving: Arriving<'_>,
) -> Result<Bytes, Failure> {
    // Nearly always all of it comes in one piece, which is then not copied.
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    loop {
        let received = first.len() + whole.len();
        let earned = Duration::from_secs(received as u64 / BYTES_PER_SECOND);
        let until = (start + timeout + earned).into();
        let chunk = match tokio::time::timeout_at(until, payload.next()).await {
            Err(_) => return Err(Failure::Slow),
            Ok(None) if whole.is_empty() => return Ok(first),
            Ok(None) => return Ok(whole.freeze()),
            Ok(Some(Err(PayloadError::Overflow))) => return Err(Failure::TooBig),
            Ok(Some(Err(PayloadError::Io(error)))) if error.kind() == h2::CROWDED => {
                return Err(Failure::Crowded);
            }
            Ok(Some(Err(_))) => return Err(Failure::Broken),
            Ok(Some(Ok(chunk))) => chunk,
        };
        if received + chunk.len() > limit {
            return Err(Failure::TooBig);
        }
        if received == 0 {
            first = chunk;
        } else {
            if whole.is_empty() {
                whole.reserve(received + chunk.len());
                whole.extend_from_slice(&std::mem::take(&mut first));
            }
            whole.extend_from_slice(&chunk);
        }
        if !arriving.has_room(first.len().max(whole.capacity())) {
            return Err(Failure::Full);
        }
    }
}

/// What was done to a body before it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Identity,
    Gzip,
    Deflate,
}

impl Coding {
    /// `None` for one that is not read, as all are unless `enabled`.
    pub(super) fn of(headers: &HeaderMap, enabled: bool) -> Option<Self> {
        let mut all = headers.get_all(header::CONTENT_ENCODING);
        let Some(value) = all.next() else { return Some(Self::Identity) };
        let value = value.to_str().ok()?.trim();
        if all.next().is_some() {
            return None;
        }
        match value.to_ascii_lowercase().as_str() {
            "" | "identity" => Some(Self::Identity),
            // libpurple names its media type here; a coding is a token, without a slash.
            value if value.contains('/') => Some(Self::Identity),
            "gzip" | "x-gzip" if enabled => Some(Self::Gzip),
            "deflate" if enabled => Some(Self::Deflate),
            _ => None,
        }
    }

    /// The body itself, of at most `limit` bytes.
    ///
    /// # Errors
    /// [`Failure::TooBig`] before more than that was made of it, [`Failure::Broken`].
    pub(super) fn decode(self, coded: Bytes, limit: usize) -> Result<Bytes, Failure> {
        let mut body = Vec::new();
        let most = limit as u64 + 1;
        let read = match self {
            Self::Identity => return Ok(coded),
            Self::Gzip => {
                flate2::read::MultiGzDecoder::new(&*coded).take(most).read_to_end(&mut body)
            }
            Self::Deflate => {
                flate2::read::ZlibDecoder::new(&*coded).take(most).read_to_end(&mut body)
            }
        };
        match read {
            Ok(bytes) if bytes > limit => Err(Failure::TooBig),
            Ok(_) => Ok(body.into()),
            Err(_) => Err(Failure::Broken),
        }
    }
}

/// A response in gzip. Each has a context of its own (SEC-13).
pub(super) fn compress(body: &[u8]) -> Vec<u8> {
    let out = Vec::with_capacity(body.len() / 2);
    let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::fast());
    // Writing to memory does not fail.
    let _ = encoder.write_all(body);
    encoder.finish().unwrap_or_default()
}

/// The text of an answer to a request whose body was not read to its end.
///
/// It keeps the payload, for as long as it is being written: a payload that was dropped is drained
/// by actix without any limit if it is chunked; one that is there makes it close the connection,
/// after what still comes was thrown away for a while (BOSH-06).
pub(super) struct Unread {
    text: Option<&'static str>,
    size: usize,
    _payload: web::Payload,
}

impl Unread {
    pub(super) fn new(text: &'static str, payload: web::Payload) -> Self {
        Self { text: Some(text), size: text.len(), _payload: payload }
    }
}

impl MessageBody for Unread {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.size as u64)
    }

    fn poll_next(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Infallible>>> {
        let text = self.get_mut().text.take();
        Poll::Ready(text.map(|text| Ok(Bytes::from_static(text.as_bytes()))))
    }
}

/// The content of an answer that is none: it fails before anything was written, upon which actix
/// drops the connection (BOSH-89).
pub(super) struct Cut;

impl MessageBody for Cut {
    type Error = io::Error;

    fn size(&self) -> BodySize {
        BodySize::Sized(1)
    }

    fn poll_next(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, io::Error>>> {
        Poll::Ready(Some(Err(io::ErrorKind::ConnectionAborted.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::session::budget::Budget;
    use crate::session::timer::clock;
    use actix_web::http::header::HeaderValue;
    use futures_util::stream;

    fn budget() -> Budget {
        Budget::new(0, Metrics::register().unwrap())
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn chunks(parts: &[&'static str]) -> Vec<Result<Bytes, PayloadError>> {
        parts.iter().map(|part| Ok(Bytes::from_static(part.as_bytes()))).collect()
    }

    async fn judge(
        parts: Vec<Result<Bytes, PayloadError>>,
        limit: usize,
    ) -> Result<Bytes, Failure> {
        read(&mut stream::iter(parts), limit, SECOND, clock(), budget().arriving()).await
    }

    /// BOSH-06: the limit holds for what is announced and for what comes.
    #[actix_rt::test]
    async fn a_body_is_read_up_to_its_limit() {
        assert_eq!(judge(chunks(&[]), 3).await, Ok(Bytes::new()));
        assert_eq!(judge(chunks(&["abc"]), 3).await, Ok(Bytes::from("abc")));
        assert_eq!(judge(chunks(&["", "a", "", "bc"]), 3).await, Ok(Bytes::from("abc")));
        assert_eq!(judge(chunks(&["abcd"]), 3).await, Err(Failure::TooBig));
        assert_eq!(judge(chunks(&["a", "b", "cd"]), 3).await, Err(Failure::TooBig));
        let mut broken = chunks(&["a"]);
        broken.push(Err(PayloadError::Incomplete(None)));
        assert_eq!(judge(broken, 3).await, Err(Failure::Broken));
    }

    /// SEC-18: who sends drop by drop is cut off, who sends a KiB a second is not.
    #[actix_rt::test]
    async fn a_body_has_its_time() {
        let start = clock();
        let mut silent = stream::pending();
        let silent =
            read(&mut silent, 100, Duration::from_millis(20), start, budget().arriving()).await;
        assert_eq!(silent, Err(Failure::Slow));
        // What came long ago earns nothing; what has come since does.
        let past = start - 10 * SECOND;
        let drops = stream::iter(chunks(&["a"; 5])).chain(stream::pending());
        let read_of = async |mut body: Pin<Box<dyn Stream<Item = _>>>, timeout| {
            read(&mut body, 1 << 20, timeout, past, budget().arriving()).await
        };
        assert_eq!(read_of(Box::pin(drops), 5 * SECOND).await, Err(Failure::Slow));
        let kib = Bytes::from(vec![b'a'; 20 << 10]);
        let steady = stream::once(async move { Ok(kib) }).chain(stream::once(async {
            tokio::task::yield_now().await;
            Ok(Bytes::from_static(b"b"))
        }));
        let steady = read_of(Box::pin(steady), 5 * SECOND).await;
        assert_eq!(steady.map(|body| body.len()), Ok((20 << 10) + 1));
    }

    /// BOSH-09, SEC-13: both codings, and the limit holds for what they unfold to.
    #[test]
    fn codings_are_bounded() {
        let text = vec![b'x'; 5000];
        let gzip = Bytes::from(compress(&text));
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        zlib.write_all(&text).unwrap();
        let zlib = Bytes::from(zlib.finish().unwrap());
        for (coding, coded) in [(Coding::Gzip, &gzip), (Coding::Deflate, &zlib)] {
            assert!(coded.len() < 200);
            assert_eq!(coding.decode(coded.clone(), 5000), Ok(Bytes::from(text.clone())));
            assert_eq!(coding.decode(coded.clone(), 4999), Err(Failure::TooBig));
            assert_eq!(coding.decode(coded.slice(..20), 5000), Err(Failure::Broken));
            assert_eq!(coding.decode(Bytes::from_static(b"<body/>"), 5000), Err(Failure::Broken));
        }
        assert_eq!(Coding::Identity.decode(gzip.clone(), 1), Ok(gzip));
    }

    /// BOSH-09: a coding is read only if it is enabled, and only one.
    #[test]
    fn codings_are_known_by_name() {
        let of = |lines: &[&'static str], enabled| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(header::CONTENT_ENCODING, HeaderValue::from_static(line));
            }
            Coding::of(&headers, enabled)
        };
        assert_eq!(of(&[], false), Some(Coding::Identity));
        assert_eq!(of(&["identity"], false), Some(Coding::Identity));
        assert_eq!(of(&["text/xml; charset=utf-8"], false), Some(Coding::Identity));
        assert_eq!(of(&["gzip"], false), None);
        assert_eq!(of(&["GZip"], true), Some(Coding::Gzip));
        assert_eq!(of(&["deflate"], true), Some(Coding::Deflate));
        assert_eq!(of(&["gzip, gzip"], true), None);
        assert_eq!(of(&["gzip", "gzip"], true), None);
        assert_eq!(of(&["br"], true), None);
    }
}
