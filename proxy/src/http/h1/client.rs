//! The client's role: one request and its response on a connection, which then is ready for another.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io,
    mem::MaybeUninit,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::Instant,
};

use bytes::{Bytes, BytesMut};
use http::Method;
use socket2::SockRef;

use super::{
    Decoded, Decoder, Incoming, Outgoing, buffer,
    chunked::{consume, take},
    parse::{self, Response},
    write::{Filled, Output, Plan},
};
use crate::{
    config::limits,
    http::{
        body::{BodyError, Frame},
        head::{RequestHead, ResponseHead},
        watch::{Watch, Watched},
    },
    net::Io,
};

/// Where a connection goes that is ready for another request.
type Home = Box<dyn FnOnce(ClientConnection)>;

/// A connection to a server, without an exchange.
pub struct ClientConnection {
    io: Box<dyn Io>,
    /// Read and not used.
    bytes: BytesMut,
    /// It was looked at since its last exchange, and was reusable then.
    looked_at: bool,
}

/// A request without a response.
#[derive(Debug)]
pub struct SendError<B> {
    /// Some byte of the request may have reached the server. If not, it can be sent again.
    pub written: bool,
    /// Some byte of a response came. If not, the server may have closed the connection before it saw the request.
    pub answered: bool,
    pub reason: String,
    /// The request's body, as it was, if nothing was taken from it.
    pub body: Option<B>,
}

impl ClientConnection {
    pub fn new(io: Box<dyn Io>) -> Self {
        Self { io, bytes: BytesMut::new(), looked_at: false }
    }

    /// Whether another request may be sent: an idle connection on which something can be read was closed, or is broken.
    pub fn is_reusable(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.looked_at = self.bytes.is_empty() && buffer::poll_read(&mut *self.io, &mut cx, |_| ()).is_pending();
        self.looked_at
    }

    /// Whether the server's end, or anything it was not asked for, is there already. Asked of the kernel, since the runtime
    /// of a busy worker hears of it later: for requests that would be lost, since they cannot be sent again.
    fn has_ended(&self) -> bool {
        let there = |tcp| SockRef::from(tcp).peek(&mut [MaybeUninit::uninit()]);
        self.io.tcp().is_some_and(|tcp| !matches!(there(tcp), Err(none) if none.kind() == io::ErrorKind::WouldBlock))
    }

    /// Sends a request and waits for its response's head. The body goes on being sent while the response's is read, should it not
    /// be complete by then. `informed` hears of informational responses, as they come, however many they are. `home` gets the
    /// connection if it can be used again, as soon as both bodies are complete.
    ///
    /// Dropping this future, or the response's body before its end, closes the connection.
    ///
    /// # Errors
    /// There is no response.
    pub async fn send<B: Outgoing>(
        mut self,
        head: &RequestHead,
        body: B,
        mut informed: impl FnMut(ResponseHead),
        home: impl FnOnce(Self) + 'static,
    ) -> Result<(ResponseHead, Incoming), SendError<B>> {
        // At least as far as the method goes; a body may be too long to be kept.
        let again = head.method.is_idempotent() && body.is_end();
        let refused = if !is_line(head) {
            Some("the target cannot be written in a request line")
        } else if (!self.looked_at && !self.is_reusable()) || (!again && self.has_ended()) {
            Some("the server had closed the connection")
        } else {
            None
        };
        if let Some(reason) = refused {
            return Err(SendError { written: false, answered: false, reason: reason.to_owned(), body: Some(body) });
        }
        let mut upload =
            Upload { output: Output::default(), body: Some(body), plan: Plan::None, written: false, stopped: None };
        if let Some(body) = &upload.body {
            upload.plan = upload.output.request(head, body);
        }
        self.looked_at = false;
        let mut scanned = None;
        let exchange = poll_fn(|cx| self.poll_exchange(cx, &mut upload, &head.method, &mut informed, &mut scanned));
        let response = exchange.await;
        let answered = scanned.is_some();
        match response {
            Ok((response, body)) => Ok(self.take_up(response, body, upload, home)),
            Err(reason) => Err(SendError { written: upload.written, answered, reason, body: None }),
        }
    }

