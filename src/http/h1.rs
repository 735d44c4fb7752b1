//! HTTP/1.1: actix's dispatcher, with the upgrade hook set.

use std::fmt::Debug;
use std::future::ready;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use actix_http::error::DispatchError;
use actix_http::{HttpService, KeepAlive, Protocol, Request, Response, h1};
use actix_service::{Service, ServiceFactory, fn_factory, fn_service};
use actix_web::body::{BoxBody, MessageBody};

use super::guard::Guarded;
use super::ws::Hook;

/// Bytes of answers that actix gathers before it writes. It takes the next pipelined request once
/// the answer before fits in here, written or not (see BOSH-50): so little more than the head of an
/// answer, which should leave in one piece with a short body.
const WRITE_BUFFER: usize = 512;

/// What a connection may cost, the same until the next start.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The time for the head of the first request.
    pub first_request: Duration,
    /// The time between two requests.
    pub keep_alive: Duration,
    /// BOSH-06, WS-44: what a refused client still sends is thrown away so long.
    pub close_grace: Duration,
}

/// The service of one worker: requests are answered by `app`, upgrades by `hook`.
pub fn service<A, B>(
    app: Rc<A>,
    hook: Rc<Hook>,
    limits: Limits,
) -> impl ServiceFactory<
    (Guarded, Protocol, Option<SocketAddr>),
    Config = (),
    Response = (),
    Error = DispatchError,
    InitError = (),
>
where
    A: Service<Request, Error: Into<Response<BoxBody>> + Debug, Response: Into<Response<B>>>
        + 'static,
    B: MessageBody + 'static,
{
    let upgrade = fn_factory(move || {
        let hook = Rc::clone(&hook);
        async move {
            Ok::<_, ()>(fn_service(
                move |(request, framed): (Request, actix_codec::Framed<Guarded, h1::Codec>)| {
                    Rc::clone(&hook).upgrade(request, framed)
                },
            ))
        }
    });
    HttpService::build()
        .keep_alive(KeepAlive::Timeout(limits.keep_alive))
        .client_request_timeout(limits.first_request)
        .client_disconnect_timeout(limits.close_grace)
        // BOSH-51.
        .h1_allow_half_closed(false)
        .h1_write_buffer_size(WRITE_BUFFER)
        .on_connect_ext(|socket: &Guarded, data| {
            data.insert(socket.watch());
            data.insert(socket.entered());
        })
        .upgrade(upgrade)
        .finish(fn_factory(move || ready(Ok::<_, ()>(Rc::clone(&app)))))
}
