//! A timer for a task that is mostly woken for something else.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};

pin_project! {
    /// As a [`Sleep`], which takes a lock and counts against the task's budget at each poll; this one is only looked at while
    /// it has not fired and the task that waits for it stays the same.
    pub(crate) struct Alarm {
        #[pin]
        sleep: Sleep,
        // Whom it wakes as it is set now.
        wakes: Option<Waker>,
    }
}

impl Alarm {
    pub(crate) fn at(deadline: Instant) -> Self {
        Self { sleep: tokio::time::sleep_until(deadline), wakes: None }
    }

    pub(crate) fn after(wait: Duration) -> Self {
        Self { sleep: tokio::time::sleep(wait), wakes: None }
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.sleep.deadline()
    }

    /// Sets it anew, whether it has fired or not.
    pub(crate) fn reset(self: Pin<&mut Self>, deadline: Instant) {
        let this = self.project();
        this.sleep.reset(deadline);
        *this.wakes = None;
    }
}

impl Future for Alarm {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let hears = this.wakes.as_ref().is_some_and(|wakes| wakes.will_wake(cx.waker()));
        if hears && !this.sleep.is_elapsed() {
            return Poll::Pending;
        }
        // Without a budget: pending for want of it, it would wake nobody when its time has come.
        let mut sleep = std::pin::pin!(tokio::task::unconstrained(this.sleep));
        if sleep.as_mut().poll(cx).is_pending() {
            if !hears {
                *this.wakes = Some(cx.waker().clone());
            }
            return Poll::Pending;
        }
        *this.wakes = None;
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::Wake,
    };

    use super::*;

    const SOON: Duration = Duration::from_millis(5);

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn poll(alarm: Pin<&mut Alarm>, by: &Arc<Woken>) -> Poll<()> {
        alarm.poll(&mut Context::from_waker(&Arc::clone(by).into()))
    }

    #[tokio::test]
    async fn it_wakes_who_polled_it_last() {
        let (first, second) = (Arc::new(Woken::default()), Arc::new(Woken::default()));
        let mut alarm = pin!(Alarm::after(SOON));
        for by in [&first, &first, &second] {
            assert!(poll(alarm.as_mut(), by).is_pending());
        }
        while second.0.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(SOON).await;
        }
        assert_eq!(first.0.load(Ordering::SeqCst), 0);
        assert!(poll(alarm.as_mut(), &second).is_ready());
    }

    #[tokio::test]
    async fn it_can_be_set_anew_before_and_after_it_fired() {
        let by = Arc::new(Woken::default());
        let mut alarm = pin!(Alarm::after(Duration::from_secs(3600)));
        assert!(poll(alarm.as_mut(), &by).is_pending());
        for _ in 0..3 {
            let until = Instant::now() + SOON;
            alarm.as_mut().reset(until);
            alarm.as_mut().await;
            assert!(Instant::now() >= until);
        }
        alarm.as_mut().reset(Instant::now() + Duration::from_secs(3600));
        assert!(poll(alarm.as_mut(), &by).is_pending());
    }
}
