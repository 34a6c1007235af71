//! Endpoints of a backend: whole sets and deltas.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use leno_proto::{spiffe::SpiffeId, v1};

use super::{Invalid, backend_policy, parse_port, parse_protocol};
use crate::{
    policy::{BackendPolicy, Protocol},
    upstream::{Backend, Endpoint, EndpointSet, HostName},
};

/// The next endpoints of a backend, not yet in force.
pub(super) struct EndpointsUpdate {
    backend: Arc<Backend>,
    protocol: Protocol,
    policy: Arc<BackendPolicy>,
    content: Content,
}

enum Content {
    /// With whether each is draining.
    Endpoints(Vec<(Arc<Endpoint>, bool)>),
    /// DNS finds them.
    Name(HostName),
    /// The backend itself does not exist.
    Gone,
}

impl EndpointsUpdate {
    /// All endpoints anew.
    pub(super) fn whole(backend: &Arc<Backend>, endpoints: v1::Endpoints) -> Result<Self, Invalid> {
        let protocol = parse_protocol(endpoints.protocol).map_err(|invalid| invalid.within("endpoints"))?;
        let policy = backend_policy::parse(endpoints.policy).map_err(|invalid| invalid.within("endpoints.policy"))?;
        let current = Arc::clone(&backend.endpoints.load().policy);
        let policy = if *current == policy { current } else { Arc::new(policy) };
        let content = match endpoints.host_name {
            Some(name) => {
                Content::Name(parse_host_name(name).map_err(|invalid| invalid.within("endpoints.host_name"))?)
            }
            None => {
                let held = held_endpoints(backend);
                let mut next = HashMap::with_capacity(endpoints.endpoints.len());
                let mut order = Vec::with_capacity(endpoints.endpoints.len());
                for (index, endpoint) in endpoints.endpoints.into_iter().enumerate() {
                    let parsed = parse_endpoint(endpoint, &held);
                    let parsed = parsed.map_err(|invalid| invalid.within(format!("endpoints.endpoints[{index}]")))?;
                    let address = parsed.0.address;
                    if next.insert(address, parsed).is_none() {
                        order.push(address);
                    }
                }
                Content::Endpoints(order.iter().filter_map(|address| next.remove(address)).collect())
            }
        };
        Ok(Self { backend: backend.clone(), protocol, policy, content })
    }

    /// The endpoints held, with changes.
    pub(super) fn changed(backend: &Arc<Backend>, delta: v1::EndpointsDelta) -> Result<Self, Invalid> {
        if backend.host_name.load().is_some() {
            return Err(Invalid::new("endpoints_delta", "the backend is a name: its endpoints come from DNS"));
        }
        let held = held_endpoints(backend);
        let mut upserted = HashMap::with_capacity(delta.upserted.len());
        let mut added = Vec::new();
        for (index, endpoint) in delta.upserted.into_iter().enumerate() {
            let parsed = parse_endpoint(endpoint, &held);
            let parsed = parsed.map_err(|invalid| invalid.within(format!("endpoints_delta.upserted[{index}]")))?;
            let address = parsed.0.address;
            if upserted.insert(address, parsed).is_none() {
                added.push(address);
            }
        }
        let mut removed = Vec::with_capacity(delta.removed.len());
        for (index, text) in delta.removed.iter().enumerate() {
            let address = parse_address(text);
            removed.push(address.map_err(|reason| Invalid::new(format!("endpoints_delta.removed[{index}]"), reason))?);
        }
        removed.sort_unstable();
        let current = backend.endpoints.load();
        let mut next = Vec::with_capacity(current.endpoints.len() + added.len());
        for endpoint in current.told() {
            match upserted.remove(&endpoint.address) {
                Some(changed) => next.push(changed),
                None if removed.binary_search(&endpoint.address).is_ok() => {}
                None => next.push((endpoint.clone(), endpoint.is_draining())),
            }
        }
        next.extend(added.iter().filter_map(|address| upserted.remove(address)));
        let (protocol, policy) = (current.protocol, Arc::clone(&current.policy));
        Ok(Self { backend: backend.clone(), protocol, policy, content: Content::Endpoints(next) })
    }

