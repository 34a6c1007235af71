//! What the redirect of a Pod is told: the settings and the Pod's annotations, together.
//!
//! It is written into the Pod as the annotation [`REDIRECT_ANNOTATION`], for who installs the redirect in place of the init container.
//! Which inbound ports it leaves alone is written into its containers, too, for the control plane: clients in the mesh must reach these
//! without TLS, since there the application itself answers. A spec stays as it was made; annotations are anybody's who may change the
//! Pod's metadata, and must not take a port out of the mesh.

use std::str::FromStr;

use ipnet::IpNet;
use serde::Serialize;
use serde_json::Value;

use super::{
    PROBE_PORT, PROXY, REDIRECT, SKIP_INBOUND_PORTS, SKIP_NETWORKS, SKIP_OUTBOUND_PORTS, annotation, containers, list,
};
use crate::webhook::{
    ports::{self, PortRange},
    settings::Settings,
};

/// Annotation of injected Pods: JSON whose fields are named as the options of `leno-proxy redirect install`.
pub const REDIRECT_ANNOTATION: &str = "leno.dev/redirect";
/// Variable of the containers `leno-proxy` and `leno-redirect`: inbound ports that the redirect leaves alone.
pub(super) const EXCLUDE_INBOUND_PORTS: &str = "LENO_EXCLUDE_INBOUND_PORTS";
/// Variable of the container `leno-proxy`: see [`PROBE_PORT`].
pub(super) const PROBE_PORT_VARIABLE: &str = "LENO_PROBE_PORT";

/// See the module.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Redirect {
    pub(super) proxy_uid: u32,
    pub(super) exclude_inbound_ports: Vec<PortRange>,
    pub(super) exclude_outbound_ports: Vec<PortRange>,
    pub(super) exclude_networks: Vec<IpNet>,
}

impl Redirect {
    pub(super) fn of(pod: &Value, settings: &Settings) -> Result<Self, String> {
        let chosen = &settings.redirect;
        let mut inbound = chosen.skip_inbound_ports.clone();
        inbound.push(PortRange::from(PROBE_PORT));
        inbound.extend(listed::<PortRange>(pod, SKIP_INBOUND_PORTS)?);
        let mut outbound = chosen.skip_outbound_ports.clone();
        outbound.extend(listed::<PortRange>(pod, SKIP_OUTBOUND_PORTS)?);
        let mut networks = chosen.skip_networks.clone();
        networks.extend(listed::<Network>(pod, SKIP_NETWORKS)?.into_iter().map(|network| network.0));
        Ok(Self {
            proxy_uid: settings.proxy.uid,
            exclude_inbound_ports: inbound,
            exclude_outbound_ports: outbound,
            exclude_networks: networks,
        })
    }

    /// As [`REDIRECT_ANNOTATION`] has it.
    pub(super) fn text(&self) -> Result<String, String> {
        serde_json::to_string(self)
            .map_err(|error| format!("what its redirect is told cannot be written down: {error}"))
    }
}

/// Inbound ports that the redirect of a Pod leaves alone, as [`SKIP_INBOUND_PORTS`] would say it. Of a Pod that was injected before its
/// proxy had the variable the redirect's own counts; where something outside the Pod installed that, the proxy's probe port alone is
/// known.
pub(crate) fn skipped_inbound_ports(pod: &Value) -> Option<&str> {
    let said = |container: &str, variable: &str| {
        let found = containers(&pod["spec"]).find(|one| one["name"] == container)?;
        // Of several of one name the last holds.
        list(found, "env").iter().rfind(|one| one["name"] == variable)?["value"].as_str()
    };
    said(PROXY, EXCLUDE_INBOUND_PORTS)
        .or_else(|| said(REDIRECT, EXCLUDE_INBOUND_PORTS))
        .or_else(|| said(PROXY, PROBE_PORT_VARIABLE))
}

/// The values of an annotation.
fn listed<T: FromStr<Err = String>>(pod: &Value, name: &str) -> Result<Vec<T>, String> {
    ports::list(annotation(pod, name).unwrap_or_default()).map_err(|wrong| format!("annotation {name}: {wrong}"))
}

/// A network, or an address that is one alone.
struct Network(IpNet);

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<IpNet>()
            .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
            .map(Self)
            .map_err(|_| format!("{text:?} is neither a network (10.0.0.0/8) nor an address"))
    }
}
