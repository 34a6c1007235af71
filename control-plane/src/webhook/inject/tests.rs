use proptest::prelude::*;

use super::*;

fn context(settings: &Settings) -> Context<'_> {
    Context { settings, namespace: "shop", by_default: true, nonce: "n0nce" }
}

fn pod(spec: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "cart-0" }, "spec": spec })
}

fn injected_spec(pod: &Value) -> Value {
    match inject(pod, &context(&Settings::default())) {
        Outcome::Injected { pod, .. } => pod["spec"].clone(),
        other => panic!("{other:?}"),
    }
}

/// "left: ...", "refused: ..." or "injected".
fn outcome(pod: &Value, context: &Context<'_>) -> String {
    match inject(pod, context) {
        Outcome::Injected { .. } => "injected".to_owned(),
        Outcome::Left { reason, .. } => format!("left: {reason}"),
        Outcome::Refused { reason } => format!("refused: {reason}"),
    }
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().filter_map(|item| item["name"].as_str()).collect()
}

fn env<'a>(container: &'a Value, name: &str) -> Option<&'a str> {
    container["env"].as_array().unwrap().iter().find(|variable| variable["name"] == name)?["value"].as_str()
}

#[test]
fn the_sidecar_comes_first_and_only_the_redirect_has_a_privilege() {
    let spec = injected_spec(&pod(json!({
        "initContainers": [{ "name": "migrate", "image": "m" }],
        "containers": [{ "name": "cart", "image": "c" }],
        "volumes": [{ "name": "data", "emptyDir": {} }],
    })));
    assert_eq!(names(&spec["initContainers"]), [REDIRECT, PROXY, "migrate"]);
    assert_eq!(names(&spec["volumes"]), ["data", "leno-token", "leno-bundle"]);
    assert_eq!(spec["containers"], json!([{ "name": "cart", "image": "c" }]));
    let (redirect, proxy) = (&spec["initContainers"][0], &spec["initContainers"][1]);
    assert_eq!(proxy["restartPolicy"], "Always");
    assert_eq!(proxy["startupProbe"]["httpGet"]["port"], PROBE_PORT);
    // As Pod Security "restricted" wants it.
    let security = &proxy["securityContext"];
    assert_eq!((&security["runAsNonRoot"], &security["runAsUser"]), (&json!(true), &json!(2102)));
    assert_eq!(security["capabilities"], json!({ "drop": ["ALL"] }));
    assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault");
    assert_eq!(security["allowPrivilegeEscalation"], false);
    assert_eq!(redirect["securityContext"]["capabilities"]["add"], json!(["NET_ADMIN"]));
    assert!(redirect["restartPolicy"].is_null());
    assert_eq!(env(redirect, "LENO_PROXY_UID"), Some("2102"));
    assert_eq!(env(redirect, "LENO_EXCLUDE_INBOUND_PORTS"), Some("4195"));
    assert_eq!(env(proxy, "LENO_CONTROL_PLANE"), Some("leno.leno-system.svc.cluster.local:4190"));
    assert_eq!(env(proxy, "LENO_PROBES"), None);
}

#[test]
fn annotations_go_before_settings() {
    let mut pod = pod(json!({ "containers": [{ "name": "cart" }] }));
    pod["metadata"]["annotations"] = json!({
        "leno.dev/skip-inbound-ports": "9100-9110, 22",
        "leno.dev/skip-outbound-ports": "3306",
        "leno.dev/skip-networks": "10.1.0.0/16,169.254.169.254",
        "leno.dev/proxy-cpu-request": "50m",
        "leno.dev/proxy-memory-limit": "64Mi",
        "leno.dev/proxy-log": "debug",
    });
    let mut settings = Settings::default();
    settings.redirect.skip_inbound_ports = vec![7.into()];
    settings.proxy.log = "warn".to_owned();
    let Outcome::Injected { pod: injected, .. } = inject(&pod, &context(&settings)) else { panic!() };
    let init = &injected["spec"]["initContainers"];
    assert_eq!(env(&init[0], "LENO_EXCLUDE_INBOUND_PORTS"), Some("7,4195,9100-9110,22"));
    assert_eq!(env(&init[0], "LENO_EXCLUDE_OUTBOUND_PORTS"), Some("3306"));
    assert_eq!(env(&init[0], "LENO_EXCLUDE_NETWORKS"), Some("10.1.0.0/16,169.254.169.254/32"));
    assert_eq!(env(&init[1], "LENO_LOG"), Some("debug"));
    let told = injected["metadata"]["annotations"][REDIRECT_ANNOTATION].as_str().unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(told).unwrap(),
        json!({
            "proxyUid": 2102,
            "excludeInboundPorts": ["7", "4195", "9100-9110", "22"],
            "excludeOutboundPorts": ["3306"],
            "excludeNetworks": ["10.1.0.0/16", "169.254.169.254/32"],
        })
    );
    assert_eq!(env(&init[1], "LENO_EXCLUDE_INBOUND_PORTS"), Some("7,4195,9100-9110,22"));
    assert_eq!(skipped_inbound_ports(&injected), Some("7,4195,9100-9110,22"));
    let resources = json!({ "requests": { "cpu": "50m", "memory": "24Mi" }, "limits": { "memory": "64Mi" } });
    assert_eq!(init[1]["resources"], resources);
    pod["metadata"]["annotations"] = json!({ "leno.dev/skip-outbound-ports": "http" });
    let refused = outcome(&pod, &context(&settings));
    assert!(refused.starts_with("refused: annotation leno.dev/skip-outbound-ports: \"http\""), "{refused}");
}

