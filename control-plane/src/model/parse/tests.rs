use serde_json::json;

use super::*;

mod bounds;
mod inbound_policy;

fn items(content: Value) -> Vec<Item> {
    let document = Document { file: "f.yaml".into(), index: 3, content: Arc::new(content) };
    // What stands in for a bad route is said elsewhere.
    parse(&document, Keep::Documents).into_iter().filter(|item| !matches!(item, Item::StandIn(_))).collect()
}

/// "field: reason" of a document with one thing wrong.
fn bad(content: Value) -> String {
    match all_bad(content.clone()).as_slice() {
        [error] => error.clone(),
        other => panic!("{content}: {other:?}"),
    }
}

/// The same with any number.
fn all_bad(content: Value) -> Vec<String> {
    let told = |item: &Item| match item {
        Item::Bad(error) => format!("{}: {}", error.field, error.reason),
        other => panic!("{content}: {other:?}"),
    };
    items(content.clone()).iter().map(told).collect()
}

fn good(content: Value) -> Arc<Parsed> {
    match items(content.clone()).as_slice() {
        [Item::Object(parsed)] => parsed.clone(),
        other => panic!("{content}: {other:?}"),
    }
}

fn http_route(rule: Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "r"},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "s"}], "rules": [rule]},
    })
}

fn grpc_route(rule: Value) -> Value {
    let mut route = http_route(rule);
    route["kind"] = json!("GRPCRoute");
    route
}

fn service(spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": spec})
}

#[test]
fn errors_name_object_field_and_reason() {
    let route = http_route(json!({"backendRefs": [{"name": "a", "port": 80}, {"name": "b", "port": "http"}]}));
    let Some(Item::Bad(error)) = items(route).pop() else { panic!() };
    assert_eq!(error.object.map(|key| key.to_string()), Some("HTTPRoute default/r".to_owned()));
    assert_eq!((&*error.file, error.document), ("f.yaml", 3));
    assert_eq!(error.field, "spec.rules[0].backendRefs[1].port");
    assert_eq!(error.reason, "invalid type: string \"http\", expected a whole number");
    let Some(Item::Bad(error)) = items(service(json!({"type": false}))).pop() else { panic!() };
    let quoted = "invalid type: boolean `false`, expected a string: put it in quotes";
    assert_eq!((&*error.field, &*error.reason), ("spec.type", quoted));
}

#[test]
fn errors_say_what_to_write_instead() {
    let policy = |spec: Value| json!({"apiVersion": "leno.dev/v1alpha1", "kind": "RoutePolicy", "metadata": {"name": "p"}, "spec": spec});
    for (document, expected) in [
        (http_route(json!({"timeouts": {"request": 5}})), "expected a string: write a time with its unit, like 5s"),
        (policy(json!({"retry": {"grpcCodes": [14]}})), "expected a string: write the code's name, like UNAVAILABLE"),
        (policy(json!({"retry": {"attempts": "two"}})), "invalid type: string \"two\", expected a whole number"),
        (policy(json!({"timeouts": "2s"})), "invalid type: string \"2s\", expected a mapping"),
        (policy(json!({"retry": {"methods": "Some"}})), "unknown value `Some`, expected `Idempotent` or `Any`"),
    ] {
        let Some(Item::Bad(error)) = items(document).into_iter().next() else { panic!("{expected}") };
        assert!(error.reason.ends_with(expected), "{error:?}");
    }
}

#[test]
fn what_claims_to_be_of_our_group_and_is_not_is_an_error() {
    for kind in ["RetryPolicy", "Service"] {
        let document = json!({"apiVersion": "leno.dev/v1alpha1", "kind": kind, "metadata": {"name": "p"}});
        let Some(Item::Bad(error)) = items(document).pop() else { panic!("{kind}") };
        assert_eq!(error.field, "kind");
        let told = "is no kind of leno.dev: there are BackendPolicy";
        assert!(error.reason.contains(told) && !error.reason.contains("XBackend"), "{error:?}");
    }
    let document = json!({"apiVersion": "example.org/v1", "kind": "RetryPolicy", "metadata": {"name": "p"}});
    assert!(matches!(items(document).pop(), Some(Item::Ignored(_))));
}

