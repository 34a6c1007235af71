//! Who is where: addresses, and which Pods stand behind which Services. Built from the objects, as a whole.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use leno_proto::v1::Protocol;

use super::{
    Kind, ObjectKey,
    object::{Endpoint, EndpointSlice, Namespace, Object, Pod, Route, Service, ServicePort, Stored, TargetPort},
};

/// Every object in force.
pub(crate) type Objects = BTreeMap<ObjectKey, Arc<Stored>>;

/// Typed look-up.
pub(crate) fn service<'a>(objects: &'a Objects, key: &ObjectKey) -> Option<&'a Service> {
    match objects.get(key).map(|stored| stored.object.as_ref()) {
        Some(Object::Service(service)) => Some(service),
        _ => None,
    }
}

pub(crate) fn namespace<'a>(objects: &'a Objects, key: &ObjectKey) -> Option<&'a Namespace> {
    match objects.get(key).map(|stored| stored.object.as_ref()) {
        Some(Object::Namespace(namespace)) => Some(namespace),
        _ => None,
    }
}

pub(crate) fn pod<'a>(objects: &'a Objects, key: &ObjectKey) -> Option<&'a Pod> {
    match objects.get(key).map(|stored| stored.object.as_ref()) {
        Some(Object::Pod(pod)) => Some(pod),
        _ => None,
    }
}

pub(crate) fn slice<'a>(objects: &'a Objects, key: &ObjectKey) -> Option<&'a EndpointSlice> {
    match objects.get(key).map(|stored| stored.object.as_ref()) {
        Some(Object::EndpointSlice(slice)) => Some(slice),
        _ => None,
    }
}

pub(crate) fn route<'a>(objects: &'a Objects, key: &ObjectKey) -> Option<&'a Route> {
    match objects.get(key).map(|stored| stored.object.as_ref()) {
        Some(Object::Route(route)) => Some(route),
        _ => None,
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// Service by cluster IP.
    pub(crate) cluster_ips: HashMap<IpAddr, ObjectKey>,
    /// Services that claim an address that another one has: (loser, address, owner).
    pub(crate) address_conflicts: Vec<(ObjectKey, IpAddr, ObjectKey)>,
    /// EndpointSlices by Service, which need not exist.
    pub(crate) slices: HashMap<ObjectKey, Vec<ObjectKey>>,
    /// Pods by address; several share one on a host's network, and on a loopback.
    pub(crate) pod_ips: HashMap<IpAddr, Vec<ObjectKey>>,
    /// Endpoints by address.
    pub(crate) endpoint_ips: HashMap<IpAddr, Vec<EndpointUse>>,
    /// Services by Pod, through `targetRef`; neither need exist.
    pub(crate) services_of_pod: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
    /// Ports of a Pod that some Service names.
    pub(crate) inbound: HashMap<ObjectKey, BTreeMap<u16, InboundPort>>,
}

/// An address as some EndpointSlice uses it.
#[derive(Debug)]
pub(crate) struct EndpointUse {
    pub(crate) service: ObjectKey,
    pub(crate) slice: ObjectKey,
    /// By `targetRef`.
    pub(crate) pod: Option<ObjectKey>,
}

#[derive(Debug, Default)]
pub(crate) struct InboundPort {
    declared: BTreeSet<i32>,
    pub(crate) services: BTreeSet<ObjectKey>,
}

impl InboundPort {
    /// Services that do not say what a port speaks leave it to the one that does; those that disagree, to detection.
    pub(crate) fn protocol(&self) -> Protocol {
        match self.declared.iter().collect::<Vec<_>>().as_slice() {
            [only] => Protocol::try_from(**only).unwrap_or(Protocol::Detect),
            _ => Protocol::Detect,
        }
    }
}

impl Index {
    pub(crate) fn build(objects: &Objects) -> Self {
        let mut index = Self::default();
        for (key, stored) in objects {
            match stored.object.as_ref() {
                Object::Service(service) => index.add_service(key, service),
                Object::Pod(pod) => {
                    for ip in &pod.ips {
                        index.pod_ips.entry(*ip).or_default().push(key.clone());
                    }
                }
                Object::EndpointSlice(slice) => index.add_slice(key, slice),
                Object::Namespace(_) | Object::Route(_) => {}
            }
        }
        // Last, since it needs every Pod's addresses.
        for (service_key, slices) in &index.slices {
            let Some(service) = service(objects, service_key) else { continue };
            for (slice_key, slice) in slices.iter().filter_map(|key| Some((key, slice(objects, key)?))) {
                let ports: Vec<_> = service
                    .ports
                    .iter()
                    .filter_map(|port| Some((target_number(service, port, slice)?, port)))
                    .collect();
                for endpoint in &slice.endpoints {
                    for pod in index.pods_of(objects, &slice_key.namespace, endpoint) {
                        let known = index.inbound.entry(pod).or_default();
                        for (number, port) in &ports {
                            add_inbound(known, *number, port.protocol, service_key);
                        }
                    }
                }
            }
        }
        index
    }

