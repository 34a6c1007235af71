//! TLSRoute: the most specific of all names that hold for a server name.

use super::*;

#[derive(Debug, Clone)]
struct TlsRoute {
    created: Option<u8>,
    name: &'static str,
    /// None: any, and connections that name none.
    hosts: Vec<&'static str>,
}

const HOSTS: [&str; 7] = ["a.x", "b.x", "a.b.x", "x", "*.x", "*.b.x", "*.y"];
const ASKED: [&str; 7] = ["a.x", "b.x", "a.b.x", "c.b.x", "x", "a.y", "z"];

fn tls_route(name: &'static str) -> impl Strategy<Value = TlsRoute> {
    let hosts = proptest::sample::subsequence(&HOSTS[..], 0..=3).prop_shuffle();
    (proptest::option::of(1..4_u8), hosts).prop_map(move |(created, hosts)| TlsRoute { created, name, hosts })
}

fn tls_document(route: &TlsRoute) -> Value {
    let rules = json!([{"backendRefs": [{"name": "s", "port": 80}]}]);
    attached("TLSRoute", route.name, route.created, json!({"hostnames": route.hosts, "rules": rules}))
}

/// How many labels of the name were written out, and whether all were; None: it does not hold.
fn specific(host: &str, asked: &str) -> Option<(bool, usize)> {
    let labels: Vec<&str> = host.split('.').collect();
    let asked: Vec<&str> = asked.split('.').collect();
    match labels.split_first() {
        Some((&"*", rest)) => (asked.len() > rest.len() && asked.ends_with(rest)).then_some((false, rest.len())),
        _ => (labels == asked).then_some((true, labels.len())),
    }
}

/// Name of the route.
fn literally_named(routes: &[TlsRoute], asked: Option<&str>) -> Option<String> {
    let mut holding = Vec::new();
    for route in routes {
        if route.hosts.is_empty() {
            holding.push((None, route));
        }
        for host in &route.hosts {
            let found = asked.and_then(|asked| specific(host, asked));
            holding.extend(found.map(|specific| (Some(specific), route)));
        }
    }
    let best = holding.into_iter().min_by(|(one, route), (other, of)| {
        other.cmp(one).then(older((route.created, route.name), (of.created, of.name)))
    });
    best.map(|(_, route)| route.name.to_owned())
}

/// Of a rule as proxies get it.
fn takes(rule: &v1::TlsRule, asked: Option<&str>) -> bool {
    let names = &rule.server_names;
    names.is_empty() || asked.is_some_and(|asked| names.iter().any(|name| specific(name, asked).is_some()))
}

proptest! {
    #[test]
    fn the_first_rule_that_takes_a_server_name_is_the_most_specific(
        routes in (tls_route("a"), tls_route("b"), tls_route("c")).prop_map(|(a, b, c)| [a, b, c]),
    ) {
        let compiled = compiled(routes.iter().map(tls_document)).tls.unwrap();
        for asked in ASKED.into_iter().map(Some).chain([None]) {
            let first = compiled.rules.iter().find(|rule| takes(rule, asked));
            let decided = first.map(|rule| rule.route.clone().unwrap().origin.unwrap().route.unwrap().name);
            prop_assert_eq!(decided, literally_named(&routes, asked), "{:?}", asked);
        }
    }
}
