//! What policy says of a request, in words, each with the object that says it: told both of requests that might be sent
//! ([`super::explain`]) and of those that were ([`crate::http::notes`]). What a policy holds is taken apart by name here, so that a
//! field cannot be added and stay untold.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    BackendPolicy, HttpAction, RuleOrigin,
    hedging::Hedge,
    http_route::{Fallback, HttpBackend},
    retry_policy::{Backoff, Retry, Whom},
};
use crate::{
    http::{cors::Cors, filter::Filters, head::RequestHead, headers},
    reason::grpc_code,
    upstream::{
        Backend,
        balance::{
            Algorithm, LoadBalancing,
            settings::{ConsistentHash, HashKey},
        },
        breaker,
        bulkhead::What,
        outlier::OutlierDetection,
    },
};

/// One thing that is said.
pub(crate) struct Said<'a> {
    pub(crate) subject: &'static str,
    /// It shapes the request; false: something else has the last word.
    pub(crate) applies: bool,
    pub(crate) text: String,
    pub(crate) by: By<'a>,
}

/// Who says it.
#[derive(Clone, Copy)]
pub(crate) enum By<'a> {
    Rule(&'a RuleOrigin),
    /// "RoutePolicy shop/patience"
    Object(&'a Arc<str>),
    /// It is the default.
    Nobody,
}

impl By<'_> {
    /// "HTTPRoute shop/cart, rule 0"; empty: nobody.
    pub(crate) fn text(self) -> String {
        match self {
            Self::Rule(rule) if rule.rule.is_empty() => "the Service's default".to_owned(),
            Self::Rule(rule) => format!("{}, rule {}", rule.route, rule.rule),
            Self::Object(object) => object.to_string(),
            Self::Nobody => String::new(),
        }
    }
}

impl<'a> Said<'a> {
    fn new(subject: &'static str, text: String, by: By<'a>) -> Self {
        Self { subject, applies: true, text, by }
    }

    fn only_if(self, applies: bool) -> Self {
        Self { applies, ..self }
    }
}

/// What of a rule either its route or a RoutePolicy may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    RequestTimeout,
    TryTimeout,
    Retry,
    /// What only a policy can say.
    OfPolicy,
}

impl HttpAction {
    /// Who says that part of it.
    pub(crate) fn by(&self, part: Part) -> By<'_> {
        let of_policy = self.policy.as_deref().filter(|policy| match part {
            Part::RequestTimeout => policy.request_timeout,
            Part::TryTimeout => policy.try_timeout,
            Part::Retry => policy.retry,
            Part::OfPolicy => true,
        });
        of_policy.map_or(By::Rule(&self.origin), |policy| By::Object(&policy.origin))
    }

    /// Who says how sessions with a backend of it are kept.
    pub(crate) fn session_by<'a>(&'a self, backend: &'a HttpBackend) -> By<'a> {
        match (&self.persistence, &backend.session_policy) {
            (None, Some(policy)) => By::Object(policy),
            _ => By::Rule(&self.origin),
        }
    }
}

