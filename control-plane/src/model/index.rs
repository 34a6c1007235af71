//! Who is where: addresses, and which Pods stand behind which Services. Each object adds its part, and takes it away again.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use leno_proto::v1::Protocol;

use super::{
    Kind, ObjectKey,
    networks::Networks,
    object::{Endpoint, EndpointSlice, Namespace, Object, Pod, Route, Service, ServicePort, Stored, TargetPort},
    policy::Policy,
    shared_map::SharedMap,
};

/// Every object in force.
pub(crate) type Objects = SharedMap<ObjectKey, Arc<Stored>>;

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

pub(crate) fn policy<'a>(objects: &'a Objects, key: &ObjectKey) -> Option<&'a Policy> {
    match objects.get(key).map(|stored| stored.object.as_ref()) {
        Some(Object::Policy(policy)) => Some(policy),
        _ => None,
    }
}

/// See the module.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Index {
    /// Services that claim a cluster IP; the first has it.
    cluster_ips: SharedMap<IpAddr, BTreeSet<ObjectKey>>,
    /// EndpointSlices by Service, which need not exist.
    slices: SharedMap<ObjectKey, BTreeSet<ObjectKey>>,
    /// Pods by address; several share one on a host's network, and on a loopback.
    pod_ips: SharedMap<IpAddr, BTreeSet<ObjectKey>>,
    /// Endpoints by address.
    endpoint_ips: SharedMap<IpAddr, BTreeSet<EndpointUse>>,
    /// EndpointSlices by Pod, through `targetRef`; it need not exist.
    slices_of_pod: SharedMap<ObjectKey, BTreeSet<ObjectKey>>,
    /// Where Services and Pods have addresses.
    pub(crate) networks: Networks,
}

/// An address as some EndpointSlice uses it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EndpointUse {
    pub(crate) slice: ObjectKey,
    pub(crate) service: ObjectKey,
    /// By `targetRef`.
    pub(crate) pod: Option<ObjectKey>,
}

/// A port of a Pod that some Service of its namespace names.
#[derive(Debug, Default)]
pub(crate) struct InboundPort {
    declared: BTreeSet<i32>,
    /// With the name of the Service's port.
    pub(crate) services: BTreeSet<(ObjectKey, Arc<str>)>,
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

/// Whether a part is added or taken away.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Added,
    Removed,
}

fn count<K: Ord + Clone, V: Ord + Clone>(map: &mut SharedMap<K, BTreeSet<V>>, key: &K, value: V, part: Part) {
    let change = |values: &mut BTreeSet<V>| match part {
        Part::Added => drop(values.insert(value)),
        Part::Removed => drop(values.remove(&value)),
    };
    map.change(key, change, |values| !values.is_empty());
}

impl Index {
    pub(crate) fn add(&mut self, key: &ObjectKey, object: &Object) {
        self.part(key, object, Part::Added);
    }

    /// Undoes [`Self::add`].
    pub(crate) fn remove(&mut self, key: &ObjectKey, object: &Object) {
        self.part(key, object, Part::Removed);
    }

    fn part(&mut self, key: &ObjectKey, object: &Object, part: Part) {
        match object {
            Object::Service(service) => {
                service.cluster_ips.iter().for_each(|ip| count(&mut self.cluster_ips, ip, key.clone(), part));
                self.part_of_networks(&service.cluster_ips, part);
            }
            Object::Pod(pod) => {
                pod.ips.iter().for_each(|ip| count(&mut self.pod_ips, ip, key.clone(), part));
                self.part_of_networks(&pod.ips, part);
            }
            Object::EndpointSlice(slice) => self.part_of_slice(key, slice, part),
            Object::Namespace(_) | Object::Route(_) | Object::Policy(_) => {}
        }
    }

    fn part_of_slice(&mut self, key: &ObjectKey, slice: &EndpointSlice, part: Part) {
        let Some(service) = service_of_slice(key, slice) else { return };
        count(&mut self.slices, &service, key.clone(), part);
        for endpoint in &slice.endpoints {
            let pod = target_ref(&key.namespace, endpoint);
            if let Some(pod) = &pod {
                count(&mut self.slices_of_pod, pod, key.clone(), part);
                self.part_of_networks(&endpoint.addresses, part);
            }
            for ip in &endpoint.addresses {
                let used = EndpointUse { slice: key.clone(), service: service.clone(), pod: pod.clone() };
                count(&mut self.endpoint_ips, ip, used, part);
            }
        }
    }

    fn part_of_networks(&mut self, ips: &[IpAddr], part: Part) {
        for ip in ips {
            match part {
                Part::Added => self.networks.add(*ip),
                Part::Removed => self.networks.remove(*ip),
            }
        }
    }

    /// The Service that has a cluster IP.
    pub(crate) fn service_at(&self, ip: IpAddr) -> Option<&ObjectKey> {
        self.cluster_ips.get(&ip)?.first()
    }

