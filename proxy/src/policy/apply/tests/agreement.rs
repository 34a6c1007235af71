//! What the control plane takes, the proxy takes: control-plane/src/model/parse/tests.rs has the same values.

use leno_proto::{headers, v1::NamedMatch};

use super::*;

fn filtered(kind: http_filter::Kind) -> Destination {
    let filters = vec![v1::HttpFilter { kind: Some(kind) }];
    routed(vec![], vec![HttpAction { filters, ..HttpAction::default() }])
}

fn rejected(destination: Destination) -> Option<Rejection> {
    let (store, _asks) = Store::new();
    take(&store, vec![cart("d1", destination)], vec![]).pop()
}

#[test]
fn headers_of_the_proxys_own_are_not_for_filters() {
    let prefixed = headers::PREFIXES.map(|prefix| format!("{prefix}x"));
    for name in headers::RESERVED.into_iter().map(str::to_owned).chain(prefixed) {
        let header = || vec![v1::Header { name: name.to_ascii_uppercase(), value: "x".into() }];
        for modifier in [
            v1::HeaderModifier { set: header(), ..Default::default() },
            v1::HeaderModifier { add: header(), ..Default::default() },
            v1::HeaderModifier { remove: vec![name.clone()], ..Default::default() },
        ] {
            let rejection = rejected(filtered(http_filter::Kind::RequestHeaders(modifier.clone()))).unwrap();
            assert_eq!(rejection.reason, format!("{name} is the proxy's to set"));
            assert!(rejected(filtered(http_filter::Kind::ResponseHeaders(modifier))).is_some(), "{name}");
        }
    }
}

#[test]
fn what_the_control_plane_sends_is_taken() {
    for (name, value) in
        [("x-a", ""), ("x-b", "é"), ("!#$%&'*+-.^_`|~0", " a\tb "), ("authorization", "x"), ("expect", "100-continue")]
    {
        let set = vec![v1::Header { name: name.into(), value: value.into() }];
        let modifier = v1::HeaderModifier { set, remove: vec![name.into()], ..Default::default() };
        assert_eq!(rejected(filtered(http_filter::Kind::RequestHeaders(modifier))), None);
    }
    for path in ["/", "/a;b=c,d/%C3%A9", "/!$&'()*+,;=:@-._~"] {
        for kind in [
            v1::path_modifier::Kind::ReplaceFull(path.into()),
            v1::path_modifier::Kind::ReplacePrefix(path.into()),
            v1::path_modifier::Kind::ReplacePrefix(String::new()),
        ] {
            let path = Some(v1::PathModifier { kind: Some(kind) });
            let rewrite = v1::Rewrite { hostname: "1.a-b".into(), path };
            assert_eq!(rejected(filtered(http_filter::Kind::Rewrite(rewrite))), None);
        }
    }
    for regex in [r"/users/\w{36}", r"\p{Greek}+", "", "é|.", "/[^/]+/Get"] {
        let kind = path_match::Kind::Regex(regex.into());
        let matches = HttpMatch {
            path: Some(PathMatch { kind: Some(kind) }),
            query: vec![NamedMatch { name: "a b".into(), kind: Some(v1::named_match::Kind::Regex(regex.into())) }],
            ..Default::default()
        };
        let rule = HttpRule { r#match: Some(matches), action: 0 };
        assert_eq!(rejected(routed(vec![rule], vec![HttpAction::default()])), None);
    }
    // Keys of backends, as compile/destination.rs writes them.
    for key in ["a/b.c:65535", "a/pod/b-0:1", "a/pod/b-0/10.0.0.1:1", "a/pod/b-0/fd00::1:1", "a/endpoint/fd00::1:1"] {
        assert_eq!(rejected(service(to_backends(&[(1, key)]))), None);
    }
}