/// What a rule says of the request, but for its filters ([`of_filters`]), backends ([`of_backend`]) and faults.
pub(crate) fn of_rule<'a>(action: &'a HttpAction, head: &RequestHead) -> Vec<Said<'a>> {
    let HttpAction {
        origin,
        filters,
        backends: _,
        request_timeout,
        response_timeout,
        try_timeout,
        retry,
        hedge,
        stream_idle,
        faults: _,
        direct_response,
        fallback,
        persistence: _,
        explain_headers,
        policy: _,
        metrics: _,
    } = action;
    let grpc = headers::is_grpc(&head.fields);
    let mut all = Vec::new();
    let mut add = |subject, text, by| all.push(Said::new(subject, text, by));
    if let Some(redirect) = &filters.redirect {
        add("answer", format!("{}: redirected", redirect.status.as_u16()), By::Rule(origin));
        return all;
    }
    let of_policy = action.by(Part::OfPolicy);
    if let Some(direct) = direct_response {
        let text = format!("{}: the proxy answers (leno-reason: direct-response)", direct.name(grpc));
        add("answer", text, of_policy);
        return all;
    }
    if !explain_headers.is_empty() {
        add("explain", format!("kept with {}", explain_headers.join(" or ")), of_policy);
    }
    if let Some(timeout) = request_timeout {
        add("timeout", format!("the whole request: {}", time(*timeout)), action.by(Part::RequestTimeout));
    }
    if let Some(timeout) = response_timeout {
        add("timeout", format!("until the head of the answer: {}", time(*timeout)), of_policy);
    }
    if let Some(timeout) = try_timeout {
        add("timeout", format!("each try: {}", time(*timeout)), action.by(Part::TryTimeout));
    }
    if let Some(idle) = stream_idle {
        add("timeout", format!("without a byte moved: {}", time(*idle)), of_policy);
    }
    if let Some(retry) = retry {
        add("retry", retry_text(retry), action.by(Part::Retry));
    }
    if let Some(hedge) = hedge {
        add("hedging", hedge_text(hedge), of_policy);
    }
    if let Some(fallback) = fallback.as_deref() {
        let to = match fallback {
            Fallback::Backend(backend, _) => backend.key.to_string(),
            Fallback::Answer(answer) => format!("{} by the proxy", answer.name(grpc)),
        };
        add("fallback", format!("if nobody can be reached: {to}"), of_policy);
    }
    all.extend(of_sessions(action));
    all.extend(filters.cors.as_deref().map(|cors| of_cors(cors, head, origin)));
    all
}

/// The rule's, or else its backends' own.
fn of_sessions(action: &HttpAction) -> Vec<Said<'_>> {
    if let Some(persistence) = &action.persistence {
        let text = format!("one that is told of by the {} goes to the endpoint it names", persistence.carrier);
        return vec![Said::new("session", text, By::Rule(&action.origin))];
    }
    let of_entry = |entry: &'_ HttpBackend| {
        let (persistence, backend) = (entry.persistence.as_ref()?, entry.backend.as_ref().ok()?);
        Some(format!("one with {}, told of by the {}, goes back there", backend.key, persistence.carrier))
    };
    let entries = action.backends.iter().map(|(_, entry)| entry);
    entries.filter_map(|entry| Some(Said::new("session", of_entry(entry)?, action.session_by(entry)))).collect()
}

/// Of a request that is no preflight.
fn of_cors<'a>(cors: &Cors, head: &RequestHead, rule: &'a RuleOrigin) -> Said<'a> {
    let origin = head.fields.values(b"origin").next();
    let (applies, text) = match origin.map(|origin| cors.allows(origin)) {
        Some(true) => (true, "the route allows the request's origin: the answer says so"),
        Some(false) => (false, "the route does not allow the request's origin: nothing is added to the answer"),
        None => (false, "the request names no origin: nothing is added to the answer"),
    };
    Said::new("cors", text.to_owned(), By::Rule(rule)).only_if(applies)
}

/// What filters of a rule, or of a backend in it, do, but for rewrites and answers.
pub(crate) fn of_filters<'a>(filters: &Filters, rule: &'a RuleOrigin) -> Vec<Said<'a>> {
    let Filters { request, response, redirect: _, rewrite: _, mirrors, unmirrored, cors: _, unsupported } = filters;
    let mut all = Vec::new();
    for (changes, what) in [(request, "request"), (response, "response")] {
        let names: Vec<&str> = changes.names().collect();
        if !names.is_empty() {
            let text = format!("{what} headers changed: {}", names.join(", "));
            all.push(Said::new("filter", text, By::Rule(rule)));
        }
    }
    for mirror in mirrors {
        let text = format!("{} gets a copy of {} of these requests", mirror.backend.key, mirror.share.percent());
        all.push(Said::new("mirror", text, By::Rule(rule)).only_if(!mirror.share.is_none()));
    }
    for reason in unmirrored {
        all.push(Said::new("mirror", format!("nothing is copied: {reason}"), By::Rule(rule)).only_if(false));
    }
    if let Some(name) = unsupported {
        all.push(Said::new("filter", format!("500: the filter {name} is not supported"), By::Rule(rule)));
    }
    all
}

