//! Server names, one by one and against a naive second reading.

use proptest::prelude::*;

use super::*;

#[test]
fn server_names() {
    let exact = ServerName::parse("A.example.com").unwrap();
    assert!(exact.holds("a.EXAMPLE.com"));
    assert!(exact.holds("a.example.com."));
    assert!(!exact.holds("b.example.com"));
    let below = ServerName::parse("*.example.com").unwrap();
    assert!(below.holds("a.example.com"));
    assert!(below.holds("a.b.Example.com"));
    assert!(!below.holds("example.com"));
    assert!(!below.holds(".example.com"));
    assert!(!below.holds("aexample.com"));
    for text in ["", "*", "*example.com", "a..b", "*.", "a b", "é.com"] {
        assert_eq!(ServerName::parse(text), None, "{text}");
    }
}

/// A hostname of Gateway API, label by label.
fn literally(rule: &str, name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let asked: Vec<&str> = lower.strip_suffix('.').unwrap_or(&lower).split('.').collect();
    let labels: Vec<&str> = rule.split('.').collect();
    match labels.split_first() {
        Some((&"*", rest)) => asked.len() > rest.len() && asked.ends_with(rest),
        _ => labels == asked,
    }
}

/// Few labels, so that names meet.
fn host() -> impl Strategy<Value = String> {
    "(a|b|ab)(\\.(a|b|ab)){0,3}"
}

fn names() -> impl Strategy<Value = Vec<String>> {
    let name = (any::<bool>(), host()).prop_map(|(below, host)| if below { format!("*.{host}") } else { host });
    prop::collection::vec(name, 0..3)
}

fn asked() -> impl Strategy<Value = Option<String>> {
    let name = (host(), any::<bool>(), prop::bool::weighted(0.2)).prop_map(|(host, upper, dot)| {
        let host = if upper { host.to_ascii_uppercase() } else { host };
        if dot { format!("{host}.") } else { host }
    });
    prop::option::weighted(0.9, name)
}

proptest! {
    #[test]
    fn the_first_route_that_holds_is_taken(
        rules in prop::collection::vec(names(), 0..6),
        asked in prop::collection::vec(asked(), 1..10),
    ) {
        let rule = |(index, names): (usize, &Vec<String>)| TlsRule {
            names: names.iter().map(|name| ServerName::parse(name).unwrap()).collect(),
            route: TcpRoute {
                origin: RuleOrigin { route: index.to_string().into(), rule: "0".into() },
                backends: WeightedBackends::new(Vec::new()),
            },
        };
        let routes = TlsRoutes { rules: rules.iter().enumerate().map(rule).collect() };
        for asked in asked {
            let first = rules.iter().position(|names| {
                names.is_empty()
                    || asked.as_ref().is_some_and(|asked| names.iter().any(|name| literally(name, asked)))
            });
            let decided = routes.decide(asked.as_deref()).map(|route| route.origin.route.to_string());
            prop_assert_eq!(decided, first.map(|index| index.to_string()), "{:?}", asked);
        }
    }
}
