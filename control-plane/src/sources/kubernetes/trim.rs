//! What is kept of an object: what the model reads, parsed where it arrives. Pure.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::resources::number;
use crate::{
    model::{FileContent, Kind},
    webhook::{
        inject::{PROXY, REDIRECT_ANNOTATION, SKIP_INBOUND_PORTS, skipped_inbound_ports},
        ports::PortSet,
    },
};

/// See [`crate::model`]: whether a Pod is in the mesh.
const INJECT: &str = "leno.dev/inject";
const INBOUND: &str = "leno.dev/inbound";
const WEIGHT: &str = "leno.dev/weight";
/// Ours, among those who write a route's status.
const CONTROLLER: &str = "leno.dev/control-plane";

/// An object as it was seen.
#[derive(Debug)]
pub(crate) struct Seen {
    /// Its name among documents: "HTTPRoute shop/cart".
    pub(crate) file: Arc<str>,
    /// `metadata.resourceVersion`
    pub(crate) version: u64,
    pub(crate) content: FileContent,
}

/// None: the mesh has nothing to do with it.
pub(crate) fn seen(kind: Kind, api_version: &str, object: Value) -> Option<Seen> {
    let (file, version, document) = trimmed(kind, api_version, object)?;
    Some(Seen { content: FileContent::object(Arc::clone(&file), document), file, version })
}

/// Its name among documents, its version, and the document that it becomes.
pub(super) fn trimmed(kind: Kind, api_version: &str, mut object: Value) -> Option<(Arc<str>, u64, Value)> {
    let file = file(kind, &object).filter(|_| concerns_mesh(kind, &object))?;
    let version = number(object.pointer("/metadata/resourceVersion").and_then(Value::as_str));
    let mut content =
        json!({ "apiVersion": api_version, "kind": kind.as_str(), "metadata": metadata(kind, &mut object) });
    match kind {
        Kind::Namespace => settle_marks(&mut content),
        Kind::Service => {
            keep(&mut object, &mut content, &SERVICE_FIELDS);
            for (field, value) in REPORTED_OF_SERVICE {
                if object["spec"][field] == value {
                    keep(&mut object, &mut content, &[&["spec", field]]);
                }
            }
        }
        Kind::EndpointSlice => {
            keep(&mut object, &mut content, &[&["addressType"], &["ports"], &["endpoints"]]);
            trim_endpoints(&mut content);
        }
        Kind::Pod => pod(&mut object, &mut content),
        _ => keep(&mut object, &mut content, &[&["spec"]]),
    }
    Some((file, version, content))
}

/// Routes of Gateways are others' to serve, and to judge; one that has left the mesh is still told so.
fn concerns_mesh(kind: Kind, object: &Value) -> bool {
    let any = |list: &str, of_ours: fn(&Value) -> bool| {
        object.pointer(list).and_then(Value::as_array).is_some_and(|all| all.iter().any(of_ours))
    };
    !kind.is_route()
        || any("/spec/parentRefs", |parent| parent["kind"] == "Service")
        || any("/status/parents", |parent| parent["controllerName"] == CONTROLLER)
}

/// Marks that cannot be read take nothing out of the mesh: who must not be reached in plaintext is taken for strict, a weight for none,
/// and no port is left alone.
/// What was wrong is kept as a mark that is not known, and so is reported.
fn settle_marks(content: &mut Value) {
    for map in ["labels", "annotations"] {
        let Some(marks) = content["metadata"].get_mut(map).and_then(Value::as_object_mut) else { continue };
        let said = |marks: &Map<String, Value>, name: &str| marks.get(name).and_then(Value::as_str).map(str::to_owned);
        if let Some(mode) = said(marks, INBOUND).filter(|mode| !matches!(mode.as_str(), "strict" | "permissive")) {
            marks.insert(INBOUND.to_owned(), json!("strict"));
            marks.insert(format!("{INBOUND}={mode}: neither strict nor permissive, taken for strict"), json!(""));
        }
        let is_weight = |text: &String| text.parse::<u32>().is_ok_and(|weight| (1..=1000).contains(&weight));
        if let Some(weight) = said(marks, WEIGHT).filter(|text| !is_weight(text)) {
            marks.remove(WEIGHT);
            marks.insert(format!("{WEIGHT}={weight}: no number from 1 to 1000"), json!(""));
        }
        if let Some(ports) = said(marks, SKIP_INBOUND_PORTS).filter(|text| text.parse::<PortSet>().is_err()) {
            marks.remove(SKIP_INBOUND_PORTS);
            marks.insert(format!("{SKIP_INBOUND_PORTS}={ports}: no ports, taken for none"), json!(""));
        }
    }
}

/// As [`Seen::file`]. None: it has no name, so it is nothing that an API server sends.
pub(crate) fn file(kind: Kind, object: &Value) -> Option<Arc<str>> {
    let text = |name: &str| object.get("metadata")?.get(name)?.as_str();
    let name = text("name")?;
    Some(match text("namespace") {
        Some(namespace) => format!("{} {namespace}/{name}", kind.as_str()).into(),
        None => format!("{} {name}", kind.as_str()).into(),
    })
}

/// Fields of an endpoint that nothing depends on: a change of them is none, and there are as many as endpoints.
const UNUSED_OF_ENDPOINT: [&str; 2] = ["nodeName", "deprecatedTopology"];
/// The same of its `targetRef`.
const UNUSED_OF_TARGET: [&str; 5] = ["namespace", "uid", "resourceVersion", "apiVersion", "fieldPath"];

