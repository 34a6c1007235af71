//! Values out of bounds, for every field of every kind of ours: what they are comes from the schemas.

use std::{collections::BTreeSet, time::Duration};

use super::*;
use crate::api::crd;

/// Documents that together say everything that can be said; what cannot be said together is in several.
fn full(kind: &str) -> Vec<Value> {
    let matches = json!([{
        "path": {"type": "Exact", "value": "/a"}, "method": "GET",
        "headers": [{"type": "Exact", "name": "x-a", "value": "1"}],
        "queryParams": [{"type": "RegularExpression", "name": "q", "value": "[0-9]+"}],
    }]);
    let answer =
        json!({"status": 503, "grpcStatus": "UNAVAILABLE", "headers": [{"name": "x-a", "value": "1"}], "body": "b"});
    match kind {
        "BackendPolicy" => vec![
            json!({
                "loadBalancing": {
                    "algorithm": "ConsistentHash", "slowStart": "30s", "zonePreference": "None",
                    "consistentHash": {
                        "key": {"cookie": {"name": "c", "ttl": "1h", "path": "/a"}}, "maximumLoadPercent": 150,
                    },
                },
                "outlierDetection": {
                    "consecutiveFailures": 3, "baseEjection": "5s", "maximumEjection": "1m", "jitterPercent": 5,
                    "maximumEjectedPercent": 50, "probes": 2, "successes": 2, "maximumBackOff": "10s",
                    "failureShare": {"percent": 50, "window": "10s", "minimumRequests": 20},
                },
                "timeouts": {
                    "connect": "1s", "request": "10s", "response": "8s", "backendRequest": "5s", "streamIdle": "30s",
                    "connectionIdle": "30s",
                },
                "circuitBreaker": {
                    "consecutiveFailures": 5, "failurePercent": 50, "window": "10s", "minimumVolume": 20, "openTime": "5s",
                    "maxOpenTime": "1m", "probes": 1, "successesToClose": 3,
                },
                "limits": {"connections": 10, "pendingRequests": 10, "requests": 10, "retries": 1},
                "retryBudget": {"percent": 20, "minPerSecond": 10, "burst": 100},
            }),
            json!({"loadBalancing": {
                "algorithm": "Prequal", "prequal": {"probesPercent": 300, "maximumAge": "1s", "coldPercent": 80},
            }}),
            json!({"loadBalancing": {"algorithm": "ConsistentHash", "consistentHash": {"key": {"header": "x-a"}}}}),
            json!({"loadBalancing": {"algorithm": "ConsistentHash", "consistentHash": {"key": {"query": "q"}}}}),
            json!({"loadBalancing": {"algorithm": "ConsistentHash", "consistentHash": {"key": {"sourceAddress": true}}}}),
        ],
        "FaultPolicy" => vec![json!({
            "delay": {"duration": "500ms", "percentage": 0.5, "matches": matches},
            "abort": {"httpStatus": 503, "grpcStatus": "UNAVAILABLE", "percentage": 1, "matches": matches},
        })],
        "InboundPolicy" => vec![
            json!({
                "rateLimits": [{
                    "name": "a", "requests": 10, "per": "1m", "burst": 20, "matches": matches,
                    "key": {"type": "Header", "header": "x-a"},
                }],
                "rateLimitHeaders": false,
                "concurrency": {"mode": "Adaptive", "min": 10, "max": 100},
                "maxConnections": 10,
                "requestSize": {"headBytes": 16384, "bodyBytes": 1_048_576},
            }),
            json!({"concurrency": {"mode": "Fixed", "limit": 10}}),
        ],
        "RoutePolicy" => vec![
            json!({
                "timeouts": {"request": "10s", "response": "5s", "backendRequest": "2s", "streamIdle": "30s"},
                "retry": {
                    "attempts": 2, "statuses": ["5xx"], "grpcCodes": ["UNAVAILABLE"], "on": ["Reset"], "methods": "Any",
                    "backoff": {"base": "25ms", "max": "1s"},
                },
                "hedging": {"delay": "50ms", "percentile": 95, "methods": "Any"},
                "directResponse": answer,
                "fallback": {"answer": answer},
                "explain": {"headers": ["x-request-id", "x-order"]},
            }),
            json!({"fallback": {"backendRef": {"namespace": "n", "name": "s", "port": 80}}}),
        ],
        other => panic!("{other} is new: say here what can be said in it"),
    }
}

