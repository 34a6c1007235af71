//! Tasks that answer the requests of HTTP/2 streams, one after the other: what it takes to begin and end a task, and to set and
//! clear its timer, is a good part of what a small answer takes.

use std::{
    cell::{Cell, RefCell},
    mem,
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::sync::oneshot;

use super::{
    Response,
    h2::{RecvStream, SendStream},
    outflow::Outflow,
    serve::Answering,
    upgrade,
    watch::{Timekeeper, Watch},
};
use crate::net::Io;

/// Tasks of a worker that are kept for streams to come.
const KEPT: usize = 64;

/// A worker's tasks that have nothing to do.
#[derive(Default)]
pub(crate) struct StreamTasks(RefCell<Vec<Rc<Desk>>>);

/// Where a task finds what it is to do next.
#[derive(Default)]
struct Desk {
    next: Cell<Option<Work>>,
    waker: Cell<Option<Waker>>,
    /// For its next stream.
    watch: Cell<Option<Rc<Watch>>>,
}

struct Work {
    respond: Respond,
    watch: Rc<Watch>,
}

impl StreamTasks {
    /// Has a stream's request answered by a task that does nothing else meanwhile. `idle`: the longest time without a byte moved.
    pub(super) fn answer(self: &Rc<Self>, idle: Duration, respond: impl FnOnce(&Rc<Watch>) -> Respond) {
        let free = self.0.borrow_mut().pop();
        let kept = free.as_ref().and_then(|desk| desk.watch.take()).filter(|watch| watch.usual_idle() == idle);
        let watch = kept.unwrap_or_else(|| Watch::new(idle, None));
        watch.informational().begin();
        let work = Work { respond: respond(&watch), watch };
        match free {
            Some(desk) => {
                desk.next.set(Some(work));
                let waker = desk.waker.take();
                waker.iter().for_each(Waker::wake_by_ref);
                desk.waker.set(waker);
            }
            None => {
                let (keeper, desk) = (Timekeeper::default(), Rc::default());
                tokio::task::spawn_local(Task { work: Some(work), keeper, desk, tasks: Rc::downgrade(self) });
            }
        }
    }

    /// Keeps a task for streams to come; false: there are enough.
    fn keep(&self, desk: &Rc<Desk>, waker: &Waker) -> bool {
        let mut free = self.0.borrow_mut();
        if free.len() >= KEPT {
            return false;
        }
        let held = desk.waker.take().filter(|held| held.will_wake(waker));
        desk.waker.set(Some(held.unwrap_or_else(|| waker.clone())));
        free.push(Rc::clone(desk));
        true
    }
}

pin_project! {
    struct Task {
        // None: it waits for a stream.
        work: Option<Work>,
        #[pin]
        keeper: Timekeeper,
        desk: Rc<Desk>,
        tasks: Weak<StreamTasks>,
    }
}

impl Future for Task {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        loop {
            if this.work.is_none() {
                *this.work = this.desk.next.take();
                this.keeper.as_mut().begin_anew();
            }
            let Some(Work { respond, watch }) = this.work else { return Poll::Pending };
            // Overdue, it ends early, which resets the stream.
            let _ = ready!(this.keeper.as_mut().poll(watch, cx, |cx| respond.poll(cx, watch)));
            if let Some(Work { respond, watch }) = this.work.take() {
                drop(respond);
                // An exchange that became a tunnel still holds it.
                if Rc::strong_count(&watch) == 1 {
                    this.desk.watch.set(Some(watch));
                }
            }
            if !this.tasks.upgrade().is_some_and(|tasks| tasks.keep(this.desk, cx.waker())) {
                return Poll::Ready(());
            }
        }
    }
}

/// A tunnel that may come to be: who waits for it, and its incoming half.
pub(super) type Tunnel = (oneshot::Sender<Box<dyn Io>>, RecvStream);

/// Answers one request; the client may lose interest meanwhile.
pub(super) enum Respond {
    Waiting { answer: Answering, sender: SendStream, tunnel: Option<Tunnel> },
    Sending(Outflow),
    Done,
}

impl Respond {
    fn poll(&mut self, cx: &mut Context<'_>, watch: &Rc<Watch>) -> Poll<()> {
        if let Self::Waiting { answer, sender, .. } = self {
            let answered = answer.as_mut().poll(cx);
            while let Some(head) = watch.informational().next() {
                sender.send_informational(&head);
            }
            let Poll::Ready(response) = answered else {
                return sender.poll_reset(cx).map(|_| ());
            };
            if let Self::Waiting { sender, tunnel, .. } = mem::replace(self, Self::Done) {
                *self = Self::begin(response, sender, tunnel, watch);
            }
        }
        if let Self::Sending(outflow) = self
            && let Err(stopped) = ready!(Pin::new(outflow).poll(cx))
        {
            tracing::debug!(%stopped, "response not sent to its end");
        }
        Poll::Ready(())
    }

    /// Sends the answer's head; what is left to be done then.
    fn begin(response: Response, mut sender: SendStream, tunnel: Option<Tunnel>, watch: &Rc<Watch>) -> Self {
        let Response { head, body } = response;
        if let Some((tunnel, receiver)) = tunnel
            && head.status.is_success()
        {
            sender.send_response(&head, false);
            // Nobody waits for it if the exchange has ended.
            let _ = tunnel.send(upgrade::tunnel(sender, receiver));
            return Self::Done;
        }
        let end = body.is_end();
        sender.send_response(&head, end);
        if end { Self::Done } else { Self::Sending(Outflow::new(sender, body, Some(Rc::clone(watch)))) }
    }
}

#[cfg(test)]
mod tests;