    /// Writes as much as there is, and reads the response's head, and its body, if all of that came with it. `scanned`: bytes of the
    /// head that were looked at, once any came.
    fn poll_exchange<B: Outgoing>(
        &mut self,
        cx: &mut Context<'_>,
        upload: &mut Upload<B>,
        method: &Method,
        informed: &mut impl FnMut(ResponseHead),
        scanned: &mut Option<usize>,
    ) -> Poll<Result<(Response, Option<Bytes>), String>> {
        // A server that answers and closes before it has read everything is heard out.
        let sent = upload.poll(cx, &mut *self.io);
        if let Some(reason) = &upload.stopped
            && (sent == Poll::Ready(Err(Stopped::Body)) || !upload.written)
        {
            return Poll::Ready(Err(reason.clone()));
        }
        loop {
            let (bytes, mut body) = (&mut self.bytes, None);
            let read = buffer::poll_read(&mut *self.io, cx, |new| {
                if new.is_empty() {
                    return Err("the connection ended before the response".to_owned());
                }
                let looked_at = scanned.replace(0).unwrap_or(0);
                // Most come whole: nothing is kept of what was read, but for what follows them.
                let response = if bytes.is_empty() {
                    let (response, used) = next_response(new, method, informed)?;
                    let mut rest = new.get(used..).unwrap_or_default();
                    let whole = response.as_ref().and_then(|response| response.framing.within(rest));
                    if let Some((all, after)) = whole.and_then(|length| rest.split_at_checked(length)) {
                        body = Some(Bytes::copy_from_slice(all));
                        rest = after;
                    }
                    bytes.extend_from_slice(rest);
                    response
                } else {
                    bytes.extend_from_slice(new);
                    if !parse::has_empty_line(bytes, looked_at) && bytes.len() <= limits::HEAD_BYTES {
                        *scanned = Some(bytes.len());
                        return Ok(None);
                    }
                    let (response, used) = next_response(bytes, method, informed)?;
                    consume(bytes, used);
                    response
                };
                *scanned = Some(bytes.len());
                Ok(response)
            });
            match ready!(read) {
                Ok(Ok(None)) => {}
                Ok(Ok(Some(response))) => return Poll::Ready(Ok((response, body))),
                Ok(Err(reason)) => return Poll::Ready(Err(upload.stopped.take().unwrap_or(reason))),
                Err(error) => return Poll::Ready(Err(upload.stopped.take().unwrap_or_else(|| error.to_string()))),
            }
        }
    }

    /// The response, with what is left to do for it. `body`: all of it, if it came with the head.
    fn take_up<B: Outgoing>(
        mut self,
        response: Response,
        mut body: Option<Bytes>,
        upload: Upload<B>,
        home: impl FnOnce(Self) + 'static,
    ) -> (ResponseHead, Incoming) {
        let Response { head, framing, close, .. } = response;
        let sent = upload.is_complete();
        if sent || close {
            body = body.or_else(|| framing.within(&self.bytes).map(|length| take(&mut self.bytes, length as u64)));
        } else if let Some(body) = body.take() {
            // Read while the request goes on being sent.
            let after = std::mem::replace(&mut self.bytes, BytesMut::from(body));
            self.bytes.extend_from_slice(&after);
        }
        if let Some(body) = body {
            if sent && !close && self.bytes.is_empty() {
                home(self);
            }
            return (head, Incoming::full(body));
        }
        let mut wire = Wire {
            connection: Some(self),
            sent: true,
            read: false,
            close,
            home: Some(Box::new(home)),
            pump: None,
            reader: None,
        };
        let decoder = Decoder::new(framing);
        if sent {
            return (head, Incoming::response(Reader { wire: Held::Own(wire), decoder }));
        }
        wire.sent = false;
        let wire = Rc::new(RefCell::new(wire));
        // Once the exchange is over nobody waits for the request's end any more: it ends when nothing moves.
        let watch = Watch::new(upload.body.as_ref().map_or(limits::STREAM_IDLE, Outgoing::idle), None);
        watch.begin(Instant::now());
        watch.answered(true);
        let pump = Pump { wire: Rc::clone(&wire), upload, watch: Rc::clone(&watch) };
        tokio::task::spawn_local(Watched::new(&watch, pump));
        let mut reader = Reader { wire: Held::Shared(wire), decoder };
        reader.settle();
        (head, Incoming::response(reader))
    }
}

