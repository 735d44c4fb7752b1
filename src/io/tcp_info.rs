//! What the kernel knows of the way to the other end of a TCP connection (`TCP_INFO`, tcp(7)).
//!
//! Of the crates that wrap socket options without `unsafe`, none has this one.

use tokio::net::TcpStream;

/// What the kernel has found out so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpInfo {
    /// The smoothed round-trip time in microseconds (RFC 6298); 0 if none was measured.
    pub rtt: u32,
    /// Segments that were sent again.
    pub retransmits: u32,
}

/// Asks the kernel: one system call, which does not wait. `None` where the system has no answer; only
/// Linux is asked.
#[must_use]
pub fn read(socket: &TcpStream) -> Option<TcpInfo> {
    imp::read(socket)
}

#[cfg(target_os = "linux")]
mod imp {
    use std::os::fd::AsRawFd as _;

    use super::{TcpInfo, TcpStream};

    /// The beginning of the kernel's `struct tcp_info`, which only ever grows at its end, in words:
    /// 8 bytes of single ones, then 24 words, the last of which is `tcpi_total_retrans`.
    type Words = [u32; 26];
    /// `tcpi_rtt`.
    const RTT: usize = 17;
    /// `tcpi_total_retrans`.
    const TOTAL_RETRANS: usize = 25;

    pub(super) fn read(socket: &TcpStream) -> Option<TcpInfo> {
        let mut words: Words = [0; 26];
        let mut length: libc::socklen_t = size_of::<Words>().try_into().ok()?;
        #[allow(unsafe_code, reason = "no crate has this socket option without it")]
        // SAFETY: the descriptor is open for as long as `socket` is borrowed. The kernel writes at most
        // `length` bytes to `words`, which has so many, and any bytes are valid words; how many it has
        // written it puts into `length`. Neither pointer is kept.
        let failed = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                (&raw mut words).cast(),
                &raw mut length,
            )
        };
        if failed != 0 || usize::try_from(length).ok()? < size_of::<Words>() {
            return None;
        }
        Some(TcpInfo { rtt: words[RTT], retransmits: words[TOTAL_RETRANS] })
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use super::{TcpInfo, TcpStream};

    pub(super) fn read(_: &TcpStream) -> Option<TcpInfo> {
        None
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// Both ends know the way, and still do when it has ended.
    #[tokio::test]
    async fn the_kernel_knows_the_way() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        server.write_all(b"x").await.unwrap();
        client.read_u8().await.unwrap();
        for end in [&client, &server] {
            let info = read(end).unwrap();
            assert!((1..10_000_000).contains(&info.rtt), "{info:?}");
        }
        client.set_zero_linger().unwrap();
        drop(client);
        assert!(server.read_u8().await.is_err());
        assert!(read(&server).unwrap().rtt > 0);
    }
}
