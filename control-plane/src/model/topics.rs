//! What a change touches: from objects that changed to the topics that compiled resources depend on.

use std::{
    collections::HashSet,
    hash::{BuildHasherDefault, DefaultHasher, Hash as _, Hasher},
    sync::Arc,
};

use super::{
    Kind, ObjectKey, Topic,
    index::{self, Index, Objects},
    object::{EndpointSlice, Object, Route},
};

/// A topic as it is remembered and looked up: thousands of times for each change. Two topics with one id would only mean
/// that something is compiled again although nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicId(u64);

impl Topic {
    pub fn id(&self) -> TopicId {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        TopicId(hasher.finish())
    }
}

/// For maps and sets of ids, which are hashes already.
pub type ByTopicId = BuildHasherDefault<Unhashed>;

/// See [`ByTopicId`].
#[derive(Debug, Default)]
pub struct Unhashed(u64);

impl Hasher for Unhashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, id: u64) {
        self.0 = id;
    }
}

/// One side of a change.
pub(crate) struct Side<'a> {
    pub(crate) objects: &'a Objects,
    pub(crate) index: &'a Index,
}

/// "namespace/name"
pub(crate) fn name_of(key: &ObjectKey) -> Arc<str> {
    format!("{}/{}", key.namespace, key.name).into()
}

/// Adds every topic that a change of `key`, from `before` to `after`, touches.
pub(crate) fn touched(key: &ObjectKey, before: &Side<'_>, after: &Side<'_>, topics: &mut HashSet<Topic>) {
    if let (Some(old), Some(new)) = (index::slice(before.objects, key), index::slice(after.objects, key))
        && (&old.service, &old.ports) == (&new.service, &new.ports)
    {
        // The common change: endpoints come and go. The others are not touched by it.
        let mut changed = old.clone();
        changed.endpoints.retain(|endpoint| !new.endpoints.contains(endpoint));
        changed.endpoints.extend(new.endpoints.iter().filter(|one| !old.endpoints.contains(one)).cloned());
        slice_topics(key, &changed, topics);
        workload_topics(key, &changed, before, topics);
        workload_topics(key, &changed, after, topics);
        return;
    }
    for side in [before, after] {
        let Some(stored) = side.objects.get(key) else { continue };
        match stored.object.as_ref() {
            Object::Namespace(_) => drop(topics.insert(Topic::Namespace(key.name.clone()))),
            Object::Service(service) => {
                topics.insert(Topic::Service(name_of(key)));
                topics.extend(service.cluster_ips.iter().map(|ip| Topic::Address(ip.to_string().into())));
                for slice in side.index.slices_of(key) {
                    if let Some(endpoints) = index::slice(side.objects, slice) {
                        workload_topics(slice, endpoints, side, topics);
                    }
                }
            }
            Object::EndpointSlice(slice) => {
                slice_topics(key, slice, topics);
                workload_topics(key, slice, side, topics);
            }
            Object::Pod(pod) => {
                topics.insert(Topic::Workload(name_of(key)));
                let services = side.index.services_of_pod(side.objects, key);
                topics.extend(services.iter().map(|service| Topic::Service(name_of(service))));
                for ip in &pod.ips {
                    topics.insert(Topic::Address(ip.to_string().into()));
                    // Whose endpoints are found by address.
                    for side in [before, after] {
                        let uses = side.index.uses_of(*ip);
                        topics.extend(uses.map(|used| Topic::Service(name_of(&used.service))));
                        let pods = side.index.pods_at(*ip);
                        topics.extend(pods.map(|pod| Topic::Workload(name_of(pod))));
                    }
                }
            }
            Object::Route(route) => route_topics(route, topics),
            Object::Policy(policy) => {
                // Whoever it is attached to, before or after.
                for (target, side) in policy.targets.iter().flat_map(|target| [(target, before), (target, after)]) {
                    policy_topics(key.kind, &target.object, side, topics);
                }
            }
        }
    }
}

/// A route shapes what clients of its parents get.
fn route_topics(route: &Route, topics: &mut HashSet<Topic>) {
    for parent in route.parents.iter().filter(|parent| parent.is_service) {
        topics.insert(Topic::Service(format!("{}/{}", parent.namespace, parent.name).into()));
    }
}

/// What a policy of that kind shapes at its target.
fn policy_topics(policy: Kind, target: &ObjectKey, side: &Side<'_>, topics: &mut HashSet<Topic>) {
    if target.kind == Kind::Service {
        topics.insert(Topic::Service(name_of(target)));
    } else if let Some(route) = index::route(side.objects, target) {
        route_topics(route, topics);
    }
    if policy == Kind::InboundPolicy {
        for slice in side.index.slices_of(target) {
            if let Some(endpoints) = index::slice(side.objects, slice) {
                workload_topics(slice, endpoints, side, topics);
            }
        }
    }
}

fn slice_topics(key: &ObjectKey, slice: &EndpointSlice, topics: &mut HashSet<Topic>) {
    if let Some(service) = index::service_of_slice(key, slice) {
        topics.insert(Topic::Service(name_of(&service)));
    }
    for endpoint in &slice.endpoints {
        topics.extend(endpoint.addresses.iter().map(|ip| Topic::Address(ip.to_string().into())));
        if let Some(pod) = index::target_ref(&key.namespace, endpoint) {
            topics.insert(Topic::Workload(name_of(&pod)));
        }
    }
}

/// Workloads that endpoints stand for, also those that only their address tells.
fn workload_topics(key: &ObjectKey, slice: &EndpointSlice, side: &Side<'_>, topics: &mut HashSet<Topic>) {
    for endpoint in &slice.endpoints {
        let pods = side.index.pods_of(side.objects, &key.namespace, endpoint);
        topics.extend(pods.iter().map(|pod| Topic::Workload(name_of(pod))));
    }
}
