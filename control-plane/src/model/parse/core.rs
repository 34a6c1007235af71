//! Kubernetes' own kinds: Namespace, Service, EndpointSlice, Pod.

use std::{collections::HashSet, net::IpAddr, sync::Arc, time::SystemTime};

use k8s_openapi::jiff::Timestamp;
use leno_proto::v1::Protocol;
use serde::Deserialize;
use serde_json::Value;

use super::{FieldError, Metadata, Wrong, refuse, typed, value};
use crate::{
    model::object::{
        Endpoint, EndpointSlice, EndpointState, InboundMode, Namespace, Object, Pod, PodLife, ProxyLife, Service,
        ServiceKind, ServicePort, SlicePort, TargetPort,
    },
    webhook::{
        inject::{PROXY, SKIP_INBOUND_PORTS},
        ports::PortSet,
    },
};

/// Annotation or label, on a Pod or its Namespace: `strict` or `permissive`.
pub(super) const INBOUND: &str = "leno.dev/inbound";
/// Annotation or label, on a Pod or its Namespace: `enabled` or `disabled`.
pub(super) const INJECT: &str = "leno.dev/inject";
/// Annotation or label, on a Pod: a number of [`WEIGHTS`].
pub(super) const WEIGHT: &str = "leno.dev/weight";
const WEIGHTS: std::ops::RangeInclusive<u32> = 1..=1000;
/// Label of a Pod, which newer clusters copy from its node.
pub(super) const ZONE: &str = "topology.kubernetes.io/zone";
/// Label of an EndpointSlice: the Service it belongs to.
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";

fn inbound_mode(metadata: &Metadata) -> Result<Option<InboundMode>, FieldError> {
    match metadata.mark(INBOUND) {
        None => Ok(None),
        Some("strict") => Ok(Some(InboundMode::Strict)),
        Some("permissive") => Ok(Some(InboundMode::Permissive)),
        Some(other) => {
            refuse(metadata.mark_field(INBOUND), format!("{other:?} is neither \"strict\" nor \"permissive\""))
        }
    }
}

pub(super) fn namespace(metadata: &Metadata) -> Result<Namespace, FieldError> {
    Ok(Namespace { inbound: inbound_mode(metadata)?, injects: injects(metadata) })
}

/// By its label alone: API servers choose by labels whose Pods they ask about.
fn injects(metadata: &Metadata) -> bool {
    metadata.labels.get(INJECT).is_some_and(|inject| inject == "enabled")
}

