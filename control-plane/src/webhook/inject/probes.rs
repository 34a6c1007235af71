//! Probes and lifecycle hooks that kubelets send over the network: pointed at the proxy, which asks the application
//! in its place. Without it they would be a stranger's plaintext, which a strict policy refuses.
//!
//! A probe keeps its times and thresholds; what it asks for goes to the proxy as a list (`leno-proxy run --probes`).
//! Commands (`exec`) stay as they are, and so does what asks another host than the Pod.

use serde_json::{Value, json};

use super::{PROBE_PORT, list};

/// Probes of a container, and their names in paths.
const PROBES: [(&str, &str); 3] =
    [("startupProbe", "startup"), ("livenessProbe", "liveness"), ("readinessProbe", "readiness")];
const HOOKS: [&str; 2] = ["postStart", "preStop"];
/// Seconds that a Pod has to end, unless it says otherwise.
const GRACE_SECONDS: u64 = 30;

/// Rewrites the probes of all containers; returns what the proxy is told of them.
pub(super) fn rewrite(spec: &mut Value, nonce: &str, warnings: &mut Vec<String>) -> Result<Vec<Value>, String> {
    let grace = spec["terminationGracePeriodSeconds"].as_u64().unwrap_or(GRACE_SECONDS).max(1);
    let mut asked = Vec::new();
    for field in ["initContainers", "containers"] {
        let Some(containers) = spec.get_mut(field).and_then(Value::as_array_mut) else { continue };
        for container in containers {
            // Init containers that run to their end have neither.
            rewrite_container(container, nonce, grace, &mut asked, warnings);
        }
    }
    Ok(asked)
}

fn rewrite_container(
    container: &mut Value,
    nonce: &str,
    grace: u64,
    asked: &mut Vec<Value>,
    warnings: &mut Vec<String>,
) {
    let name = container["name"].as_str().unwrap_or_default().to_owned();
    let ports = list(container, "ports").to_vec();
    for (field, short) in PROBES {
        let Some(probe) = container.get_mut(field).filter(|probe| probe.is_object()) else { continue };
        let path = format!("/probe/{name}/{short}");
        let timeout = probe["timeoutSeconds"].as_u64().filter(|seconds| *seconds > 0).unwrap_or(1);
        match question(probe, &ports) {
            Question::Network(question) => {
                asked.push(entry(&path, timeout, question));
                point(probe, &path);
            }
            Question::Unknown(port) => warnings.push(unknown(field, &name, &port)),
            Question::None => {}
        }
    }
    for hook in HOOKS {
        let Some(hook_value) = container.get_mut("lifecycle").and_then(|lifecycle| lifecycle.get_mut(hook)) else {
            continue;
        };
        // Of these a kubelet does only `exec`, `sleep` and this one.
        if !hook_value["httpGet"].is_object() {
            continue;
        }
        match question(hook_value, &ports) {
            Question::Network(question) => {
                let path = format!("/hook/{nonce}/{name}/{hook}");
                asked.push(entry(&path, grace, question));
                point(hook_value, &path);
            }
            Question::Unknown(port) => warnings.push(unknown(hook, &name, &port)),
            Question::None => {}
        }
    }
}

fn unknown(field: &str, container: &str, port: &str) -> String {
    format!("{field} of container {container} asks port {port}, which is none of its ports: left as it is")
}

enum Question {
    /// The handler, with its port as a number.
    Network((&'static str, Value)),
    /// A named port that the container does not have.
    Unknown(String),
    /// Not for the network, or not for this Pod.
    None,
}

fn question(handler: &Value, ports: &[Value]) -> Question {
    for kind in ["httpGet", "tcpSocket", "grpc"] {
        let Some(asks) = handler.get(kind).filter(|asks| asks.is_object()) else { continue };
        if asks["host"].as_str().is_some_and(|host| !host.is_empty()) {
            return Question::None;
        }
        let Some(number) = number(&asks["port"], ports) else {
            return Question::Unknown(asks["port"].to_string());
        };
        let mut asks = asks.clone();
        asks["port"] = number.into();
        return Question::Network((kind, asks));
    }
    Question::None
}

/// The number of a port, which may be given by name.
fn number(port: &Value, ports: &[Value]) -> Option<u64> {
    let valid = |number: u64| (1..=65535).contains(&number).then_some(number);
    match port {
        Value::Number(number) => valid(number.as_u64()?),
        Value::String(name) => match ports.iter().find(|port| port["name"] == name.as_str()) {
            Some(port) => port["containerPort"].as_u64(),
            None => valid(name.parse().ok()?),
        },
        _ => None,
    }
}

fn entry(path: &str, timeout: u64, (kind, asks): (&'static str, Value)) -> Value {
    let mut entry = json!({ "path": path, "timeoutSeconds": timeout });
    entry[kind] = asks;
    entry
}

/// Has the kubelet ask the proxy instead.
fn point(handler: &mut Value, path: &str) {
    if let Some(fields) = handler.as_object_mut() {
        for kind in ["httpGet", "tcpSocket", "grpc"] {
            fields.remove(kind);
        }
        fields.insert("httpGet".to_owned(), json!({ "path": path, "port": PROBE_PORT, "scheme": "HTTP" }));
    }
}
