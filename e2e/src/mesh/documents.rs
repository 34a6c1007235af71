//! Kubernetes documents, as an operator would write them.

use std::{fmt::Write as _, net::SocketAddr};

/// The namespace of everything whose test does not say otherwise.
pub const NAMESPACE: &str = "default";

/// A Service with one port. `protocol`: its `appProtocol`; empty: none declared.
pub fn service(namespace: &str, name: &str, port: u16, protocol: &str) -> String {
    let app_protocol = if protocol.is_empty() { String::new() } else { format!("\n      appProtocol: {protocol}") };
    format!(
        "apiVersion: v1
kind: Service
metadata:
  name: {name}
  namespace: {namespace}
spec:
  ports:
    - port: {port}
      targetPort: {port}{app_protocol}
"
    )
}

/// A Pod with one address.
pub fn pod(namespace: &str, name: &str, account: &str, ips: &[String]) -> String {
    let mut document = format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: {namespace}
spec:
  serviceAccountName: {account}
status:
  podIPs:
"
    );
    for ip in ips {
        // Writing to a String cannot fail.
        let _ = writeln!(document, "    - ip: \"{ip}\"");
    }
    document
}

/// The slice of one endpoint. `pod`: whose it is; none: an unmeshed endpoint.
pub fn endpoint_slice(namespace: &str, service: &str, pod: Option<&str>, address: SocketAddr, ready: bool) -> String {
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let suffix = pod.map_or_else(|| format!("port-{}", address.port()), str::to_owned);
    let target = pod.map_or_else(String::new, |pod| {
        format!("    targetRef:\n      kind: Pod\n      name: {pod}\n      namespace: {namespace}\n")
    });
    format!(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {service}-{suffix}
  namespace: {namespace}
  labels:
    kubernetes.io/service-name: {service}
addressType: {family}
ports:
  - port: {port}
endpoints:
  - addresses: [\"{ip}\"]
    conditions:
      ready: {ready}
      serving: true
      terminating: {terminating}
{target}",
        port = address.port(),
        ip = address.ip(),
        terminating = !ready,
    )
}

/// An HTTPRoute of that name on a Service's port 80, sending everything to `backends` (name, weight) by their ports 80.
pub fn http_route(name: &str, service: &str, backends: &[(&str, u32)]) -> String {
    let mut document = route_head("HTTPRoute", name, service);
    document.push_str("  rules:\n    - backendRefs:\n");
    for (backend, weight) in backends {
        let _ = writeln!(document, "        - name: {backend}\n          port: 80\n          weight: {weight}");
    }
    document
}

/// A route up to its `rules`, attached to port 80 of a Service.
pub fn route_head(kind: &str, name: &str, service: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: {kind}
metadata:
  name: {name}
  namespace: {NAMESPACE}
spec:
  parentRefs:
    - group: \"\"
      kind: Service
      name: {service}
      port: 80
"
    )
}

/// An InboundPolicy of that name for a Service; `spec`: the rest of it, in two spaces.
pub fn inbound_policy(name: &str, service: &str, spec: &str) -> String {
    service_policy("InboundPolicy", name, service, spec)
}

/// The same of a BackendPolicy.
pub fn backend_policy(name: &str, service: &str, spec: &str) -> String {
    service_policy("BackendPolicy", name, service, spec)
}

fn service_policy(kind: &str, name: &str, service: &str, spec: &str) -> String {
    format!(
        "apiVersion: leno.dev/v1alpha1
kind: {kind}
metadata:
  name: {name}
  namespace: {NAMESPACE}
spec:
  targetRefs:
    - group: \"\"
      kind: Service
      name: {service}
{spec}"
    )
}

/// Several documents in one file.
pub fn file(documents: &[String]) -> String {
    documents.join("---\n")
}
