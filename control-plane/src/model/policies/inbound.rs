//! InboundPolicies hold at workloads' ports, and two Services (a ClusterIP and a headless one, say) may name the same port: then
//! the older policy is in force there, and the other is told so. Services of other namespaces may send to a workload, and have no say in
//! what it accepts: [`Index::inbound`] does not name them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{Condition, Kind, ObjectKey, Objects, PolicyIndex, Target, index};
use crate::model::index::Index;

/// Ports, and Pods' addresses, that are named to a policy that is not in force there.
const PORTS_TOLD: usize = 4;

impl PolicyIndex {
    /// The policy in force at a workload's port, which is that of these ports of Services: of theirs, the oldest.
    pub(crate) fn at_workload(
        &self,
        objects: &Objects,
        services: &BTreeSet<(ObjectKey, Arc<str>)>,
    ) -> Option<&ObjectKey> {
        let all = services.iter().filter_map(|(service, port)| self.at(Kind::InboundPolicy, service, port));
        all.min_by_key(|key| {
            let created = index::policy(objects, key).and_then(|policy| policy.created.clone());
            (created.is_none(), created, key.namespace.clone(), key.name.clone())
        })
    }

    /// Says in what an InboundPolicy was told of `target` where it is not in force; if that is so everywhere, it is not accepted.
    pub(crate) fn tell_contested(
        &self,
        (objects, index): (&Objects, &Index),
        key: &ObjectKey,
        target: &Target,
        told: &mut Condition,
    ) {
        if !told.status {
            return;
        }
        let contested = self.contested(objects, index, key, target);
        let named = |((pod, port), winner): (&(ObjectKey, u16), &&ObjectKey)| format!("port {port} of {pod}: {winner}");
        let reasons = [
            (
                "Conflicted",
                "not in force where an older policy of another Service with that port is",
                few(contested.lost.iter().map(named)),
            ),
            (
                "Invalid",
                "not in force at Pods of other namespaces",
                few(contested.foreign.iter().map(ToString::to_string)),
            ),
        ];
        for (reason, what, places) in reasons.into_iter().filter(|(_, _, places)| !places.is_empty()) {
            let said = format!("{what}: {places}");
            told.message = if told.message.is_empty() { said } else { format!("{}; {said}", told.message) };
            if told.status && !contested.holds {
                told.status = false;
                reason.clone_into(&mut told.reason);
            }
        }
    }

    fn contested(&self, objects: &Objects, index: &Index, key: &ObjectKey, target: &Target) -> Contested<'_> {
        let is_others = |service: &ObjectKey| {
            *service != target.object && self.in_force.contains_key(&(Kind::InboundPolicy, service.clone()))
        };
        let mut contested = Contested { holds: false, lost: BTreeMap::new(), foreign: BTreeSet::new() };
        let mut pods = BTreeSet::new();
        for slice_key in index.slices_of(&target.object) {
            let Some(slice) = index::slice(objects, slice_key) else { continue };
            for endpoint in &slice.endpoints {
                let addresses = endpoint.addresses.iter();
                let shared = addresses.flat_map(|ip| index.uses_of(*ip)).any(|used| is_others(&used.service));
                let is_foreign = |ip: &IpAddr| {
                    let pod = index.pod_of(objects, &slice_key.namespace, endpoint, *ip);
                    pod.is_some_and(|pod| pod.namespace != slice_key.namespace)
                };
                contested.foreign.extend(endpoint.addresses.iter().copied().filter(is_foreign));
                let mut of_endpoint = index.pods_of(objects, &slice_key.namespace, endpoint);
                of_endpoint.retain(|pod| pod.namespace == slice_key.namespace);
                if shared {
                    pods.extend(of_endpoint);
                } else {
                    contested.holds |= !of_endpoint.is_empty();
                }
            }
        }
        for pod in pods {
            for (number, port) in index.inbound(objects, &pod) {
                let is_ours = |(service, name): &(ObjectKey, Arc<str>)| {
                    *service == target.object
                        && target.section.as_ref().is_none_or(|section| section == name)
                        && self.at(Kind::InboundPolicy, service, name) == Some(key)
                };
                if !port.services.iter().any(is_ours) {
                    continue;
                }
                match self.at_workload(objects, &port.services) {
                    Some(winner) if winner != key => drop(contested.lost.insert((pod.clone(), number), winner)),
                    _ => contested.holds = true,
                }
            }
        }
        contested
    }
}

/// Of a policy's target.
struct Contested<'a> {
    /// It is in force at some port.
    holds: bool,
    /// Ports of Pods, and who is in force there.
    lost: BTreeMap<(ObjectKey, u16), &'a ObjectKey>,
    /// Addresses of Pods of other namespaces.
    foreign: BTreeSet<IpAddr>,
}

/// The first of them, and how many more there are.
fn few(places: impl ExactSizeIterator<Item = String>) -> String {
    let more = places.len().saturating_sub(PORTS_TOLD);
    let mut told: Vec<String> = places.take(PORTS_TOLD).collect();
    if more > 0 {
        told.push(format!("{more} more"));
    }
    told.join("; ")
}
