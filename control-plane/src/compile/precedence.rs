//! Which rule decides, against a second reading of Gateway API that takes its text literally: of all matches that hold for a
//! request, the best by pairwise comparison. Of HTTPRoute here; [`grpc`] and [`tls`] are as this.

use std::cmp::Ordering;

use leno_proto::{
    spiffe::SpiffeId,
    v1::{
        self, Destination, ResourceKind, ResourceName, ServiceTarget, destination::Target, path_match, resource::Body,
    },
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Subscriber, compile};
use crate::model::{Document, Generations, MeshSettings, World};

mod grpc;
mod tls;

#[derive(Debug, Clone)]
struct Match {
    path: Option<(&'static str, &'static str)>,
    method: Option<&'static str>,
    headers: Vec<&'static str>,
    query: Vec<&'static str>,
}

#[derive(Debug, Clone)]
struct Route {
    /// Day of its creation; None: not known.
    created: Option<u8>,
    name: &'static str,
    rules: Vec<Vec<Match>>,
}

/// Headers and parameters are there, with the value "1", or not.
#[derive(Debug, Clone)]
struct Asked {
    path: &'static str,
    method: &'static str,
    headers: Vec<&'static str>,
    query: Vec<&'static str>,
}

const PATHS: [&str; 5] = ["/", "/a", "/a/b", "/ab", "/a/b/c"];
const NAMES: [&str; 3] = ["h1", "h2", "h3"];

fn names() -> impl Strategy<Value = Vec<&'static str>> {
    proptest::sample::subsequence(&NAMES[..], 0..=NAMES.len())
}

fn one_match() -> impl Strategy<Value = Match> {
    let kind = proptest::sample::select(&["Exact", "PathPrefix", "RegularExpression"][..]);
    let path = (kind, proptest::sample::select(&PATHS[..]));
    let method = proptest::option::weighted(0.3, proptest::sample::select(&["GET", "POST"][..]));
    (proptest::option::weighted(0.8, path), method, names(), names()).prop_map(|(path, method, headers, query)| Match {
        path,
        method,
        headers,
        query,
    })
}

fn route(name: &'static str) -> impl Strategy<Value = Route> {
    let rules = proptest::collection::vec(proptest::collection::vec(one_match(), 0..3), 1..4);
    (proptest::option::of(1..4_u8), rules).prop_map(move |(created, rules)| Route { created, name, rules })
}

fn asked() -> impl Strategy<Value = Asked> {
    let method = proptest::sample::select(&["GET", "POST"][..]);
    (proptest::sample::select(&PATHS[..]), method, names(), names()).prop_map(|(path, method, headers, query)| Asked {
        path,
        method,
        headers,
        query,
    })
}

impl Match {
    fn document(&self) -> Value {
        let named = |names: &[&str]| names.iter().map(|name| json!({"name": name, "value": "1"})).collect::<Vec<_>>();
        let mut document = json!({"headers": named(&self.headers), "queryParams": named(&self.query)});
        if let Some((kind, value)) = self.path {
            document["path"] = json!({"type": kind, "value": value});
        }
        if let Some(method) = self.method {
            document["method"] = method.into();
        }
        document
    }

    fn holds(&self, asked: &Asked) -> bool {
        let path = match self.path {
            None | Some(("PathPrefix", "/")) => true,
            Some(("PathPrefix", prefix)) => asked.path == prefix || asked.path.starts_with(&format!("{prefix}/")),
            Some((_, path)) => asked.path == path,
        };
        path && self.method.is_none_or(|method| method == asked.method)
            && self.headers.iter().all(|name| asked.headers.contains(name))
            && self.query.iter().all(|name| asked.query.contains(name))
    }

    /// Whether it goes before another one that holds for the same request, as HTTPRouteRule.matches says.
    fn compare(&self, other: &Self) -> Ordering {
        let exact = |one: &Self| matches!(one.path, Some(("Exact", _)));
        let prefix = |one: &Self| match one.path {
            Some(("PathPrefix", prefix)) if prefix != "/" => prefix.len(),
            _ => 0,
        };
        // Where expressions stand is the implementation's to say: after prefixes, before what takes every path.
        let regex = |one: &Self| matches!(one.path, Some(("RegularExpression", _)));
        (exact(other).cmp(&exact(self)))
            .then(prefix(other).cmp(&prefix(self)))
            .then(regex(other).cmp(&regex(self)))
            .then(other.method.is_some().cmp(&self.method.is_some()))
            .then(other.headers.len().cmp(&self.headers.len()))
            .then(other.query.len().cmp(&self.query.len()))
    }
}

