//! Kubernetes' own kinds: Namespace, Service, EndpointSlice, Pod.

use std::sync::Arc;

use leno_proto::v1::Protocol;
use serde::Deserialize;
use serde_json::Value;

use super::{FieldError, Metadata, refuse, typed, value};
use crate::model::object::{
    Endpoint, EndpointSlice, EndpointState, InboundMode, Namespace, Object, Pod, Service, ServiceKind, ServicePort,
    SlicePort, TargetPort,
};

/// Annotation or label, on a Pod or its Namespace: `strict` or `permissive`.
pub(super) const INBOUND: &str = "leno.dev/inbound";
/// Annotation or label, on a Pod: `enabled` or `disabled`.
pub(super) const INJECT: &str = "leno.dev/inject";
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
    Ok(Namespace { inbound: inbound_mode(metadata)? })
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
}

#[derive(Deserialize)]
struct RawPodIp {
    ip: String,
}

pub(super) fn pod(metadata: &Metadata, content: &Value) -> Result<Pod, FieldError> {
    let (raw, _) = typed::<RawPod>(content)?;
    let mut ips = Vec::new();
    if raw.status.pod_ips.is_empty() && !raw.status.pod_ip.is_empty() {
        ips.push(value::address("status.podIP", &raw.status.pod_ip)?);
    }
    for (index, pod_ip) in raw.status.pod_ips.iter().enumerate() {
        let ip = value::address(&format!("status.podIPs[{index}].ip"), &pod_ip.ip)?;
        if !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    let service_account = match raw.spec.service_account_name.as_str() {
        "" => "default",
        name => {
            value::object_name("spec.serviceAccountName", name)?;
            name
        }
    };
    let meshed = match metadata.mark(INJECT) {
        None | Some("enabled" | "true") => true,
        Some("disabled" | "false") => false,
        Some(other) => {
            return refuse(metadata.mark_field(INJECT), format!("{other:?} is neither \"enabled\" nor \"disabled\""));
        }
    };
    Ok(Pod { service_account: service_account.into(), ips, inbound: inbound_mode(metadata)?, meshed })
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
const SERVICE_FIELDS: [&str; 18] = [
    "spec.selector",
    "spec.ipFamilies",
    "spec.ipFamilyPolicy",
    "spec.sessionAffinity",
    "spec.sessionAffinityConfig",
    "spec.externalIPs",
    "spec.externalTrafficPolicy",
    "spec.internalTrafficPolicy",
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

pub(super) fn service(_metadata: &Metadata, content: &Value) -> Result<(Object, Vec<String>), FieldError> {
    let (raw, unknown) = typed::<RawService>(content)?;
    let spec = raw.spec;
    let mut cluster_ips = Vec::new();
    let mut kind = match spec.kind.as_str() {
        "" | "ClusterIP" | "NodePort" | "LoadBalancer" => ServiceKind::ClusterIp,
        "ExternalName" => {
            value::hostname("spec.externalName", spec.external_name.trim_end_matches('.'), false)?;
            ServiceKind::ExternalName(spec.external_name.trim_end_matches('.').into())
        }
        other => return refuse("spec.type", format!("{other:?} is not a type of Service")),
    };
    if kind == ServiceKind::ClusterIp {
        let first = [spec.cluster_ip.clone()].into_iter().filter(|ip| !ip.is_empty());
        let first = first.map(|ip| ("spec.clusterIP".to_owned(), ip));
        let more = spec.cluster_ips.iter().enumerate();
        let more = more.map(|(index, ip)| (format!("spec.clusterIPs[{index}]"), ip.clone()));
        for (field, text) in first.chain(more) {
            if text == "None" {
                kind = ServiceKind::Headless;
                continue;
            }
            let ip = value::address(&field, &text)?;
            if !cluster_ips.contains(&ip) {
                cluster_ips.push(ip);
            }
        }
        if kind == ServiceKind::Headless && !cluster_ips.is_empty() {
            return refuse("spec.clusterIPs", "both None and an address");
        }
    }
    let ports = service_ports(&spec.ports)?;
    let unknown = unknown
        .into_iter()
        .filter(|field| !SERVICE_FIELDS.contains(&field.as_str()))
        .filter(|field| !field.starts_with("metadata") && !field.ends_with(".nodePort"))
        .collect();
    Ok((Object::Service(Service { kind, cluster_ips, ports }), unknown))
}

fn service_ports(raw: &[RawServicePort]) -> Result<Vec<ServicePort>, FieldError> {
    let mut ports: Vec<ServicePort> = Vec::new();
    for (index, raw_port) in raw.iter().enumerate() {
        let at = |field: &str| format!("spec.ports[{index}].{field}");
        let number = value::port(&at("port"), raw_port.port)?;
        match raw_port.protocol.as_deref() {
            None | Some("TCP") => {}
            Some("UDP" | "SCTP") => continue,
            Some(other) => return refuse(at("protocol"), format!("{other:?} is not TCP, UDP or SCTP")),
        }
        if raw_port.name.is_empty() && raw.len() > 1 {
            return refuse(at("name"), "required where there are several ports");
        }
        if !raw_port.name.is_empty() {
            value::label(&at("name"), &raw_port.name)?;
        }
        if ports.iter().any(|port| port.number == number) {
            return refuse(at("port"), format!("port {number} is there twice"));
        }
        if ports.iter().any(|port| *port.name == *raw_port.name) {
            return refuse(at("name"), format!("{:?} is there twice", raw_port.name));
        }
        let target = match &raw_port.target_port {
            None | Some(RawTargetPort::Number(0)) => TargetPort::Number(number),
            Some(RawTargetPort::Number(target)) => TargetPort::Number(value::port(&at("targetPort"), *target)?),
            Some(RawTargetPort::Name(name)) => TargetPort::Name(name.as_str().into()),
        };
        let protocol = app_protocol(raw_port.app_protocol.as_deref());
        ports.push(ServicePort { name: raw_port.name.as_str().into(), number, target, protocol });
    }
    Ok(ports)
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
    hostname: Option<String>,
    target_ref: Option<RawTargetRef>,
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
    ".hints",
    ".deprecatedTopology",
    ".appProtocol",
    ".targetRef.namespace",
    ".targetRef.uid",
    ".targetRef.resourceVersion",
    ".targetRef.apiVersion",
    ".targetRef.fieldPath",
];

pub(super) fn endpoint_slice(metadata: &Metadata, content: &Value) -> Result<(Object, Vec<String>), FieldError> {
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
    let ports = match &raw.ports {
        None => None,
        Some(raw_ports) => Some(slice_ports(raw_ports)?),
    };
    let mut endpoints = Vec::with_capacity(raw.endpoints.len());
    for (index, endpoint) in raw.endpoints.iter().enumerate() {
        let mut addresses = Vec::with_capacity(endpoint.addresses.len());
        for (place, text) in endpoint.addresses.iter().enumerate() {
            addresses.push(value::address(&format!("endpoints[{index}].addresses[{place}]"), text)?);
        }
        let pod = endpoint.target_ref.as_ref().filter(|target| target.kind == "Pod" && !target.name.is_empty());
        endpoints.push(Endpoint {
            addresses,
            state: endpoint.conditions.state(),
            zone: endpoint.zone.as_str().into(),
            hostname: endpoint.hostname.as_deref().map(Into::into),
            pod: pod.map(|target| target.name.as_str().into()),
        });
    }
    Ok((Object::EndpointSlice(EndpointSlice { service, ports, endpoints }), unknown))
}

fn slice_ports(raw: &[RawSlicePort]) -> Result<Vec<SlicePort>, FieldError> {
    let mut ports = Vec::with_capacity(raw.len());
    for (index, port) in raw.iter().enumerate() {
        // Without a number: a port that nobody can be reached at.
        let (None | Some("TCP"), Some(number)) = (port.protocol.as_deref(), port.port) else { continue };
        let number = value::port(&format!("ports[{index}].port"), number)?;
        ports.push(SlicePort { name: port.name.as_str().into(), number });
    }
    Ok(ports)
}
