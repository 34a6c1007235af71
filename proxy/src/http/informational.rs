//! Informational responses (1xx, RFC 9110 15.2) on their way from a server to the client: as they come, before the answer.
//!
//! They are the ones of the try in progress, whatever becomes of it; while a hedged request is with two endpoints nobody knows whose
//! answer counts, and none are passed on. `100 Continue` goes to a client that asked for it, once; 101 is an answer. Policy's
//! header filters are for answers.

use std::{cell::Cell, collections::VecDeque, mem, rc::Rc};

use http::StatusCode;

use super::{head::ResponseHead, headers, watch::Watch};
use crate::config::limits;

/// Heads that wait to be passed on, in order. What a peer sends beyond [`limits::INFORMATIONAL`] and
/// [`limits::INFORMATIONAL_BYTES`], waiting or not, is dropped.
#[derive(Debug, Default)]
pub(super) struct Heads {
    waiting: VecDeque<ResponseHead>,
    /// Of all that came, but for `100 Continue`.
    count: usize,
    bytes: usize,
    /// `100 Continue` has come.
    continued: bool,
}

impl Heads {
    /// False: it is dropped.
    pub(super) fn push(&mut self, head: ResponseHead) -> bool {
        if head.status == StatusCode::CONTINUE {
            // Whatever came before: a client may wait for it.
            if mem::replace(&mut self.continued, true) {
                return false;
            }
        } else {
            let bytes = self.bytes.saturating_add(head.fields.size());
            if self.count >= limits::INFORMATIONAL || bytes > limits::INFORMATIONAL_BYTES {
                return false;
            }
            (self.count, self.bytes) = (self.count + 1, bytes);
        }
        self.waiting.push_back(head);
        true
    }

    pub(super) fn pop(&mut self) -> Option<ResponseHead> {
        self.waiting.pop_front()
    }
}

/// One exchange's, between its tries and the task that writes to its client. That task is who polls the tries: it looks here
/// after it has done so, and need not be woken.
#[derive(Default)]
pub(super) struct Informational {
    /// The client can be told, and one try alone is in progress.
    passed_on: Cell<bool>,
    /// The client asked for `100 Continue`.
    continue_awaited: Cell<bool>,
    /// None: none came, as is usual.
    heads: Cell<Option<Box<Heads>>>,
}

impl Informational {
    /// An exchange is about to begin, whose client will be told by who calls this.
    pub(super) fn begin(&self) {
        self.passed_on.set(true);
        self.continue_awaited.set(false);
        self.heads.set(None);
    }

    /// The exchange is over: its connection may idle for long.
    pub(super) fn end(&self) {
        self.passed_on.set(false);
        self.heads.set(None);
    }

    pub(super) fn await_continue(&self) {
        self.continue_awaited.set(true);
    }

    /// There is a second try beside the one in progress.
    pub(super) fn stop(&self) {
        self.passed_on.set(false);
    }

    fn push(&self, mut head: ResponseHead) -> bool {
        let fit = match head.status {
            StatusCode::CONTINUE => self.continue_awaited.get(),
            StatusCode::SWITCHING_PROTOCOLS => false,
            status => status.is_informational(),
        };
        if !fit || !self.passed_on.get() || headers::receive_informational(&mut head.fields).is_err() {
            return false;
        }
        let mut heads = self.heads.take().unwrap_or_default();
        let kept = heads.push(head);
        self.heads.set(Some(heads));
        kept
    }

    /// The next one to be written.
    pub(super) fn next(&self) -> Option<ResponseHead> {
        let mut heads = self.heads.take()?;
        let next = heads.pop();
        self.heads.set(Some(heads));
        next
    }
}

/// Who hears of a try's informational responses; by default nobody.
#[derive(Clone, Default)]
pub(crate) struct Informed {
    watch: Option<Rc<Watch>>,
    /// Of no other than `100 Continue`.
    continue_alone: bool,
}

impl Informed {
    pub(super) fn of(watch: &Rc<Watch>) -> Self {
        Self { watch: Some(Rc::clone(watch)), continue_alone: false }
    }

    pub(super) fn of_continue_alone(self) -> Self {
        Self { continue_alone: true, ..self }
    }

    pub(crate) fn tell(&self, head: ResponseHead) {
        if self.continue_alone && head.status != StatusCode::CONTINUE {
            return;
        }
        if let Some(watch) = &self.watch
            && watch.informational().push(head)
        {
            watch.moved(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head::Fields;

    fn told(informational: &Informational) -> Vec<u16> {
        std::iter::from_fn(|| informational.next()).map(|head| head.status.as_u16()).collect()
    }

    fn head(status: u16, fields: &[(&str, &str)]) -> ResponseHead {
        let status = StatusCode::from_u16(status).unwrap();
        ResponseHead { status, fields: fields.iter().copied().collect::<Fields>() }
    }

    #[test]
    fn they_are_told_in_order_to_whom_they_are_for() {
        let one = Informational::default();
        assert!(!one.push(head(103, &[])), "nobody writes to the client");
        one.begin();
        assert!(one.push(head(103, &[])) && one.push(head(102, &[])));
        assert!(!one.push(head(100, &[])) && !one.push(head(101, &[])) && !one.push(head(200, &[])));
        one.await_continue();
        assert!(one.push(head(100, &[])) && !one.push(head(100, &[])), "once");
        assert_eq!(told(&one), [103, 102, 100]);
        one.stop();
        assert!(!one.push(head(103, &[])));
        one.push(head(103, &[]));
        one.begin();
        assert_eq!(told(&one), [] as [u16; 0]);
        assert!(!one.push(head(100, &[])), "that was another exchange");
    }

    #[test]
    fn what_is_for_one_hop_ends_here() {
        let one = Informational::default();
        one.begin();
        let fields =
            [("link", "</a>"), ("connection", "x-b"), ("x-b", "1"), ("content-length", "0"), ("leno-reason", "x")];
        one.push(head(103, &fields));
        assert_eq!(one.next().unwrap().fields, Fields::from_iter([("link", "</a>")]));
    }

    #[test]
    fn their_number_and_size_are_bounded() {
        let one = Informational::default();
        one.begin();
        one.await_continue();
        for _ in 0..3 * limits::INFORMATIONAL {
            one.push(head(103, &[]));
        }
        assert_eq!(told(&one).len(), limits::INFORMATIONAL);
        assert!(!one.push(head(103, &[])), "none for those that were told");
        assert!(one.push(head(100, &[])), "whoever waits is not forgotten");
        one.begin();
        let large = "x".repeat(limits::INFORMATIONAL_BYTES / 3);
        let kept = (0..10).filter(|_| one.push(head(103, &[("link", &large)]))).count();
        assert_eq!(kept, 2);
    }
}