#[test]
fn prometheus_is_told_where_the_proxys_metrics_are_unless_the_pod_tells_of_its_own() {
    let annotations = |pod: &Value, metrics: bool| {
        let mut settings = Settings::default();
        settings.proxy.metrics = metrics;
        let Outcome::Injected { pod, .. } = inject(pod, &context(&settings)) else { panic!() };
        let proxy = &pod["spec"]["initContainers"][1];
        assert_eq!(env(proxy, "LENO_PROBE_METRICS"), metrics.then_some("true"));
        let mut annotations = pod["metadata"]["annotations"].clone();
        annotations.as_object_mut().unwrap().remove(REDIRECT_ANNOTATION).unwrap();
        annotations
    };
    let mut pod = pod(json!({ "containers": [{ "name": "cart" }] }));
    let told =
        json!({ "prometheus.io/scrape": "true", "prometheus.io/port": "4195", "prometheus.io/path": "/metrics" });
    assert_eq!(annotations(&pod, true), told);
    assert_eq!(annotations(&pod, false), json!({}));
    let own = json!({ "prometheus.io/port": "9090" });
    pod["metadata"]["annotations"] = own.clone();
    assert_eq!(annotations(&pod, true), own);
}

#[test]
fn without_the_redirects_init_container_nothing_is_privileged() {
    let mut settings = Settings::default();
    settings.redirect.mode = RedirectMode::External;
    settings.redirect.skip_outbound_ports = vec![3306.into()];
    let mut pod = pod(json!({ "containers": [{ "name": "cart" }] }));
    pod["metadata"]["annotations"] = json!({ "leno.dev/skip-inbound-ports": "22" });
    let Outcome::Injected { pod: injected, .. } = inject(&pod, &context(&settings)) else { panic!() };
    assert_eq!(names(&injected["spec"]["initContainers"]), [PROXY]);
    assert!(!injected.to_string().contains("NET_ADMIN"));
    // Who installs the redirect is told as much as the init container is.
    let told: Value =
        serde_json::from_str(injected["metadata"]["annotations"][REDIRECT_ANNOTATION].as_str().unwrap()).unwrap();
    assert_eq!(
        (&told["proxyUid"], &told["excludeInboundPorts"], &told["excludeOutboundPorts"]),
        (&json!(2102), &json!(["4195", "22"]), &json!(["3306"]))
    );
    // And so is the control plane, which takes an annotation's word for nothing.
    assert_eq!(skipped_inbound_ports(&injected), Some("4195,22"));
    pod["metadata"]["annotations"] = json!({ "leno.dev/skip-networks": "everything" });
    let refused = outcome(&pod, &context(&settings));
    assert!(refused.starts_with("refused: annotation leno.dev/skip-networks"), "{refused}");
}

