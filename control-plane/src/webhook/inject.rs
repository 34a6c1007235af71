//! What becomes of a Pod that is made: [`inject`] is pure, and says why it leaves a Pod alone or refuses it.
//!
//! An injected Pod has two init containers before all others: `leno-redirect`, which sends its connections through the proxy,
//! and `leno-proxy`, a native sidecar (`restartPolicy: Always`): the application, and its own init containers, start once the
//! proxy is ready; the proxy ends after them; a Job completes. Probes are asked of the proxy's probe port
//! ([`probes`]), so that they work whatever policy says. A Pod is in the mesh exactly if it has a container of
//! that name.

mod pod_resources;
mod probes;
mod redirect;
mod sidecar;

use std::net::SocketAddr;

use serde_json::{Map, Value, json};

pub use self::redirect::REDIRECT_ANNOTATION;
use self::redirect::Redirect;
pub(crate) use self::redirect::skipped_inbound_ports;
use super::settings::{RedirectMode, Settings};

/// The sidecar's name; a Pod that has it is in the mesh.
pub const PROXY: &str = "leno-proxy";
/// The name of the init container that installs the redirect.
pub const REDIRECT: &str = "leno-redirect";
/// Port of the proxy that kubelets probe; see `leno-proxy run --probe-port`.
pub const PROBE_PORT: u16 = 4195;
/// Ports that the sidecar listens on: inbound, outbound, admin, probes.
const OWN_PORTS: [u16; 4] = [4143, 4140, 4191, PROBE_PORT];

/// Label of a namespace, label or annotation of a Pod: enabled or disabled.
pub const INJECT: &str = "leno.dev/inject";
/// Annotations of Pods that injection reads, besides [`INJECT`].
pub const ANNOTATIONS: [&str; 11] = [
    SKIP_INBOUND_PORTS,
    SKIP_OUTBOUND_PORTS,
    SKIP_NETWORKS,
    "leno.dev/proxy-cpu-request",
    "leno.dev/proxy-cpu-limit",
    "leno.dev/proxy-memory-request",
    "leno.dev/proxy-memory-limit",
    "leno.dev/proxy-image",
    "leno.dev/proxy-workers",
    "leno.dev/proxy-log",
    "leno.dev/access-log",
];
/// Annotation: ports that are reached without the proxy, and so in plaintext.
pub const SKIP_INBOUND_PORTS: &str = "leno.dev/skip-inbound-ports";
const SKIP_OUTBOUND_PORTS: &str = "leno.dev/skip-outbound-ports";
const SKIP_NETWORKS: &str = "leno.dev/skip-networks";
/// What annotations begin with that say where metrics are.
const PROMETHEUS: &str = "prometheus.io/";

/// Namespaces of the cluster itself, whose Pods are never injected.
pub const SYSTEM_NAMESPACES: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];

/// What is known beside the Pod.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    pub settings: &'a Settings,
    pub namespace: &'a str,
    /// Whether Pods that say nothing are injected: their namespace's label says so, or `leno inject` does.
    pub by_default: bool,
    /// Part of the paths of lifecycle hooks, which nobody but the kubelet may call: hard to guess.
    pub nonce: &'a str,
}

/// What becomes of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Injected {
        pod: Box<Value>,
        warnings: Vec<String>,
    },
    /// It stays as it is.
    Left {
        reason: String,
        warnings: Vec<String>,
    },
    /// It was to be injected and cannot be: made as it is, it would not be in the mesh, or would not work.
    Refused {
        reason: String,
    },
}

/// Decides about `pod` (a Pod, or the template of one).
pub fn inject(pod: &Value, context: &Context<'_>) -> Outcome {
    let mut warnings = Vec::new();
    if let Some(reason) = left_alone(pod, context, &mut warnings) {
        return Outcome::Left { reason, warnings };
    }
    match injected(pod, context, &mut warnings) {
        Ok(pod) => Outcome::Injected { pod: Box::new(pod), warnings },
        Err(reason) => Outcome::Refused { reason },
    }
}

