//! The mesh that is simulated: who there is, who calls whom, and the documents that say so.

use std::{fmt::Write as _, net::Ipv4Addr};

use anyhow::{Context as _, Result};
use serde_json::Value;

/// Namespaces that Services are spread over.
const NAMESPACES: usize = 50;
/// Of every Service.
pub(crate) const PORT: u16 = 80;
const TARGET_PORT: u16 = 8080;

/// Sizes. Everything else follows from them, so that every process knows the same mesh.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Plan {
    /// Services in the mesh, each with a route of its own.
    #[arg(long, default_value_t = 5_000)]
    pub(crate) services: usize,
    /// Endpoints in the mesh, spread evenly over its Services; each is a Pod.
    #[arg(long, default_value_t = 50_000)]
    pub(crate) endpoints: usize,
    /// Services that each proxy calls, and so subscribes to: the destination, and its endpoints.
    #[arg(long, default_value_t = 10)]
    pub(crate) calls: usize,
    /// Proxies that call the first Service, if there are as many.
    #[arg(long, default_value_t = 1_000)]
    pub(crate) subscribed: usize,
    /// Proxies ask for Services by name, not by address.
    #[arg(long)]
    pub(crate) by_name: bool,
}

/// What the number of a change is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Marked {
    /// The zone of the Service's first endpoint.
    Endpoint,
    /// The name of its route's first rule.
    Route,
}

/// The number of a change, as it is written to a zone or a rule's name.
pub(crate) fn mark(change: u32) -> String {
    format!("change-{change}")
}

/// See [`mark`].
pub(crate) fn marked(text: &str) -> Option<u32> {
    text.strip_prefix("change-")?.parse().ok()
}

impl Plan {
    pub(crate) fn namespace(service: usize) -> String {
        format!("team-{}", service % NAMESPACES)
    }

    /// Also its Pods' service account.
    pub(crate) fn service(service: usize) -> String {
        format!("svc-{service}")
    }

    /// The number of the Service of that name.
    pub(crate) fn service_number(name: &str) -> Option<usize> {
        name.strip_prefix("svc-")?.parse().ok()
    }

    /// Of all Services.
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = String> {
        (0..NAMESPACES.min(self.services)).map(Self::namespace)
    }

    /// [`Self::documents`] as an API server takes them: it chooses addresses, and endpoints are no Pods'.
    pub(crate) fn objects(&self, service: usize, change: Option<(Marked, u32)>) -> Result<Vec<Value>> {
        let text = self.documents(service, change);
        let mut objects = Vec::new();
        for part in text.split("---\n") {
            let mut object: Value = serde_saphyr::from_str(part).context("a document of the plan")?;
            if object["kind"] == "Pod" {
                continue;
            }
            if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
                spec.remove("clusterIP");
            }
            let endpoints = object.get_mut("endpoints").and_then(Value::as_array_mut);
            for endpoint in endpoints.into_iter().flatten().filter_map(Value::as_object_mut) {
                endpoint.remove("targetRef");
            }
            objects.push(object);
        }
        Ok(objects)
    }

    fn pods_of_each(&self) -> usize {
        (self.endpoints / self.services).max(1)
    }

    fn pod(service: usize, pod: usize) -> String {
        format!("svc-{service}-{pod}")
    }

    /// Which Service's Pod a proxy is in, and the Pod's name.
    pub(crate) fn proxy(&self, proxy: usize) -> (usize, String) {
        let service = proxy % self.services;
        (service, Self::pod(service, proxy / self.services))
    }

    /// Services that a proxy calls, each once.
    pub(crate) fn called_by(&self, proxy: usize) -> Vec<usize> {
        let mut random = fastrand::Rng::with_seed(proxy as u64 + 1);
        let mut called = Vec::with_capacity(self.calls);
        if proxy < self.subscribed {
            called.push(0);
        }
        while called.len() < self.calls.min(self.services - 1) {
            let service = random.usize(1..self.services);
            if !called.contains(&service) {
                called.push(service);
            }
        }
        called
    }

    pub(crate) fn cluster_ip(service: usize) -> Ipv4Addr {
        at(Ipv4Addr::new(10, 0, 0, 1), service)
    }

    fn pod_ip(&self, service: usize, pod: usize) -> Ipv4Addr {
        at(Ipv4Addr::new(10, 64, 0, 1), service * self.pods_of_each() + pod)
    }

    /// All documents of one Service: itself, its route, its slice, its Pods.
    pub(crate) fn documents(&self, service: usize, change: Option<(Marked, u32)>) -> String {
        let (namespace, name, ip) = (Self::namespace(service), Self::service(service), Self::cluster_ip(service));
        let marked = |what, usual: &str| match change {
            Some((marked, change)) if marked == what => mark(change),
            _ => usual.to_owned(),
        };
        let rule = marked(Marked::Route, "api");
        let mut text = format!(
            "apiVersion: v1
kind: Service
metadata:
  name: {name}
  namespace: {namespace}
spec:
  clusterIP: {ip}
  ports:
    - name: http
      port: {PORT}
      targetPort: {TARGET_PORT}
      appProtocol: http
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: {name}
  namespace: {namespace}
spec:
  parentRefs:
    - group: \"\"
      kind: Service
      name: {name}
      port: {PORT}
  rules:
    - name: {rule}
      matches:
        - path:
            type: PathPrefix
            value: /api
          method: GET
      timeouts:
        request: 10s
      backendRefs:
        - name: {name}
          port: {PORT}
    - name: rest
      backendRefs:
        - name: {name}
          port: {PORT}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {name}-1
  namespace: {namespace}
  labels:
    kubernetes.io/service-name: {name}
addressType: IPv4
ports:
  - name: http
    port: {TARGET_PORT}
endpoints:
"
        );
        for pod in 0..self.pods_of_each() {
            let (ip, target) = (self.pod_ip(service, pod), Self::pod(service, pod));
            let zone = if pod == 0 { marked(Marked::Endpoint, "zone-a") } else { "zone-a".to_owned() };
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "  - addresses: [\"{ip}\"]
    conditions:
      ready: true
    zone: {zone}
    targetRef:
      kind: Pod
      name: {target}
      namespace: {namespace}
"
            );
        }
        for pod in 0..self.pods_of_each() {
            let (ip, pod) = (self.pod_ip(service, pod), Self::pod(service, pod));
            let _ = write!(
                text,
                "---
apiVersion: v1
kind: Pod
metadata:
  name: {pod}
  namespace: {namespace}
  labels:
    app: {name}
spec:
  serviceAccountName: {name}
status:
  podIPs:
    - ip: {ip}
"
            );
        }
        text
    }
}

fn at(first: Ipv4Addr, offset: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(first).wrapping_add(u32::try_from(offset).unwrap_or(u32::MAX)))
}