/// Whether target and authority are what they seem, once written. Whoever read or rewrote them has seen to that; it is
/// looked at again because a request could hide in them.
fn is_line(head: &RequestHead) -> bool {
    let fits = |text: &str| text.bytes().all(|byte| byte > b' ' && byte != 0x7f);
    fits(head.target()) && !head.target().is_empty() && fits(head.authority().unwrap_or_default())
}

/// The response that counts among the heads at the beginning of `bytes`, and how many bytes were used. `informed` hears of
/// those before it.
fn next_response(
    bytes: &[u8],
    method: &Method,
    informed: &mut impl FnMut(ResponseHead),
) -> Result<(Option<Response>, usize), String> {
    let mut used = 0;
    loop {
        let rest = bytes.get(used..).unwrap_or_default();
        match parse::parse_response(rest, method).map_err(|reason| format!("a malformed response: {reason}"))? {
            None => return Ok((None, used)),
            Some(response) => {
                used += response.length;
                if response.head.status == http::StatusCode::SWITCHING_PROTOCOLS {
                    return Err("switched protocols without being asked".to_owned());
                }
                if !response.head.status.is_informational() {
                    return Ok((Some(response), used));
                }
                informed(response.head);
            }
        }
    }
}

/// A request on its way.
struct Upload<B> {
    output: Output,
    /// None: all of it is in the output.
    body: Option<B>,
    plan: Plan,
    written: bool,
    /// Why it goes on no longer.
    stopped: Option<String>,
}

/// Who is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopped {
    /// The request's body broke off.
    Body,
    Connection,
}

impl<B: Outgoing> Upload<B> {
    fn is_complete(&self) -> bool {
        self.stopped.is_none() && self.body.is_none() && self.output.is_empty()
    }

    /// Ready: all is written, or nothing more will be.
    fn poll(&mut self, cx: &mut Context<'_>, io: &mut dyn Io) -> Poll<Result<(), Stopped>> {
        while self.stopped.is_none() {
            let filled = match self.body.as_mut().map(|body| self.output.fill(cx, body, &mut self.plan)) {
                None => Filled::Complete,
                Some(Ok(filled)) => filled,
                Some(Err(error)) => {
                    self.stopped = Some(format!("the request broke off: {error}"));
                    self.body = None;
                    return Poll::Ready(Err(Stopped::Body));
                }
            };
            if filled == Filled::Complete {
                self.body = None;
            }
            let written = &mut self.written;
            match ready!(self.output.poll_write(cx, io, |_| *written = true)) {
                Ok(()) if filled == Filled::Complete => return Poll::Ready(Ok(())),
                Ok(()) if filled == Filled::Waiting => return Poll::Pending,
                Ok(()) => {}
                Err(error) => {
                    self.stopped = Some(error.to_string());
                    self.body = None;
                }
            }
        }
        Poll::Ready(Err(Stopped::Connection))
    }
}

/// A connection whose response's head was read.
struct Wire {
    /// None: it is over.
    connection: Option<ClientConnection>,
    /// The request is complete.
    sent: bool,
    /// The response is complete.
    read: bool,
    close: bool,
    home: Option<Home>,
    /// Who sends the rest of the request.
    pump: Option<Waker>,
    /// Who reads the response, if another sends.
    reader: Option<Waker>,
}

impl Wire {
    /// If both sides are done: the connection, and where it goes. Called outside of any borrow of it.
    fn settle(&mut self) -> Option<(ClientConnection, Home)> {
        if !self.read || !(self.sent || self.close) {
            return None;
        }
        let (connection, home) = (self.connection.take(), self.home.take());
        self.stop();
        connection.zip(home).filter(|(connection, _)| !self.close && connection.bytes.is_empty())
    }

    /// Closes the connection; who waits for it hears so.
    fn stop(&mut self) {
        self.connection = None;
        for waiting in [self.pump.take(), self.reader.take()].into_iter().flatten() {
            waiting.wake();
        }
    }
}