#[test]
fn rules_of_gateway_api_are_held_to() {
    let cases = [
        (
            json!({"matches": [{"path": {"value": "a"}}]}),
            "spec.rules[0].matches[0].path.value: \"a\" does not start with /",
        ),
        (
            json!({"matches": [{"path": {"type": "Glob", "value": "/"}}]}),
            "spec.rules[0].matches[0].path.type: \"Glob\" is not one of Exact, PathPrefix, RegularExpression",
        ),
        (
            json!({"matches": [{}, {"method": "get"}]}),
            "spec.rules[0].matches[1].method: \"get\" is not one of GET, HEAD, POST, PUT, DELETE, CONNECT, OPTIONS, TRACE, PATCH",
        ),
        (
            json!({"matches": [{"headers": [{"name": "a b", "value": "x"}]}]}),
            "spec.rules[0].matches[0].headers[0].name: \"a b\" is not a header name",
        ),
        (
            json!({"backendRefs": [{"name": "a", "port": 80, "weight": -1}]}),
            "spec.rules[0].backendRefs[0].weight: -1 is not between 0 and 1000000",
        ),
        (json!({"backendRefs": [{"name": "a"}]}), "spec.rules[0].backendRefs[0].port: required for a Service"),
        (
            json!({"backendRefs": [{"name": "a", "port": 0}]}),
            "spec.rules[0].backendRefs[0].port: 0 is not a port (1 to 65535)",
        ),
        (
            json!({"timeouts": {"request": "10"}}),
            "spec.rules[0].timeouts.request: \"10\" is not a duration (like 500ms, 10s, 1m30s)",
        ),
        (
            json!({"timeouts": {"request": "1s", "backendRequest": "2s"}}),
            "spec.rules[0].timeouts.backendRequest: longer than timeouts.request",
        ),
        (json!({"retry": {"codes": [500, 200]}}), "spec.rules[0].retry.codes[1]: 200 is not between 400 and 599"),
        (
            json!({"retry": {"attempts": -1}}),
            "spec.rules[0].retry.attempts: -1 is not a number of further tries (0 or more)",
        ),
        (
            json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {"statusCode": 300}}]}),
            "spec.rules[0].filters[0].requestRedirect.statusCode: 300 is not one of 301, 302, 303, 307, 308",
        ),
        (
            json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {}}], "backendRefs": [{"name": "a", "port": 1}]}),
            "spec.rules[0].backendRefs: a rule that redirects has no backends",
        ),
        (
            json!({"filters": [{"type": "URLRewrite"}]}),
            "spec.rules[0].filters[0].urlRewrite: required by the filter's type",
        ),
        (
            json!({
                "matches": [{"path": {"type": "Exact", "value": "/a"}}],
                "filters": [{"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}}}],
            }),
            "spec.rules[0].filters[0].urlRewrite.path.replacePrefixMatch: needs a rule with exactly one match, of type PathPrefix",
        ),
        (
            json!({"filters": [
                {"type": "RequestHeaderModifier", "requestHeaderModifier": {}},
                {"type": "RequestHeaderModifier", "requestHeaderModifier": {}},
            ]}),
            "spec.rules[0].filters[1].type: RequestHeaderModifier is there twice",
        ),
        (
            json!({"filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "a", "value": "x\ny"}]}}]}),
            "spec.rules[0].filters[0].requestHeaderModifier.set[0].value: \"x\\ny\" is not a header value",
        ),
    ];
    for (rule, expected) in cases {
        assert_eq!(bad(http_route(rule)), expected);
    }
    assert_eq!(
        bad(grpc_route(json!({"matches": [{"method": {}}]}))),
        "spec.rules[0].matches[0].method: one or both of service and method are required"
    );
    assert_eq!(
        bad(grpc_route(json!({"matches": [{"method": {"service": "a/b"}}]}))),
        "spec.rules[0].matches[0].method.service: \"a/b\" is not the name of a gRPC service"
    );
}

#[test]
fn other_kinds_are_checked_too() {
    assert_eq!(bad(service(json!({"clusterIP": "10.0.0"}))), "spec.clusterIP: \"10.0.0\" is not an IP address");
    assert_eq!(
        bad(service(json!({"ports": [{"port": 80}, {"name": "a", "port": 81}]}))),
        "spec.ports[0].name: required where there are several ports"
    );
    assert_eq!(
        bad(service(json!({"ports": [{"name": "a", "port": 80}, {"name": "b", "port": 80}]}))),
        "spec.ports[1].port: port 80 is there twice"
    );
    assert_eq!(
        bad(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}})),
        ": missing field `spec`"
    );
    assert_eq!(
        bad(
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"leno.dev/inbound": "strikt"}}})
        ),
        "metadata.labels[leno.dev/inbound]: \"strikt\" is neither \"strict\" nor \"permissive\""
    );
    assert!(
        bad(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "A b"}})).starts_with("metadata.name: ")
    );
    assert_eq!(
        bad(json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "TCPRoute", "metadata": {"name": "t"},
            "spec": {"rules": [{"backendRefs": [{"name": "a", "port": 1}]}, {"backendRefs": [{"name": "b", "port": 1}]}]},
        })),
        "spec.rules: 2 rules; exactly one is expected"
    );
    assert!(
        bad(json!({"apiVersion": "gateway.networking.k8s.io/v7", "kind": "HTTPRoute", "metadata": {"name": "t"}}))
            .starts_with("apiVersion: \"v7\" is not a version of HTTPRoute that is read")
    );
    assert_eq!(bad(json!(["x"])), ": not an object (apiVersion, kind, metadata)");
    assert_eq!(bad(json!({"kind": "Pod"})), ": missing field `apiVersion`");
}