    /// The backend is known to have none.
    pub(super) fn none(backend: &Arc<Backend>) -> Self {
        let current = backend.endpoints.load();
        let (protocol, policy) = (current.protocol, Arc::clone(&current.policy));
        Self { backend: backend.clone(), protocol, policy, content: Content::Gone }
    }

    pub(super) fn is_of(&self, backend: &Arc<Backend>) -> bool {
        Arc::ptr_eq(&self.backend, backend)
    }

    /// Puts it in force.
    pub(super) fn publish(self) {
        match self.content {
            Content::Endpoints(endpoints) if endpoints.is_empty() && self.backend.host_name.load().is_none() => {
                self.backend.publish_none(self.protocol, self.policy, Instant::now());
            }
            Content::Endpoints(endpoints) => {
                let now = Instant::now();
                for (endpoint, draining) in &endpoints {
                    if endpoint.draining.swap(*draining, Ordering::Relaxed) && !draining {
                        endpoint.came(now);
                    }
                }
                let endpoints = endpoints.into_iter().map(|(endpoint, _)| endpoint).collect();
                self.backend.host_name.store(None);
                self.backend.publish(EndpointSet::new(true, self.protocol, endpoints).under(self.policy));
            }
            Content::Gone => {
                self.backend.host_name.store(None);
                self.backend.publish(EndpointSet::new(true, self.protocol, Vec::new()).under(self.policy));
            }
            Content::Name(name) => {
                let current = self.backend.endpoints.load_full();
                let same_name = self.backend.host_name.load().as_ref().is_some_and(|held| **held == name);
                if same_name && current.protocol == self.protocol && current.policy == self.policy {
                    return;
                }
                if same_name {
                    return self.backend.republish(self.protocol, self.policy);
                }
                self.backend.host_name.store(Some(Arc::new(name)));
                self.backend.publish(EndpointSet::new(false, self.protocol, Vec::new()).under(self.policy));
            }
        }
    }
}

fn held_endpoints(backend: &Backend) -> HashMap<SocketAddr, Arc<Endpoint>> {
    let set = backend.endpoints.load();
    set.endpoints.iter().map(|endpoint| (endpoint.address, endpoint.clone())).collect()
}

/// The endpoint and whether it is draining. It is the one that is held if nothing but its state differs, and inherits
/// from it if address and identity are the same.
fn parse_endpoint(
    endpoint: v1::Endpoint,
    held: &HashMap<SocketAddr, Arc<Endpoint>>,
) -> Result<(Arc<Endpoint>, bool), Invalid> {
    let address = parse_address(&endpoint.address).map_err(|reason| Invalid::new("address", reason))?;
    let identity = match endpoint.identity.as_str() {
        "" => None,
        text => Some(text.parse::<SpiffeId>().map_err(|error| Invalid::new("identity", error))?),
    };
    let draining = match v1::endpoint::State::try_from(endpoint.state) {
        Ok(v1::endpoint::State::Ready) => false,
        Ok(v1::endpoint::State::Draining) => true,
        Ok(v1::endpoint::State::Unspecified) | Err(_) => {
            return Err(Invalid::new("state", format!("{} is not a state that is known", endpoint.state)));
        }
    };
    let is_unchanged = |held: &Endpoint| {
        held.weight == endpoint.weight.max(1) && *held.zone == *endpoint.zone && *held.workload == *endpoint.workload
    };
    let endpoint = match held.get(&address).filter(|held| held.identity == identity) {
        Some(held) if is_unchanged(held) => held.clone(),
        Some(held) => held.renewed(endpoint.workload, endpoint.zone, endpoint.weight),
        None => {
            let new = Endpoint::new(address, identity, endpoint.workload, endpoint.zone, endpoint.weight);
            if !held.is_empty() {
                new.came(Instant::now());
            }
            new
        }
    };
    Ok((endpoint, draining))
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 && !address.ip().is_unspecified() => Ok(address),
        _ => Err(format!("{text:?} is not an address and port")),
    }
}

fn parse_host_name(name: v1::HostName) -> Result<HostName, Invalid> {
    let valid = !name.host.is_empty()
        && name.host.len() <= 253
        && name.host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':'));
    if !valid {
        return Err(Invalid::new("host", format!("{:?} is not a host name", name.host)));
    }
    Ok(HostName { host: name.host, port: parse_port(name.port)? })
}