#[test]
fn who_is_injected_and_who_not() {
    let settings = Settings::default();
    let plain = pod(json!({ "containers": [{ "name": "cart" }] }));
    let with = |pointer: &str, value: Value| {
        let mut pod = plain.clone();
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        pod.pointer_mut(parent).unwrap()[field] = value;
        pod
    };
    let said = |at: &str, value: &str| with(&format!("/metadata/{at}"), json!({ "leno.dev/inject": value }));
    let by_default = context(&settings);
    let not_by_default = Context { by_default: false, ..by_default };
    for (pod, context, expected) in [
        (plain.clone(), by_default, "injected"),
        (plain.clone(), not_by_default, "left: neither its namespace"),
        (said("labels", "enabled"), not_by_default, "injected"),
        (said("annotations", "enabled"), not_by_default, "injected"),
        (said("labels", "disabled"), by_default, "left: leno.dev/inject is disabled"),
        (said("annotations", "disabled"), by_default, "left: leno.dev/inject is disabled"),
        (said("labels", "yes"), by_default, "injected"),
        (with("/spec/hostNetwork", true.into()), by_default, "left: it has its node's network"),
        (with("/spec/os", json!({ "name": "windows" })), by_default, "left: it runs on Windows"),
        (with("/spec/nodeSelector", json!({ "kubernetes.io/os": "windows" })), by_default, "left: it runs on Windows"),
        (
            with("/metadata/annotations", json!({ "kubernetes.io/config.mirror": "x" })),
            by_default,
            "left: it is a static Pod",
        ),
        (plain.clone(), Context { namespace: "kube-system", ..by_default }, "left: Pods of the namespace kube-system"),
        (said("labels", "enabled"), Context { namespace: "leno-system", ..by_default }, "left: Pods of the namespace"),
        (
            with("/spec/containers", json!([{ "name": PROXY }])),
            by_default,
            "left: it has a container leno-proxy already",
        ),
        (
            with("/spec/containers", json!([{ "name": REDIRECT }])),
            by_default,
            "refused: it has a container leno-redirect",
        ),
        (with("/spec/volumes", json!([{ "name": "leno-token" }])), by_default, "refused: it has a volume leno-token"),
        (
            with("/spec/securityContext", json!({ "runAsUser": 2102 })),
            by_default,
            "refused: its container cart runs as",
        ),
        (json!({ "spec": {} }), by_default, "left: it has no containers"),
        (json!(null), by_default, "left: it has no containers"),
    ] {
        let outcome = outcome(&pod, &context);
        assert!(outcome.starts_with(expected), "{pod}: {outcome}");
    }
    // The Pod's user does not matter where every container has its own.
    let mut own = with("/spec/securityContext", json!({ "runAsUser": 2102 }));
    own["spec"]["containers"][0]["securityContext"] = json!({ "runAsUser": 1000 });
    assert_eq!(outcome(&own, &by_default), "injected");
}

#[test]
fn what_may_surprise_is_told() {
    let settings = Settings::default();
    let mut pod = pod(json!({ "hostNetwork": true, "containers": [{ "name": "cart" }] }));
    pod["metadata"]["labels"] = json!({ "leno.dev/inject": "enabled" });
    let Outcome::Left { warnings, .. } = inject(&pod, &context(&settings)) else { panic!() };
    assert!(warnings[0].contains("hostNetwork"), "{warnings:?}");
    pod["metadata"]["labels"] = json!({ "leno.dev/inject": "on" });
    pod["spec"] = json!({ "containers": [{ "name": "cart", "ports": [{ "containerPort": 4143 }] }] });
    let Outcome::Injected { warnings, .. } = inject(&pod, &context(&settings)) else { panic!() };
    assert!(warnings[0].contains("neither enabled nor disabled"), "{warnings:?}");
    assert!(warnings[1].contains("port 4143"), "{warnings:?}");
}

#[test]
fn who_would_lose_the_quality_guaranteed_is_told() {
    let equal = json!({ "limits": { "cpu": "1", "memory": "1Gi" } });
    let mut pod = pod(json!({ "containers": [{ "name": "cart", "resources": equal }] }));
    let settings = Settings::default();
    let warnings = |pod: &Value| match inject(pod, &context(&settings)) {
        Outcome::Injected { warnings, .. } => warnings,
        other => panic!("{other:?}"),
    };
    assert!(warnings(&pod)[0].contains("Guaranteed"), "{:?}", warnings(&pod));
    pod["metadata"]["annotations"] = json!({
        "leno.dev/proxy-cpu-limit": "20m", "leno.dev/proxy-memory-limit": "24Mi",
    });
    assert_eq!(warnings(&pod), Vec::<String>::new());
    pod["spec"]["containers"][0]["resources"] = json!({ "requests": { "cpu": "1" } });
    pod["metadata"]["annotations"] = Value::Null;
    assert_eq!(warnings(&pod), Vec::<String>::new());
}