#[test]
fn everything_that_is_wrong_is_told_at_once_and_nothing_that_follows_from_it() {
    let mut route = http_route(json!({
        "name": "A",
        "matches": [
            {"path": {"value": "a"}, "method": "get"},
            {"headers": [{"name": "a b", "value": "x"}], "queryParams": [{"name": "", "value": "x"}]},
        ],
        "filters": [
            {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "", "value": "x\ny"}], "remove": ["b c"]}},
            {"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/x"}}},
        ],
        "backendRefs": [{"name": "A", "weight": -1}],
        "timeouts": {"request": "soon", "backendRequest": "1"},
        "retry": {"attempts": -1, "codes": [200]},
    }));
    route["spec"]["parentRefs"] = json!([{"name": "g", "port": 0}]);
    let fields: Vec<String> = all_bad(route).iter().map(|error| error.split(": ").next().unwrap().to_owned()).collect();
    let rule = "spec.rules[0]";
    assert_eq!(
        fields,
        [
            format!("{rule}.matches[0].path.value"),
            format!("{rule}.matches[0].method"),
            format!("{rule}.matches[1].headers[0].name"),
            format!("{rule}.matches[1].queryParams[0].name"),
            format!("{rule}.filters[0].requestHeaderModifier.set[0].name"),
            format!("{rule}.filters[0].requestHeaderModifier.set[0].value"),
            format!("{rule}.filters[0].requestHeaderModifier.remove[0]"),
            format!("{rule}.backendRefs[0].weight"),
            format!("{rule}.backendRefs[0].name"),
            format!("{rule}.backendRefs[0].port"),
            format!("{rule}.timeouts.request"),
            format!("{rule}.timeouts.backendRequest"),
            format!("{rule}.retry.codes[0]"),
            format!("{rule}.retry.attempts"),
            format!("{rule}.name"),
            "spec.parentRefs[0].port".to_owned(),
        ]
    );
    assert_eq!(
        all_bad(service(json!({"type": "Cluster", "ports": [
            {"name": "a", "port": 0},
            {"name": "A", "port": 81, "targetPort": 70000},
            {"name": "c", "port": 82, "protocol": "tcp"},
        ]}))),
        [
            "spec.type: \"Cluster\" is not a type of Service",
            "spec.ports[0].port: 0 is not a port (1 to 65535)",
            "spec.ports[1].name: \"A\" is not a name (a-z, 0-9 and - inside, at most 63 characters)",
            "spec.ports[1].targetPort: 70000 is not a port (1 to 65535)",
            "spec.ports[2].protocol: \"tcp\" is not TCP, UDP or SCTP",
        ]
    );
    let endpoints: Vec<Value> = (0..1000).map(|_| json!({"addresses": ["x"]})).collect();
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "s"}, "endpoints": endpoints,
    });
    assert_eq!(all_bad(slice).len(), MAX_ERRORS);
}

