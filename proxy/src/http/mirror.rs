//! Mirroring: a copy of a request goes to another backend, whose answer nobody reads.
//!
//! The request itself never waits for its copies, nor fails with them. Its body is copied as it passes (shared, not
//! moved), and the copies are sent, each by a task of its own, once it is complete: a mirror gets whole requests or none. What
//! is copied is bounded in number, in bytes of one body and in bytes of all together; beyond, copies are dropped and
//! counted. So are those that the mirrored backend's circuit breaker and limits leave no room for.

use std::{
    cell::Cell,
    collections::VecDeque,
    fmt,
    future::poll_fn,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::Method;
use tokio::time::timeout_at;

use super::{
    Body,
    body::{BodyError, Frame},
    guarded,
    head::{Fields, Name, RequestHead, names},
    headers, verdict,
};
use crate::{
    config::limits,
    error::Error,
    policy::share::Share,
    telemetry::{MirrorMetrics, MirrorResult},
    upstream::{
        Backend, Outcome, Pick,
        bulkhead::What,
        pool::{Carry, Extras},
        shield::Rules,
    },
    worker::Context as WorkerContext,
};

/// Where copies of a share of the requests go.
pub struct Mirror {
    pub backend: Arc<Backend>,
    pub share: Share,
    pub metrics: MirrorMetrics,
}

impl fmt::Debug for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mirror").field("backend", &self.backend.key).field("share", &self.share).finish_non_exhaustive()
    }
}

/// What a worker's copies take up at this moment.
#[derive(Debug, Default)]
pub(crate) struct Room {
    copies: Cell<usize>,
    bytes: Cell<usize>,
}

/// A copy's place among those under way.
struct Place(WorkerContext);

impl Place {
    /// None: there are as many as may be.
    fn take(ctx: &WorkerContext) -> Option<Self> {
        let copies = ctx.mirrors.copies.get();
        (copies < limits::MIRRORS).then(|| {
            ctx.mirrors.copies.set(copies + 1);
            Self(Rc::clone(ctx))
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let room = &self.0.mirrors;
        room.copies.set(room.copies.get().saturating_sub(1));
    }
}

/// Has the request copied to those of `mirrors` whose share takes it. Its head is as the backend gets it, but for what is
/// between two hops. The body that is to go on in place of `body`.
pub(crate) fn copy<'a>(
    ctx: &WorkerContext,
    mirrors: impl Iterator<Item = &'a Arc<Mirror>>,
    head: &RequestHead,
    body: Body,
) -> Body {
    // A tunnel is no request that could be sent twice.
    if head.method == Method::CONNECT {
        return body;
    }
    let to: Recipients = mirrors.filter(|mirror| mirror.share.takes(ctx.random.next())).map(Arc::clone).collect();
    if to.is_empty() {
        return body;
    }
    // A head counts, too: many may wait for their bodies to end.
    let (room, bytes) = (&ctx.mirrors, head.target().len() + head.fields.size());
    if room.bytes.get() + bytes > limits::MIRRORED_BYTES {
        to.iter().for_each(|mirror| mirror.metrics.count(MirrorResult::Overload));
        return body;
    }
    room.bytes.set(room.bytes.get() + bytes);
    let mut head = head.clone();
    head.fields.remove(names([Name::Expect]));
    let copied = Copied { head, ctx: Rc::clone(ctx), frames: VecDeque::new(), bytes, of_body: 0, trailers: None };
    if body.is_end() {
        send_all(copied, to);
        return body;
    }
    Body::teed(Tee { body, copying: Some((copied, to)) })
}

/// A request's body on its way, and what is copied of it.
pub(crate) struct Tee {
    body: Body,
    /// None: it is complete, or given up.
    copying: Option<(Copied, Recipients)>,
}

/// Who gets a copy.
type Recipients = Vec<Arc<Mirror>>;

impl Tee {
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let polled = std::task::ready!(self.body.poll_frame(cx));
        let complete = match &polled {
            Some(Ok(Frame::Data(data))) => {
                self.keep(data);
                self.body.is_end()
            }
            Some(Ok(Frame::Trailers(trailers))) => {
                if let Some((copied, _)) = &mut self.copying {
                    copied.trailers = Some(trailers.clone());
                }
                true
            }
            Some(Err(_)) => {
                self.give_up(MirrorResult::Incomplete);
                false
            }
            None => true,
        };
        if complete && let Some((copied, to)) = self.copying.take() {
            send_all(copied, to);
        }
        Poll::Ready(polled)
    }

    fn keep(&mut self, data: &Bytes) {
        let Some((copied, _)) = &mut self.copying else { return };
        let room = &copied.ctx.mirrors;
        let (one, all) = (copied.of_body + data.len(), room.bytes.get() + data.len());
        if one > limits::MIRROR_BODY_BYTES {
            return self.give_up(MirrorResult::TooLarge);
        }
        if all > limits::MIRRORED_BYTES {
            return self.give_up(MirrorResult::Overload);
        }
        room.bytes.set(all);
        copied.bytes += data.len();
        copied.of_body = one;
        copied.frames.push_back(data.clone());
    }