#[test]
fn who_does_not_ask_the_clusters_dns_is_told() {
    let warnings = |policy: &str, settings: &Settings| {
        let pod = pod(json!({ "dnsPolicy": policy, "containers": [{ "name": "cart" }] }));
        match inject(&pod, &context(settings)) {
            Outcome::Injected { warnings, .. } => warnings,
            other => panic!("{other:?}"),
        }
    };
    let mut settings = Settings::default();
    for policy in ["Default", "None"] {
        let warnings = warnings(policy, &settings);
        assert!(warnings[0].starts_with(&format!("its dnsPolicy is {policy}: unless ")), "{warnings:?}");
        assert!(warnings[0].contains("leno.leno-system.svc.cluster.local:4190"), "{warnings:?}");
    }
    assert_eq!(warnings("ClusterFirst", &settings), Vec::<String>::new());
    settings.control_plane = "10.96.0.7:4190".to_owned();
    assert_eq!(warnings("Default", &settings), Vec::<String>::new());
}

#[test]
fn what_the_pod_has_as_a_whole_grows_by_the_sidecars() {
    let raised = |resources: Value, of_container: Value, annotations: Value| {
        let mut pod =
            pod(json!({ "resources": resources, "containers": [{ "name": "cart", "resources": of_container }] }));
        pod["metadata"]["annotations"] = annotations;
        match inject(&pod, &context(&Settings::default())) {
            Outcome::Injected { pod, warnings } => {
                assert_eq!(warnings, Vec::<String>::new());
                pod["spec"]["resources"].clone()
            }
            other => panic!("{other:?}"),
        }
    };
    let (nothing, limited) = (json!({}), json!({ "leno.dev/proxy-cpu-limit": "100m" }));
    let guaranteed = json!({ "cpu": 1, "memory": "1Gi" });
    for (before, of_container, annotations, after) in [
        // Burstable: requests and limits each by theirs.
        (
            json!({ "requests": { "cpu": "100m" }, "limits": { "cpu": "1", "memory": "1Gi" } }),
            nothing.clone(),
            limited.clone(),
            json!({ "requests": { "cpu": "120m", "memory": "1048Mi" }, "limits": { "cpu": "1100m", "memory": "1048Mi" } }),
        ),
        // Guaranteed stays so, and a container without a limit takes nothing from the others.
        (
            json!({ "requests": guaranteed, "limits": guaranteed }),
            nothing.clone(),
            nothing.clone(),
            json!({ "requests": { "cpu": "1020m", "memory": "1048Mi" }, "limits": { "cpu": "1020m", "memory": "1048Mi" } }),
        ),
        (
            json!({ "requests": guaranteed, "limits": guaranteed }),
            nothing.clone(),
            limited,
            json!({ "requests": { "cpu": "1100m", "memory": "1048Mi" }, "limits": { "cpu": "1100m", "memory": "1048Mi" } }),
        ),
        // The API server adds up what containers request.
        (
            json!({ "limits": { "cpu": "1" } }),
            json!({ "requests": { "cpu": "10m" } }),
            nothing.clone(),
            json!({ "limits": { "cpu": "1020m" } }),
        ),
        (
            json!({ "requests": { "cpu": "1" } }),
            nothing.clone(),
            nothing.clone(),
            json!({ "requests": { "cpu": "1020m" } }),
        ),
        // Not the sidecar's matter.
        (
            json!({ "limits": { "hugepages-2Mi": "4Mi" } }),
            nothing.clone(),
            nothing.clone(),
            json!({ "limits": { "hugepages-2Mi": "4Mi" } }),
        ),
        (nothing.clone(), nothing.clone(), nothing.clone(), nothing),
    ] {
        assert_eq!(raised(before.clone(), of_container, annotations), after, "{before}");
    }
}