fn send_home(settled: Option<(ClientConnection, Home)>) {
    if let Some((connection, home)) = settled {
        home(connection);
    }
}

enum Held {
    Own(Wire),
    Shared(Rc<RefCell<Wire>>),
}

/// Reads a response's body.
pub(super) struct Reader {
    wire: Held,
    decoder: Decoder,
}

impl Reader {
    fn with<T>(&mut self, work: impl FnOnce(&mut Wire, &mut Decoder) -> T) -> T {
        match &mut self.wire {
            Held::Own(wire) => work(wire, &mut self.decoder),
            Held::Shared(wire) => work(&mut wire.borrow_mut(), &mut self.decoder),
        }
    }

    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        if self.decoder.is_done() {
            return Poll::Ready(None);
        }
        let polled = self.with(|wire, decoder| {
            let Some(connection) = &mut wire.connection else {
                return Poll::Ready(Some(Err("the connection is over".into())));
            };
            let polled = connection.poll_body(cx, decoder);
            if polled.is_pending() && !wire.sent && !wire.reader.as_ref().is_some_and(|held| held.will_wake(cx.waker()))
            {
                wire.reader = Some(cx.waker().clone());
            }
            if matches!(polled, Poll::Ready(Some(Err(_)))) {
                wire.stop();
            }
            polled
        });
        self.settle();
        polled
    }

    /// Lets the connection go if the body is complete.
    fn settle(&mut self) {
        if self.decoder.is_done() {
            let settled = self.with(|wire, _| {
                wire.read = true;
                wire.settle()
            });
            send_home(settled);
        }
    }

    pub(super) fn is_end(&self) -> bool {
        self.decoder.is_done()
    }

    pub(super) fn exact_length(&self) -> Option<u64> {
        self.decoder.exact()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if !self.decoder.is_done() {
            self.with(|wire, _| wire.stop());
        }
    }
}

impl ClientConnection {
    fn poll_body(&mut self, cx: &mut Context<'_>, decoder: &mut Decoder) -> Poll<Option<Result<Frame, BodyError>>> {
        loop {
            match decoder.decode(&mut self.bytes) {
                Ok(Decoded::Data(data)) => return Poll::Ready(Some(Ok(Frame::Data(data)))),
                Ok(Decoded::Trailers(trailers)) => {
                    return Poll::Ready(Some(Ok(Frame::Trailers(Box::new(trailers)))));
                }
                Ok(Decoded::End) => return Poll::Ready(None),
                Ok(Decoded::More) => {}
                Err(malformed) => return Poll::Ready(Some(Err(malformed.into()))),
            }
            let bytes = &mut self.bytes;
            let read = buffer::poll_read(&mut *self.io, cx, |new| {
                bytes.extend_from_slice(new);
                new.is_empty()
            });
            match ready!(read) {
                Ok(true) => {
                    return Poll::Ready(match decoder.end() {
                        Ok(()) => None,
                        Err(_) => Some(Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())),
                    });
                }
                Ok(false) => {}
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
        }
    }
}

/// Sends the rest of a request whose response has begun.
struct Pump<B> {
    wire: Rc<RefCell<Wire>>,
    upload: Upload<B>,
    /// Told of what is sent.
    watch: Rc<Watch>,
}

impl<B: Outgoing> Future for Pump<B> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let mut wire = this.wire.borrow_mut();
        let Some(connection) = &mut wire.connection else { return Poll::Ready(()) };
        this.upload.written = false;
        let polled = this.upload.poll(cx, &mut *connection.io);
        if this.upload.written || this.upload.body.as_ref().is_some_and(Outgoing::in_exchange) {
            this.watch.moved(1);
        }
        match polled {
            Poll::Pending => {
                wire.pump = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(Ok(())) => wire.sent = true,
            // A request that is cut short must not look complete, nor wait for an answer to the rest.
            Poll::Ready(Err(Stopped::Body)) => wire.stop(),
            Poll::Ready(Err(Stopped::Connection)) => wire.close = true,
        }
        let settled = wire.settle();
        drop(wire);
        send_home(settled);
        Poll::Ready(())
    }
}

impl<B> Unpin for Pump<B> {}
