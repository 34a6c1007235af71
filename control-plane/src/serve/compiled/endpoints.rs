//! An ENDPOINTS resource as a delta against what the proxy holds, where that is shorter.

use std::collections::{HashMap, HashSet};

use leno_proto::v1::{Endpoint, EndpointsDelta, Resource, resource::Body};

/// `next` as a delta against `base`; None if the whole is no longer than that.
pub(super) fn shorten(base: &Resource, next: &Resource) -> Option<Resource> {
    let (Some(Body::Endpoints(old)), Some(Body::Endpoints(new))) = (&base.body, &next.body) else { return None };
    if (old.protocol, &old.host_name, &old.policy) != (new.protocol, &new.host_name, &new.policy) {
        return None;
    }
    let mut before: HashMap<&str, &Endpoint> = old.endpoints.iter().map(|e| (e.address.as_str(), e)).collect();
    let addresses: HashSet<&str> = new.endpoints.iter().map(|e| e.address.as_str()).collect();
    // An address twice cannot be told apart in a delta.
    if before.len() != old.endpoints.len() || addresses.len() != new.endpoints.len() {
        return None;
    }
    let mut delta = EndpointsDelta { base_version: base.version.clone(), ..EndpointsDelta::default() };
    for endpoint in &new.endpoints {
        if before.remove(endpoint.address.as_str()) != Some(endpoint) {
            delta.upserted.push(endpoint.clone());
        }
    }
    delta.removed = before.into_keys().map(str::to_owned).collect();
    delta.removed.sort_unstable();
    if delta.upserted.len() + delta.removed.len() >= new.endpoints.len() {
        return None;
    }
    Some(Resource {
        name: next.name.clone(),
        version: next.version.clone(),
        origins: next.origins.clone(),
        body: Some(Body::EndpointsDelta(delta)),
    })
}