/// Who calls a backend.
#[derive(Clone, Copy)]
pub(crate) enum Caller<'a> {
    /// A request, by a rule or by none.
    Request(Option<&'a HttpAction>),
    Connection,
}

/// What is said of how a backend is called, with the state of what counts at this moment; nothing, if no policy says anything.
/// `policy`: its own, in force.
pub(crate) fn of_backend<'a>(
    backend: &Backend,
    policy: &'a BackendPolicy,
    caller: Caller<'_>,
    now: Instant,
) -> Vec<Said<'a>> {
    let BackendPolicy {
        origin,
        connect_timeout,
        load_balancing,
        outlier_detection,
        request_timeout,
        response_timeout,
        try_timeout,
        stream_idle,
        connection_idle,
        retry_budget,
        budget_origin,
        breaker,
        limits,
    } = policy;
    let Some(origin) = origin else { return Vec::new() };
    let (key, default) = (&backend.key, BackendPolicy::default());
    let by = |set: bool| if set { By::Object(origin) } else { By::Nobody };
    let mut all = Vec::new();
    let mut add = |subject, applies, text, by| all.push(Said { subject, applies, text, by });
    let connects = *connect_timeout != default.connect_timeout;
    add("policy", true, format!("{key} is called with connect timeout {}", time(*connect_timeout)), by(connects));
    let balanced = *load_balancing != default.load_balancing;
    add("balancing", true, format!("{key}: {}", balancing_text(load_balancing)), by(balanced));
    let ejects = *outlier_detection != default.outlier_detection;
    add("ejection", true, format!("{key}: {}", ejection_text(outlier_detection)), by(ejects));
    let (is_request, rule) = match caller {
        Caller::Request(rule) => (true, rule),
        Caller::Connection => (false, None),
    };
    let set = *retry_budget != default.retry_budget;
    let budget_by = if set { By::Object(budget_origin.as_ref().unwrap_or(origin)) } else { By::Nobody };
    add("budget", true, format!("{key}: {retry_budget}; {} left", backend.budget.left()), budget_by);
    let whole =
        (request_timeout.filter(|_| is_request), "the whole request", rule.and_then(|rule| rule.request_timeout));
    let head = (
        response_timeout.filter(|_| is_request),
        "until the head of the answer",
        rule.and_then(|rule| rule.response_timeout),
    );
    let each = (try_timeout.filter(|_| is_request), "each try", rule.and_then(|rule| rule.try_timeout));
    let idle = (*stream_idle, "without a byte moved", rule.and_then(|rule| rule.stream_idle));
    let unused = (connection_idle.filter(|_| is_request), "a connection without requests", None);
    for (timeout, what, of_rule) in [whole, head, each, idle, unused] {
        let Some(timeout) = timeout else { continue };
        let instead = of_rule.map(|_| ", but the rule says otherwise").unwrap_or_default();
        add("timeout", of_rule.is_none(), format!("{what}, to {key}: {}{instead}", time(timeout)), by(true));
    }
    if let Some(settings) = breaker {
        let state = backend.shield.breaker.state();
        let text = format!("the circuit breaker of {key} is {state}; {}", breaker_text(settings));
        add("circuit", !backend.shield.breaker.is_open(now), text, by(true));
    }
    // A connection that carries no request is none, and waits for none.
    let concerns = |what: &What| is_request || matches!(what, What::Connection | What::Retry);
    for (what, limit) in limits.set().filter(|(what, _)| concerns(what)) {
        let held = backend.shield.counts.held(what);
        add("limit", held < limit, format!("{held} of {limit} {} of {key} are taken", what.as_str()), by(true));
    }
    all
}

