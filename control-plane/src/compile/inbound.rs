//! INBOUND: what the subscriber's own ports accept.

use leno_proto::v1::{Inbound, InboundPort, inbound::Mode};

use super::{Sources, Subscriber, object_ref, policy};
use crate::model::{self, InboundMode, Kind, ObjectKey};

/// A workload without a Pod gets the defaults.
pub(super) fn inbound(sources: &mut Sources<'_>, subscriber: &Subscriber) -> Inbound {
    let namespace = subscriber.identity.namespace();
    let key = ObjectKey { kind: Kind::Pod, namespace: namespace.into(), name: subscriber.workload.as_str().into() };
    sources.workload(&key);
    let namespace_key = ObjectKey { kind: Kind::Namespace, namespace: "".into(), name: namespace.into() };
    sources.namespace(&namespace_key);
    let world = sources.world;
    let of_pod = model::pod(&world.objects, &key).and_then(|pod| pod.inbound);
    let of_namespace = model::namespace(&world.objects, &namespace_key).and_then(|namespace| namespace.inbound);
    let (mode, mode_origin) = match (of_pod, of_namespace) {
        (Some(mode), _) => (mode, Some(object_ref(&key))),
        (None, Some(mode)) => (mode, Some(object_ref(&namespace_key))),
        (None, None) => (world.settings.inbound, None),
    };
    let mode = match mode {
        InboundMode::Strict => Mode::Strict,
        InboundMode::Permissive => Mode::Permissive,
    };
    let mut ports = Vec::new();
    for (number, port) in world.index.inbound(&world.objects, &key) {
        for (service, _) in &port.services {
            sources.origin(service);
        }
        let policy = policy::of_inbound(sources, &port.services);
        ports.push(InboundPort { port: u32::from(number), protocol: port.protocol().into(), policy });
    }
    Inbound {
        workload: Some(object_ref(&key)),
        mode: mode.into(),
        mode_origin,
        ports,
        zone: world.index.zone_of(&world.objects, &key).to_string(),
    }
}
