//! Faults made on purpose: which of them a request meets.

use std::{sync::Arc, time::Duration};

use super::{http_match::HttpMatch, share::Share, static_answer::StaticAnswer};
use crate::http::head::RequestHead;

/// What a FaultPolicy says of a rule.
pub struct Faults {
    /// "FaultPolicy shop/slow", for people.
    pub origin: Arc<str>,
    pub delay: Option<(When, Duration)>,
    pub abort: Option<(When, StaticAnswer)>,
}

/// Which requests meet a fault.
pub struct When {
    pub share: Share,
    /// Any of them; none: every request.
    pub matches: Box<[HttpMatch]>,
}

impl Faults {
    /// How long the request waits before it goes on. `random`: a uniformly random number.
    pub(crate) fn delay(&self, request: &RequestHead, random: u64) -> Option<Duration> {
        let (when, delay) = self.delay.as_ref()?;
        when.holds(request, random).then_some(*delay)
    }

    /// What is answered in place of the application. `random`: see [`Self::delay`], and another one.
    pub(crate) fn abort(&self, request: &RequestHead, random: u64) -> Option<&StaticAnswer> {
        let (when, answer) = self.abort.as_ref()?;
        when.holds(request, random).then_some(answer)
    }
}

impl When {
    fn holds(&self, request: &RequestHead, random: u64) -> bool {
        self.share.takes(random) && self.matches(request)
    }

    /// Whether the request is one that may meet the fault.
    pub(crate) fn matches(&self, request: &RequestHead) -> bool {
        self.matches.is_empty() || self.matches.iter().any(|one| one.holds(request).is_some())
    }
}

#[cfg(test)]
mod tests {
    use http::{Method, StatusCode, Version};

    use super::*;

    fn when(of: u32, method: Option<Method>) -> When {
        let matches = method.into_iter().map(|method| HttpMatch { method: Some(method), ..HttpMatch::default() });
        When { share: Share::new(of, 1_000_000).unwrap(), matches: matches.collect() }
    }

    fn request(method: Method) -> RequestHead {
        RequestHead::new(Version::HTTP_11, method, "/")
    }

    #[test]
    fn requests_meet_faults_by_share_and_match() {
        let answer = StaticAnswer::plain(StatusCode::IM_A_TEAPOT, 2, "");
        let faults = Faults {
            origin: "FaultPolicy shop/a".into(),
            delay: Some((when(10_000, None), Duration::from_secs(2))),
            abort: Some((when(1_000_000, Some(Method::POST)), answer)),
        };
        let delayed = (0..1_000_000).filter(|point| faults.delay(&request(Method::GET), *point).is_some()).count();
        assert_eq!(delayed, 10_000, "1 %");
        assert!(faults.abort(&request(Method::GET), 0).is_none());
        assert_eq!(faults.abort(&request(Method::POST), 7).unwrap().status, StatusCode::IM_A_TEAPOT);
    }
}