    fn give_up(&mut self, why: MirrorResult) {
        for mirror in self.copying.take().iter().flat_map(|(_, to)| to) {
            mirror.metrics.count(why);
        }
    }

    pub(super) fn is_end(&self) -> bool {
        self.body.is_end()
    }

    pub(super) fn exact_length(&self) -> Option<u64> {
        self.body.exact_length()
    }
}

impl Drop for Tee {
    fn drop(&mut self) {
        self.give_up(MirrorResult::Incomplete);
    }
}

/// A whole request. Its bytes count as held until the last mirror is done with it.
struct Copied {
    head: RequestHead,
    ctx: WorkerContext,
    frames: VecDeque<Bytes>,
    /// Head and body.
    bytes: usize,
    of_body: usize,
    trailers: Option<Box<Fields>>,
}

impl Drop for Copied {
    fn drop(&mut self) {
        let room = &self.ctx.mirrors;
        room.bytes.set(room.bytes.get().saturating_sub(self.bytes));
    }
}

/// A place is taken only now: requests whose bodies take long (streams) keep those of others out no longer than they are sent.
fn send_all(copied: Copied, to: Recipients) {
    let copied = Rc::new(copied);
    for mirror in to {
        let Some(place) = Place::take(&copied.ctx) else {
            mirror.metrics.count(MirrorResult::Overload);
            continue;
        };
        let copied = Rc::clone(&copied);
        tokio::task::spawn_local(async move {
            let result = match send(&mirror, &copied, limits::MIRROR_TIMEOUT).await {
                Ok(()) => MirrorResult::Sent,
                Err(error) => {
                    tracing::debug!(backend = &*mirror.backend.key, %error, "a mirrored request failed");
                    let refused = matches!(error, Error::Limit { .. } | Error::CircuitOpen { .. });
                    if refused { MirrorResult::Overload } else { MirrorResult::Failed }
                }
            };
            mirror.metrics.count(result);
            drop(place);
        });
    }
}

/// Sends the copy to one endpoint, as far as breaker and limits of the backend allow it, and reads the answer to its end.
/// `patience`: for all of it.
async fn send(mirror: &Mirror, copied: &Copied, patience: Duration) -> Result<(), Error> {
    let until = tokio::time::Instant::now() + patience;
    let (backend, upstreams) = (&mirror.backend, &copied.ctx.upstreams);
    if !backend.shield.is_told() {
        upstreams.await_policy(backend).await?;
    }
    let rules = backend.shield.rules();
    let (_place, permit) = match &rules {
        Some(rules) => (
            backend.shield.place(rules, What::Request, &backend.key)?,
            backend.shield.admit(rules, &backend.key, Instant::now())?,
        ),
        None => (None, None),
    };
    let pick = upstreams.pick(backend, &[], |_| None).await?;
    // A server that says nothing has failed, and its breaker is told.
    let asked = timeout_at(until, ask(&pick, backend, rules.as_deref(), copied)).await;
    let (outcome, answer) = asked.unwrap_or((Outcome::Failure, Err(Error::TryTimeout)));
    let now = Instant::now();
    pick.report(outcome, now);
    backend.shield.report(permit, outcome, &backend.key, now);
    let mut answer = answer?;
    let read = async {
        while let Some(frame) = poll_fn(|cx| answer.poll_frame(cx)).await {
            frame.map_err(|error| broken(&pick, error.to_string()))?;
        }
        Ok::<(), Error>(())
    };
    timeout_at(until, read).await.unwrap_or(Err(Error::TryTimeout))
}

/// The answer's body, and what its head, or the lack of one, says of the endpoint.
async fn ask(pick: &Pick, backend: &Backend, rules: Option<&Rules>, copied: &Copied) -> (Outcome, Result<Body, Error>) {
    let carry = if copied.head.is_http2() { Carry::Http2 } else { Carry::Http1 };
    let connecting = pin!(pick.http(carry));
    let connected = match rules {
        Some(rules) => guarded::waiting_in_place(backend, rules, connecting).await,
        None => connecting.await,
    };
    let connection = match connected {
        Ok(connection) => connection,
        Err(error @ Error::Limit { .. }) => return (Outcome::Neutral, Err(error)),
        Err(error) => return (Outcome::Failure, Err(error)),
    };
    let mut head = copied.head.clone();
    headers::settle(&mut head, &backend.key);
    if connection.is_http1() {
        headers::for_http1(&mut head);
    }
    let body = Body::kept(copied.frames.clone(), copied.trailers.clone());
    match connection.send(&head, body, Extras::default()).await {
        // Only the client of the request itself can have set a time.
        Ok(reply) => (verdict::judged(&reply.head, pick).unwrap_or(Outcome::GivenUp), Ok(reply.body)),
        Err(error) => {
            let outcome = if error.own || error.unfit.is_some() { Outcome::Neutral } else { Outcome::Failure };
            (outcome, Err(broken(pick, error.reason)))
        }
    }
}

