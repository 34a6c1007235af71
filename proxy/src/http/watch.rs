//! How long an exchange may last, whoever stalls: its deadline, and STREAM_IDLE without a byte moved either way. hyper
//! asks a body for more only while the client takes what it has, so a body cannot keep time: it is kept around the future
//! that serves the exchange, and its end is that future's end. HTTP/1: the connection's, with one exchange at a time;
//! HTTP/2: the stream's, which resets the stream.

use std::{
    cell::Cell,
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use pin_project_lite::pin_project;

use super::{client_stream::ClientPhase, informational::Informational};
use crate::{alarm::Alarm, config::limits, reason::Reason};

/// Why an exchange was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overdue {
    Deadline,
    Idle,
}

impl Overdue {
    pub(crate) fn reason(self) -> Reason {
        match self {
            Self::Deadline => Reason::RequestTimeout,
            Self::Idle => Reason::Idle,
        }
    }
}

/// What is watched on a connection (HTTP/1) or stream (HTTP/2): the exchange there is, its limits, and whether it moves.
pub(crate) struct Watch {
    /// Unless policy says otherwise.
    usual_idle: Duration,
    /// Of the exchange there is, if policy says so.
    policy_idle: Cell<Option<Duration>>,
    stage: Cell<Stage>,
    deadline: Cell<Option<Instant>>,
    /// Grows with every byte that moves, and with every exchange that begins.
    moves: Cell<u64>,
    /// When the exchange began, and what had moved by then.
    began: Cell<Option<Quiet>>,
    overdue: Cell<Option<Overdue>>,
    /// HTTP/1: what its client takes.
    client: Option<Arc<ClientPhase>>,
    /// What its client is told before the answer: who serves it and who answers share nothing else.
    informational: Informational,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No exchange.
    Between,
    /// Until the answer's head: being overdue is answered.
    Answering,
    /// From then on it ends the exchange.
    Streaming,
}

impl Watch {
    /// `idle`: the longest time without a byte moved. `client`: the HTTP/1 connection's.
    pub(crate) fn new(idle: Duration, client: Option<Arc<ClientPhase>>) -> Rc<Self> {
        Rc::new(Self {
            usual_idle: idle,
            policy_idle: Cell::new(None),
            stage: Cell::new(Stage::Between),
            deadline: Cell::new(None),
            moves: Cell::new(0),
            began: Cell::new(None),
            overdue: Cell::new(None),
            client,
            informational: Informational::default(),
        })
    }

    /// An exchange begins.
    pub(crate) fn begin(&self, now: Instant) {
        self.stage.set(Stage::Answering);
        self.deadline.set(None);
        self.policy_idle.set(None);
        self.overdue.set(None);
        self.moved(1);
        self.began.set(Some(Quiet { moves: self.moves(), since: now }));
    }

    /// The longest time without a byte moved in this exchange.
    pub(crate) fn limit_idle(&self, idle: Duration) {
        self.policy_idle.set(Some(idle));
    }

    /// The same unless policy says otherwise.
    pub(super) fn usual_idle(&self) -> Duration {
        self.usual_idle
    }

    /// The same as policy has it; None: it says nothing.
    pub(super) fn policy_idle(&self) -> Option<Duration> {
        self.policy_idle.get()
    }

    /// What a server's proxy must be told, lest it ends what policy allows: it has the usual limit by itself.
    pub(super) fn told_idle(&self) -> Option<Duration> {
        self.policy_idle().filter(|idle| *idle > self.usual_idle)
    }

    /// As [`Self::limit_idle`], by the word of a client's proxy, which gets no less than the usual.
    pub(super) fn limit_idle_as_told(&self, told: Duration) {
        self.policy_idle.set(Some(told.min(limits::PEER_IDLE)).filter(|idle| *idle > self.usual_idle));
    }

    fn idle(&self) -> Duration {
        self.policy_idle.get().unwrap_or(self.usual_idle)
    }

    pub(super) fn informational(&self) -> &Informational {
        &self.informational
    }

    /// The exchange must end by then.
    pub(crate) fn limit(&self, deadline: Option<Instant>) {
        self.deadline.set(deadline);
    }

