//! The server's role.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
};

use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    Settings,
    driver::Driver,
    error::H2Error,
    intake::Came,
    state::{Role, State},
    stream::{RecvStream, SendStream, halves},
};
use crate::{
    drain::Drain,
    http::head::{RequestHead, Unfit},
};

/// A request, and the two halves of its stream: its body is received, the response is sent.
pub struct Request {
    pub head: RequestHead,
    /// It is to be refused, and why: it is beyond the limits (then there is little of its head), or says in two ways whom it is
    /// for (`:authority` and Host differ, or there are two Hosts).
    pub refused: Option<Unfit>,
    pub send: SendStream,
    pub receive: RecvStream,
}

/// Serves HTTP/2 on `io` until the client leaves, or draining has begun and the last stream has ended. `on_request` gets each
/// request as soon as its head is there; it spawns what answers it. `on_malformed` hears of requests that were reset,
/// and gets what could be read of their heads, and why.
///
/// # Errors
/// What ended the connection, if it was not a clean close.
pub async fn serve<S>(
    io: S,
    settings: Settings,
    drain: Drain,
    mut on_request: impl FnMut(Request),
    mut on_malformed: impl FnMut(RequestHead, &'static str),
) -> Result<(), H2Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let link = Rc::new(RefCell::new(State::new(Role::Server, settings)));
    let mut driver = Driver::new(io, link);
    let mut begun = pin!(drain.begun());
    let mut draining = false;
    poll_fn(|cx| {
        if !draining && begun.as_mut().poll(cx).is_ready() {
            draining = true;
            driver.drain();
        }
        driver.poll(cx, &mut |link, came| {
            let arrived = match came {
                Came::Request(arrived) => arrived,
                Came::Malformed(head, why) => return on_malformed(head, why),
            };
            let (send, receive) = halves(link, arrived.key);
            // Taken back at once: dropped unseen.
            if !send.is_reset() {
                on_request(Request { head: arrived.head, refused: arrived.refused, send, receive });
            }
        })
    })
    .await
}
