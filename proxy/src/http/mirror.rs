//! Mirroring: a copy of a request goes to another backend, whose answer nobody reads.
//!
//! The request itself never waits for its copies, nor fails with them. Its body is copied as it passes (shared, not
//! moved), and the copies are sent, each by a task of its own, once it is complete: a mirror gets whole requests or none. What
//! is copied is bounded in number, in bytes of one body and in bytes of all together; beyond, copies are dropped and
//! counted.

use std::{
    cell::Cell,
    collections::VecDeque,
    fmt,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use http::Method;

use super::{
    Body,
    body::{BodyError, Frame},
    head::{Fields, Name, RequestHead, names},
    headers,
};
use crate::{
    config::limits,
    policy::share::Share,
    telemetry::{MirrorMetrics, MirrorResult},
    upstream::{
        Backend, Outcome,
        pool::{Carry, Extras},
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
    let mut to = Recipients::new();
    for mirror in mirrors.filter(|mirror| mirror.share.takes(ctx.random.next())) {
        match Place::take(ctx) {
            Some(place) => to.push((Arc::clone(mirror), place)),
            None => mirror.metrics.count(MirrorResult::Overload),
        }
    }
    if to.is_empty() {
        return body;
    }
    let mut head = head.clone();
    head.fields.remove(names([Name::Expect]));
    let copied = Copied { head, ctx: Rc::clone(ctx), frames: VecDeque::new(), bytes: 0, trailers: None };
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

/// Who gets a copy, and the place that it takes.
type Recipients = Vec<(Arc<Mirror>, Place)>;

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
        let (one, all) = (copied.bytes + data.len(), room.bytes.get() + data.len());
        if one > limits::MIRROR_BODY_BYTES {
            return self.give_up(MirrorResult::TooLarge);
        }
        if all > limits::MIRRORED_BYTES {
            return self.give_up(MirrorResult::Overload);
        }
        room.bytes.set(all);
        copied.bytes = one;
        copied.frames.push_back(data.clone());
    }

    fn give_up(&mut self, why: MirrorResult) {
        for (mirror, _) in self.copying.take().iter().flat_map(|(_, to)| to) {
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
    bytes: usize,
    trailers: Option<Box<Fields>>,
}

impl Drop for Copied {
    fn drop(&mut self) {
        let room = &self.ctx.mirrors;
        room.bytes.set(room.bytes.get().saturating_sub(self.bytes));
    }
}

fn send_all(copied: Copied, to: Recipients) {
    let copied = Rc::new(copied);
    for (mirror, place) in to {
        let copied = Rc::clone(&copied);
        tokio::task::spawn_local(async move {
            let sent = tokio::time::timeout(limits::MIRROR_TIMEOUT, send(&mirror, &copied)).await;
            let result = match sent {
                Ok(Ok(())) => MirrorResult::Sent,
                Ok(Err(error)) => {
                    tracing::debug!(backend = &*mirror.backend.key, error, "a mirrored request failed");
                    MirrorResult::Failed
                }
                Err(_) => MirrorResult::Failed,
            };
            mirror.metrics.count(result);
            drop(place);
        });
    }
}

/// Sends the copy to one endpoint and reads the answer to its end.
async fn send(mirror: &Mirror, copied: &Copied) -> Result<(), String> {
    let pick = copied.ctx.upstreams.pick(&mirror.backend, &[], |_| None).await.map_err(|error| error.to_string())?;
    let carry = if copied.head.is_http2() { Carry::Http2 } else { Carry::Http1 };
    let connection = pick.http(carry).await.map_err(|error| error.to_string())?;
    let mut head = copied.head.clone();
    headers::settle(&mut head, &mirror.backend.key);
    if connection.is_http1() {
        headers::for_http1(&mut head);
    }
    let body = Body::kept(copied.frames.clone(), copied.trailers.clone());
    let reply = connection.send(&head, body, Extras::default()).await.map_err(|error| {
        pick.report(if error.own || error.unfit { Outcome::Neutral } else { Outcome::Failure }, Instant::now());
        error.reason
    })?;
    let failed = reply.head.status.is_server_error();
    pick.report(if failed { Outcome::Failure } else { Outcome::Success }, Instant::now());
    let mut answer = reply.body;
    while let Some(frame) = std::future::poll_fn(|cx| answer.poll_frame(cx)).await {
        frame.map_err(|error| error.to_string())?;
    }
    Ok(())
}
