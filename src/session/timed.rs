//! Futures whose polls are among those that are timed ([`Local::poll_begins`]).

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;

use super::meter::Meter;
use crate::metrics::{Local, Transport};

/// Whose work it is.
pub(crate) trait Payer {
    /// The counters of the worker that polls it.
    fn local(&self) -> &Local;

    /// So much of the processor was spent on it.
    fn pay(&self, time: Duration);
}

/// What the connection carries.
impl Payer for Rc<Meter> {
    fn local(&self) -> &Local {
        Meter::local(self)
    }

    fn pay(&self, time: Duration) {
        self.spent(time);
    }
}

/// A BOSH session, which has no connection of its own.
pub(crate) struct Bosh(pub(crate) Arc<Local>);

impl Payer for Bosh {
    fn local(&self) -> &Local {
        &self.0
    }

    fn pay(&self, time: Duration) {
        self.0.spent(Some(Transport::Bosh), time);
    }
}

pin_project! {
    /// Work, and whose it is.
    pub(crate) struct Timed<F, P> {
        #[pin]
        work: F,
        payer: P,
    }
}

impl<F, P> Timed<F, P> {
    pub(crate) fn new(work: F, payer: P) -> Self {
        Self { work, payer }
    }
}

impl<F: Future, P: Payer> Future for Timed<F, P> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let stopwatch = this.payer.local().poll_begins();
        let polled = this.work.poll(cx);
        if let Some(stopwatch) = stopwatch {
            this.payer.pay(stopwatch.stop());
        }
        polled
    }
}