    /// In the order of their names.
    pub(crate) fn slices_of(&self, service: &ObjectKey) -> impl Iterator<Item = &ObjectKey> {
        self.slices.get(service).into_iter().flatten()
    }

    pub(crate) fn pods_at(&self, ip: IpAddr) -> impl Iterator<Item = &ObjectKey> {
        self.pod_ips.get(&ip).into_iter().flatten()
    }

    pub(crate) fn uses_of(&self, ip: IpAddr) -> impl Iterator<Item = &EndpointUse> + Clone {
        self.endpoint_ips.get(&ip).into_iter().flatten()
    }

    /// Services by Pod, through `targetRef`; neither need exist.
    pub(crate) fn services_of_pod(&self, objects: &Objects, pod: &ObjectKey) -> BTreeSet<ObjectKey> {
        let slices = self.slices_of_pod.get(pod).into_iter().flatten();
        slices.filter_map(|key| service_of_slice(key, slice(objects, key)?)).collect()
    }

    /// EndpointSlices of a Pod's own namespace that name it or one of its addresses. Those of other namespaces send to it, and say nothing
    /// about it: who may write there must not govern what this Pod accepts.
    fn own_slices<'a>(
        &'a self,
        objects: &'a Objects,
        key: &'a ObjectKey,
    ) -> impl Iterator<Item = (&'a ObjectKey, &'a EndpointSlice)> {
        let ips = pod(objects, key).into_iter().flat_map(|pod| &pod.ips);
        let by_address = ips.flat_map(|ip| self.uses_of(*ip)).map(|used| &used.slice);
        let named = self.slices_of_pod.get(key).into_iter().flatten();
        let slices: BTreeSet<&ObjectKey> =
            named.chain(by_address).filter(|slice| slice.namespace == key.namespace).collect();
        slices.into_iter().filter_map(move |key| Some((key, slice(objects, key)?)))
    }

    /// Ports of a Pod that some Service of its namespace names.
    pub(crate) fn inbound(&self, objects: &Objects, key: &ObjectKey) -> BTreeMap<u16, InboundPort> {
        let mut known = BTreeMap::new();
        for (slice_key, slice) in self.own_slices(objects, key) {
            let Some(service_key) = service_of_slice(slice_key, slice) else { continue };
            let Some(service) = service(objects, &service_key) else { continue };
            let is_it = |endpoint: &Endpoint| {
                let mut ips = endpoint.addresses.iter();
                ips.any(|ip| self.pod_of(objects, &slice_key.namespace, endpoint, *ip).as_ref() == Some(key))
            };
            if !slice.endpoints.iter().any(is_it) {
                continue;
            }
            for port in &service.ports {
                if let Some(number) = target_number(service, port, slice) {
                    add_inbound(&mut known, number, port, &service_key);
                }
            }
        }
        known
    }

    /// The zone that a Pod runs in, as EndpointSlices of its namespace say, or its own label; empty: neither does.
    pub(crate) fn zone_of(&self, objects: &Objects, key: &ObjectKey) -> Arc<str> {
        let slices = self.own_slices(objects, key);
        let endpoints = slices.flat_map(|(key, slice)| slice.endpoints.iter().map(move |endpoint| (key, endpoint)));
        let mut own = endpoints.filter(|(slice, endpoint)| {
            let mut ips = endpoint.addresses.iter();
            ips.any(|ip| self.pod_of(objects, &slice.namespace, endpoint, *ip).as_ref() == Some(key))
        });
        let zone = own.find_map(|(_, endpoint)| (!endpoint.zone.is_empty()).then(|| endpoint.zone.clone()));
        zone.or_else(|| pod(objects, key).map(|pod| pod.zone.clone())).unwrap_or_default()
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
        let slices = self.slices_of_pod.get(key).into_iter().flatten();
        let endpoints = slices.filter_map(move |slice| self::slice(objects, slice)).flat_map(|slice| &slice.endpoints);
        let named = endpoints.filter(move |endpoint| endpoint.pod.as_ref() == Some(&key.name));
        own.chain(named.flat_map(|endpoint| &endpoint.addresses)).copied()
    }

    pub(crate) fn only_pod_at(&self, ip: IpAddr) -> Option<&ObjectKey> {
        let pods = self.pod_ips.get(&ip).filter(|pods| pods.len() == 1)?;
        pods.first()
    }

    /// The Pods behind all addresses of an endpoint.
    pub(crate) fn pods_of(&self, objects: &Objects, namespace: &Arc<str>, endpoint: &Endpoint) -> BTreeSet<ObjectKey> {
        endpoint.addresses.iter().filter_map(|ip| self.pod_of(objects, namespace, endpoint, *ip)).collect()
    }
}

fn add_inbound(known: &mut BTreeMap<u16, InboundPort>, number: u16, of: &ServicePort, service: &ObjectKey) {
    let port = known.entry(number).or_default();
    if of.protocol != Protocol::Detect {
        port.declared.insert(of.protocol as i32);
    }
    port.services.insert((service.clone(), of.name.clone()));
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