    /// The same, and no more than policy's `idle`, whatever was said before and was overdue.
    pub(super) fn limit_anew(&self, deadline: Option<Instant>, idle: Option<Duration>) {
        self.deadline.set(deadline);
        self.policy_idle.set(idle);
        self.overdue.set(None);
        self.moved(1);
    }

    /// Some bytes moved.
    pub(crate) fn moved(&self, bytes: u64) {
        self.moves.set(self.moves.get().wrapping_add(bytes));
    }

    /// Why no answer is waited for any longer.
    pub(crate) fn overdue(&self) -> Option<Overdue> {
        self.overdue.get()
    }

    /// The answer's head is on its way. `own`: it is the proxy's, which is short, and perhaps tells that time is up.
    pub(crate) fn answered(&self, own: bool) {
        self.stage.set(Stage::Streaming);
        self.overdue.set(None);
        if own {
            self.deadline.set(None);
        }
    }

    /// The exchange goes on as a tunnel, which keeps its own time.
    pub(crate) fn tunnelled(&self) {
        self.stage.set(Stage::Between);
        self.deadline.set(None);
        self.overdue.set(None);
        if let Some(client) = &self.client {
            client.tunnelled();
        }
    }

    /// The exchange has ended; why, if it was not let go on.
    pub(crate) fn end(&self) -> Option<Overdue> {
        self.stage.set(Stage::Between);
        self.deadline.set(None);
        // What is left for the client to take is no part of what policy speaks of.
        self.policy_idle.set(None);
        self.informational.end();
        if let Some(client) = &self.client {
            client.answered();
        }
        self.overdue.take()
    }

    /// Whether time is kept: during an exchange, and while its client does not take the last of it.
    fn is_kept(&self) -> bool {
        self.stage.get() != Stage::Between || self.client.as_ref().is_some_and(|client| client.is_blocked())
    }

    fn moves(&self) -> u64 {
        self.moves.get().wrapping_add(self.client.as_ref().map_or(0, |client| client.taken()))
    }

    /// When to look again, or why not to wait any longer.
    fn look(&self, quiet: &mut Option<Quiet>, now: Instant) -> Result<Instant, Overdue> {
        let deadline = self.deadline.get();
        if deadline.is_some_and(|deadline| deadline <= now) {
            return Err(Overdue::Deadline);
        }
        let moves = self.moves();
        let idle = self.idle();
        let until = match quiet {
            Some(quiet) if now < quiet.since + idle => quiet.since + idle,
            Some(quiet) if quiet.moves == moves => return Err(Overdue::Idle),
            _ => {
                // Where nothing has moved at all, it has been quiet from the beginning.
                let from = self.began.get().filter(|began| began.moves == moves);
                let until = quiet.insert(from.unwrap_or(Quiet { moves, since: now })).since + idle;
                if until <= now {
                    return Err(Overdue::Idle);
                }
                until
            }
        };
        Ok(deadline.map_or(until, |deadline| deadline.min(until)))
    }
}

/// If nothing has moved since then, for long enough, it is idle.
#[derive(Debug, Clone, Copy)]
struct Quiet {
    moves: u64,
    since: Instant,
}

/// No watch has seen so much: something moved, whatever it has seen.
const MOVED: u64 = u64::MAX;

pin_project! {
    /// Keeps the time of one watch after the other. The timer is made when first waited for, and re-armed when it fires and for
    /// earlier deadlines, not at each exchange: what does not move at all ends at its limit, and what stops moving within twice that.
    #[derive(Default)]
    pub(super) struct Timekeeper {
        #[pin]
        timer: Option<Alarm>,
        quiet: Option<Quiet>,
    }
}

