//! The containers and volumes that are added.

use serde_json::{Value, json};

use super::{
    ANNOTATIONS, PROBE_PORT, PROXY, REDIRECT, annotation,
    redirect::{EXCLUDE_INBOUND_PORTS, PROBE_PORT_VARIABLE, Redirect},
};
use crate::webhook::{
    limits, ports,
    settings::{Settings, with_quantity},
};

const TOKEN_VOLUME: &str = "leno-token";
const BUNDLE_VOLUME: &str = "leno-bundle";
/// Names of the volumes that are added.
pub(super) const VOLUMES: [&str; 2] = [TOKEN_VOLUME, BUNDLE_VOLUME];

const TOKEN_FOLDER: &str = "/var/run/leno/token";
const BUNDLE_FOLDER: &str = "/var/run/leno/bundle";
/// The audience of the Pod's token: nobody but Leno's control plane takes it.
const AUDIENCE: &str = "leno.dev";
/// ConfigMap of each namespace, with the trust anchors.
const BUNDLE: &str = "leno-trust-bundle";
/// Life of the token in seconds; the kubelet renews it at four fifths.
const TOKEN_SECONDS: u32 = 3600;
/// Seconds that a kubelet waits for an answer to "ready", which the proxy holds back until it is.
const READY_TIMEOUT: u32 = 5;
/// So often it asks before it starts the proxy anew.
const READY_TRIES: u32 = 60;

/// The native sidecar.
pub(super) fn proxy(pod: &Value, settings: &Settings, told: &Redirect, asked: &[Value]) -> Result<Value, String> {
    let chosen = &settings.proxy;
    let or = |name: &'static str, setting: &str| {
        debug_assert!(ANNOTATIONS.contains(&name));
        annotation(pod, name).unwrap_or(setting).to_owned()
    };
    let mut env = vec![
        json!({ "name": "LENO_WORKLOAD", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } }),
        variable("LENO_CONTROL_PLANE", &settings.control_plane),
        variable("LENO_TRUST_BUNDLE", &format!("{BUNDLE_FOLDER}/trust-bundle.pem")),
        variable("LENO_TOKEN_FILE", &format!("{TOKEN_FOLDER}/token")),
        variable("LENO_TRANSPARENT", "true"),
        // Its connections are known by its user: a mark would need a capability.
        variable("LENO_MARK", "0"),
        variable(PROBE_PORT_VARIABLE, &PROBE_PORT.to_string()),
        variable("LENO_WORKERS", &or("leno.dev/proxy-workers", &chosen.workers)),
        variable("LENO_LOG", &or("leno.dev/proxy-log", &chosen.log)),
        variable("LENO_LOG_FORMAT", &chosen.log_format),
        variable("LENO_ACCESS_LOG", &or("leno.dev/access-log", &chosen.access_log)),
    ];
    if chosen.metrics {
        env.push(variable("LENO_PROBE_METRICS", "true"));
    }
    if !asked.is_empty() {
        env.push(variable("LENO_PROBES", &probes_text(asked)?));
    }
    env.extend(chosen.env.iter().cloned());
    // The proxy does not read it: it tells the control plane which ports of this Pod are not the proxy's.
    env.push(variable(EXCLUDE_INBOUND_PORTS, &ports::joined(&told.exclude_inbound_ports)));
    let mut container = json!({
        "name": PROXY,
        "image": or("leno.dev/proxy-image", &chosen.image),
        "args": ["run"],
        "restartPolicy": "Always",
        "env": env,
        "ports": [{ "name": "leno-probes", "containerPort": PROBE_PORT, "protocol": "TCP" }],
        "startupProbe": {
            "httpGet": { "path": "/ready", "port": PROBE_PORT, "scheme": "HTTP" },
            "periodSeconds": 1,
            "timeoutSeconds": READY_TIMEOUT,
            "successThreshold": 1,
            "failureThreshold": READY_TRIES,
        },
        "resources": resources(pod, settings),
        "securityContext": {
            "runAsUser": chosen.uid,
            "runAsGroup": chosen.uid,
            "runAsNonRoot": true,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "volumeMounts": [
            { "name": TOKEN_VOLUME, "mountPath": TOKEN_FOLDER, "readOnly": true },
            { "name": BUNDLE_VOLUME, "mountPath": BUNDLE_FOLDER, "readOnly": true },
        ],
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    with_pull_policy(&mut container, &chosen.image_pull_policy);
    Ok(container)
}

/// The init container that installs the redirect; the only one with a privilege.
pub(super) fn redirect(pod: &Value, settings: &Settings, told: &Redirect) -> Value {
    let chosen = &settings.redirect;
    let mut env = vec![
        variable("LENO_PROXY_UID", &told.proxy_uid.to_string()),
        variable(EXCLUDE_INBOUND_PORTS, &ports::joined(&told.exclude_inbound_ports)),
    ];
    if !told.exclude_outbound_ports.is_empty() {
        env.push(variable("LENO_EXCLUDE_OUTBOUND_PORTS", &ports::joined(&told.exclude_outbound_ports)));
    }
    if !told.exclude_networks.is_empty() {
        env.push(variable("LENO_EXCLUDE_NETWORKS", &ports::joined(&told.exclude_networks)));
    }
    let mut container = json!({
        "name": REDIRECT,
        "image": chosen.image,
        "args": ["redirect", "install"],
        "env": env,
        "resources": resources(pod, settings),
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    with_pull_policy(&mut container, &settings.proxy.image_pull_policy);
    container
}

/// What each of them is given.
pub(super) fn resources(pod: &Value, settings: &Settings) -> Value {
    let mut resources = settings.proxy.resources.clone();
    for (name, part, resource) in [
        ("leno.dev/proxy-cpu-request", "requests", "cpu"),
        ("leno.dev/proxy-cpu-limit", "limits", "cpu"),
        ("leno.dev/proxy-memory-request", "requests", "memory"),
        ("leno.dev/proxy-memory-limit", "limits", "memory"),
    ] {
        if let Some(quantity) = annotation(pod, name) {
            with_quantity(&mut resources, part, resource, quantity);
        }
    }
    resources
}

/// The Pod's token for the control plane, and the trust anchors.
pub(super) fn volumes() -> [Value; 2] {
    [
        json!({
            "name": TOKEN_VOLUME,
            "projected": {
                "defaultMode": 0o644,
                "sources": [{
                    "serviceAccountToken": { "audience": AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": "token" },
                }],
            },
        }),
        json!({ "name": BUNDLE_VOLUME, "configMap": { "name": BUNDLE, "defaultMode": 0o644 } }),
    ]
}

/// What kubelets ask for, as `leno-proxy run --probes` takes it. Kubernetes replaces `$(NAME)` in values of variables; a dollar
/// sign can only be inside a JSON string, where it may be written as its number.
fn probes_text(asked: &[Value]) -> Result<String, String> {
    let text = Value::from(asked).to_string().replace('$', "\\u0024");
    if text.len() > limits::PROBES_BYTES {
        return Err(format!(
            "its probes are longer than {} bytes in all: shorten their paths and headers",
            limits::PROBES_BYTES
        ));
    }
    Ok(text)
}

fn variable(name: &str, value: &str) -> Value {
    json!({ "name": name, "value": value })
}

fn with_pull_policy(container: &mut Value, policy: &str) {
    if !policy.is_empty() {
        container["imagePullPolicy"] = policy.into();
    }
}
