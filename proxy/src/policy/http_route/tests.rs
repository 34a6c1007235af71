//! `decide` against a reference that takes the definitions literally.

use leno_proto::v1::{
    self, HttpMatch, HttpRule, NamedMatch, PathMatch, ResourceKind, named_match, path_match, resource::Body,
};
use proptest::prelude::*;

use crate::{
    http::head::RequestHead,
    policy::{
        Store, Target,
        apply::{
            apply,
            tests::{delta, resource, routed},
        },
    },
};

#[derive(Debug, Clone)]
struct Asked {
    method: String,
    path: String,
    query: Option<String>,
    headers: Vec<(String, String)>,
}

impl Asked {
    fn head(&self) -> RequestHead {
        let query = self.query.as_ref().map_or(String::new(), |query| format!("?{query}"));
        let target = format!("{}{query}", self.path);
        let mut head = RequestHead::new(http::Version::HTTP_11, self.method.parse().unwrap(), &target);
        head.fields = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        head
    }
}

fn segments(path: &str) -> Vec<&str> {
    path.trim_end_matches('/').split('/').collect()
}

fn whole(pattern: &str, text: &str) -> bool {
    regex::Regex::new(pattern).unwrap().find_iter(text).any(|found| found.range() == (0..text.len()))
        || regex::Regex::new(&format!("^({pattern})$")).unwrap().is_match(text)
}

fn value_holds(wanted: &NamedMatch, value: Option<String>) -> bool {
    match (value, &wanted.kind) {
        (None, _) | (_, None) => false,
        (Some(value), Some(named_match::Kind::Exact(exact))) => value == *exact,
        (Some(value), Some(named_match::Kind::Regex(regex))) => whole(regex, &value),
    }
}

fn decoded(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let escape = rest.get(1..3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (first, escape) {
            ('%', Some(byte)) => {
                out.push(char::from(byte));
                rest = &rest[3..];
            }
            ('+', _) => {
                out.push(' ');
                rest = &rest[1..];
            }
            _ => {
                out.push(first);
                rest = &rest[1..];
            }
        }
    }
    out
}

/// The index of the first rule that holds, and the prefix's length.
fn reference(rules: &[HttpRule], asked: &Asked) -> Option<(u32, usize)> {
    rules.iter().find_map(|rule| {
        let wanted = rule.r#match.clone().unwrap_or_default();
        let path = &asked.path;
        let prefix_len = match wanted.path.and_then(|path| path.kind) {
            None => Some(0),
            Some(path_match::Kind::Exact(exact)) => (*path == exact).then_some(path.len()),
            Some(path_match::Kind::Prefix(prefix)) => {
                let (prefix_parts, parts): (Vec<_>, Vec<_>) = (segments(&prefix), path.split('/').collect());
                parts.starts_with(&prefix_parts).then(|| prefix.trim_end_matches('/').len())
            }
            Some(path_match::Kind::Regex(regex)) => whole(&regex, path).then_some(path.len()),
        }?;
        let header = |name: &str| {
            let values: Vec<_> =
                asked.headers.iter().filter(|(held, _)| held == name).map(|(_, value)| value.clone()).collect();
            (!values.is_empty()).then(|| values.join(","))
        };
        let parameter = |name: &str| {
            let mut pairs = asked.query.as_deref().unwrap_or_default().split('&').map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                (decoded(name), decoded(value))
            });
            pairs.find(|(held, _)| held == name).map(|(_, value)| value)
        };
        let grpc = header("content-type")
            .is_some_and(|value| value == "application/grpc" || value.starts_with("application/grpc+"));
        let all = (wanted.method.is_empty() || wanted.method == asked.method)
            && (!wanted.grpc || grpc)
            && wanted.headers.iter().all(|wanted| value_holds(wanted, header(&wanted.name)))
            && wanted.query.iter().all(|wanted| value_holds(wanted, parameter(&wanted.name)));
        all.then_some((rule.action, prefix_len))
    })
}

// Small alphabets, so that matches happen.