impl Timekeeper {
    /// Polls what serves the exchange, until that is overdue. It hears from the watch that nobody is to wait for the answer any longer.
    pub(super) fn poll<T>(
        self: Pin<&mut Self>,
        watch: &Watch,
        cx: &mut Context<'_>,
        mut served: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<Result<T, Overdue>> {
        let mut this = self.project();
        loop {
            if let Poll::Ready(output) = served(cx) {
                return Poll::Ready(Ok(output));
            }
            let overdue = std::task::ready!(poll_overdue(watch, this.timer.as_mut(), this.quiet, cx));
            watch.overdue.set(Some(overdue));
            if watch.stage.get() != Stage::Answering {
                return Poll::Ready(Err(overdue));
            }
            // Who waits for the answer is told, and says so to the client.
        }
    }

    /// What is polled from here on is something else, perhaps with another watch: it has not been quiet yet.
    pub(super) fn begin_anew(self: Pin<&mut Self>) {
        if let Some(quiet) = self.project().quiet {
            quiet.moves = MOVED;
        }
    }
}

pin_project! {
    /// Serves as `future` does, until an exchange is overdue.
    pub(crate) struct Watched<F> {
        #[pin]
        future: F,
        #[pin]
        keeper: Timekeeper,
        watch: Rc<Watch>,
    }
}

impl<F> Watched<F> {
    pub(crate) fn new(watch: &Rc<Watch>, future: F) -> Self {
        Self { future, keeper: Timekeeper::default(), watch: Rc::clone(watch) }
    }
}

impl<F: Future> Future for Watched<F> {
    type Output = Result<F::Output, Overdue>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        this.keeper.poll(this.watch, cx, |cx| this.future.as_mut().poll(cx))
    }
}