fn document(kind: &str, mut spec: Value) -> Value {
    let target = match kind {
        "RoutePolicy" | "FaultPolicy" => {
            json!({"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "r", "sectionName": "s"})
        }
        _ => json!({"group": "", "kind": "Service", "name": "r", "sectionName": "s"}),
    };
    spec["targetRefs"] = json!([target]);
    json!({"apiVersion": "leno.dev/v1alpha1", "kind": kind, "metadata": {"name": "p"}, "spec": spec})
}

/// Every value of a document that its schema describes: its pointer in JSON, its name in errors, and the schema.
fn walk<'a>(pointer: &str, at: &str, value: &Value, schema: &'a Value, see: &mut dyn FnMut(&str, &str, &'a Value)) {
    see(pointer, at, schema);
    for (name, inner) in value.as_object().into_iter().flatten() {
        let described = &schema["properties"][name];
        assert!(described.is_object(), "{at}.{name} is not in the schema");
        walk(&format!("{pointer}/{name}"), &format!("{at}.{name}"), inner, described, see);
    }
    for (index, inner) in value.as_array().into_iter().flatten().enumerate() {
        walk(&format!("{pointer}/{index}"), &format!("{at}[{index}]"), inner, &schema["items"], see);
    }
}

fn each_kind(mut see: impl FnMut(&str, &Value, Vec<Value>)) {
    for crd in crd::all() {
        let schema = crd.content.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec").unwrap();
        let documents = full(crd.kind).into_iter().map(|spec| document(crd.kind, spec)).collect();
        see(crd.kind, schema, documents);
    }
}

/// "10ms to 1h", "0s (never) to 1h" or "`base` to 1h" in what a description says of a duration. Without the least: another field.
fn bounds(description: &str) -> Option<(Option<Duration>, Duration)> {
    let mut depth = 0;
    let outside = description.chars().filter(|letter| {
        depth += i32::from(*letter == '(');
        let keep = depth == 0;
        depth -= i32::from(*letter == ')');
        keep
    });
    let outside: String = outside.collect();
    let words: Vec<&str> = outside.split_whitespace().collect();
    words.windows(3).find_map(|words| {
        let [least, "to", most] = words else { return None };
        let duration = |text: &str| value::duration("", text.trim_matches(['.', ',', ';', ':'])).ok();
        match (duration(least), duration(most)?) {
            (None, most) => least.starts_with('`').then_some((None, most)),
            (least, most) => Some((least, most)),
        }
    })
}

fn text(duration: Duration) -> String {
    let (mut left, mut text) = (duration.as_millis(), String::new());
    for (unit, size) in [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
        if left >= size {
            text.push_str(&format!("{}{unit}", left / size));
            left %= size;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// What a field of this schema must not be.
fn bad_values(schema: &Value) -> Vec<Value> {
    let mut bad = Vec::new();
    let names = |key: &str| schema[key].as_u64().map(|number| usize::try_from(number).unwrap());
    match schema["type"].as_str().unwrap() {
        "integer" | "number" => {
            let least = schema["minimum"].as_i64().unwrap_or(0);
            bad.extend([json!(least - 1), json!(-1), json!(i64::MIN), json!(u64::MAX), json!(1e300), json!("many")]);
            bad.extend(schema["maximum"].as_i64().map(|most| json!(most + 1)));
            if schema["type"] == "integer" {
                bad.push(json!(1.5));
            }
        }
        "boolean" => bad.extend([json!("yes"), json!(1)]),
        "array" => {
            bad.extend([json!("a"), json!({})]);
            if let Some(most) = names("maxItems") {
                bad.push(json!(vec![Value::Null; most + 1]));
            }
            if names("minItems").is_some_and(|least| least > 0) {
                bad.push(json!([]));
            }
        }
        "object" => bad.extend([json!("a"), json!(["a"]), json!([])]),
        "string" if schema["pattern"].as_str().is_some_and(|pattern| pattern.contains("h|m|s|ms")) => {
            bad.extend(["", "soon", "-1s", "1", "1.5s", "99999999999s", "1d", "١s"].map(Value::from));
            let said = schema["description"].as_str().unwrap();
            let (least, most) = bounds(said).unwrap_or_else(|| panic!("no bounds of a duration: {said:?}"));
            bad.push(text(most + Duration::from_millis(1)).into());
            if let Some(below) = least.and_then(|least| least.checked_sub(Duration::from_millis(1))) {
                bad.push(text(below).into());
            }
        }
        "string" => {
            bad.extend([json!(1), json!({})]);
            if schema["enum"].is_array() || schema["pattern"].is_string() {
                bad.push("Sometimes".into());
            }
            if names("minLength").is_some_and(|least| least > 0) {
                bad.push("".into());
            }
            if let Some(most) = names("maxLength") {
                bad.push("a".repeat(most + 1).into());
            }
        }
        other => panic!("{other}"),
    }
    bad
}

#[test]
fn all_that_can_be_said_is_said_in_some_document() {
    each_kind(|kind, schema, documents| {
        let mut said = BTreeSet::new();
        for document in &documents {
            good(document.clone());
            walk("/spec", "spec", &document["spec"], schema, &mut |_, at, _| {
                said.insert(at.replace(|digit: char| digit.is_ascii_digit(), ""));
            });
        }
        let mut fields = vec![("spec".to_owned(), schema)];
        while let Some((at, schema)) = fields.pop() {
            assert!(said.contains(&at), "{kind}: no document of this test has {at}");
            let inner = schema["properties"].as_object().into_iter().flatten();
            fields.extend(inner.map(|(name, inner)| (format!("{at}.{name}"), inner)));
            if schema["items"].is_object() {
                fields.push((format!("{at}[]"), &schema["items"]));
            }
        }
    });
}

/// Whether a refusal that names `told` is of the field `at`: that, a part of it, or what it is a part of; not all there is.
fn is_of(told: &str, at: &str) -> bool {
    let is_part = |part: &str, whole: &str| {
        part.strip_prefix(whole).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    is_part(told, at) || (told != "spec" && is_part(at, told))
}

#[test]
fn whatever_is_out_of_bounds_is_refused_by_its_field() {
    let mut tried = 0;
    let mut wrong = Vec::new();
    each_kind(|kind, schema, documents| {
        for document in documents {
            let mut fields = Vec::new();
            walk("/spec", "spec", &document["spec"], schema, &mut |pointer, at, schema| {
                fields.push((pointer.to_owned(), at.to_owned(), schema));
            });
            for (pointer, at, schema) in fields {
                for bad in bad_values(schema) {
                    let mut broken = document.clone();
                    *broken.pointer_mut(&pointer).unwrap() = bad.clone();
                    tried += 1;
                    let shown = || bad.to_string().chars().take(40).collect::<String>();
                    match items(broken).as_slice() {
                        [Item::Object(_)] => wrong.push(format!("{kind} {at}: {} is taken", shown())),
                        told => {
                            let names = |item: &Item| match item {
                                Item::Bad(error) => is_of(&error.field, &at),
                                _ => false,
                            };
                            if !told.iter().any(names) {
                                wrong.push(format!("{kind} {at}: {} is refused as {told:?}", shown()));
                            }
                        }
                    }
                }
            }
        }
    });
    assert!(wrong.is_empty(), "{} of {tried}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(tried > 500, "{tried}");
}

/// Sections' and lists' examples, as their descriptions give them, can be put where they belong as they are.
#[test]
fn examples_of_sections_can_be_taken() {
    let mut tried = 0;
    each_kind(|kind, schema, documents| {
        for document in documents {
            let mut examples = Vec::new();
            walk("/spec", "spec", &document["spec"], schema, &mut |pointer, at, schema| {
                let text = schema["description"].as_str().unwrap_or_default();
                let is_section = schema["type"] == "object" || schema["type"] == "array";
                if let Some((_, example)) = text.rsplit_once(" Example: ").filter(|_| is_section) {
                    let example: Value = serde_json::from_str(example).unwrap();
                    examples.push((pointer.to_owned(), at.to_owned(), example));
                }
            });
            for (pointer, at, example) in examples {
                let mut changed = document.clone();
                *changed.pointer_mut(&pointer).unwrap() = example;
                let parsed = good(changed);
                assert!(parsed.unknown.is_empty(), "{kind} {at}: {:?}", parsed.unknown);
                tried += 1;
            }
        }
    });
    assert!(tried > 30, "{tried}");
}

/// Fields that nobody knows are not fatal, since a newer version may know them, and are told of.
#[test]
fn what_is_unknown_is_told() {
    each_kind(|kind, _, documents| {
        for mut document in documents {
            document["spec"]["unheardOf"] = json!(1);
            let ignored = good(document).unknown.clone();
            assert!(ignored.iter().any(|field| field.contains("spec.unheardOf")), "{kind}: {ignored:?}");
        }
    });
}

/// Patterns that would take long or much are refused before they are compiled.
#[test]
fn patterns_that_explode_are_refused() {
    let nested = "(".repeat(300) + &")".repeat(300);
    for pattern in ["(a{1000}){1000}", "((a{100}){100}){100}", "[", "(?P<a", "a{99999999}", "\\p{Foo}", nested.as_str()]
    {
        for named in ["headers", "queryParams"] {
            let one = json!({named: [{"type": "RegularExpression", "name": "x-a", "value": pattern}]});
            let spec = json!({"abort": {"httpStatus": 500, "matches": [one.clone()]}});
            assert!(bad(document("FaultPolicy", spec)).starts_with(&format!("spec.abort.matches[0].{named}[0].value")));
            let limits = json!({"rateLimits": [{"name": "a", "requests": 1, "matches": [one.clone()]}]});
            let told = bad(document("InboundPolicy", limits));
            assert!(told.starts_with(&format!("spec.rateLimits[0].matches[0].{named}[0].value")), "{told}");
            let told = bad(http_route(json!({"matches": [one]})));
            assert!(told.starts_with(&format!("spec.rules[0].matches[0].{named}[0].value")), "{told}");
        }
        let told = bad(http_route(json!({"matches": [{"path": {"type": "RegularExpression", "value": pattern}}]})));
        assert!(told.starts_with("spec.rules[0].matches[0].path.value"), "{told}");
    }
}

/// So many matches of `headers` that are expressions, no two of them the same.
fn many(matches: usize, headers: usize, pattern: &str) -> Vec<Value> {
    let header =
        |n: usize| json!({"type": "RegularExpression", "name": format!("x-{n}"), "value": format!("{n}{pattern}")});
    let one =
        |index: usize| json!({"headers": (index * headers..(index + 1) * headers).map(header).collect::<Vec<_>>()});
    (0..matches).map(one).collect()
}

fn two_rules(first: Vec<Value>, second: Vec<Value>) -> Value {
    let mut route = http_route(json!({"matches": first}));
    route["spec"]["rules"].as_array_mut().unwrap().push(json!({"matches": second}));
    route
}

#[test]
fn patterns_that_are_too_much_in_sum_are_refused() {
    let one_more = || json!([{"path": {"type": "RegularExpression", "value": "/one/more"}}]);
    let limit = |name: &str, matches: Value| json!({"name": name, "requests": 1, "matches": matches});
    let first = json!(many(16, 16, "a+"));
    let limits = json!([limit("a", first.clone()), limit("b", one_more())]);
    let delay = json!({"duration": "1s", "matches": first});
    for (document, field) in [
        (two_rules(many(16, 16, "a+"), vec![one_more()[0].clone()]), "spec.rules[1].matches[0].path.value"),
        (document("InboundPolicy", json!({"rateLimits": limits})), "spec.rateLimits[1].matches[0].path.value"),
        (
            document("FaultPolicy", json!({"delay": delay, "abort": {"httpStatus": 500, "matches": one_more()}})),
            "spec.abort.matches[0].path.value",
        ),
    ] {
        let expected =
            format!("{field}: there are more than 256 different regular expressions; join some of them by |, ");
        let told = bad(document);
        assert!(told.starts_with(&expected), "{told}");
    }
    let told = all_bad(http_route(json!({"matches": many(16, 16, "[ab]{2000}")})));
    assert!(told[0].starts_with("spec.rules[0].matches["), "{told:?}");
    assert!(
        told[0].contains("value: all regular expressions take more than 8 MiB once compiled; let them"),
        "{told:?}"
    );
}

#[test]
fn patterns_of_a_large_route_are_taken() {
    let half = |from: usize| {
        let path = |n: usize| json!({"type": "RegularExpression", "value": format!(r"/tenants/t{n}/orders/\w{{8}}-\w{{4}}/.*")});
        let agent = |n: usize| json!({"type": "RegularExpression", "name": "user-agent", "value": format!(r"(?i)app/{n}\.\d+ .*")});
        (from..from + 64).map(|n| json!({"path": path(n), "headers": [agent(n)]})).collect::<Vec<_>>()
    };
    good(two_rules(half(0), half(64)));
    // Counted once, as often as it is there.
    let same = vec![many(1, 16, "a+")[0].clone(); 64];
    good(two_rules(same.clone(), same));
}

/// What stands in for a route that is bad goes to proxies as any other does.
#[test]
fn patterns_of_what_stands_in_for_a_bad_route_are_bounded_too() {
    let content = Arc::new(http_route(json!({"matches": many(17, 16, "a+")})));
    let items = parse(&Document { file: "f.yaml".into(), index: 0, content }, Keep::Documents);
    let rules = items.iter().find_map(|item| match item {
        Item::StandIn(parsed) => match &*parsed.object {
            Object::Route(Route { rules: crate::model::object::Rules::Http(rules), .. }) => Some(rules),
            _ => None,
        },
        _ => None,
    });
    // Not those that were within it, with the others' requests passing by.
    let rules = rules.unwrap();
    assert!(rules.len() == 1 && rules[0].matches.len() == 1 && rules[0].matches[0].takes_everything(), "{rules:?}");
}

/// XBackendTrafficPolicy is Gateway API's: its schema is not ours.
#[test]
fn what_the_traffic_policy_cannot_say() {
    for (section, says, expected) in [
        ("retryConstraint", json!({"budget": {"percent": -1}}), "budget.percent"),
        ("retryConstraint", json!({"budget": {"percent": 101}}), "budget.percent"),
        ("retryConstraint", json!({"budget": {"interval": "0s"}}), "budget.interval"),
        ("retryConstraint", json!({"budget": {"interval": "1h1s"}}), "budget.interval"),
        ("retryConstraint", json!({"minRetryRate": {"count": 0}}), "minRetryRate.count"),
        ("retryConstraint", json!({"minRetryRate": {"count": i64::MAX}}), "minRetryRate.count"),
        ("retryConstraint", json!({"minRetryRate": {"interval": "soon"}}), "minRetryRate.interval"),
        ("sessionPersistence", json!({"type": "Sometimes"}), "type"),
        ("sessionPersistence", json!({"sessionName": "a b"}), "sessionName"),
        ("sessionPersistence", json!({"sessionName": "a".repeat(129)}), "sessionName"),
        ("sessionPersistence", json!({"type": "Header", "sessionName": "leno-reason"}), "sessionName"),
        ("sessionPersistence", json!({"absoluteTimeout": "-1s"}), "absoluteTimeout"),
        ("sessionPersistence", json!({"idleTimeout": "99999999999h"}), "idleTimeout"),
        ("sessionPersistence", json!({"cookieConfig": {"lifetimeType": "Permanent"}}), "absoluteTimeout"),
        ("sessionPersistence", json!({"cookieConfig": {"lifetimeType": "Long"}}), "cookie.lifetimeType"),
        ("sessionPersistence", json!({"cookie": {"path": "a"}}), "cookie.path"),
        ("sessionPersistence", json!({"type": "Cookie", "header": {"name": "x"}}), "header"),
    ] {
        let mut content = document("BackendPolicy", json!({section: says}));
        content["apiVersion"] = json!("gateway.networking.x-k8s.io/v1alpha1");
        content["kind"] = json!("XBackendTrafficPolicy");
        content["spec"]["targetRefs"] = json!([{"group": "", "kind": "Service", "name": "s"}]);
        let told = bad(content);
        assert!(told.starts_with(&format!("spec.{section}.{expected}: ")), "{told}");
    }
}