#[test]
fn what_is_newer_than_we_know_is_noted_and_not_refused() {
    let parsed = good(http_route(json!({
        "sessionPersistence": {"type": "Cookie"},
        "matches": [{"path": {"value": "/a", "caseSensitive": false}}],
        "filters": [{"type": "Teleport", "teleport": {}}, {"type": "ExternalAuth", "externalAuth": {}}],
        "backendRefs": [{"name": "a", "port": 80, "filters": [{"type": "CORS", "cors": {}}]}],
    })));
    let unknown: Vec<&str> = parsed.unknown.iter().map(String::as_str).collect();
    assert_eq!(unknown, ["spec.rules[0].filters[0].teleport", "spec.rules[0].matches[0].path.caseSensitive"]);
    let Object::Route(route) = parsed.object.as_ref() else { panic!() };
    assert_eq!(
        route.unsupported,
        [
            "spec.rules[0].filters[0]: Teleport",
            "spec.rules[0].filters[1]: ExternalAuth",
            "spec.rules[0].backendRefs[0].filters[0]: CORS"
        ]
    );
}

#[test]
fn codes_that_are_never_tried_again_are_noted_and_not_refused() {
    let parsed = good(http_route(json!({
        "retry": {"codes": [503, 404, 429, 401]},
        "backendRefs": [{"name": "a", "port": 80}],
    })));
    assert_eq!(
        *parsed.unknown,
        [
            "spec.rules[0].retry.codes[1] (404 is never tried again)",
            "spec.rules[0].retry.codes[3] (401 is never tried again)"
        ]
    );
    let Object::Route(route) = parsed.object.as_ref() else { panic!() };
    let crate::model::object::Rules::Http(rules) = &route.rules else { panic!() };
    assert_eq!(rules[0].retry.as_ref().unwrap().statuses, [503, 429]);
}

#[test]
fn a_backoff_that_proxies_do_not_wait_for_is_noted_and_not_refused() {
    let noted = |backoff: &str| {
        let route = http_route(json!({"retry": {"backoff": backoff}, "backendRefs": [{"name": "a", "port": 80}]}));
        good(route).unknown.to_vec()
    };
    assert_eq!(noted("10s"), [""; 0]);
    assert_eq!(noted("30s"), ["spec.rules[0].retry.backoff (what is beyond 10s, the longest wait there is: 30s)"]);
}

#[test]
fn a_kind_that_yaml_takes_for_a_boolean_is_named() {
    let parsed = good(http_route(json!({
        "filters": [
            {"type": "ExtensionRef", "extensionRef": {"group": "x", "kind": true, "name": "z"}},
            {"type": "ExtensionRef", "extensionRef": {"group": "x", "kind": "Auth", "name": "z"}},
        ],
        "backendRefs": [{"name": "a", "port": 80}],
    })));
    let Object::Route(route) = parsed.object.as_ref() else { panic!() };
    assert_eq!(
        route.unsupported,
        [
            "spec.rules[0].filters[0]: ExtensionRef x/true z (kind is read as the boolean true: put it in quotes)",
            "spec.rules[0].filters[1]: ExtensionRef x/Auth z"
        ]
    );
}

#[test]
fn null_is_absent() {
    let mut route = http_route(json!({"matches": null, "filters": null, "timeouts": null, "backendRefs": null}));
    route["metadata"]["creationTimestamp"] = Value::Null;
    route["status"] = Value::Null;
    good(route);
    good(service(json!({"clusterIP": null, "ports": null})));
}

#[test]
fn lists_hold_objects_and_other_kinds_are_passed_over() {
    let pod = |name: &str| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}});
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [
        pod("a"),
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}},
        {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "k"}},
        pod("B"),
    ]});
    let items = items(list);
    let [Item::Object(a), Item::Ignored(deployment), Item::Ignored(knative), Item::Bad(b)] = items.as_slice() else {
        panic!("{items:?}")
    };
    assert_eq!(a.key.to_string(), "Pod default/a");
    assert_eq!((deployment.as_str(), knative.as_str()), ("apps/v1 Deployment", "serving.knative.dev/v1 Service"));
    assert_eq!(b.field, "items[3].metadata.name");
}