    fn add_service(&mut self, key: &ObjectKey, service: &Service) {
        for ip in &service.cluster_ips {
            match self.cluster_ips.get(ip) {
                None => drop(self.cluster_ips.insert(*ip, key.clone())),
                Some(owner) => self.address_conflicts.push((key.clone(), *ip, owner.clone())),
            }
        }
    }

    fn add_slice(&mut self, key: &ObjectKey, slice: &EndpointSlice) {
        let Some(service) = service_of_slice(key, slice) else { return };
        self.slices.entry(service.clone()).or_default().push(key.clone());
        for endpoint in &slice.endpoints {
            let pod = target_ref(&key.namespace, endpoint);
            if let Some(pod) = &pod {
                self.services_of_pod.entry(pod.clone()).or_default().insert(service.clone());
            }
            for ip in &endpoint.addresses {
                let used = EndpointUse { service: service.clone(), slice: key.clone(), pod: pod.clone() };
                self.endpoint_ips.entry(*ip).or_default().push(used);
            }
        }
    }

    /// The Pod behind one address of an endpoint: by `targetRef`, else by the address if one Pod alone has it.
    pub(crate) fn pod_of(
        &self,
        objects: &Objects,
        namespace: &Arc<str>,
        endpoint: &Endpoint,
        ip: IpAddr,
    ) -> Option<ObjectKey> {
        match target_ref(namespace, endpoint) {
            Some(key) => pod(objects, &key).map(|_| key),
            None => self.only_pod_at(ip).cloned(),
        }
    }

    /// Addresses of a Pod: its own, then those of endpoints that name it.
    pub(crate) fn addresses_of<'a>(&'a self, objects: &'a Objects, key: &'a ObjectKey) -> impl Iterator<Item = IpAddr> {
        let own = pod(objects, key).into_iter().flat_map(|pod| &pod.ips);
        let services = self.services_of_pod.get(key).into_iter().flatten();
        let slices = services.filter_map(move |service| self.slices.get(service)).flatten();
        let endpoints = slices.filter_map(move |slice| self::slice(objects, slice)).flat_map(|slice| &slice.endpoints);
        let named = endpoints.filter(move |endpoint| endpoint.pod.as_ref() == Some(&key.name));
        own.chain(named.flat_map(|endpoint| &endpoint.addresses)).copied()
    }

    pub(crate) fn only_pod_at(&self, ip: IpAddr) -> Option<&ObjectKey> {
        match self.pod_ips.get(&ip).map(Vec::as_slice) {
            Some([only]) => Some(only),
            _ => None,
        }
    }

    /// The Pods behind all addresses of an endpoint.
    pub(crate) fn pods_of(&self, objects: &Objects, namespace: &Arc<str>, endpoint: &Endpoint) -> BTreeSet<ObjectKey> {
        endpoint.addresses.iter().filter_map(|ip| self.pod_of(objects, namespace, endpoint, *ip)).collect()
    }
}

fn add_inbound(known: &mut BTreeMap<u16, InboundPort>, number: u16, protocol: Protocol, service: &ObjectKey) {
    let port = known.entry(number).or_default();
    if protocol != Protocol::Detect {
        port.declared.insert(protocol as i32);
    }
    port.services.insert(service.clone());
}

pub(crate) fn service_of_slice(key: &ObjectKey, slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.service.clone()?;
    Some(ObjectKey { kind: Kind::Service, namespace: key.namespace.clone(), name })
}

/// The Pod that an endpoint of a slice in `namespace` names.
pub(crate) fn target_ref(namespace: &Arc<str>, endpoint: &Endpoint) -> Option<ObjectKey> {
    let name = endpoint.pod.clone()?;
    Some(ObjectKey { kind: Kind::Pod, namespace: namespace.clone(), name })
}

/// The Pod that an endpoint names, and that does not exist. Nobody is sent to such an endpoint: taken for one without a Pod
/// it would be reached in plaintext.
pub(crate) fn missing_pod(objects: &Objects, namespace: &Arc<str>, endpoint: &Endpoint) -> Option<ObjectKey> {
    target_ref(namespace, endpoint).filter(|key| pod(objects, key).is_none())
}

/// The endpoints' own port, in this slice, for a port of the Service. Slices name ports as the Service does; one written by
/// hand may leave out the name of an only port, or use the name of the target port.
pub(crate) fn target_number(service: &Service, port: &ServicePort, slice: &EndpointSlice) -> Option<u16> {
    let Some(ports) = &slice.ports else {
        return match port.target {
            TargetPort::Number(number) => Some(number),
            TargetPort::Name(_) => None,
        };
    };
    let named = |name: &str| ports.iter().find(|slice_port| *slice_port.name == *name);
    let only = || match (service.ports.as_slice(), ports.as_slice()) {
        ([_], [only]) if only.name.is_empty() || port.name.is_empty() => Some(only),
        _ => None,
    };
    let target = || match &port.target {
        TargetPort::Name(name) => named(name),
        TargetPort::Number(_) => None,
    };
    named(&port.name).or_else(only).or_else(target).map(|slice_port| slice_port.number)
}