fn poll_overdue(
    watch: &Watch,
    mut timer: Pin<&mut Option<Alarm>>,
    quiet: &mut Option<Quiet>,
    cx: &mut Context<'_>,
) -> Poll<Overdue> {
    if !watch.is_kept() || watch.overdue.get().is_some() {
        return Poll::Pending;
    }
    loop {
        if let Some(mut armed) = timer.as_mut().as_pin_mut() {
            let idle = quiet.as_ref().map(|quiet| quiet.since + watch.idle());
            if let Some(earliest) = watch.deadline.get().into_iter().chain(idle).min()
                && earliest < armed.deadline().into_std()
            {
                armed.as_mut().reset(earliest.into());
            }
            std::task::ready!(armed.poll(cx));
        }
        match watch.look(quiet, Instant::now()) {
            Ok(next) => timer.set(Some(Alarm::at(next.into()))),
            Err(overdue) => return Poll::Ready(overdue),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(300);

    fn watching() -> (Rc<Watch>, Option<Quiet>, Instant) {
        let watch = Watch::new(IDLE, None);
        let start = Instant::now();
        watch.begin(start);
        (watch, None, start)
    }

    #[test]
    fn what_does_not_move_is_idle_and_what_moves_is_not() {
        let (watch, mut quiet, start) = watching();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(watch.look(&mut quiet, start), Ok(at(300)));
        assert_eq!(watch.look(&mut quiet, at(299)), Ok(at(300)));
        watch.moved(1);
        assert_eq!(watch.look(&mut quiet, at(300)), Ok(at(600)));
        assert_eq!(watch.look(&mut quiet, at(600)), Err(Overdue::Idle));
        // A byte in each time is enough for ever.
        for period in 2..100 {
            watch.moved(1);
            assert!(watch.look(&mut quiet, at(period * 300)).is_ok());
        }
    }

    #[test]
    fn an_exchange_is_not_charged_with_the_silence_before_it() {
        let (watch, mut quiet, start) = watching();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(watch.look(&mut quiet, start), Ok(at(300)));
        assert_eq!(watch.end(), None);
        assert!(!watch.is_kept());
        watch.begin(at(200));
        assert_eq!(watch.look(&mut quiet, at(299)), Ok(at(300)));
        assert_eq!(watch.look(&mut quiet, at(300)), Ok(at(500)));
        assert_eq!(watch.look(&mut quiet, at(500)), Err(Overdue::Idle));
    }

    #[test]
    fn a_deadline_holds_however_much_moves() {
        let (watch, mut quiet, start) = watching();
        let at = |seconds| start + Duration::from_secs(seconds);
        watch.limit(Some(at(10)));
        assert_eq!(watch.look(&mut quiet, start), Ok(at(10)));
        watch.moved(1000);
        assert_eq!(watch.look(&mut quiet, at(10)), Err(Overdue::Deadline));
        // Our own answer may be sent after it, and is itself not idle for long.
        watch.answered(true);
        assert_eq!(watch.look(&mut quiet, at(10)), Ok(at(300)));
        // The next exchange has none.
        watch.end();
        watch.begin(at(20));
        assert_eq!(watch.look(&mut quiet, at(20)), Ok(at(300)));
    }

    #[test]
    fn what_begins_anew_is_not_charged_with_the_silence_of_another() {
        let (watch, quiet, start) = watching();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut keeper = std::pin::pin!(Timekeeper { timer: None, quiet });
        assert_eq!(watch.look(keeper.as_mut().project().quiet, start), Ok(at(300)));
        // It has seen as much as the one before.
        let next = Watch::new(IDLE, None);
        next.begin(at(200));
        keeper.as_mut().begin_anew();
        assert_eq!(next.look(keeper.as_mut().project().quiet, at(299)), Ok(at(300)));
        assert_eq!(next.look(keeper.as_mut().project().quiet, at(300)), Ok(at(500)));
        assert_eq!(next.look(keeper.as_mut().project().quiet, at(500)), Err(Overdue::Idle));
    }

    #[test]
    fn patience_ends_with_its_exchange() {
        let (watch, ..) = watching();
        watch.limit_idle(IDLE * 2);
        assert_eq!((watch.idle(), watch.told_idle()), (IDLE * 2, Some(IDLE * 2)));
        watch.end();
        assert_eq!((watch.idle(), watch.told_idle()), (IDLE, None));
        watch.limit_idle(IDLE / 2);
        assert_eq!(watch.told_idle(), None, "a server's proxy has more of it anyway");
    }

    #[test]
    fn what_is_told_is_kept_within_bounds() {
        let (watch, ..) = watching();
        watch.limit_idle_as_told(IDLE / 2);
        assert_eq!(watch.policy_idle(), None);
        watch.limit_idle_as_told(IDLE * 3);
        assert_eq!(watch.idle(), IDLE * 3);
        watch.limit_idle_as_told(Duration::MAX);
        assert_eq!(watch.idle(), limits::PEER_IDLE);
    }

    #[tokio::test]
    async fn a_later_exchange_may_have_less_patience() {
        let watch = Watch::new(IDLE, None);
        watch.begin(Instant::now());
        watch.answered(false);
        let mut polls = 0;
        let stalls = std::future::poll_fn(|cx| {
            polls += 1;
            if polls == 1 {
                cx.waker().wake_by_ref();
            } else if polls == 2 {
                watch.end();
                watch.begin(Instant::now());
                watch.limit_idle(Duration::from_millis(5));
                watch.answered(false);
            }
            Poll::<()>::Pending
        });
        assert_eq!(Watched::new(&watch, stalls).await, Err(Overdue::Idle));
        watch.begin(Instant::now());
        assert_eq!(watch.idle(), IDLE, "the next has the usual");
    }

    #[tokio::test]
    async fn an_answer_that_is_waited_for_is_told_and_one_on_its_way_ends() {
        let watch = Watch::new(Duration::from_millis(5), None);
        watch.begin(Instant::now());
        let answering = std::future::poll_fn(|_| watch.overdue().map_or(Poll::Pending, Poll::Ready));
        assert_eq!(Watched::new(&watch, answering).await, Ok(Overdue::Idle));
        watch.answered(true);
        assert_eq!(Watched::new(&watch, std::future::pending::<()>()).await, Err(Overdue::Idle));
        assert_eq!(watch.end(), Some(Overdue::Idle));
    }

    #[tokio::test]
    async fn a_later_exchange_may_have_an_earlier_deadline() {
        let watch = Watch::new(IDLE, None);
        let started = Instant::now();
        watch.begin(Instant::now());
        watch.answered(false);
        let mut polls = 0;
        let stalls = std::future::poll_fn(|cx| {
            polls += 1;
            if polls == 1 {
                cx.waker().wake_by_ref();
            } else {
                watch.end();
                watch.begin(Instant::now());
                watch.limit(Some(started + Duration::from_millis(5)));
                watch.answered(false);
            }
            Poll::<()>::Pending
        });
        assert_eq!(Watched::new(&watch, stalls).await, Err(Overdue::Deadline));
    }
}