#[test]
fn all_versions_of_routes_are_read() {
    for version in ["v1", "v1beta1", "v1alpha2", "v1alpha3"] {
        let mut route = http_route(json!({}));
        route["apiVersion"] = json!(format!("gateway.networking.k8s.io/{version}"));
        assert_eq!(good(route).hash, good(http_route(json!({}))).hash);
    }
}

#[test]
fn only_what_matters_changes_the_hash() {
    let pod = |content: Value| {
        let mut pod =
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "status": {"podIP": "10.0.0.1"}});
        for (name, value) in content.as_object().unwrap() {
            pod[name] = value.clone();
        }
        good(pod).hash.clone()
    };
    let plain = pod(json!({}));
    assert_eq!(pod(json!({"metadata": {"name": "p", "resourceVersion": "7", "annotations": {"a": "b"}}})), plain);
    assert_eq!(pod(json!({"status": {"podIP": "10.0.0.1", "phase": "Running"}})), plain);
    assert_ne!(pod(json!({"status": {"podIP": "10.0.0.2"}})), plain);
    assert_ne!(pod(json!({"spec": {"serviceAccountName": "x"}})), plain);
    assert_ne!(pod(json!({"metadata": {"name": "p", "annotations": {"leno.dev/inbound": "strict"}}})), plain);
}

#[test]
fn services_and_slices_take_their_defaults() {
    let parsed = good(service(json!({
        "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"], "selector": {"app": "x"}, "sessionAffinity": "None",
        "internalTrafficPolicy": "Cluster",
        "ports": [
            {"name": "a", "port": 80},
            {"name": "b", "port": 81, "targetPort": "web", "appProtocol": "kubernetes.io/h2c", "nodePort": 30000},
            {"name": "c", "port": 82, "protocol": "UDP"},
        ],
    })));
    let Object::Service(service) = parsed.object.as_ref() else { panic!() };
    assert_eq!(service.cluster_ips.len(), 2);
    let ports: Vec<_> = service.ports.iter().map(|port| (port.number, port.target.clone(), port.protocol)).collect();
    use crate::model::TargetPort::{Name, Number};
    use leno_proto::v1::Protocol;
    assert_eq!(ports, [(80, Number(80), Protocol::Detect), (81, Name("web".into()), Protocol::Http2)]);
    assert!(parsed.unknown.is_empty(), "{:?}", parsed.unknown);
}

#[test]
fn whom_kube_proxy_would_choose_has_no_effect_and_is_said() {
    let parsed = good(service(json!({
        "ports": [{"port": 80}], "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10}},
        "internalTrafficPolicy": "Local",
    })));
    let [affinity, local] = &parsed.unknown[..] else { panic!("{:?}", parsed.unknown) };
    assert!(affinity.starts_with("spec.sessionAffinity (ClientIP "), "{affinity}");
    assert!(local.starts_with("spec.internalTrafficPolicy (Local "), "{local}");
}

// ---- what a proxy refuses never reaches it -------------------------------------------------------
// Its own door is proxy/src/policy/apply; `what_the_control_plane_sends_is_taken` there has the same values.

#[test]
fn headers_of_the_proxys_own_are_not_for_filters() {
    use leno_proto::headers::{PREFIXES, RESERVED};
    let names = RESERVED.into_iter().map(str::to_owned).chain(PREFIXES.map(|prefix| format!("{prefix}x")));
    for name in names.flat_map(|name| [name.to_ascii_uppercase(), name]) {
        for (kind, field) in
            [("RequestHeaderModifier", "requestHeaderModifier"), ("ResponseHeaderModifier", "responseHeaderModifier")]
        {
            for (list, entry) in [
                ("set", json!({"name": name, "value": "x"})),
                ("add", json!({"name": name, "value": "x"})),
                ("remove", json!(name)),
            ] {
                let filter = json!({"type": kind, field: {list: [entry]}});
                let in_backend = json!({"backendRefs": [{"name": "a", "port": 80, "filters": [filter.clone()]}]});
                for route in [
                    http_route(json!({"filters": [filter.clone()]})),
                    grpc_route(json!({"filters": [filter]})),
                    http_route(in_backend),
                ] {
                    let error = bad(route);
                    assert!(error.contains(&format!("{field}.{list}[0]")), "{error}");
                    assert!(error.contains("is the proxy's own: no header modifier changes it"), "{error}");
                }
            }
        }
    }
}