// ---- Pod ------------------------------------------------------------------------------------

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawPod {
    spec: RawPodSpec,
    status: RawPodStatus,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawPodSpec {
    service_account_name: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawPodStatus {
    #[serde(rename = "podIP")]
    pod_ip: String,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<RawPodIp>,
    init_container_statuses: Vec<RawContainerStatus>,
}

#[derive(Deserialize)]
struct RawPodIp {
    ip: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawContainerStatus {
    name: String,
    started: Option<bool>,
    state: Option<RawContainerState>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawContainerState {
    running: Option<Value>,
}

impl RawPodStatus {
    fn proxy(&self) -> ProxyLife {
        let its = self.init_container_statuses.iter().find(|status| status.name == PROXY);
        let is_running =
            |status: &&RawContainerStatus| status.state.as_ref().is_some_and(|state| state.running.is_some());
        match its.filter(is_running) {
            Some(status) if status.started == Some(true) => ProxyLife::Started,
            Some(_) => ProxyLife::Starting,
            None => ProxyLife::Down,
        }
    }
}

pub(super) fn pod(metadata: &Metadata, content: &Value) -> Result<Pod, Wrong> {
    let (raw, _) = typed::<RawPod>(content)?;
    let mut wrong = Wrong::default();
    let one = Some(("status.podIP".to_owned(), &raw.status.pod_ip));
    let one = one.filter(|(_, ip)| raw.status.pod_ips.is_empty() && !ip.is_empty());
    let all = raw.status.pod_ips.iter().enumerate();
    let all = all.map(|(index, pod_ip)| (format!("status.podIPs[{index}].ip"), &pod_ip.ip));
    let ips = wrong.note(addresses(one.into_iter().chain(all)));
    let service_account = match raw.spec.service_account_name.as_str() {
        "" => "default",
        name => {
            wrong.note(value::object_name("spec.serviceAccountName", name));
            name
        }
    };
    let meshed = wrong.note(match metadata.mark(INJECT) {
        None | Some("enabled" | "true") => Ok(true),
        Some("disabled" | "false") => Ok(false),
        Some(other) => refuse::<_, FieldError>(
            metadata.mark_field(INJECT),
            format!("{other:?} is neither \"enabled\" nor \"disabled\""),
        ),
    });
    let inbound = wrong.note(inbound_mode(metadata));
    let weight = wrong.note(weight(metadata)).unwrap_or(1);
    let skipped = wrong.note(skipped(metadata));
    let zone = metadata.mark(ZONE).unwrap_or_default().into();
    // Nobody but the API server writes it.
    let ending = metadata.deletion_timestamp.as_deref().and_then(|text| text.parse::<Timestamp>().ok());
    let life = PodLife { ending: ending.map(SystemTime::from), proxy: raw.status.proxy() };
    wrong.or(Pod { service_account: service_account.into(), ips, inbound, meshed, skipped, weight, zone, life })
}

fn skipped(metadata: &Metadata) -> Result<PortSet, FieldError> {
    let text = metadata.annotations.get(SKIP_INBOUND_PORTS).map(String::as_str).unwrap_or_default();
    text.parse().or_else(|reason: String| refuse(metadata.mark_field(SKIP_INBOUND_PORTS), reason))
}

fn weight(metadata: &Metadata) -> Result<Option<u32>, FieldError> {
    let Some(text) = metadata.mark(WEIGHT) else { return Ok(None) };
    match text.parse() {
        Ok(weight) if WEIGHTS.contains(&weight) => Ok(Some(weight)),
        _ => refuse(
            metadata.mark_field(WEIGHT),
            format!("{text:?} is not a number from {} to {}", WEIGHTS.start(), WEIGHTS.end()),
        ),
    }
}

/// Each address once, in order.
fn addresses<'a>(texts: impl Iterator<Item = (String, &'a String)>) -> Result<Vec<IpAddr>, Wrong> {
    let mut ips = Wrong::each(texts.map(|(field, text)| Ok(value::address(&field, text)?)))?;
    let mut seen = HashSet::new();
    ips.retain(|ip| seen.insert(*ip));
    Ok(ips)
}

// ---- Service --------------------------------------------------------------------------------

#[derive(Deserialize)]
struct RawService {
    spec: RawServiceSpec,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawServiceSpec {
    #[serde(rename = "type")]
    kind: String,
    #[serde(rename = "clusterIP")]
    cluster_ip: String,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Vec<String>,
    external_name: String,
    ports: Vec<RawServicePort>,
    session_affinity: String,
    internal_traffic_policy: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawServicePort {
    #[serde(default)]
    name: String,
    port: i64,
    target_port: Option<RawTargetPort>,
    protocol: Option<String>,
    app_protocol: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawTargetPort {
    Number(i64),
    Name(String),
}

/// Fields of a Service that are somebody else's to act on.
const SERVICE_FIELDS: [&str; 16] = [
    "spec.selector",
    "spec.ipFamilies",
    "spec.ipFamilyPolicy",
    "spec.sessionAffinityConfig",
    "spec.externalIPs",
    "spec.externalTrafficPolicy",
    "spec.publishNotReadyAddresses",
    "spec.healthCheckNodePort",
    "spec.trafficDistribution",
    "spec.allocateLoadBalancerNodePorts",
    "spec.loadBalancerIP",
    "spec.loadBalancerClass",
    "spec.loadBalancerSourceRanges",
    "apiVersion",
    "kind",
    "status",
];

pub(super) fn service(_metadata: &Metadata, content: &Value) -> Result<(Object, Vec<String>), Wrong> {
    let (raw, unknown) = typed::<RawService>(content)?;
    let mut wrong = Wrong::default();
    let (kind, cluster_ips) = wrong.note(service_kind(&raw.spec).map(Some)).unwrap_or((ServiceKind::ClusterIp, vec![]));
    let ports = wrong.note(service_ports(&raw.spec.ports));
    let unknown = unknown
        .into_iter()
        .filter(|field| !SERVICE_FIELDS.contains(&field.as_str()))
        .filter(|field| !field.starts_with("metadata") && !field.ends_with(".nodePort"))
        .chain(without_effect(&raw.spec).map(str::to_owned))
        .collect();
    wrong.or((Object::Service(Service { kind, cluster_ips, ports }), unknown))
}

/// Whom kube-proxy would choose among the endpoints, and the mesh does not.
fn without_effect(spec: &RawServiceSpec) -> impl Iterator<Item = &'static str> {
    let affinity = (spec.session_affinity == "ClientIP")
        .then_some("spec.sessionAffinity (ClientIP is kube-proxy's: use sessionPersistence of a route, or a BackendPolicy's ConsistentHash by sourceAddress)");
    let local = (spec.internal_traffic_policy == "Local")
        .then_some("spec.internalTrafficPolicy (Local is kube-proxy's: endpoints on other nodes are called, too; those of the client's zone are preferred)");
    affinity.into_iter().chain(local)
}

/// With its addresses.
fn service_kind(spec: &RawServiceSpec) -> Result<(ServiceKind, Vec<IpAddr>), Wrong> {
    match spec.kind.as_str() {
        "" | "ClusterIP" | "NodePort" | "LoadBalancer" => {}
        "ExternalName" => {
            let name = spec.external_name.trim_end_matches('.');
            value::hostname("spec.externalName", name, false)?;
            return Ok((ServiceKind::ExternalName(name.into()), Vec::new()));
        }
        other => return refuse("spec.type", format!("{other:?} is not a type of Service")),
    }
    let first = Some(("spec.clusterIP".to_owned(), &spec.cluster_ip)).filter(|(_, ip)| !ip.is_empty());
    let more = spec.cluster_ips.iter().enumerate().map(|(index, ip)| (format!("spec.clusterIPs[{index}]"), ip));
    let (none, some): (Vec<_>, Vec<_>) = first.into_iter().chain(more).partition(|(_, ip)| *ip == "None");
    let ips = addresses(some.into_iter())?;
    match (none.is_empty(), ips.is_empty()) {
        (false, false) => refuse("spec.clusterIPs", "both None and an address"),
        (false, true) => Ok((ServiceKind::Headless, ips)),
        (true, _) => Ok((ServiceKind::ClusterIp, ips)),
    }
}

fn service_ports(raw: &[RawServicePort]) -> Result<Vec<ServicePort>, Wrong> {
    let tcp = |raw: &&RawServicePort| !matches!(raw.protocol.as_deref(), Some("UDP" | "SCTP"));
    let ports = raw.iter().enumerate().map(|(index, one)| {
        let at = |field: &str| format!("spec.ports[{index}].{field}");
        let mut wrong = Wrong::default();
        let number = wrong.note(value::port(&at("port"), one.port));
        if !tcp(&one) {
            return wrong.or(None);
        }
        if let Some(other) = one.protocol.as_deref().filter(|protocol| *protocol != "TCP") {
            wrong.add(at("protocol"), format!("{other:?} is not TCP, UDP or SCTP"));
        }
        let earlier = || raw.iter().take(index).filter(tcp);
        if one.name.is_empty() && raw.len() > 1 {
            wrong.add(at("name"), "required where there are several ports");
        } else if !one.name.is_empty() {
            wrong.note(value::label(&at("name"), &one.name));
            if earlier().any(|port| port.name == one.name) {
                wrong.add(at("name"), format!("{:?} is there twice", one.name));
            }
        }
        if number > 0 && earlier().any(|port| port.port == one.port) {
            wrong.add(at("port"), format!("port {number} is there twice"));
        }
        let target = match &one.target_port {
            None | Some(RawTargetPort::Number(0)) => TargetPort::Number(number),
            Some(RawTargetPort::Number(target)) => {
                TargetPort::Number(wrong.note(value::port(&at("targetPort"), *target)))
            }
            Some(RawTargetPort::Name(name)) => TargetPort::Name(name.as_str().into()),
        };
        let protocol = app_protocol(one.app_protocol.as_deref());
        wrong.or(Some(ServicePort { name: one.name.as_str().into(), number, target, protocol }))
    });
    Ok(Wrong::each(ports)?.into_iter().flatten().collect())
}

/// Kubernetes' prefixed names (KEP-3726) and IANA's service names; what is not known is detected.
fn app_protocol(name: Option<&str>) -> Protocol {
    match name.unwrap_or_default().to_ascii_lowercase().as_str() {
        "http" => Protocol::Http,
        "http1" | "http/1.1" | "kubernetes.io/ws" | "ws" => Protocol::Http1,
        "kubernetes.io/h2c" | "h2c" | "http2" | "grpc" => Protocol::Http2,
        "https" | "tls" | "kubernetes.io/wss" | "wss" | "grpcs" | "http2s" => Protocol::Tls,
        "tcp" | "redis" | "mysql" | "mongo" | "mongodb" | "postgres" | "postgresql" | "smtp" | "amqp" | "kafka"
        | "memcache" | "memcached" | "nats" | "cassandra" => Protocol::Tcp,
        _ => Protocol::Detect,
    }
}

// ---- EndpointSlice ----------------------------------------------------------------------------

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawSlice {
    #[serde(default)]
    address_type: String,
    ports: Option<Vec<RawSlicePort>>,
    #[serde(default)]
    endpoints: Vec<RawEndpoint>,
}

#[derive(Deserialize)]
struct RawSlicePort {
    #[serde(default)]
    name: String,
    port: Option<i64>,
    protocol: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawEndpoint {
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default)]
    conditions: RawConditions,
    #[serde(default)]
    zone: String,
    #[serde(default)]
    hints: RawHints,
    hostname: Option<String>,
    target_ref: Option<RawTargetRef>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawHints {
    for_zones: Vec<RawZone>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawZone {
    name: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawConditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawTargetRef {
    kind: String,
    name: String,
}

impl RawConditions {
    /// Absent conditions: ready (EndpointConditions).
    fn state(&self) -> EndpointState {
        let ready = self.ready.unwrap_or(true);
        let terminating = self.terminating.unwrap_or(false);
        match (terminating, ready, self.serving.unwrap_or(ready)) {
            (false, true, _) => EndpointState::Ready,
            (true, _, true) => EndpointState::Draining,
            _ => EndpointState::NotReady,
        }
    }
}

/// Fields of an EndpointSlice that nothing here depends on.
const SLICE_FIELDS: [&str; 2] = ["apiVersion", "kind"];
const SLICE_ENDINGS: [&str; 9] = [
    ".nodeName",
    ".hints.forNodes",
    ".deprecatedTopology",
    ".appProtocol",
    ".targetRef.namespace",
    ".targetRef.uid",
    ".targetRef.resourceVersion",
    ".targetRef.apiVersion",
    ".targetRef.fieldPath",
];

pub(super) fn endpoint_slice(metadata: &Metadata, content: &Value) -> Result<(Object, Vec<String>), Wrong> {
    let (raw, mut unknown) = typed::<RawSlice>(content)?;
    unknown.retain(|field| {
        !SLICE_FIELDS.contains(&field.as_str())
            && !field.starts_with("metadata")
            && !SLICE_ENDINGS.iter().any(|ending| field.ends_with(ending))
    });
    let service = metadata.labels.get(SERVICE_NAME).map(|name| Arc::from(name.as_str()));
    match raw.address_type.as_str() {
        "IPv4" | "IPv6" | "" => {}
        "FQDN" => {
            unknown.push("endpoints (addressType FQDN)".to_owned());
            let none = EndpointSlice { service, ports: None, endpoints: Vec::new() };
            return Ok((Object::EndpointSlice(none), unknown));
        }
        other => return refuse("addressType", format!("{other:?} is not IPv4, IPv6 or FQDN")),
    }
    let mut wrong = Wrong::default();
    let ports = raw.ports.as_deref().map(|ports| wrong.note(slice_ports(ports)));
    let endpoints = raw.endpoints.iter().enumerate().map(|(index, endpoint)| slice_endpoint(index, endpoint));
    let endpoints = wrong.note(Wrong::each(endpoints));
    wrong.or((Object::EndpointSlice(EndpointSlice { service, ports, endpoints }), unknown))
}

impl RawEndpoint {
    fn for_zone(&self) -> &str {
        let zones = &self.hints.for_zones;
        let own = zones.iter().find(|zone| zone.name == self.zone);
        own.or_else(|| zones.first()).map_or("", |zone| &zone.name)
    }
}

fn slice_endpoint(index: usize, raw: &RawEndpoint) -> Result<Endpoint, Wrong> {
    let addresses = raw.addresses.iter().enumerate();
    let addresses =
        addresses.map(|(place, text)| Ok(value::address(&format!("endpoints[{index}].addresses[{place}]"), text)?));
    let mut wrong = Wrong::default();
    let addresses = wrong.note(Wrong::each(addresses));
    let pod = raw.target_ref.as_ref().map(|target| target_pod(&format!("endpoints[{index}].targetRef"), target));
    let pod = wrong.note(pod.transpose()).flatten();
    wrong.or(Endpoint {
        addresses,
        state: raw.conditions.state(),
        zone: raw.zone.as_str().into(),
        for_zone: raw.for_zone().into(),
        hostname: raw.hostname.as_deref().map(Into::into),
        pod,
    })
}

/// Who names no Pod is reached in plaintext: a slip of the pen must not say that.
fn target_pod(at: &str, raw: &RawTargetRef) -> Result<Option<Arc<str>>, FieldError> {
    match raw.kind.as_str() {
        "Pod" => {
            value::object_name(&format!("{at}.name"), &raw.name)?;
            Ok(Some(raw.name.as_str().into()))
        }
        "" => refuse(format!("{at}.kind"), "required: Pod, for what is in the mesh"),
        kind if kind.eq_ignore_ascii_case("Pod") => {
            refuse(format!("{at}.kind"), format!("{kind:?} is not a kind: did you mean Pod?"))
        }
        _ => Ok(None),
    }
}

fn slice_ports(raw: &[RawSlicePort]) -> Result<Vec<SlicePort>, Wrong> {
    let ports = raw.iter().enumerate().filter_map(|(index, port)| {
        // Without a number: a port that nobody can be reached at.
        let (None | Some("TCP"), Some(number)) = (port.protocol.as_deref(), port.port) else { return None };
        Some((format!("ports[{index}].port"), number, port))
    });
    Wrong::each(ports.map(|(field, number, port)| {
        Ok(SlicePort { name: port.name.as_str().into(), number: value::port(&field, number)? })
    }))
}