#[test]
fn probes_are_asked_of_the_proxy_and_keep_their_times() {
    let spec = injected_spec(&pod(json!({
        "terminationGracePeriodSeconds": 45,
        "initContainers": [{
            "name": "helper", "restartPolicy": "Always",
            "startupProbe": { "tcpSocket": { "port": 7000 }, "periodSeconds": 2 },
        }],
        "containers": [{
            "name": "cart",
            "ports": [{ "name": "http", "containerPort": 8080 }],
            "livenessProbe": {
                "httpGet": { "path": "/live?a=$(B)", "port": "http", "scheme": "HTTPS", "httpHeaders": [{ "name": "Host", "value": "x" }] },
                "periodSeconds": 7, "timeoutSeconds": 3, "failureThreshold": 9, "terminationGracePeriodSeconds": 5,
            },
            "readinessProbe": { "grpc": { "port": 9000, "service": "s" } },
            "startupProbe": { "exec": { "command": ["true"] } },
            "lifecycle": {
                "postStart": { "httpGet": { "path": "/started", "port": 8080 } },
                "preStop": { "sleep": { "seconds": 5 } },
            },
        }, {
            "name": "side",
            "livenessProbe": { "httpGet": { "port": "nowhere" } },
            "readinessProbe": { "httpGet": { "host": "example.com", "port": 80 } },
            "lifecycle": { "preStop": { "httpGet": { "path": "/stop", "port": "81" } } },
        }],
    })));
    let [cart, side] = [&spec["containers"][0], &spec["containers"][1]];
    let ours = |path: &str| json!({ "path": path, "port": 4195, "scheme": "HTTP" });
    assert_eq!(
        cart["livenessProbe"],
        json!({
            "httpGet": ours("/probe/cart/liveness"),
            "periodSeconds": 7, "timeoutSeconds": 3, "failureThreshold": 9, "terminationGracePeriodSeconds": 5,
        })
    );
    assert_eq!(cart["readinessProbe"], json!({ "httpGet": ours("/probe/cart/readiness") }));
    assert_eq!(cart["startupProbe"], json!({ "exec": { "command": ["true"] } }));
    assert_eq!(cart["lifecycle"]["postStart"], json!({ "httpGet": ours("/hook/n0nce/cart/postStart") }));
    assert_eq!(cart["lifecycle"]["preStop"], json!({ "sleep": { "seconds": 5 } }));
    assert_eq!(side["livenessProbe"], json!({ "httpGet": { "port": "nowhere" } }), "no kubelet could ask it");
    assert_eq!(side["readinessProbe"]["httpGet"]["host"], "example.com");
    assert_eq!(side["lifecycle"]["preStop"]["httpGet"], ours("/hook/n0nce/side/preStop"));
    let helper = &spec["initContainers"][2];
    assert_eq!(helper["startupProbe"], json!({ "httpGet": ours("/probe/helper/startup"), "periodSeconds": 2 }));
    let text = env(&spec["initContainers"][1], "LENO_PROBES").unwrap();
    assert!(!text.contains('$'), "Kubernetes would replace it: {text}");
    assert_eq!(
        serde_json::from_str::<Value>(text).unwrap(),
        json!([
            { "path": "/probe/helper/startup", "timeoutSeconds": 1, "tcpSocket": { "port": 7000 } },
            { "path": "/probe/cart/liveness", "timeoutSeconds": 3, "httpGet": {
                "path": "/live?a=$(B)", "port": 8080, "scheme": "HTTPS", "httpHeaders": [{ "name": "Host", "value": "x" }] } },
            { "path": "/probe/cart/readiness", "timeoutSeconds": 1, "grpc": { "port": 9000, "service": "s" } },
            { "path": "/hook/n0nce/cart/postStart", "timeoutSeconds": 45, "httpGet": { "path": "/started", "port": 8080 } },
            { "path": "/hook/n0nce/side/preStop", "timeoutSeconds": 45, "httpGet": { "path": "/stop", "port": 81 } },
        ])
    );
}

fn probe() -> impl Strategy<Value = Value> {
    let port = prop_oneof![
        (0..70_000u32).prop_map(Value::from),
        (4190..4199u32).prop_map(Value::from),
        "http|nowhere|81".prop_map(Value::from)
    ];
    (port, "[a-z/?$]{0,6}", any::<bool>()).prop_flat_map(|(port, path, host)| {
        let host = if host { json!("h") } else { Value::Null };
        prop_oneof![
            Just(json!({ "httpGet": { "port": port, "path": path, "host": host }, "more": 1 })),
            Just(json!({ "tcpSocket": { "port": port }, "periodSeconds": 3 })),
            Just(json!({ "grpc": { "port": port, "service": null } })),
            Just(json!({ "exec": { "command": ["x"] } })),
            Just(Value::Null),
        ]
    })
}