/// Why a Pod is not to be injected, if it is not.
fn left_alone(pod: &Value, context: &Context<'_>, warnings: &mut Vec<String>) -> Option<String> {
    let spec = &pod["spec"];
    if !spec["containers"].is_array() {
        return Some("it has no containers".to_owned());
    }
    if containers(spec).any(|container| container["name"] == PROXY) {
        return Some(format!("it has a container {PROXY} already"));
    }
    let mark = mark(pod, INJECT);
    let asked = match mark {
        Some("enabled") => true,
        Some("disabled") => return Some(format!("{INJECT} is disabled")),
        None => context.by_default,
        Some(other) => {
            let instead = if context.by_default { "enabled" } else { "disabled" };
            warnings.push(format!("{INJECT}: {other:?} is neither enabled nor disabled: taken for {instead}"));
            context.by_default
        }
    };
    if !asked {
        return Some(format!("neither its namespace nor the Pod has {INJECT}: enabled"));
    }
    let reason = cannot_be_meshed(pod, context)?;
    if mark == Some("enabled") {
        warnings.push(format!("not injected, although {INJECT} is enabled: {reason}"));
    }
    Some(reason)
}

/// Why a Pod can never be in the mesh.
fn cannot_be_meshed(pod: &Value, context: &Context<'_>) -> Option<String> {
    let spec = &pod["spec"];
    if context.namespace == context.settings.namespace || SYSTEM_NAMESPACES.contains(&context.namespace) {
        return Some(format!("Pods of the namespace {} are never injected", context.namespace));
    }
    if spec["hostNetwork"] == true {
        return Some("it has its node's network (hostNetwork), which is not the Pod's to redirect".to_owned());
    }
    if spec["os"]["name"] == "windows" || spec["nodeSelector"]["kubernetes.io/os"] == "windows" {
        return Some("it runs on Windows".to_owned());
    }
    if pod["metadata"]["annotations"].get("kubernetes.io/config.mirror").is_some() {
        return Some("it is a static Pod of its node".to_owned());
    }
    None
}

/// The Pod with everything in it.
fn injected(pod: &Value, context: &Context<'_>, warnings: &mut Vec<String>) -> Result<Value, String> {
    let settings = context.settings;
    conflicts(&pod["spec"], settings.proxy.uid)?;
    warnings.extend(contested_ports(&pod["spec"]));
    warnings.extend(other_dns(&pod["spec"], &settings.control_plane));
    let resources = sidecar::resources(pod, settings);
    if !pod_resources::are_set(&pod["spec"])
        && containers(&pod["spec"]).all(|c| is_guaranteed(&c["resources"]))
        && !is_guaranteed(&resources)
    {
        warnings.push(
            "its quality of service was Guaranteed and is Burstable with the sidecar: give that limits for cpu and memory \
             (leno.dev/proxy-cpu-limit, leno.dev/proxy-memory-limit), with requests that are the same"
                .to_owned(),
        );
    }
    let mut pod = pod.clone();
    let asked = probes::rewrite(&mut pod["spec"], context.nonce, warnings)?;
    let told = Redirect::of(&pod, settings)?;
    let mut first = Vec::new();
    if settings.redirect.mode == RedirectMode::Init {
        first.push(sidecar::redirect(&pod, settings, &told));
    }
    first.push(sidecar::proxy(&pod, settings, &told, &asked)?);
    let spec = &mut pod["spec"];
    if pod_resources::are_set(spec) {
        pod_resources::raise(spec, &resources);
    }
    first.append(&mut taken_list(spec, "initContainers"));
    spec["initContainers"] = first.into();
    let mut volumes = taken_list(spec, "volumes");
    volumes.extend(sidecar::volumes());
    spec["volumes"] = volumes.into();
    annotate(&mut pod, told.text()?, settings.proxy.metrics);
    Ok(pod)
}

