//! The client's role.

use std::{cell::RefCell, future::Future, rc::Rc};

use http::Method;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    Settings,
    driver::{Driver, Link},
    error::{H2Error, Refused},
    frame,
    state::{LAST_STREAM, Role, State},
    stream::{RecvStream, SendStream, halves},
};
use crate::http::head::RequestHead;

/// A connection to open streams on. When its last handle is dropped, the connection ends with its last stream.
pub struct Connection {
    link: Link,
}

/// Begins HTTP/2 on `io`. The future drives the connection, and resolves when it has ended; streams may be opened at once.
pub fn connect<S>(io: S, settings: Settings) -> (Connection, impl Future<Output = Result<(), H2Error>>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let link = Rc::new(RefCell::new(State::new(Role::Client, settings)));
    let mut driver = Driver::new(io, link.clone());
    let drive = std::future::poll_fn(move |cx| driver.poll(cx, &mut |_, _| {}));
    (Connection { link }, drive)
}

impl Connection {
    /// Whether streams may (again) be opened: neither side closes, and identifiers are left.
    pub fn is_usable(&self) -> bool {
        let state = self.link.borrow();
        !state.over && !state.closing && state.next_id <= LAST_STREAM
    }

    /// Streams open.
    pub fn streams(&self) -> usize {
        self.link.borrow().streams()
    }

    /// Whether so much waits to be written that nothing more is to be added: the peer does not read.
    pub fn is_crowded(&self) -> bool {
        self.link.borrow().is_crowded()
    }

    /// Streams that the peer allows; 100 until it has said so.
    pub fn most_streams(&self) -> usize {
        self.link.borrow().peer.most_streams as usize
    }

    /// Whether the peer takes extended CONNECT (RFC 8441); None: its SETTINGS have not arrived.
    pub fn takes_connect_protocol(&self) -> Option<bool> {
        let state = self.link.borrow();
        state.peer.known.then_some(state.peer.connect_protocol)
    }

    /// Whether the peer tells of its load.
    pub fn reports_load(&self) -> bool {
        self.link.borrow().peer.reports_load
    }

    /// Asks the peer for its load: see [`super::Settings::heard`]. False: it tells nothing, or does not read.
    pub fn ask_load(&self) -> bool {
        let mut state = self.link.borrow_mut();
        if !state.peer.reports_load || state.over || state.is_crowded() {
            return false;
        }
        state.output.frame(frame::LOAD, 0, 0, &[]);
        state.wake_driver();
        true
    }

    /// Waits until the peer's SETTINGS have arrived, or the connection is over.
    pub async fn settled(&self) {
        std::future::poll_fn(|cx| {
            let mut state = self.link.borrow_mut();
            if state.peer.known || state.over {
                return std::task::Poll::Ready(());
            }
            state.unsettled.push(cx.waker().clone());
            std::task::Poll::Pending
        })
        .await;
    }

    /// No new streams; the connection ends with those that are open.
    pub fn close(&self) {
        let mut state = self.link.borrow_mut();
        state.closing = true;
        state.wake_driver();
    }

    /// Sends a request's head. `end`: no body follows.
    ///
    /// # Errors
    /// Nothing was sent.
    pub fn open(&self, head: &RequestHead, end: bool) -> Result<(SendStream, RecvStream), Refused> {
        let mut state = self.link.borrow_mut();
        if state.over || state.closing || state.next_id > LAST_STREAM {
            return Err(Refused::Closed);
        }
        if state.streams() >= state.peer.most_streams as usize || state.is_crowded() {
            return Err(Refused::Full);
        }
        if head.protocol.is_some() && !state.peer.connect_protocol {
            return Err(Refused::NoConnectProtocol);
        }
        let id = state.next_id;
        state.next_id += 2;
        let key = state.add(id);
        state.send_block(id, end, |encoder, out| encoder.request(head, out));
        let written = state.output.end();
        if let Some(stream) = state.stream(key) {
            stream.receive.bodiless = head.method == Method::HEAD;
            stream.receive.tunnel = head.method == Method::CONNECT;
            stream.send.begun = true;
            stream.send.ended = end;
            stream.send.head_end = written;
        }
        drop(state);
        Ok(halves(&self.link, key))
    }
}

impl Clone for Connection {
    fn clone(&self) -> Self {
        self.link.borrow_mut().handles += 1;
        Self { link: self.link.clone() }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut state = self.link.borrow_mut();
        state.handles -= 1;
        if state.handles == 0 {
            state.closing = true;
            state.wake_driver();
        }
    }
}
