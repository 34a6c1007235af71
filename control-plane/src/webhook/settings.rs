//! What injection is told: which images, with which resources and security. From the chart's values, as one YAML file.
//!
//! A chart may be newer than the image that reads it (one of the two was rolled back): what is not known is said and passed over, as it
//! would be by the older pair. What is known and wrong is refused.

use std::{fs, path::Path};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::ports::PortRange;

/// Where the control plane is unless settings say otherwise.
const CONTROL_PLANE: &str = "leno.leno-system.svc.cluster.local:4190";
/// Uid of the proxy, by which the redirect knows its connections. Not 65532: many images of applications run as that.
const PROXY_UID: u32 = 2102;

/// How Pods are injected. Every field has a default, so that `leno inject` works without a cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Settings {
    /// host:port where proxies find the control plane.
    pub control_plane: String,
    /// The control plane's own namespace, whose Pods are never injected.
    pub namespace: String,
    pub proxy: Proxy,
    pub redirect: Redirect,
}

/// The sidecar.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Proxy {
    /// Image with tag or digest.
    pub image: String,
    /// Always, IfNotPresent or Never; empty: as Kubernetes chooses by the tag.
    pub image_pull_policy: String,
    /// User and group it runs as; no container of a Pod may run as the same.
    pub uid: u32,
    /// `requests` and `limits`, as in a Pod, of both containers that are added: they do not run at the same time.
    /// Annotations of a Pod go before.
    pub resources: Value,
    /// Worker threads, a number or "auto".
    pub workers: String,
    /// Filter of the proxy's own log.
    pub log: String,
    /// "text" or "json".
    pub log_format: String,
    /// "off", "text" or "json".
    pub access_log: String,
    /// Whether a Prometheus may read the proxy's metrics at the probe port, and finds them by the Pod's annotations.
    pub metrics: bool,
    /// More environment variables, as in a Pod.
    pub env: Vec<Value>,
}

/// The init container that sends the Pod's connections through the sidecar.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Redirect {
    pub mode: RedirectMode,
    /// Image with tag or digest.
    pub image: String,
    /// Inbound ports left alone in every Pod, besides those of its annotations.
    pub skip_inbound_ports: Vec<PortRange>,
    /// Outbound ports left alone in every Pod, besides those of its annotations.
    pub skip_outbound_ports: Vec<PortRange>,
    /// Networks that outbound connections go to directly, besides those of the Pod's annotations.
    pub skip_networks: Vec<ipnet::IpNet>,
}

/// Who installs the redirect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RedirectMode {
    /// An init container with NET_ADMIN.
    #[default]
    Init,
    /// Something outside the Pod (a CNI plugin, a node's agent): the Pod needs no privilege.
    External,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            control_plane: CONTROL_PLANE.to_owned(),
            namespace: leno_proto::CONTROL_PLANE_NAMESPACE.to_owned(),
            proxy: Proxy::default(),
            redirect: Redirect::default(),
        }
    }
}

/// The image of this version.
fn image(name: &str) -> String {
    format!("ghcr.io/leno-mesh/{name}:{}", env!("CARGO_PKG_VERSION"))
}

impl Default for Proxy {
    fn default() -> Self {
        Self {
            image: image("leno-proxy"),
            image_pull_policy: String::new(),
            uid: PROXY_UID,
            resources: json!({ "requests": { "cpu": "20m", "memory": "24Mi" } }),
            workers: "1".to_owned(),
            log: "info".to_owned(),
            log_format: "text".to_owned(),
            access_log: "off".to_owned(),
            metrics: true,
            env: Vec::new(),
        }
    }
}

impl Default for Redirect {
    fn default() -> Self {
        Self {
            mode: RedirectMode::default(),
            image: image("leno-redirect"),
            skip_inbound_ports: Vec::new(),
            skip_outbound_ports: Vec::new(),
            skip_networks: Vec::new(),
        }
    }
}

impl Settings {
    /// Reads the file that the chart makes. With the fields that are not known here.
    ///
    /// # Errors
    /// If it cannot be read, or a setting has a value that it cannot have.
    pub fn read(file: &Path) -> anyhow::Result<(Self, Vec<String>)> {
        let text = fs::read_to_string(file)
            .with_context(|| format!("cannot read the settings of injection, {}", file.display()))?;
        Self::parse(&text).with_context(|| format!("{} does not say how to inject", file.display()))
    }

    /// From YAML text. With the fields that are not known here ("proxy.imgae").
    ///
    /// # Errors
    /// With the field that is wrong.
    pub fn parse(text: &str) -> anyhow::Result<(Self, Vec<String>)> {
        let mut unknown = Vec::new();
        let settings: Self = serde_saphyr::with_deserializer_from_str(text, |yaml| {
            serde_ignored::deserialize(yaml, |path| unknown.push(path.to_string()))
        })?;
        anyhow::ensure!(settings.proxy.uid != 0, "proxy.uid: the proxy does not run as root; give it a uid of its own");
        anyhow::ensure!(settings.proxy.resources.is_object(), "proxy.resources: expected requests and limits");
        Ok((settings, unknown))
    }
}

/// `resources` with one more quantity.
pub(super) fn with_quantity(resources: &mut Value, part: &str, resource: &str, quantity: &str) {
    if !resources.is_object() {
        *resources = Value::Object(Map::new());
    }
    if !resources[part].is_object() {
        resources[part] = Value::Object(Map::new());
    }
    resources[part][resource] = quantity.into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_has_its_default_and_what_is_wrong_is_named() {
        let settings =
            Settings::parse("proxy:\n  image: r/p@sha256:0\nredirect:\n  skipInboundPorts: [22, 9100-9110]\n");
        let (settings, unknown) = settings.unwrap();
        assert_eq!(unknown, [] as [&str; 0]);
        assert_eq!(settings.proxy.image, "r/p@sha256:0");
        assert_eq!(settings.proxy.uid, PROXY_UID);
        assert_eq!(settings.redirect.skip_inbound_ports.len(), 2);
        for (text, expected) in [
            ("proxy:\n  uid: 0\n", "root"),
            ("redirect:\n  mode: cni\n", "cni"),
            ("redirect:\n  skipOutboundPorts: [70000]\n", "port"),
        ] {
            let error = format!("{:#}", Settings::parse(text).unwrap_err());
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn what_a_newer_chart_says_is_named_and_passed_over() {
        let text = "proxy:\n  image: r/p:1\n  imgae: x\n  env: [{name: A, newer: b}]\nredirect: {newer: {some: [1]}}\nnewest: true\n";
        let (settings, unknown) = Settings::parse(text).unwrap();
        assert_eq!((&*settings.proxy.image, settings.proxy.env.len()), ("r/p:1", 1));
        assert_eq!(unknown, ["proxy.imgae", "redirect.newer", "newest"]);
    }
}