/// Says what the redirect is told, and where the proxy's metrics are, as most configurations of Prometheus read it. A Pod that says where
/// its application's metrics are keeps that: there is room for one place.
fn annotate(pod: &mut Value, redirect: String, metrics: bool) {
    let metadata = &mut pod["metadata"];
    let annotations = metadata["annotations"].take();
    let mut annotations = if let Value::Object(annotations) = annotations { annotations } else { Map::new() };
    annotations.insert(REDIRECT_ANNOTATION.to_owned(), redirect.into());
    if metrics && !annotations.keys().any(|name| name.starts_with(PROMETHEUS)) {
        for (name, value) in
            [("scrape", "true".to_owned()), ("port", PROBE_PORT.to_string()), ("path", "/metrics".to_owned())]
        {
            annotations.insert(format!("{PROMETHEUS}{name}"), value.into());
        }
    }
    metadata["annotations"] = annotations.into();
}

/// What makes injection impossible.
fn conflicts(spec: &Value, uid: u32) -> Result<(), String> {
    if let Some(name) = containers(spec).filter_map(|c| c["name"].as_str()).find(|name| *name == REDIRECT) {
        return Err(format!("it has a container {name} of its own: rename it"));
    }
    let volumes = list(spec, "volumes").iter().filter_map(|volume| volume["name"].as_str());
    if let Some(name) = volumes.into_iter().find(|name| sidecar::VOLUMES.contains(name)) {
        return Err(format!("it has a volume {name} of its own: rename it"));
    }
    let of_pod = &spec["securityContext"]["runAsUser"];
    for container in containers(spec) {
        let own = &container["securityContext"]["runAsUser"];
        if if own.is_null() { of_pod } else { own } == &json!(uid) {
            return Err(format!(
                "its container {} runs as user {uid}, as the proxy does: its connections would be taken for the proxy's own and \
                 pass by the mesh; give it another runAsUser, or the proxy another (proxy.uid in the chart's values)",
                container["name"].as_str().unwrap_or_default()
            ));
        }
    }
    Ok(())
}

/// Whether a container's limits for cpu and memory are there and are what it requests.
fn is_guaranteed(resources: &Value) -> bool {
    ["cpu", "memory"].into_iter().all(|name| {
        let (limit, request) = (&resources["limits"][name], &resources["requests"][name]);
        !limit.is_null() && (request.is_null() || request == limit)
    })
}

/// Said of a Pod that does not ask the cluster's DNS: its sidecar looks up the control plane.
fn other_dns(spec: &Value, control_plane: &str) -> Option<String> {
    let policy = spec["dnsPolicy"].as_str().filter(|policy| matches!(*policy, "Default" | "None"))?;
    if control_plane.parse::<SocketAddr>().is_ok() {
        return None;
    }
    let servers = match policy {
        "None" => "the nameservers of its dnsConfig",
        _ => "its node's nameservers",
    };
    Some(format!(
        "its dnsPolicy is {policy}: unless {servers} know the name of the control plane, {control_plane}, its sidecar never gets ready, and the \
         Pod never starts; give it dnsPolicy ClusterFirst, or None with the cluster's DNS in dnsConfig.nameservers"
    ))
}

/// Ports of the application that the sidecar needs.
fn contested_ports(spec: &Value) -> Vec<String> {
    let contested = |container: &Value| {
        let ports = list(container, "ports").iter().filter_map(|port| port["containerPort"].as_u64());
        let ours = ports.filter(|port| OWN_PORTS.iter().any(|own| u64::from(*own) == *port));
        let name = container["name"].as_str().unwrap_or_default().to_owned();
        ours.map(move |port| {
            format!("port {port} of container {name} is one of the proxy's: only one of them can listen on it")
        })
        .collect::<Vec<_>>()
    };
    containers(spec).flat_map(contested).collect()
}

/// An annotation, or else the label of that name.
fn mark<'a>(pod: &'a Value, name: &str) -> Option<&'a str> {
    annotation(pod, name).or_else(|| pod["metadata"]["labels"][name].as_str())
}

fn annotation<'a>(pod: &'a Value, name: &str) -> Option<&'a str> {
    pod["metadata"]["annotations"][name].as_str()
}

/// All containers, init containers among them.
fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    list(spec, "initContainers").iter().chain(list(spec, "containers"))
}

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn taken_list(value: &mut Value, field: &str) -> Vec<Value> {
    match value.get_mut(field).map(Value::take) {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