fn path() -> impl Strategy<Value = String> {
    "(/(a|b|ab|v2)){0,3}/?".prop_map(|path| if path.is_empty() { "/".to_owned() } else { path })
}

fn regex() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["/a.*", "/(a|b)", "/a|/ab", "a", ".*", "[ab]+", "/v[0-9]", "a,b", "a b", "(?i)A"])
        .prop_map(str::to_owned)
}

fn named(names: &'static [&'static str]) -> impl Strategy<Value = NamedMatch> {
    let kind = prop_oneof![
        prop::sample::select(vec!["a", "b", "a,b", "a b", ""]).prop_map(|v| named_match::Kind::Exact(v.to_owned())),
        regex().prop_map(named_match::Kind::Regex),
    ];
    (prop::sample::select(names), kind).prop_map(|(name, kind)| NamedMatch { name: name.to_owned(), kind: Some(kind) })
}

fn wanted() -> impl Strategy<Value = HttpMatch> {
    let path = prop_oneof![
        path().prop_map(path_match::Kind::Exact),
        path().prop_map(path_match::Kind::Prefix),
        regex().prop_map(path_match::Kind::Regex),
    ];
    (
        prop::option::of(path),
        prop::collection::vec(named(&["x-a", "x-b"]), 0..2),
        prop::collection::vec(named(&["q", "r s"]), 0..2),
        prop::sample::select(vec!["", "", "GET", "POST"]),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(kind, headers, query, method, grpc)| HttpMatch {
            path: kind.map(|kind| PathMatch { kind: Some(kind) }),
            headers,
            query,
            method: method.to_owned(),
            grpc,
        })
}

fn asked() -> impl Strategy<Value = Asked> {
    let value = || prop::sample::select(vec!["a", "b", "ab", "A", ""]).prop_map(str::to_owned);
    let header = (prop::sample::select(vec!["x-a", "x-b"]).prop_map(str::to_owned), value());
    let content_type =
        prop::sample::select(vec!["application/grpc", "application/grpc+proto", "application/grpc-web", "text/plain"]);
    let pair = prop::sample::select(vec!["q=a", "q=b", "q=%61", "r+s=a+b", "r%20s=b", "q", "q=a%2Cb", "x=%zz", ""]);
    (
        prop::sample::select(vec!["GET", "POST"]),
        path(),
        prop::option::of(prop::collection::vec(pair, 0..3)),
        prop::collection::vec(header, 0..3),
        prop::option::of(content_type),
    )
        .prop_map(|(method, path, query, mut headers, content_type)| {
            headers.extend(content_type.map(|value| ("content-type".to_owned(), value.to_owned())));
            Asked { method: method.to_owned(), path, query: query.map(|pairs| pairs.join("&")), headers }
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn decides_as_the_definitions_say(
        matches in prop::collection::vec(wanted(), 0..8),
        requests in prop::collection::vec(asked(), 1..8),
    ) {
        let rules: Vec<_> = (0..)
            .zip(matches)
            .map(|(action, wanted)| HttpRule { r#match: Some(wanted), action })
            .collect();
        let actions = rules.iter().map(|rule| v1::HttpAction {
            origin: Some(v1::RuleOrigin { route: None, rule: rule.action.to_string() }),
            ..v1::HttpAction::default()
        });
        let destination = routed(rules.clone(), actions.collect());
        let changed = vec![resource(ResourceKind::Destination, "10.0.0.1:80", "1", Body::Destination(destination))];
        let (store, _asks) = Store::new();
        let rejected = apply(&store.snapshot(), delta(changed, vec![]), |_| true, &mut |_, _| Ok(())).commit(&store);
        prop_assert_eq!(rejected, vec![]);
        let held = store.get(&"10.0.0.1:80".into()).unwrap();
        let Target::Service(port) = &held.target else { panic!("not a service") };
        for asked in requests {
            let decided = port.http.as_ref().unwrap().decide(&asked.head()).map(|matched| {
                (matched.action.origin.rule.parse().unwrap(), matched.prefix_len)
            });
            prop_assert_eq!(decided, reference(&rules, &asked), "{:?}", asked);
        }
    }
}
