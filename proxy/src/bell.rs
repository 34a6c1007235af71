//! Tells a task which of those that wake it has: what has not is not polled again in vain.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

/// Between a task and one thing that it polls among others. That must wake the task by nothing but the waker of its last poll.
#[derive(Default)]
pub(crate) struct Bell {
    /// What is polled is given this one's waker.
    rope: Option<(Arc<Rope>, Waker)>,
    /// It was pending when it was last polled.
    waits: bool,
}

struct Rope {
    pulled: AtomicBool,
    task: Waker,
}

impl Bell {
    /// Polls, unless it was pending and has not woken the task since.
    pub(crate) fn poll<T>(&mut self, cx: &mut Context<'_>, poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        // Another task than the last is to be made known.
        let held = self.rope.take().filter(|(rope, _)| rope.task.will_wake(cx.waker()));
        self.waits &= held.is_some();
        let (rope, waker) = self.rope.insert(held.unwrap_or_else(|| {
            let rope = Arc::new(Rope { pulled: AtomicBool::new(false), task: cx.waker().clone() });
            let waker = Waker::from(Arc::clone(&rope));
            (rope, waker)
        }));
        if self.waits && !rope.pulled.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        rope.pulled.store(false, Ordering::Release);
        let polled = poll(&mut Context::from_waker(waker));
        self.waits = polled.is_pending();
        polled
    }
}

impl Wake for Rope {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.pulled.store(true, Ordering::Release);
        self.task.wake_by_ref();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Task(AtomicUsize);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Polled so often, it was given the waker.
    #[derive(Default)]
    struct Thing {
        polls: usize,
        waker: Option<Waker>,
    }

    impl Thing {
        fn poll(&mut self, cx: &Context<'_>, polled: Poll<()>) -> Poll<()> {
            self.polls += 1;
            self.waker = Some(cx.waker().clone());
            polled
        }
    }

    #[test]
    fn what_is_pending_is_polled_again_once_it_has_woken_the_task() {
        let (mut bell, mut thing, task) = (Bell::default(), Thing::default(), Arc::new(Task::default()));
        let waker = Waker::from(Arc::clone(&task));
        let mut cx = Context::from_waker(&waker);
        for _ in 0..3 {
            assert!(bell.poll(&mut cx, |cx| thing.poll(cx, Poll::Pending)).is_pending());
        }
        assert_eq!(thing.polls, 1);
        thing.waker.take().unwrap().wake();
        assert_eq!(task.0.load(Ordering::SeqCst), 1);
        for polls in 2..5 {
            assert!(bell.poll(&mut cx, |cx| thing.poll(cx, Poll::Ready(()))).is_ready());
            assert_eq!(thing.polls, polls, "what is ready is polled each time");
        }
    }

    #[test]
    fn what_wakes_while_it_is_polled_is_polled_again() {
        let (mut bell, mut polls) = (Bell::default(), 0);
        for _ in 0..3 {
            let polled = bell.poll(&mut Context::from_waker(Waker::noop()), |cx| {
                polls += 1;
                cx.waker().wake_by_ref();
                Poll::<()>::Pending
            });
            assert!(polled.is_pending());
        }
        assert_eq!(polls, 3);
    }

    #[test]
    fn another_task_is_made_known() {
        let (mut bell, mut thing) = (Bell::default(), Thing::default());
        let tasks = [Arc::new(Task::default()), Arc::new(Task::default())];
        for task in &tasks {
            let waker = Waker::from(Arc::clone(task));
            let mut cx = Context::from_waker(&waker);
            assert!(bell.poll(&mut cx, |cx| thing.poll(cx, Poll::Pending)).is_pending());
        }
        thing.waker.take().unwrap().wake();
        assert_eq!((thing.polls, tasks.map(|task| task.0.load(Ordering::SeqCst))), (2, [0, 1]));
    }
}