/// "300ms", "none"
pub(crate) fn time(time: Duration) -> String {
    if time == Duration::MAX { "none".to_owned() } else { format!("{time:?}") }
}

/// What is tried again.
fn retry_text(retry: &Retry) -> String {
    let mut on: Vec<String> = Vec::new();
    // In order; what follows one upon the other is a range.
    for range in retry.statuses.chunk_by(|one, next| one + 1 == *next) {
        match range {
            [first, .., last] => on.push(format!("status {first} to {last}")),
            one => on.extend(one.iter().map(|status| format!("status {status}"))),
        }
    }
    let whom = if retry.any_method { Whom::Any } else { Whom::Repeatable };
    let mut on: Vec<(String, Whom)> = on.into_iter().map(|status| (status, whom)).collect();
    let codes = (0..32).filter(|code| retry.grpc & 1 << code != 0);
    on.extend(codes.map(|code| (grpc_code(code), Whom::Any)));
    on.extend(retry.connect.then(|| ("connect failure".to_owned(), Whom::Any)));
    on.extend(
        [("reset", retry.reset), ("a try's timeout", retry.try_timeout)].map(|(what, whom)| (what.to_owned(), whom)),
    );
    let of = |wanted: Whom, who: &str| {
        let what: Vec<&str> = on.iter().filter(|(_, whom)| *whom == wanted).map(|(what, _)| &**what).collect();
        (!what.is_empty()).then(|| format!("on {} for {who}", what.join(", ")))
    };
    let when = [of(Whom::Any, "any method"), of(Whom::Repeatable, "what may be repeated")];
    let when: Vec<String> = when.into_iter().flatten().collect();
    if retry.attempts == 0 || when.is_empty() {
        return "no further try by policy".to_owned();
    }
    let Backoff { base, cap, .. } = retry.backoff;
    let longest = if base > cap { format!(" (the longest wait there is, not {base:?})") } else { String::new() };
    let tries = if retry.attempts == 1 { "try" } else { "tries" };
    format!("up to {} more {tries} after {:?}{longest}, {}", retry.attempts, base.min(cap), when.join("; "))
}

fn hedge_text(hedge: &Hedge) -> String {
    let whom = if hedge.any_method { ", with any method" } else { ", if it may be repeated" };
    match hedge.wait() {
        Some(wait) => format!("sent to another endpoint, too, after {wait:?}{whom}"),
        None => {
            let least = hedge.delay.map(|delay| format!(", after {delay:?} at the least")).unwrap_or_default();
            format!("sent to another endpoint, too, once it is known how long answers take{least}{whom}")
        }
    }
}

fn balancing_text(balancing: &LoadBalancing) -> String {
    let LoadBalancing { algorithm, slow_start, prefer_zone } = balancing;
    let mut text = algorithm.as_str().to_owned();
    if let Algorithm::ConsistentHash(ConsistentHash { key, most_load }) = algorithm {
        let key = key_name(key);
        text += &format!(" by {key}, up to {most_load} % of the mean load");
    }
    if let Some(window) = slow_start {
        text += &format!(", slow start over {window:?}");
    }
    // The others choose by what zones have no part in.
    let chooses_by_zone = matches!(algorithm, Algorithm::PeakEwma | Algorithm::LeastRequest);
    text += match *prefer_zone {
        true if chooses_by_zone => ", the own zone first",
        true if matches!(algorithm, Algorithm::Prequal(_)) => ", the own zone first as long as no reports are at hand",
        _ => ", whatever the zone",
    };
    text
}