fn trim_endpoints(slice: &mut Value) {
    let endpoints = slice.get_mut("endpoints").and_then(Value::as_array_mut);
    for endpoint in endpoints.into_iter().flatten().filter_map(Value::as_object_mut) {
        UNUSED_OF_ENDPOINT.iter().for_each(|field| drop(endpoint.remove(*field)));
        if let Some(target) = endpoint.get_mut("targetRef").and_then(Value::as_object_mut) {
            UNUSED_OF_TARGET.iter().for_each(|field| drop(target.remove(*field)));
        }
    }
}

const SERVICE_FIELDS: [&[&str]; 5] =
    [&["spec", "type"], &["spec", "clusterIP"], &["spec", "clusterIPs"], &["spec", "externalName"], &["spec", "ports"]];

/// Kept only with the value that is reported as of no effect: most Services have another.
const REPORTED_OF_SERVICE: [(&str, &str); 2] = [("sessionAffinity", "ClientIP"), ("internalTrafficPolicy", "Local")];

/// Moves fields from one object into another, at the same path.
fn keep(from: &mut Value, to: &mut Value, fields: &[&[&str]]) {
    for path in fields {
        let taken = path.iter().try_fold(&mut *from, |at, name| at.get_mut(*name)).map(Value::take);
        if let Some(value) = taken.filter(|value| !value.is_null()) {
            set(to, path, value);
        }
    }
}

fn set(object: &mut Value, path: &[&str], value: Value) {
    let Some((name, rest)) = path.split_first() else {
        *object = value;
        return;
    };
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    if let Some(fields) = object.as_object_mut() {
        set(fields.entry(*name).or_insert(Value::Null), rest, value);
    }
}

fn metadata(kind: Kind, object: &mut Value) -> Value {
    let Some(mut from) = object.get_mut("metadata").map(Value::take) else { return Value::Null };
    let mut to = Value::Object(Map::new());
    keep(
        &mut from,
        &mut to,
        &[&["name"], &["namespace"], &["generation"], &["resourceVersion"], &["creationTimestamp"]],
    );
    // What is tracked at proxies: made again under the same name, it begins at generation 1. And what certificates are bound to.
    if kind.is_route() || kind.is_policy() || kind == Kind::Pod {
        keep(&mut from, &mut to, &[&["uid"]]);
    }
    // Until then its proxy may serve.
    if kind == Kind::Pod {
        keep(&mut from, &mut to, &[&["deletionTimestamp"]]);
    }
    for map in ["labels", "annotations"] {
        let Some(Value::Object(marks)) = from.get_mut(map).map(Value::take) else { continue };
        let used = |name: &str| {
            name.starts_with("leno.dev/")
                || matches!(name, "kubernetes.io/service-name" | "topology.kubernetes.io/zone")
        };
        let marks: Map<String, Value> = marks.into_iter().filter(|(name, _)| used(name)).collect();
        if !marks.is_empty() {
            set(&mut to, &[map], Value::Object(marks));
        }
    }
    to
}

/// A Pod is in the mesh exactly if it has a container of the proxy's name.
fn pod(object: &mut Value, content: &mut Value) {
    let named = |list: &str| {
        let containers = object.pointer(list).and_then(Value::as_array);
        containers.is_some_and(|all| all.iter().any(|one| one["name"] == PROXY))
    };
    let meshed = named("/spec/initContainers") || named("/spec/containers");
    // It has ended, and its address may be another's by now.
    let ended = matches!(object.pointer("/status/phase").and_then(Value::as_str), Some("Succeeded" | "Failed"));
    // Its address is its node's: who calls that does not mean the Pod, but for endpoints that name it.
    let of_node = object.pointer("/spec/hostNetwork") == Some(&Value::Bool(true)) && !meshed;
    let its_proxy = proxy_status(object);
    let skipped = skipped_inbound_ports(object).map(str::to_owned);
    keep(object, content, &[&["spec", "serviceAccountName"]]);
    if !ended && !of_node {
        keep(object, content, &[&["status", "podIP"], &["status", "podIPs"]]);
        if let Some(its_proxy) = its_proxy {
            set(content, &["status", "initContainerStatuses"], json!([its_proxy]));
        }
    }
    settle_skipped(content, skipped);
    settle_marks(content);
    // What was asked for when it was made does not matter any more.
    if let Some(labels) = content.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(INJECT);
    }
    let injected = if meshed { "enabled" } else { "disabled" };
    set(content, &["metadata", "annotations", INJECT], Value::String(injected.to_owned()));
}

/// Which ports the redirect leaves alone was settled when the Pod was injected, and stands in its spec; annotations may say since then
/// what they like.
fn settle_skipped(content: &mut Value, skipped: Option<String>) {
    if let Some(annotations) = content.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(REDIRECT_ANNOTATION);
        annotations.remove(SKIP_INBOUND_PORTS);
    }
    if let Some(ports) = skipped {
        set(content, &["metadata", "annotations", SKIP_INBOUND_PORTS], Value::String(ports));
    }
}

/// What a kubelet says of the proxy's container: whether it runs, and whether it has passed its startup probe. None: it does not run.
fn proxy_status(pod: &Value) -> Option<Value> {
    let said = |list: &str| {
        let all = pod.pointer(list)?.as_array()?;
        all.iter().find(|one| one["name"] == PROXY)
    };
    let status = said("/status/initContainerStatuses").or_else(|| said("/status/containerStatuses"))?;
    status.pointer("/state/running")?;
    let started = status["started"] == Value::Bool(true);
    Some(json!({ "name": PROXY, "started": started, "state": { "running": {} } }))
}