#[test]
fn values_that_no_proxy_takes_are_refused() {
    for rule in [
        json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {"hostname": "a:80"}}]}),
        json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {"hostname": "a@b"}}]}),
        json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {"scheme": "h ttp"}}]}),
        json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {"port": 0}}]}),
        json!({"filters": [{"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplaceFullPath", "replaceFullPath": "/a?b"}}}]}),
        json!({"filters": [{"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "a"}}}]}),
        json!({"filters": [{"type": "ResponseHeaderModifier", "responseHeaderModifier": {"add": [{"name": "a", "value": "\u{7f}"}]}}]}),
        json!({"matches": [{"headers": [{"name": "", "value": "x"}]}]}),
        json!({"matches": [{"queryParams": [{"name": "a", "type": "RegularExpression", "value": "(a{1000}){1000}"}]}]}),
    ] {
        bad(http_route(rule));
    }
    bad(grpc_route(json!({"matches": [{"method": {"method": "m".repeat(200_000)}}]})));
    for address in ["0.0.0.0", "::", "::ffff:0.0.0.0"] {
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "s"},
            "endpoints": [{"addresses": [address]}],
        });
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "status": {"podIP": address}});
        for document in [slice, pod] {
            assert!(bad(document).ends_with("is nobody's address"), "{address}");
        }
    }
}

#[test]
fn odd_values_that_every_proxy_takes_are_taken() {
    for (name, value) in
        [("x-a", ""), ("X-B", "é"), ("!#$%&'*+-.^_`|~0", " a\tb "), ("authorization", "x"), ("expect", "100-continue")]
    {
        let modifier = json!({"set": [{"name": name, "value": value}], "remove": [name]});
        good(http_route(json!({"filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": modifier}]})));
    }
    for path in ["/", "", "/a;b=c,d/%C3%A9", "/!$&'()*+,;=:@-._~"] {
        for (kind, field) in [("ReplaceFullPath", "replaceFullPath"), ("ReplacePrefixMatch", "replacePrefixMatch")] {
            let rewrite = json!({"hostname": "1.a-b", "path": {"type": kind, field: path}});
            good(http_route(json!({"filters": [{"type": "URLRewrite", "urlRewrite": rewrite}]})));
        }
    }
    for regex in [r"/users/\w{36}", r"\p{Greek}+", "", "é|."] {
        good(http_route(json!({"matches": [{"path": {"type": "RegularExpression", "value": regex}}]})));
    }
}

#[test]
fn a_kind_in_other_letters_is_a_slip_and_not_another_kind() {
    for (version, kind, meant) in [
        ("v1", "pod", "Pod"),
        ("v1", "service", "Service"),
        ("v1", "NameSpace", "Namespace"),
        ("discovery.k8s.io/v1", "Endpointslice", "EndpointSlice"),
        ("gateway.networking.k8s.io/v1", "HttpRoute", "HTTPRoute"),
    ] {
        let document = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "a"}, "spec": {}});
        assert_eq!(bad(document), format!("kind: {kind:?} is not a kind: did you mean {meant}?"));
    }
    // Somebody else's.
    let other = json!({"apiVersion": "example.org/v1", "kind": "pod", "metadata": {"name": "a"}});
    assert!(matches!(items(other).as_slice(), [Item::Ignored(_)]));

    let slice = |target: Value| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "s"},
            "endpoints": [{"addresses": ["10.0.0.1"], "targetRef": target}],
        })
    };
    let at = "endpoints[0].targetRef";
    assert_eq!(
        bad(slice(json!({"kind": "pod", "name": "a"}))),
        format!("{at}.kind: \"pod\" is not a kind: did you mean Pod?")
    );
    assert_eq!(bad(slice(json!({"name": "a"}))), format!("{at}.kind: required: Pod, for what is in the mesh"));
    assert!(bad(slice(json!({"kind": "Pod"}))).starts_with(&format!("{at}.name: ")));
    good(slice(json!({"kind": "Node", "name": "n"})));
    good(slice(Value::Null));

    let mut route = http_route(json!({}));
    route["spec"]["parentRefs"][0]["kind"] = json!("service");
    assert_eq!(bad(route), "spec.parentRefs[0].kind: \"service\" is not a kind: did you mean Service?");
}