fn broken(pick: &Pick, reason: String) -> Error {
    Error::Reset { endpoint: pick.endpoint.address.to_string(), reason }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, net::SocketAddr};

    use http::Version;
    use tokio::{io::AsyncWriteExt, net::TcpStream};

    use super::*;
    use crate::{
        policy::{BackendPolicy, Protocol, Target},
        testing::{Sidecar, application, read_until, run, scripted},
        upstream::{Endpoint, EndpointSet, breaker::Settings, bulkhead::Limits},
    };

    const PATIENCE: Duration = Duration::from_secs(30);

    fn mirror(to: SocketAddr, policy: BackendPolicy) -> Mirror {
        let backend = Arc::new(Backend::new("shop/next:80".into()));
        backend.publish(EndpointSet::new(true, Protocol::Http1, vec![Endpoint::plain(to)]).under(Arc::new(policy)));
        let metrics = MirrorMetrics::new("shop/shop", "route", "0", "shop/next:80");
        Mirror { backend, share: Share::new(1, 1).unwrap(), metrics }
    }

    fn copied(sidecar: &Sidecar) -> Copied {
        let mut head = RequestHead::new(Version::HTTP_11, Method::GET, "/");
        head.set_authority("shop");
        Copied { head, ctx: Rc::clone(&sidecar.ctx), frames: VecDeque::new(), bytes: 0, of_body: 0, trailers: None }
    }

    #[test]
    fn copies_take_places_among_the_requests_of_their_backend() {
        run(async {
            let held = Rc::new(RefCell::new(None::<TcpStream>));
            let hold = Rc::clone(&held);
            let app = application(move |mut stream| {
                let hold = Rc::clone(&hold);
                async move {
                    read_until(&mut stream, b"\r\n\r\n").await.unwrap();
                    *hold.borrow_mut() = Some(stream);
                }
            })
            .await;
            let limits = Limits { requests: Some(1), ..Limits::default() };
            let mirror = Rc::new(mirror(app, BackendPolicy { limits, ..BackendPolicy::default() }));
            let sidecar = Sidecar::new("client", || Target::Outside);
            let (first, copy) = (Rc::clone(&mirror), copied(&sidecar));
            let first = tokio::task::spawn_local(async move { send(&first, &copy, PATIENCE).await });
            while held.borrow().is_none() {
                tokio::task::yield_now().await;
            }
            let refused = send(&mirror, &copied(&sidecar), PATIENCE).await;
            assert!(matches!(refused, Err(Error::Limit { .. })), "{refused:?}");
            let mut stream = held.borrow_mut().take().unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            first.await.unwrap().unwrap();
            assert_eq!(mirror.backend.shield.counts.held(What::Request), 0, "its place is given back");
        });
    }

    fn opens_after(failures: u32) -> BackendPolicy {
        BackendPolicy { breaker: Some(Settings::opens_after(failures)), ..BackendPolicy::default() }
    }

    #[test]
    fn copies_are_judged_as_requests_are() {
        run(async {
            let sidecar = Sidecar::new("client", || Target::Outside);
            for (answer, state) in [
                (&b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"[..], "closed"),
                (b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n", "closed"),
                (b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", "open"),
                (b"HTTP/1.1 200 OK\r\ngrpc-status: 14\r\ncontent-length: 0\r\n\r\n", "open"),
                (b"HTTP/1.1 200 OK\r\ngrpc-status: 5\r\ncontent-length: 0\r\n\r\n", "closed"),
            ] {
                let (app, _) = scripted(answer).await;
                let mirror = mirror(app, opens_after(1));
                send(&mirror, &copied(&sidecar), PATIENCE).await.unwrap();
                let text = String::from_utf8_lossy(answer);
                assert_eq!(mirror.backend.shield.breaker.state(), state, "{text}");
            }
        });
    }

    #[test]
    fn a_mirror_that_says_nothing_has_failed() {
        run(async {
            let app = application(|mut stream| async move {
                read_until(&mut stream, b"\r\n\r\n").await.unwrap();
                std::future::pending::<()>().await;
            })
            .await;
            let mirror = mirror(app, opens_after(1));
            let sidecar = Sidecar::new("client", || Target::Outside);
            let sent = send(&mirror, &copied(&sidecar), Duration::from_millis(50)).await;
            assert!(matches!(sent, Err(Error::TryTimeout)), "{sent:?}");
            assert_eq!(mirror.backend.shield.breaker.state(), "open");
        });
    }

    #[test]
    fn copies_ask_the_breaker_and_tell_it_how_they_ended() {
        run(async {
            let app = application(|mut stream| async move {
                while read_until(&mut stream, b"\r\n\r\n").await.is_some() {
                    let answer = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n";
                    stream.write_all(answer).await.unwrap();
                }
            })
            .await;
            let mirror = mirror(app, opens_after(2));
            let sidecar = Sidecar::new("client", || Target::Outside);
            for _ in 0..2 {
                send(&mirror, &copied(&sidecar), PATIENCE).await.unwrap();
            }
            let refused = send(&mirror, &copied(&sidecar), PATIENCE).await;
            assert!(matches!(refused, Err(Error::CircuitOpen { .. })), "{refused:?}");
        });
    }
}