fn container() -> impl Strategy<Value = Value> {
    (("[a-d]", probe(), probe()), (probe(), probe(), proptest::option::of(0..3000u32))).prop_map(
        |((name, live, ready), (start, stop, user))| {
            json!({
                "name": name, "unknown": { "field": [1] }, "ports": [{ "name": "http", "containerPort": 8080 }],
                "livenessProbe": live, "readinessProbe": ready, "startupProbe": start, "lifecycle": { "preStop": stop },
                "securityContext": { "runAsUser": user },
            })
        },
    )
}

fn pods() -> impl Strategy<Value = Value> {
    let containers = || proptest::collection::vec(container(), 0..3);
    (containers(), proptest::option::of(containers()), any::<bool>()).prop_map(|(containers, init, volumes)| {
        let mut pod = pod(json!({ "containers": containers, "newer": "field", "nodeName": null }));
        if let Some(init) = init {
            pod["spec"]["initContainers"] = init.into();
        }
        if volumes {
            pod["spec"]["volumes"] = json!([{ "name": "v", "emptyDir": {} }]);
        }
        pod
    })
}

const QUESTIONS: [&str; 4] = ["/livenessProbe", "/readinessProbe", "/startupProbe", "/lifecycle/preStop"];

/// Without what a kubelet asks over the network, which alone is changed.
fn without_questions(container: &Value) -> Value {
    let mut container = container.clone();
    for pointer in QUESTIONS {
        if let Some(Value::Object(handler)) = container.pointer_mut(pointer) {
            for kind in ["httpGet", "tcpSocket", "grpc"] {
                handler.remove(kind);
            }
        }
    }
    container
}

/// How many of a container's questions the kubelet asks the proxy.
fn questions_to_the_proxy(container: &Value) -> usize {
    let is_for_the_proxy =
        |question: &Value| question["port"] == 4195 && question.get("host").is_none_or(Value::is_null);
    let questions = QUESTIONS.iter().filter_map(|pointer| container.pointer(pointer));
    questions.filter(|handler| is_for_the_proxy(&handler["httpGet"])).count()
}

proptest! {
    #[test]
    fn nothing_is_lost_and_a_second_time_changes_nothing(pod in pods()) {
        let settings = Settings::default();
        let Outcome::Injected { pod: injected, .. } = inject(&pod, &context(&settings)) else {
            prop_assert!(pod.to_string().contains(":2102"));
            return Ok(());
        };
        let again = outcome(&injected, &context(&settings));
        prop_assert!(again.starts_with("left: it has a container leno-proxy"), "{}", again);
        let (before, after) = (&pod["spec"], &injected["spec"]);
        for (field, added) in [("initContainers", 2), ("containers", 0)] {
            let (before, after) = (list(before, field), list(after, field));
            let kept: Vec<_> = after.iter().skip(added).map(without_questions).collect();
            prop_assert_eq!(kept, before.iter().map(without_questions).collect::<Vec<_>>());
        }
        prop_assert!(list(after, "volumes").starts_with(list(before, "volumes")));
        for (name, value) in before.as_object().unwrap() {
            if !["initContainers", "containers", "volumes"].contains(&name.as_str()) {
                prop_assert_eq!(&after[name], value);
            }
        }
        prop_assert_eq!(&injected["metadata"]["name"], &pod["metadata"]["name"]);
        prop_assert_eq!(&injected["metadata"]["labels"], &pod["metadata"]["labels"]);
        for (name, value) in pod["metadata"]["annotations"].as_object().into_iter().flatten() {
            prop_assert_eq!(&injected["metadata"]["annotations"][name], value);
        }
        // Whatever the kubelet asks the proxy, the proxy knows, each once.
        let asked: Vec<Value> = match env(&after["initContainers"][1], "LENO_PROBES") {
            Some(text) => serde_json::from_str(text).unwrap(),
            None => Vec::new(),
        };
        let pointed: usize = [("initContainers", 2), ("containers", 0)]
            .into_iter()
            .flat_map(|(field, added)| list(after, field).iter().skip(added))
            .map(questions_to_the_proxy)
            .sum();
        prop_assert_eq!(pointed, asked.len());
        for probe in &asked {
            let kinds = ["httpGet", "tcpSocket", "grpc"];
            prop_assert_eq!(kinds.iter().filter(|kind| probe.get(**kind).is_some()).count(), 1);
        }
    }
}