/// "header x-user"
pub(super) fn key_name(key: &HashKey) -> String {
    match key {
        HashKey::Header(name) => format!("header {}", String::from_utf8_lossy(name)),
        HashKey::Cookie(cookie) => format!("cookie {}", cookie.name),
        HashKey::Query(name) => format!("query parameter {name}"),
        HashKey::SourceAddress => "source address".to_owned(),
    }
}

fn ejection_text(detection: &OutlierDetection) -> String {
    let OutlierDetection { consecutive_failures, failure_share, base_ejection, most_ejection, .. } = detection;
    let mut when = Vec::new();
    if *consecutive_failures > 0 {
        when.push(format!("after {consecutive_failures} failures in a row"));
    }
    if let Some(share) = failure_share {
        let (percent, window, least) = (share.percent, share.window, share.least_requests);
        when.push(format!("at {percent} % failures of at least {least} in {window:?}"));
    }
    let rest = match detection.most_rest {
        Duration::ZERO => "Retry-After moves nothing".to_owned(),
        most => format!("Retry-After moves requests for up to {most:?}"),
    };
    if when.is_empty() {
        return format!("no endpoint is ejected; {rest}");
    }
    let most = detection.most_ejected_percent;
    format!("{}, for {base_ejection:?} to {most_ejection:?}, {most} % at most; {rest}", when.join(" or "))
}

fn breaker_text(settings: &breaker::Settings) -> String {
    let row = settings.consecutive.map(|most| format!("{most} failures in a row"));
    let share = settings.percent.map(|percent| {
        format!("{percent} % failures of at least {} in {:?}", settings.minimum_volume, settings.window)
    });
    let when: Vec<String> = row.into_iter().chain(share).collect();
    format!("it opens at {}, for {:?} to {:?}", when.join(" or "), settings.open, settings.open_max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::balance::prequal;

    #[test]
    fn retries_are_told_with_whom_each_is_for() {
        let route = |statuses, base| Retry::of_route(statuses, 1, Duration::from_millis(base));
        assert_eq!(
            retry_text(&route(vec![503], 1)),
            "up to 1 more try after 1ms, on status 503, connect failure for any method; on reset, a try's timeout for what may be \
             repeated"
        );
        assert_eq!(
            retry_text(&route(vec![503, 504], 30_000)),
            "up to 1 more try after 10s (the longest wait there is, not 30s), on status 503 to 504, connect failure, reset, a try's \
             timeout for any method"
        );
        let policy = Retry {
            any_method: false,
            grpc: 1 << 14,
            connect: false,
            reset: Whom::None,
            try_timeout: Whom::Repeatable,
            attempts: 2,
            ..route(vec![503], 1)
        };
        assert_eq!(
            retry_text(&policy),
            "up to 2 more tries after 1ms, on UNAVAILABLE for any method; on status 503, a try's timeout for what may be repeated"
        );
    }

    #[test]
    fn zones_are_told_of_where_they_count() {
        let hash = ConsistentHash { key: HashKey::SourceAddress, most_load: 125 };
        for (algorithm, expected) in [
            (Algorithm::PeakEwma, "PeakEwma, the own zone first"),
            (Algorithm::LeastRequest, "LeastRequest, the own zone first"),
            (
                Algorithm::Prequal(prequal::Settings::default()),
                "Prequal, the own zone first as long as no reports are at hand",
            ),
            (Algorithm::RoundRobin, "RoundRobin, whatever the zone"),
            (Algorithm::Random, "Random, whatever the zone"),
            (
                Algorithm::ConsistentHash(hash),
                "ConsistentHash by source address, up to 125 % of the mean load, whatever the zone",
            ),
        ] {
            let balancing = |prefer_zone| LoadBalancing { algorithm: algorithm.clone(), slow_start: None, prefer_zone };
            assert_eq!(balancing_text(&balancing(true)), expected);
            assert!(balancing_text(&balancing(false)).ends_with("whatever the zone"), "{expected}");
        }
    }
}
