//! GRPCRoute.

use super::*;

#[derive(Debug, Clone)]
struct Method {
    exact: bool,
    service: Option<&'static str>,
    method: Option<&'static str>,
}

#[derive(Debug, Clone)]
struct Call {
    method: Option<Method>,
    headers: Vec<&'static str>,
}

#[derive(Debug, Clone)]
struct GrpcRoute {
    created: Option<u8>,
    name: &'static str,
    rules: Vec<Vec<Call>>,
}

/// Expressions take what begins as their text does, so that several hold for one call.
const SERVICES: [&str; 4] = ["s", "s.T", "s.T2", "u"];
const METHODS: [&str; 3] = ["M", "Ma", "Mab"];

fn method() -> impl Strategy<Value = Method> {
    let service = proptest::option::of(proptest::sample::select(&SERVICES[..]));
    let method = proptest::option::of(proptest::sample::select(&METHODS[..]));
    (any::<bool>(), service, method).prop_map(|(exact, service, method)| Method {
        exact,
        service: service.or_else(|| method.is_none().then_some("s")),
        method,
    })
}

fn grpc_route(name: &'static str) -> impl Strategy<Value = GrpcRoute> {
    let call =
        (proptest::option::weighted(0.8, method()), names()).prop_map(|(method, headers)| Call { method, headers });
    let rules = proptest::collection::vec(proptest::collection::vec(call, 0..3), 1..4);
    (proptest::option::of(1..4_u8), rules).prop_map(move |(created, rules)| GrpcRoute { created, name, rules })
}

/// Service, method and headers.
type AskedCall = (&'static str, &'static str, Vec<&'static str>);

fn asked_call() -> impl Strategy<Value = AskedCall> {
    (proptest::sample::select(&SERVICES[..]), proptest::sample::select(&METHODS[..]), names())
}

impl Call {
    fn document(&self) -> Value {
        let headers: Vec<_> = self.headers.iter().map(|name| json!({"name": name, "value": "1"})).collect();
        let mut document = json!({"headers": headers});
        if let Some(Method { exact, service, method }) = &self.method {
            let text = |text: &str| if *exact { text.to_owned() } else { format!("{}.*", regex::escape(text)) };
            let kind = if *exact { "Exact" } else { "RegularExpression" };
            document["method"] = json!({"type": kind});
            for (field, value) in [("service", service), ("method", method)] {
                if let Some(value) = value {
                    document["method"][field] = text(value).into();
                }
            }
        }
        document
    }

    fn holds(&self, (service, method, headers): &AskedCall) -> bool {
        let part = |exact: bool, wanted: Option<&str>, part: &str| {
            wanted.is_none_or(|wanted| if exact { wanted == part } else { part.starts_with(wanted) })
        };
        let called = self.method.as_ref().is_none_or(|wanted| {
            part(wanted.exact, wanted.service, service) && part(wanted.exact, wanted.method, method)
        });
        called && self.headers.iter().all(|name| headers.contains(name))
    }

    /// Whether it goes before another one that holds for the same call, as GRPCRouteRule.matches says.
    fn compare(&self, other: &Self) -> Ordering {
        // Where expressions stand is the implementation's to say: after names, before what takes every call.
        let rank = |one: &Self| one.method.as_ref().map_or(2, |method| u8::from(!method.exact));
        let length = |one: &Self, part: fn(&Method) -> Option<&'static str>| {
            let written = |method: &Method| {
                let text = part(method)?;
                Some(if method.exact { text.len() } else { regex::escape(text).len() + ".*".len() })
            };
            one.method.as_ref().and_then(written).unwrap_or_default()
        };
        let longer = |part: fn(&Method) -> Option<&'static str>| length(other, part).cmp(&length(self, part));
        (rank(self).cmp(&rank(other)))
            .then(longer(|method| method.service))
            .then(longer(|method| method.method))
            .then(other.headers.len().cmp(&self.headers.len()))
    }
}

fn grpc_document(route: &GrpcRoute) -> Value {
    let rules =
        route.rules.iter().map(|calls| json!({"matches": calls.iter().map(Call::document).collect::<Vec<_>>()}));
    attached("GRPCRoute", route.name, route.created, json!({"rules": rules.collect::<Vec<_>>()}))
}

/// Name of the route and index of the rule.
fn literally_called(routes: &[GrpcRoute], asked: &AskedCall) -> Option<(String, String)> {
    let everything = [Call { method: None, headers: Vec::new() }];
    let mut holding = Vec::new();
    for route in routes {
        for (index, calls) in route.rules.iter().enumerate() {
            let calls = if calls.is_empty() { &everything[..] } else { calls };
            holding.extend(calls.iter().filter(|call| call.holds(asked)).map(|call| (call, route, index)));
        }
    }
    let best = holding.into_iter().min_by(|(one, route, index), (other, of, at)| {
        one.compare(other).then(older((route.created, route.name), (of.created, of.name))).then(index.cmp(at))
    });
    best.map(|(_, route, index)| (route.name.to_owned(), index.to_string()))
}

/// Of a rule as proxies get it.
fn takes(rule: &v1::HttpMatch, (service, method, headers): &AskedCall) -> bool {
    let called = format!("/{service}/{method}");
    let path = match rule.path.as_ref().and_then(|path| path.kind.as_ref()) {
        None => true,
        Some(path_match::Kind::Exact(path)) => *path == called,
        Some(path_match::Kind::Prefix(prefix)) => called.starts_with(&format!("{prefix}/")),
        Some(path_match::Kind::Regex(text)) => regex::Regex::new(&format!("^(?:{text})$")).unwrap().is_match(&called),
    };
    rule.grpc && path && rule.headers.iter().all(|named| headers.contains(&named.name.as_str()))
}

proptest! {
    #[test]
    fn the_first_rule_that_takes_a_call_is_the_one_that_gateway_api_names(
        routes in (grpc_route("a"), grpc_route("b"), grpc_route("c")).prop_map(|(a, b, c)| [a, b, c]),
        calls in proptest::collection::vec(asked_call(), 1..20),
    ) {
        let compiled = compiled(routes.iter().map(grpc_document)).http.unwrap();
        for asked in calls {
            let first = compiled.rules.iter().find(|rule| takes(rule.r#match.as_ref().unwrap(), &asked));
            let decided = first.map(|rule| {
                let origin = compiled.actions[rule.action as usize].origin.clone().unwrap();
                (origin.route.unwrap().name, origin.rule)
            });
            prop_assert_eq!(decided, literally_called(&routes, &asked), "{:?}", asked);
        }
    }
}