fn document(route: &Route) -> Value {
    let rules: Vec<Value> = route
        .rules
        .iter()
        .map(|matches| json!({"matches": matches.iter().map(Match::document).collect::<Vec<_>>()}))
        .collect();
    attached("HTTPRoute", route.name, route.created, json!({"rules": rules}))
}

/// A route of Service `s`, `created` on a day.
fn attached(kind: &str, name: &str, created: Option<u8>, mut spec: Value) -> Value {
    spec["parentRefs"] = json!([{"group": "", "kind": "Service", "name": "s"}]);
    let mut document = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind,
        "metadata": {"name": name, "namespace": "x"},
        "spec": spec,
    });
    if let Some(day) = created {
        document["metadata"]["creationTimestamp"] = format!("2026-01-{day:02}T00:00:00Z").into();
    }
    document
}

/// Older, those of unknown age last; then by name.
fn older(one: (Option<u8>, &str), other: (Option<u8>, &str)) -> Ordering {
    let age = |created: Option<u8>| (created.is_none(), created);
    age(one.0).cmp(&age(other.0)).then(one.1.cmp(other.1))
}

/// Name of the route and index of the rule.
fn literally(routes: &[Route], asked: &Asked) -> Option<(String, String)> {
    let everything = Match { path: None, method: None, headers: Vec::new(), query: Vec::new() };
    let mut best: Option<(&Match, &Route, usize)> = None;
    for route in routes {
        for (index, matches) in route.rules.iter().enumerate() {
            let matches = if matches.is_empty() { std::slice::from_ref(&everything) } else { matches };
            for one in matches.iter().filter(|one| one.holds(asked)) {
                let before = best.is_none_or(|(held, of, at)| {
                    let order = one.compare(held).then(older((route.created, route.name), (of.created, of.name)));
                    order.then(index.cmp(&at)) == Ordering::Less
                });
                if before {
                    best = Some((one, route, index));
                }
            }
        }
    }
    best.map(|(_, route, index)| (route.name.to_owned(), index.to_string()))
}

fn holds(rule: &v1::HttpMatch, asked: &Asked) -> bool {
    let path = match rule.path.as_ref().and_then(|path| path.kind.as_ref()) {
        None => true,
        Some(path_match::Kind::Exact(path) | path_match::Kind::Regex(path)) => path == asked.path,
        Some(path_match::Kind::Prefix(prefix)) => {
            asked.path == prefix || asked.path.starts_with(&format!("{}/", prefix.trim_end_matches('/')))
        }
    };
    path && (rule.method.is_empty() || rule.method == asked.method)
        && rule.headers.iter().all(|named| asked.headers.contains(&named.name.as_str()))
        && rule.query.iter().all(|named| asked.query.contains(&named.name.as_str()))
}

/// What clients get of Service `s` with these routes.
fn compiled(routes: impl Iterator<Item = Value>) -> ServiceTarget {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "x"},
        "spec": {"ports": [{"port": 80}]},
    });
    let contents = std::iter::once(service).chain(routes);
    let documents =
        contents.zip(1..).map(|(content, index)| Document { file: "f".into(), index, content: content.into() });
    let world = World::empty(MeshSettings::strict("cluster.local"), Generations::default());
    let world = world.apply(documents.collect(), Vec::new());
    assert_eq!(world.errors(), []);
    let client = Subscriber { identity: SpiffeId::new("cluster.local", "x", "a").unwrap(), workload: "a".to_owned() };
    let name = ResourceName { kind: ResourceKind::Destination.into(), key: "s.x:80".to_owned() };
    match compile(&world, &client, &name).0.unwrap().body {
        Some(Body::Destination(Destination { target: Some(Target::Service(target)) })) => target,
        other => panic!("{other:?}"),
    }
}

proptest! {
    #[test]
    fn the_first_rule_that_holds_is_the_one_that_gateway_api_names(
        routes in (route("a"), route("b"), route("c")).prop_map(|(a, b, c)| [a, b, c]),
        requests in proptest::collection::vec(asked(), 1..20),
    ) {
        let compiled = compiled(routes.iter().map(document)).http.unwrap();
        for asked in requests {
            let first = compiled.rules.iter().find(|rule| holds(rule.r#match.as_ref().unwrap(), &asked));
            let decided = first.map(|rule| {
                let origin = compiled.actions[rule.action as usize].origin.clone().unwrap();
                (origin.route.unwrap().name, origin.rule)
            });
            prop_assert_eq!(decided, literally(&routes, &asked), "{:?}", asked);
        }
    }
}
